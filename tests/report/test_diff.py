"""Two texts side by side: nothing is lost, and what is marked is what differs."""

from __future__ import annotations

import random

from rapidfuzz.distance import Levenshtein

from crocodil.report.diff import ISLAND, NEWLINE, Line, Row, diff


def text_of(lines: list[Line]) -> list[str]:
    """The lines' text, without the sign of a newline that differs."""
    found = []
    for line in lines:
        text = "".join(span.text for span in line.spans)
        changed = line.spans and line.spans[-1].changed and text.endswith(NEWLINE)
        found.append(text[: -len(NEWLINE)] if changed else text)
    return found


def lines_of(text: str) -> list[str]:
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def marked(rows: list[Row]) -> list[tuple[str, str]]:
    """Changed characters of each row that is not equal."""

    def changed(line: Line | None) -> str:
        return "".join(span.text for span in line.spans if span.changed) if line else ""

    return [(changed(row.left), changed(row.right)) for row in rows if not row.equal]


def test_equal_texts_have_equal_rows() -> None:
    rows = diff("a\n\nb\n", "a\n\nb\n")
    assert len(rows) == 3 and all(row.equal for row in rows)


def test_two_empty_texts_have_no_rows() -> None:
    assert diff("", "") == []


def test_only_what_differs_is_marked() -> None:
    rows = diff("def area(side):\n    return side\n", "def area(size):\n    return side\n")
    assert marked(rows) == [("d", "z")] and len(rows) == 2


def test_a_lost_line_stands_beside_nothing() -> None:
    rows = diff("one\ntwo\nthree\n", "one\nthree\n")
    assert [row.equal for row in rows] == [True, False, True]
    assert rows[1].right is None and marked(rows) == [(f"two{NEWLINE}", "")]


def test_a_new_line_stands_beside_nothing_even_where_it_ends_like_its_neighbour() -> None:
    rows = diff("if a:\n    b = f(a)\n", "if a:\n    c = f(a)\n    b = f(a)\n")
    assert [row.equal for row in rows] == [True, False, True]
    assert rows[1].left is None and marked(rows) == [("", f"    c = f(a){NEWLINE}")]


def test_a_lost_last_newline_is_marked() -> None:
    assert marked(diff("x\n", "x")) == [(NEWLINE, "")]


def test_characters_that_meet_by_chance_are_no_islands() -> None:
    (row,) = diff("alpha", "omega")
    assert row.left is not None
    runs = [span.text for span in row.left.spans if not span.changed]
    assert all(len(run) >= ISLAND or run == "a" for run in runs)


def test_other_line_ends_than_newline_break_no_line() -> None:
    assert len(diff("a\rb\x0bc\u2028d", "a\rb\x0bc\u2028d")) == 1


def test_rows_hold_both_texts_whole_and_number_their_lines() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b = ("".join(rng.choices("ab \n", k=rng.randrange(30))) for _ in range(2))
        rows = diff(a, b)
        left = [row.left for row in rows if row.left]
        right = [row.right for row in rows if row.right]
        assert text_of(left) == lines_of(a) and text_of(right) == lines_of(b)
        for side in (left, right):
            assert [line.number for line in side] == list(range(1, len(side) + 1))
        for row in rows:
            if row.equal:
                assert row.left and row.right and text_of([row.left]) == text_of([row.right])
        assert sum(len(x) + len(y) for x, y in marked(rows)) >= Levenshtein.distance(a, b)
