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
from crocodil.report.records import Demasking, Report, Synthesis, Token, Written

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


@pytest.fixture
def synthesis(report: Report) -> Report:
    """Two texts out of noise, the first with a beginning that was given."""
    hostile = "</pre><script>alert(1)</script>\x1b"
    texts = [Written(hostile, 7, 4, 12.25, 9.5, 0.5), Written("", 8, 2, 10.25, 7.5, 0.5)]
    tokens = (Token("<i>", 0, "text"), Token("\x1b", 3, "text"), Token("", 4, "end"), Token("", 1, "tail"))
    return replace(
        report,
        reconstructions=(),
        grid=(),
        demasking=Demasking("text 1, seed 7", tokens, 4, 4),
        synthesis=Synthesis("conwithindisc", 8, 16, 4, 1.0, (2,), texts),
    )


def test_texts_out_of_noise_stand_with_their_seed_and_three_counts(synthesis: Report) -> None:
    page = render(synthesis)
    assert read(page).scripts == 1 and not read(page).loads and "\x1b" not in page
    assert page.count('<article class="card text"') == 2 and "text 2, seed 8" in page
    assert "<b>4</b> NFE" in page and "<b>12.2</b> paper’s count" in page and "<b>9.5</b> wall" in page
    assert "registers drawn anew after step 2." in page and "16 from noise, 4 a refresh" in page


def test_a_text_forms_in_stages(synthesis: Report) -> None:
    page = render(synthesis)
    stages = re.findall(r'<figure class="stage">.*?<pre>(.*?)</pre>', page, re.DOTALL)
    assert stages == [
        "&lt;i&gt;<i>▪▪▪</i>",
        "&lt;i&gt;<i>▪▪</i>",
        "&lt;i&gt;<i>▪▪</i>",
        "&lt;i&gt;<ins>‹ESC›</ins><i>▪</i>",
        "&lt;i&gt;‹ESC›<ins></ins>",
    ]


def test_what_was_given_has_no_step(synthesis: Report) -> None:
    page = render(synthesis)
    assert 'data-counts="1,2,2,3,4"' in page and 'data-step="0" class="given"' in page
    assert "position 0, given" in page and "3 of the 4 positions masked at first and the others given" in page


@pytest.mark.parametrize(
    ("method", "refreshes", "said"),
    [
        ("mdm", (), "by itself, without registers"),
        ("conthendisc", (), "out of noise; a masked"),
        ("conwithindisc", (2,), "anew after step 2, given"),
        ("conwithindisc", (1, 2, 3), "anew after steps 1, 2 and 3, given"),
        ("alg3", (1, 2, 3), "anew after every step, given"),
    ],
)
def test_the_page_says_what_the_method_did(
    method: str, refreshes: tuple[int, ...], said: str, synthesis: Report
) -> None:
    assert synthesis.synthesis is not None
    how = replace(synthesis.synthesis, method=method, refreshes=refreshes)
    assert said in render(replace(synthesis, synthesis=how))


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
