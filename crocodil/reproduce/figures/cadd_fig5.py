"""CADD Fig. 5: several chains of latents for each text, whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.reproduce.cadd_models import wanted
from crocodil.reproduce.config import ByDraws
from crocodil.reproduce.figure import Chart, Figure, Line, Row
from crocodil.reproduce.figures.cadd_fig3 import COLUMNS, NOTES, beside, values
from crocodil.reproduce.lab import Lab
from crocodil.reproduce.measures.chains import chains, originals


def lines(lab: Lab, config: ByDraws) -> list[Line]:
    if not lab.has("cadd"):
        return []
    return [
        Line({"K": draws, "T": steps}, [*chains(lab, "cadd", steps, draws), *originals(lab, "cadd")])
        for draws in sorted(set(config.draws))
        for steps in sorted(set(config.steps))
    ]


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    ks = list(dict.fromkeys(row.labels["K"] for row in rows))
    pairs = [] if len(ks) < 2 else [(ks[-1], ks[0])]
    return [
        told
        for most, fewest in pairs
        for name in ("mauve", "gen_ppl")
        if (told := beside(rows, name, {"K": most}, {"K": fewest}, "T"))
    ]


FIGURE = Figure(
    "cadd-fig5",
    "CADD, Figure 5",
    "Several draws of latents for each text",
    "More draws and more steps are better, in MAUVE and Gen-PPL; most is gained from K = 2 to 3.",
    COLUMNS,
    lambda lab: lines(lab, lab.config.cadd_fig5),
    values,
    verdicts,
    (
        Chart("by steps T", "T", ("mauve", "gen_ppl", "token_entropy"), ("K",), log_x=True, log_y=("gen_ppl",)),
    ),
    missing=lambda lab: wanted(lab, ("cadd",)),
    notes=(*NOTES, "Every draw costs an evaluation in every step: K = 4 at T is as dear as K = 1 at 4 T."),
)  # fmt: skip
