"""PRDC of App. E: do drawn registers lie where real ones do, and everywhere where real ones do?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crocodil.metrics.bootstrap import Estimate
from crocodil.metrics.prdc import NEAREST
from crocodil.reproduce import paper
from crocodil.reproduce.figure import Chart, Column, Figure, Line, Quote, Row, agrees, one, pick, too_near
from crocodil.reproduce.figures.fig9 import NOTHING, missing, most, seen, shares
from crocodil.reproduce.lab import MAIN, Lab
from crocodil.reproduce.measures.registers import Covered, Drawn, Encoded

NAMES = ("precision", "recall", "density", "coverage")
BLOCK = 16
"""Registers that are compared in one piece of work."""


def lines(lab: Lab) -> list[Line]:
    config, synthesis, length = lab.config.prdc, lab.config.synthesis, lab.model(MAIN).window
    found: list[Line] = []
    for share in shares(lab, (config.visible,)):
        for k in dict.fromkeys(min(k, most(lab, share)) for k in config.ks):
            parts = list(lab.parts(config.samples, length))
            if parts[-1][1] <= NEAREST:  # a sample needs so many neighbours
                return found
            steps = synthesis.latent_steps if share is None else synthesis.refresh_steps
            drawn = tuple(Drawn(length, part, share, k, steps) for part in parts)
            real = tuple(Encoded(length, part, k) for part in parts)
            ranges = [(first, min(first + BLOCK, k)) for first in range(0, k, BLOCK)]
            compared = [Covered(drawn, real, one) for one in ranges]
            found.append(Line({"k": k, "sees": seen(share)}, [*drawn, *real, *compared]))
    return found


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    results = [lab.result(task).values for task in line.tasks if isinstance(task, Covered)]
    samples = sum(task.part[1] - task.part[0] for task in line.tasks if isinstance(task, Encoded))
    found = {}
    for name in NAMES:
        values_K = torch.tensor([x for one in results for x in one[name]], dtype=torch.float64)
        found[name] = Estimate(float(values_K.mean()), None, None, samples)
        found[f"{name}_deviation"] = Estimate(float(values_K.std(correction=0)), None, None, samples)
    return found


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    found = []
    for k in dict.fromkeys(row.labels["k"] for row in rows):
        without = one(rows, k=k, sees=NOTHING)
        for row in pick(rows, k=k):
            if without and row is not without:
                a, b = (each.values["recall"].value for each in (without, row))
                told = f"k = {k}: the condition changes recall from {a:.3f} to {b:.3f}"
                strays = max(each.values["recall_deviation"].value for each in (without, row))
                found.append(agrees(b > a, told, told) if abs(b - a) > strays else too_near(told))
    return found


QUOTES = tuple(Quote({"k": 128, "sees": share}, values) for share, values in paper.PRDC.items())
FIGURE = Figure(
    "prdc",
    "App. E",
    "Precision, recall, density and coverage of drawn registers",
    "Unconditional registers are precise and miss a third of the real ones; the condition substantially improves recall.",
    tuple(
        column
        for name in NAMES
        for column in (Column(name, f"{name} ↑"), Column(f"{name}_deviation", "±"))
    ),
    lines,
    values,
    verdicts,
    (Chart("drawn registers", "sees", NAMES, ("k",), kind="bars"),),
    QUOTES,
    missing,
    notes=("Every register is a space of its own; what stands is the mean over registers, and ± their deviation, as in "
           "the paper. Neighbours are the five nearest.",),
)  # fmt: skip
