"""CADD Fig. 4: a trained masked-diffusion model goes on with latents, and as long without."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.reproduce.cadd_models import LABELS, steps_told
from crocodil.reproduce.figure import Row, one
from crocodil.reproduce.figures.cadd_fig3 import as_good, beside, figure
from crocodil.reproduce.lab import Lab

MODELS = ("mdm", "mdm_more", "finetuned", "cadd")


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    mdm, more, finetuned, cadd = ({"model": LABELS[name]} for name in MODELS)
    found = [
        beside(rows, name, finetuned, other, "T") for other in (mdm, more) for name in ("mauve", "gen_ppl")
    ]
    most = max((row.labels["T"] for row in rows if isinstance(row.labels["T"], int)), default=0)
    ends = [one(rows, **labels, T=most) for labels in (finetuned, cadd)]
    found.append(as_good(f"{LABELS['finetuned']} at T = {most:,}", ends[0], LABELS["cadd"], ends[1]))
    if all(ends):
        found.append(f"{LABELS['finetuned']} has the steps of both trainings, {LABELS['cadd']} those of one.")
    return [*filter(None, found), *steps_told(lab, MODELS)]


FIGURE = figure(
    "cadd-fig4",
    "CADD, Figure 4",
    "From a trained masked-diffusion model",
    "Trained on with CADD's objective, a masked-diffusion model writes about as well as CADD from scratch.",
    MODELS,
    verdicts,
)
