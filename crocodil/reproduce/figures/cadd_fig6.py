"""CADD Fig. 6: entropy of the tokens of a text, by model and by number of draws."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.reproduce.cadd_models import LABELS, named, wanted
from crocodil.reproduce.config import ByDraws
from crocodil.reproduce.figure import JUDGED, NOWHERE, Chart, Figure, Label, Line, Row
from crocodil.reproduce.figures.cadd_fig3 import MODELS, REAL, beside
from crocodil.reproduce.lab import Lab
from crocodil.reproduce.measures.chains import chains, originals, quality


def lines(lab: Lab, config: ByDraws) -> list[Line]:
    there = named(lab, MODELS)
    found = [
        Line({"model": LABELS[name], "K": draws, "T": steps}, chains(lab, name, steps, draws))
        for name in there
        for draws in ([0] if name == "mdm" else sorted(set(config.draws)))
        for steps in sorted(set(config.steps))
    ]
    if there:
        found.append(Line({"model": REAL, "K": NOWHERE, "T": NOWHERE}, originals(lab, there[0])))
    return found


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    cadd = [row for row in rows if row.labels["model"] == LABELS["cadd"]]
    ks = list(dict.fromkeys(row.labels["K"] for row in cadd))
    if not ks:
        return []
    fewest: dict[str, Label] = {"model": LABELS["cadd"], "K": ks[0]}
    most: dict[str, Label] = {"model": LABELS["cadd"], "K": ks[-1]}
    mdm: dict[str, Label] = {"model": LABELS["mdm"], "K": 0}
    found = [beside(rows, "token_entropy", fewest, mdm, "T")]
    if len(ks) > 1:
        found.append(beside(rows, "token_entropy", most, fewest, "T"))
    return [one for one in found if one]


FIGURE = Figure(
    "cadd-fig6",
    "CADD, Figure 6",
    "Entropy of texts out of noise",
    "CADD's texts have the lowest entropy of all, and the more draws of latents the lower it is.",
    JUDGED,
    lambda lab: lines(lab, lab.config.cadd_fig6),
    lambda lab, line: quality(lab, line.tasks),
    verdicts,
    (Chart("by steps T", "T", ("token_entropy",), ("model", "K"), log_x=True),),
    missing=lambda lab: wanted(lab, MODELS),
    notes=(
        "Entropy, in nats, of how often each of the judge's tokens stands in a text. That of real texts stands below: to "
        "have less is no virtue.",
    ),
)
