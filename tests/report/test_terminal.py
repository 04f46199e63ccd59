"""The terminal shows the same as the page, in the room there is, and obeys no text."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from crocodil.report.records import Report
from crocodil.report.terminal import ROWS, show_demasking, show_grid, show_reconstructions
from crocodil.report.visible import visible


def shown(report: Report, width: int, colour: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="truecolor" if colour else None
    )
    show_reconstructions(console, report.reconstructions)
    show_grid(console, report.grid)
    assert report.demasking is not None
    show_demasking(console, report.demasking)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("width", [40, 71, 72, 100, 200])
def test_no_line_is_wider_than_the_terminal(report: Report, width: int) -> None:
    assert max(map(len, shown(report, width).splitlines())) <= width


def test_texts_stand_beside_one_another_where_there_is_room(report: Report) -> None:
    wide, narrow = shown(report, 100), shown(report, 60)
    assert "alert(1)" in wide and "│" in wide
    assert "  </script>" in narrow and "│" not in narrow


def test_a_text_cannot_speak_to_the_terminal(report: Report) -> None:
    assert "\x1b" not in shown(report, 100) and "‹ESC›[31m" in shown(report, 100)
    assert "\x1b[31m &" not in shown(report, 100, colour=True)


def test_colours_of_the_steps_only_where_there_are_colours(report: Report) -> None:
    assert "48;2;" in shown(report, 100, colour=True)
    assert "revealed" not in shown(report, 100)


def test_a_long_file_is_cut_and_says_so() -> None:
    from crocodil.report.records import Reconstruction

    console = Console(file=io.StringIO(), width=100)
    source = "x = 1\n" * (ROWS + 7)
    show_reconstructions(console, [Reconstruction("a.py", source, source, 0.0, 4, 0.1)])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "7 more lines" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\tb", "a\n\tb"),
        ("\x00\x1b[1m\r", "‹NUL›‹ESC›[1m‹CR›"),
        ("\x7f\x9b", "‹U+007F›‹U+009B›"),
        ("\u202eevil\u2066", "‹U+202E›evil‹U+2066›"),
        ("日本 é 😀", "日本 é 😀"),
    ],
)
def test_controls_are_named(text: str, expected: str) -> None:
    assert visible(text) == expected
