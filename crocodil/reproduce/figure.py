"""What a figure is: lines to measure, numbers to make of them, and how to show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce.lab import Lab, Task

Label = str | int | float
NOWHERE = "–"
"""A label of what has no place on an axis."""


@dataclass(frozen=True)
class Line:
    """One setting of a figure: a line of its table, a point of its picture."""

    labels: Mapping[str, Label]
    tasks: Sequence[Task]
    """All that its numbers are made of."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """What the paper prints for this very setting."""


@dataclass(frozen=True)
class Row:
    """A line that was measured."""

    labels: Mapping[str, Label]
    values: Mapping[str, Estimate]
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """One of the numbers of a figure."""

    name: str
    heading: str
    """With its unit, and an arrow to where it is better: ↑ or ↓."""
    digits: int = 3
    percent: bool = False


PREDICTED = (
    Column("cross_entropy", "cross-entropy, nats ↓"),
    Column("top1", "top-1 ↑", 1, percent=True),
)
JUDGED = (
    Column("gen_ppl", "Gen-PPL ↓", 1),
    Column("token_entropy", "entropy, nats", 2),
    Column("repetition", "repetition ↓", 2),
    Column("tokens", "judge tokens", 0),
)
"""What is always told together: a text that repeats itself, or is short, has a low perplexity."""


@dataclass(frozen=True)
class Chart:
    """A picture of some rows: for each of `panels`, its value over `x`, a curve for each combination of `curves`."""

    title: str
    x: str
    panels: tuple[str, ...]
    curves: tuple[str, ...] = ()
    where: Mapping[str, Label] = field(default_factory=dict)
    """Labels that rows must have."""
    log_x: bool = False
    log_y: tuple[str, ...] = ()
    kind: Literal["curves", "bars"] = "curves"
    x_heading: str = ""
    """What stands under the axis; the name of the label if left out."""


@dataclass(frozen=True)
class Quote:
    """A point that the paper's text names and that is none of our settings."""

    labels: Mapping[str, Label]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Passage:
    """A text to look at."""

    group: str
    label: str
    text: str
    reference: str | None = None
    """What it is a reconstruction of; differences are marked."""


@dataclass(frozen=True)
class Sheet:
    """Grey images to look at, a row for each of a few names."""

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Of each name its images: two hexadecimal digits a pixel, 00 white and ff black."""
    width: int
    """Pixels of an image's row."""


@dataclass(frozen=True)
class Figure:
    """A figure or table of the paper."""

    name: str
    """What `crocodil reproduce` calls it."""
    place: str
    """Where it stands in the paper."""
    title: str
    finding: str
    """What the paper finds."""
    columns: tuple[Column, ...]
    lines: Callable[[Lab], list[Line]]
    values: Callable[[Lab, Line], dict[str, Estimate]]
    verdicts: Callable[[Lab, Sequence[Row]], list[str]]
    """What came out beside what the paper finds, in sentences that are made of the numbers."""
    charts: tuple[Chart, ...] = ()
    quotes: tuple[Quote, ...] = ()
    missing: Callable[[Lab], list[str]] = lambda lab: []
    """What is left out for want of a model, and the line that trains one."""
    passages: Callable[[Lab, Sequence[Line]], list[Passage]] = lambda lab, lines: []
    notes: tuple[str, ...] = ()
    """What has to be known to read the table."""
    sheets: Callable[[Lab, Sequence[Line]], list[Sheet]] = lambda lab, lines: []
    counted: str = "texts"
    """What a number rests on several of."""


def pick(rows: Sequence[Row], **labels: Label) -> list[Row]:
    """The rows with these labels."""
    return [row for row in rows if all(row.labels.get(name) == value for name, value in labels.items())]


def one(rows: Sequence[Row], **labels: Label) -> Row | None:
    """The row with these labels, if there is one."""
    found = pick(rows, **labels)
    return found[0] if found else None


def ordered(rows: Sequence[Row], name: str, up: bool = True) -> bool:
    """Whether a value never turns back from row to row, beyond the interval of the row before."""
    values = [row.values[name] for row in rows]
    return not any(turns_back(a, b, up) for a, b in zip(values, values[1:], strict=False))


def turns_back(a: Estimate, b: Estimate, up: bool = True) -> bool:
    """Whether b is below a (above, with `up` false), and outside its interval."""
    edge = a.low if up else a.high
    edge = a.value if edge is None else edge
    return b.value < edge - 1e-8 if up else b.value > edge + 1e-8


def apart(a: Estimate, b: Estimate) -> bool:
    """Whether neither lies in the other's interval."""
    inside = lambda x, y: y.low is not None and y.high is not None and y.low <= x.value <= y.high  # noqa: E731
    return not (inside(a, b) or inside(b, a))


def too_near(told: str) -> str:
    """A verdict where the numbers do not tell: no `As in the paper`, and no `Not as`."""
    return f"Not to be told from so few texts: {told}."


AGREES, DIFFERS = "As in the paper:", "Not as in the paper:"
"""How a verdict begins; what begins otherwise is a remark."""


def agrees(holds: bool, claim: str, otherwise: str) -> str:
    """A verdict."""
    return f"{AGREES} {claim}." if holds else f"{DIFFERS} {otherwise}."
