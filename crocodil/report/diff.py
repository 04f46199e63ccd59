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

    Source and text are aligned as a whole with the fewest edits, the ones that the character error rate counts; a
    newline too many or too few is shown as a changed sign at the end of its line.
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
                rows += _beside(left.take(), right.take())
            left.add(piece, changed=False)
            right.add(piece, changed=False)
    return rows + _beside(left.take(last=True), right.take(last=True))


class _Side:
    """Lines of one text since the last shared newline; the last one is still being written."""

    def __init__(self) -> None:
        self.number = 0
        self.lines: list[list[Span]] = [[]]

    def add(self, text: str, changed: bool) -> None:
        pieces = text.split("\n")
        for index, piece in enumerate(pieces):
            broken = index + 1 < len(pieces)
            shown = piece + NEWLINE if broken else piece
            if shown:
                self.lines[-1].append(Span(shown, changed))
            if broken:
                self.lines.append([])

    def take(self, last: bool = False) -> list[Line]:
        """The lines; what follows a text's last newline is no line unless something stands there."""
        lines, self.lines = self.lines, [[]]
        if last and not lines[-1]:
            lines.pop()
        numbered = [Line(self.number + i, tuple(spans)) for i, spans in enumerate(lines, 1)]
        self.number += len(lines)
        return numbered


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
