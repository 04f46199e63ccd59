"""Eq. 6: how much is lost by drawing masked tokens independently, with registers and without."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate, ratio
from crocodil.reproduce.figure import Chart, Column, Figure, Line, Row, agrees, ordered, pick
from crocodil.reproduce.figures.fig4 import counts
from crocodil.reproduce.lab import MAIN, Lab
from crocodil.reproduce.measures.masked_tokens import RevealedTokens


def lines(lab: Lab) -> list[Line]:
    config, length = lab.config.eq6, lab.model(MAIN).window
    return [
        Line(
            {"k": k, "t": t},
            [
                RevealedTokens(length, part, t, k, config.draws)
                for part in lab.parts(config.windows, length)
            ],
        )
        for k in counts(lab, config.ks)
        for t in sorted(set(config.levels))
    ]  # fmt: skip


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    results = [lab.result(task).values for task in line.tasks]
    rows = [
        row for one in results for row in zip(one["at_once"], one["in_turn"], one["masked"], strict=True)
    ]  # fmt: skip
    masked = [m for _, _, m in rows]
    return {
        "gap": ratio([(a - b) * m for a, b, m in rows], masked),
        "at_once": ratio([a * m for a, _, m in rows], masked),
        "in_turn": ratio([b * m for _, b, m in rows], masked),
    }


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    levels = list(dict.fromkeys(row.labels["t"] for row in rows))
    bare = [row for row in rows if row.labels["k"] == 0]
    closes = all(ordered(pick(rows, t=t), "gap", up=False) for t in levels)
    found = []
    if len(dict.fromkeys(row.labels["k"] for row in rows)) > 1:
        told = "more registers close the gap at every level"
        found.append(agrees(closes, told, "at some level, more registers widen the gap"))
    if bare:
        loses = all(row.values["gap"].value > 0 for row in bare)
        told = "without registers, independent draws lose something at every level"
        found.insert(
            0, agrees(loses, told, "without registers, independent draws lose nothing at some level")
        )
    return found


FIGURE = Figure(
    "eq6",
    "Eq. 6, App. B",
    "The independence gap",
    "Tokens that are drawn at once are not independent; given the registers they are nearly so.",
    (
        Column("gap", "gap, nats a token ↓"),
        Column("at_once", "all at once, nats"),
        Column("in_turn", "one after the other, nats"),
    ),
    lines,
    values,
    verdicts,
    (Chart("by masking level t", "t", ("gap",), ("k",)),),
    notes=(
        "log p of the masked tokens one after the other, in random orders, less their log p all at once, per token: Eq. "
        "6 with the model's own conditionals in place of the true ones. The paper states the gap and estimates none.",
    ),
)
