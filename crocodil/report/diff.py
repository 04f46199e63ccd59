"""Two texts beside one another, line by line, with the characters that differ."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from rapidfuzz.distance import Levenshtein

ISLAND = 3
"""Equal characters between two changes are shown as changed if they are fewer: they meet by chance."""
NEWLINE = "↵"


@dataclass(frozen=True)
class Span:
    """A run of characters on one line."""

    text: str
    changed: bool


@dataclass(frozen=True)
class Line:
    """One line of one text."""

    number: int
    """From 1."""
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Row:
    """A line of the source beside its line of the reconstruction; None where there is none."""

    left: Line | None
    right: Line | None

    @property
    def equal(self) -> bool:
        sides = (self.left, self.right)
        return all(line is not None and not any(span.changed for span in line.spans) for line in sides)


def diff(source: str, text: str) -> list[Row]:
    """Rows of the two texts, brought to one height at every newline that they share.

    Source and text are aligned as a whole with the fewest edits, the ones that the character error rate counts.
    A newline too many or too few is shown as a changed sign at the end of its line.
    """
    rows: list[Row] = []
    left, right = _Side(), _Side()
    for old, new in _segments(source, text):
        if old != new:
            left.add(old, changed=True)
            right.add(new, changed=True)
            continue
        for index, piece in enumerate(old.split("\n")):
            if index:
                left.newline()
                right.newline()
            if not left.line and not right.line:
                rows += _beside(left.take(), right.take())
            left.add(piece, changed=False)
            right.add(piece, changed=False)
    # what follows the last newline of a text is no line unless something stands there
    for side in (left, right):
        if side.line:
            side.newline()
    return rows + _beside(left.take(), right.take())


class _Side:
    """One text on its way to rows."""

    def __init__(self) -> None:
        self.number = 0
        self.ended: list[Line] = []
        """Lines that have no row yet."""
        self.line: list[Span] = []
        """The line that is being written."""

    def add(self, text: str, changed: bool) -> None:
        *lines, rest = text.split("\n")
        for line in lines:
            self.line.append(Span(line + NEWLINE, changed))
            self.newline()
        if rest:
            self.line.append(Span(rest, changed))

    def newline(self) -> None:
        self.number += 1
        self.ended.append(Line(self.number, tuple(self.line)))
        self.line = []

    def take(self) -> list[Line]:
        lines, self.ended = self.ended, []
        return lines


def _beside(left: list[Line], right: list[Line]) -> list[Row]:
    return [Row(a, b) for a, b in zip_longest(left, right)]


def _segments(source: str, text: str) -> list[tuple[str, str]]:
    """The two texts cut alike: pairs of equal pieces, and pairs of which one stands in the other's place."""
    pairs: list[tuple[str, str]] = []
    for op in Levenshtein.opcodes(source, text):
        old, new = source[op.src_start : op.src_end], text[op.dest_start : op.dest_end]
        if pairs and op.tag != "equal" and pairs[-1][0] != pairs[-1][1]:
            pairs[-1] = (pairs[-1][0] + old, pairs[-1][1] + new)
        else:
            pairs.append((old, new))
    merged: list[tuple[str, str]] = []
    for index, (old, new) in enumerate(pairs):
        island = old == new and 0 < index < len(pairs) - 1 and len(old) < ISLAND and "\n" not in old
        if merged and merged[-1][0] != merged[-1][1] and (old != new or island):
            merged[-1] = (merged[-1][0] + old, merged[-1][1] + new)
        else:
            merged.append((old, new))
    return merged
