"""Fig. 4: masked-token prediction by masking level, without registers and under more and more of them."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce.figure import PREDICTED, Chart, Figure, Line, Row, agrees, ordered, pick
from crocodil.reproduce.lab import MAIN, Lab
from crocodil.reproduce.measures.masked_tokens import MaskedTokens, predicted


def counts(lab: Lab, ks: Sequence[int]) -> list[int]:
    """Those numbers of registers that the model has, in rising order."""
    return sorted({k for k in ks if k <= lab.model(MAIN).K})


def lines(lab: Lab) -> list[Line]:
    config = lab.config.fig4
    length = config.length or lab.model(MAIN).window
    return [
        Line(
            {"k": k, "t": t},
            [MaskedTokens(length, part, t, k) for part in lab.parts(config.windows, length)],
        )
        for k in counts(lab, config.ks)
        for t in sorted(set(config.levels))
    ]


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    return predicted(lab, line.tasks)


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    ks = list(dict.fromkeys(row.labels["k"] for row in rows))
    levels = list(dict.fromkeys(row.labels["t"] for row in rows))
    falls = [k for k in ks if not ordered(pick(rows, k=k), "cross_entropy")]
    better = all(
        ordered(pick(rows, t=t), name, up=up)
        for t in levels
        for name, up in (("cross_entropy", False), ("top1", True))
    )
    found = []
    if len(levels) > 1:
        told = f"for k = {', '.join(map(str, falls))}, cross-entropy falls somewhere as more is masked"
        found.append(
            agrees(
                not falls,
                "for every k, cross-entropy rises with the masking level, or stays within its interval",
                told,
            )
        )
    if len(ks) > 1:
        found.append(
            agrees(
                better,
                "at every level, more registers predict no worse, in cross-entropy and in top-1",
                "at some level, more registers predict worse",
            )
        )
    return found


FIGURE = Figure(
    "fig4",
    "Figure 4",
    "Masked tokens by masking level",
    "Prediction gets harder with more masking; registers help, the more the more there are.",
    PREDICTED,
    lines,
    values,
    verdicts,
    (Chart("by masking level t", "t", ("cross_entropy", "top1"), ("k",)),),
    notes=("k = 0 is the unguided demasker with the same weights.",),
)
