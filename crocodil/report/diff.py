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
        pair = (source[op.src_start : op.src_end], text[op.dest_start : op.dest_end])
        if pairs and op.tag != "equal" and _changed(pairs[-1]):
            pairs[-1] = _joined(pairs[-1], pair)
        else:
            pairs.append(pair)
    pairs = _slid(pairs)
    merged: list[tuple[str, str]] = []
    for index, pair in enumerate(pairs):
        island = 0 < index < len(pairs) - 1 and len(pair[0]) < ISLAND and "\n" not in pair[0]
        if merged and _changed(merged[-1]) and (_changed(pair) or island):
            merged[-1] = _joined(merged[-1], pair)
        else:
            merged.append(pair)
    return merged


def _slid(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Insertions and deletions moved, where it costs nothing, to take whole lines: `two⏎` instead of `wo⏎t`."""
    slid = list(pairs)
    for at in range(1, len(slid) - 1):
        before, (old, new), after = slid[at - 1][0], slid[at], slid[at + 1][0]
        edit = old or new
        if (old and new) or not edit or _changed(slid[at - 1]) or _changed(slid[at + 1]):
            continue
        whole, start = before + edit + after, len(before)
        first = last = start
        while first > 0 and whole[first - 1] == whole[first - 1 + len(edit)]:
            first -= 1
        while last < start + len(after) and whole[last] == whole[last + len(edit)]:
            last += 1
        best = max(range(first, last + 1), key=lambda i: (i > 0 and whole[i - 1] == "\n", i == start))
        edit = whole[best : best + len(edit)]
        slid[at - 1] = (whole[:best], whole[:best])
        slid[at] = (edit, "") if old else ("", edit)
        slid[at + 1] = (whole[best + len(edit) :],) * 2
    return [pair for pair in slid if pair != ("", "")]


def _changed(pair: tuple[str, str]) -> bool:
    return pair[0] != pair[1]


def _joined(a: tuple[str, str], b: tuple[str, str]) -> tuple[str, str]:
    return a[0] + b[0], a[1] + b[1]
