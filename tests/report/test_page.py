"""The page stands alone, and nothing that a text holds becomes markup."""

from __future__ import annotations

import re
import stat
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from crocodil.report.page import render, write_report
from crocodil.report.palette import ink_on, step_colour
from crocodil.report.records import Report

VOID = {"meta", "input", "br", "hr", "img", "link"}


class Reader(HTMLParser):
    """Checks that tags close in order and notes what a browser would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data") or name.startswith("on"):
                self.loads.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    assert len(reader.ids) == len(set(reader.ids))
    return reader


def test_the_page_loads_nothing(report: Report) -> None:
    page = render(report)
    assert not read(page).loads
    assert not re.search(r"https?://|url\(|@import", page)


def test_a_source_cannot_end_our_script(report: Report) -> None:
    page = render(report)
    assert read(page).scripts == 1
    assert (
        "alert(1)" in page and "<script>alert" not in page and "<i>.py" not in page and '</pre>"' not in page
    )


def test_control_characters_are_named_instead_of_written(report: Report) -> None:
    page = render(report)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", page)
    assert "‹ESC›" in page and "‹NUL›" in page and "‹U+202E›" in page


def test_every_file_and_nfe_has_its_panel_and_its_switch(report: Report) -> None:
    page = render(report)
    assert page.count('<article class="file"') == 2
    assert page.count('<div class="run">') == page.count('type="radio"') == 4
    assert page.count(" checked") == 2


def test_the_table_marks_the_papers_values_as_the_papers(report: Report) -> None:
    page = render(report)
    assert "paper, LLaDA-8B, 256 tokens, K=128" in page
    assert "0.205" in page


def test_every_token_has_its_step(report: Report) -> None:
    page = render(report)
    written = page[page.index('<pre class="written"') : page.index("</pre>")]
    assert re.findall(r'data-step="(\d+)"', written) == ["2", "4", "3"]
    assert 'data-counts="0,2,3,4,5"' in page


def test_parts_that_were_not_measured_are_absent(report: Report) -> None:
    page = render(replace(report, reconstructions=(), demasking=None))
    assert read(page).scripts == 0
    assert "Source and reconstruction" not in page and "Block size and NFE" in page


def test_equal_reports_give_equal_pages(report: Report) -> None:
    assert render(report) == render(replace(report))


def test_a_page_is_written_as_a_whole(report: Report, tmp_path: Path) -> None:
    page = write_report(tmp_path / "a" / "b", report)
    write_report(page.parent, replace(report, title="Another"))
    assert [file.name for file in page.parent.iterdir()] == ["index.html"]
    assert "<title>Another" in page.read_text("utf-8")
    assert stat.S_IMODE(page.stat().st_mode) == 0o644


def test_a_file_name_without_an_encoding_does_no_harm(report: Report, tmp_path: Path) -> None:
    odd = replace(
        report, reconstructions=[replace(report.reconstructions[0], file="\udcff.py")], demasking=None
    )
    assert "‹U+DCFF›.py" in write_report(tmp_path, odd).read_text("utf-8")


@pytest.mark.parametrize("steps", [1, 2, 16, 256])
def test_text_on_every_colour_can_be_read(steps: int) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    last = -1.0
    for step in range(1, steps + 1):
        colour = step_colour(step, steps)
        a, b = sorted((luminance(colour), luminance(ink_on(colour))))
        assert (b + 0.05) / (a + 0.05) >= 4.5
        assert luminance(colour) >= last - 1e-3
        last = luminance(colour)
