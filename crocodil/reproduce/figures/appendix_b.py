"""App. B: two sentences of two words. Independent draws write impossible pairs, guided ones do not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate, mean
from crocodil.reproduce.figure import Chart, Column, Figure, Line, Row, agrees, one
from crocodil.reproduce.lab import Lab
from crocodil.reproduce.measures.toy import METHODS, Pairs


def lines(lab: Lab) -> list[Line]:
    config = lab.config.appendix_b
    task = Pairs(config.draws, config.steps, lab.config.seed)
    return [
        Line(
            {"method": method, "evaluations": {"marginals": 0, "mdm in two steps": 2}.get(method, 1)},
            [task],
            {"impossible": 0.5} if method == "marginals" else {},
        )
        for method in METHODS
    ]


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    method, result = line.labels["method"], lab.result(line.tasks[0]).values
    found = {"impossible": mean(result["impossible"][method])}
    n = len(result["impossible"][method])
    for name, share in zip(("cat_meows", "dog_barks"), result["shares"][method], strict=True):
        found[name] = Estimate(share, None, None, n)
    if method in result["gap"]:
        found["gap"] = Estimate(result["gap"][method], None, None, 2)
    return found


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    share = {str(row.labels["method"]): row.values["impossible"].value for row in rows}
    without, under = (one(rows, method=method) for method in ("mdm", "autoencoder"))
    assert without and under
    guided = max(share["autoencoder"], share["conthendisc"])
    told = (
        f"both words drawn at once are impossible together in {share['mdm']:.1%} without a register, and in "
        f"{share['autoencoder']:.2%} and {share['conthendisc']:.2%} under one of a real sentence and one out of noise"
    )
    gaps = f"{without.values['gap'].value:.3f} and {under.values['gap'].value:.3f}"
    return [
        agrees(abs(share["mdm"] - 0.5) < 0.05 and guided < 0.02, told, told),
        f"Eq. 6 for the trained demasker, both words masked: {gaps} nats without and with a register; log 2 = "
        f"{math.log(2):.3f} is what an optimal demasker loses.",
    ]


FIGURE = Figure(
    "appendix-b",
    "App. B",
    "Two sentences: cat meows, dog barks",
    "The best independent draws write (cat, barks) and (dog, meows) half of the time; given what stands for the "
    "sentence, the words are independent.",
    (
        Column("impossible", "impossible pairs ↓", 2, percent=True),
        Column("cat_meows", "cat meows", 1, percent=True),
        Column("dog_barks", "dog barks", 1, percent=True),
        Column("gap", "Eq. 6, nats ↓"),
    ),
    lines,
    values,
    verdicts,
    (Chart("pairs that nobody says", "method", ("impossible",), kind="bars"),),
    notes=(
        "Encoder, demasker and denoiser of the package at width 16, trained on the two sentences in seconds; the first "
        "line draws from the exact marginals (Eq. 8) without a network.",
    ),
)
