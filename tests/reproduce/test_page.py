"""The page stands alone, shows ours beside the paper's, and nothing that a model wrote becomes markup."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce.figure import Label, Passage, Row
from crocodil.reproduce.figures import FIGURES
from crocodil.reproduce.page import _marked, render
from crocodil.reproduce.result import Provenance, Result, from_json, to_json

VOID = {"meta", "input", "br", "hr", "img", "link"}
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\x1b\x00\u202e"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="10pt" height="10pt"><script>alert(1)</script></svg>'
PROVENANCE = Provenance(
    model="bundled", model_digest="c050/5def", parameters={"encoder": 1856928, "demasker": 2742336},
    preset="nano", overrides=[], config={"source": "bundled", "seed": 3}, config_hash="2fda4de7", source="held out",
    texts_digest="3b156c4f", judge="a judge, float32, 256 positions", scorer=None, seed=3,
    versions={"crocodil": "0.1.0", "torch": "2.13"}, device="cpu, 1 thread", seconds=83.0,
)  # fmt: skip
LABELS: dict[str, list[dict[str, Label]]] = {
    "table1": [{"block": 128, "NFE": 8}, {"block": 128, "NFE": 16}, {"block": 256, "NFE": 4}],
    "table2": [{"block": 64, "NFE": 8}],
    "fig4": [{"k": k, "t": t} for k in (0, 128) for t in (0.25, 1.0)],
    "fig6": [{"n": 128, "K": 4, "method": method, "NFE": 4} for method in ("mdm", "conthendisc")],
    "fig12": [{"n": 256, "K": 8, "method": "mdm", "NFE": 4}],
    "fig7": [{"model": "trained with noise", "σ": sigma} for sigma in (0.0, 0.5)],
    "fig8": [{"k": 128, "α": alpha} for alpha in (0.0, 0.5, 1.0)],
    "fig9": [{"k": k, "sees": sees, "s": s / 10} for k in (8, 128) for sees in ("nothing", "50%") for s in range(10)],
    "prdc": [{"k": 8, "sees": "nothing"}, {"k": 8, "sees": "50%"}],
    "fig11": [{"ablation": "registers", "setting": 2}, {"ablation": "offsets", "setting": "on"}],
    "appendix-b": [{"method": "marginals", "evaluations": 0}, {"method": "mdm", "evaluations": 1}],
    "eq6": [{"k": 0, "t": 0.5}],
    "appendix-c": [{"model": "as in the paper", "k": 4}],
    "examples": [{"what": "by NFE", "setting": 4}, {"what": "between two", "setting": 0.5}],
    "cadd-fig3": [{"model": model, "T": 8} for model in ("MDM", "CADD")],
    "cadd-fig4": [{"model": "MDM", "T": 8}],
    "cadd-table1": [{"method": "CADD, digits", "NFE": 8}, {"method": "held-out digits", "NFE": 0}],
    "cadd-table4": [{"of": of, "setting": "MDM"} for of in ("training", "sampling")],
    "cadd-table5": [{"source": "letters", "model": "CADD, letters"}],
    "cadd-table7": [{"source": "manual", "model": model} for model in ("MDM", "CADD")],
    "cadd-fig5": [{"K": k, "T": 8} for k in (1, 2)],
    "cadd-fig6": [{"model": "CADD", "K": k, "T": 8} for k in (1, 2)],
    "cadd-table8": [{"fusion": fusion, "T": 32} for fusion in ("add", "concat")],
    "cadd-table9": [{"schedule": "vp", "T": 32}],
    "cadd-table10": [{"training": "CE", "estimate": how, "T": 32} for how in ("soft", "hard")],
    "cadd-table12": [{"of": of, "ρ": "ρ = 3.9", "t": "–"} for of in ("another's latent", "texts out of noise")],
    "cadd-both": [{"of": of, "sees": "both", "t": "–"} for of in ("masked tokens", "texts out of noise")],
}  # fmt: skip
PASSAGES = [
    Passage("by NFE, text 1", "NFE 4, CER 0.200", "def f(y):\n    return 1\n", "def f(x):\n    return 1\n"),
    Passage("by NFE, text 2", "NFE 4, CER 0.500", "", "import os\n"),
    Passage("by NFE, text 1", "NFE 16, CER 0.000", "def f(x):\n    return 1\n", "def f(x):\n    return 1\n"),
    Passage("between two", "α = 0.5", "a = b"),
    Passage("out of noise, text 1", "mdm", "import"),
]


def measured(name: str) -> Result:
    """A figure with a number in every column, and the paper's beside those of tables."""
    figure = FIGURES[name]
    rows = []
    for at, labels in enumerate(LABELS[name]):
        values = {c.name: Estimate(0.5 + at / 100, 0.25, 0.75, 16) for c in figure.columns}
        paper = {figure.columns[0].name: 0.4321} if name.startswith("table") else {}
        rows.append(Row(labels, {} if labels.get("what") == "between two" else values, paper))
    return Result(
        figure.name, figure.place, figure.title, figure.finding, figure.columns, figure.charts, rows,
        figure.quotes, ["As in the paper: it is.", "Not as in the paper: it is not.", "By the way."],
        [], figure.notes, PASSAGES if name == "examples" else [], PROVENANCE,
    )  # fmt: skip


ALL = [measured(name) for name in FIGURES]
PICTURES = {name: [SVG] * 3 for name in FIGURES}


class Reader(HTMLParser):
    """Checks that tags close in order and notes what a browser would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.alts: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "action", "data") or name.startswith("on"):
                self.loads.append(value or "")
            if name == "href":
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name == "alt":
                self.alts.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(results: Sequence[Result], pictures: Mapping[str, Sequence[str]] | None = None) -> Reader:
    reader = Reader()
    reader.feed(render(results, PICTURES if pictures is None else pictures))
    reader.close()
    assert not reader.open and len(reader.ids) == len(set(reader.ids))
    return reader


def table(name: str, rows: Sequence[Row] | None = None) -> list[list[str]]:
    """The cells of a figure's table, line by line."""
    result = measured(name)
    page = render([replace(result, rows=result.rows if rows is None else rows)], {})
    inside = page[page.index('<table class="grid numbers">') :]
    lines = re.findall(r"<tr>(.*?)</tr>", inside[: inside.index("</table>")])
    return [
        [re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)]
        for line in lines
    ]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_its_section(name: str) -> None:
    result = measured(name)
    page = read([result])
    assert result.title in page.text and result.place in page.text and result.finding in page.text
    assert page.ids.count(name) == 1 and page.links.count(f"#{name}") == 1
    assert all(note.replace("`", "") in page.text for note in result.notes)


def test_the_page_loads_nothing() -> None:
    page = render(ALL, PICTURES)
    reader = read(ALL)
    assert "script" not in reader.tags and "link" not in reader.tags
    assert reader.loads and all(value.startswith("data:image/svg+xml;base64,") for value in reader.loads)
    assert not re.search(r"https?://|url\(|@import", page)
    assert all(link[0] == "#" and link[1:] in reader.ids for link in reader.links)


def test_pictures_are_embedded_as_they_are_with_their_own_titles() -> None:
    reader = read(ALL)
    assert {base64.b64decode(value.partition(",")[2]).decode() for value in reader.loads} == {SVG}
    # fig11's second chart has nothing to show here, so the second picture is that of the third
    alts = [alt for alt in reader.alts if "Figure 11" in alt]
    assert len(alts) == 2 and "number of registers" in alts[0] and "block offsets" in alts[1]
    assert "Gen-PPL ↓" in alts[0] and all(reader.alts)


def test_the_papers_values_stand_beside_ours() -> None:
    head, first, *_ = table("table1")
    assert head[:4] == ["block", "NFE", "Gen-PPL ↓", "paper"] and head.count("paper") == 1
    assert first[:4] == ["128", "8", "0.5[0.2, 0.8]", "0.4"]


def test_a_label_that_repeats_is_said_once() -> None:
    _, first, second, third = table("table1")
    assert len(first) == len(third) == len(second) + 1
    assert second[0] == "16" and third[:2] == ["256", "4"]


def test_intervals_stand_where_there_are_any() -> None:
    assert table("fig4")[1][2:] == ["0.500[0.250, 0.750]", "50.0 %[25.0, 75.0]"]
    without = [Row({"k": 0, "t": 1.0}, {"top1": Estimate(0.5, None, None, 1)})]
    assert table("fig4", without) == [["k", "t", "top-1 ↑"], ["0", "1", "50.0 %"]]


def test_a_number_that_is_missing_among_others_is_a_dash() -> None:
    rows = [Row({"k": 0, "t": 1.0}, {"top1": Estimate(0.5, None, None, 1)}), Row({"k": 8, "t": 1.0}, {})]
    assert table("fig4", rows)[2] == ["8", "1", "–"]


def test_a_long_table_waits_below_its_picture_unless_the_paper_stands_in_it() -> None:
    assert "All 40 lines in numbers" in read([measured("fig9")]).text
    assert "in numbers" not in read([measured("fig9")], {}).text
    many = [
        Row({"block": at, "NFE": at}, {"cer": Estimate(1.0, 0.5, 2.0, 4)}, {"cer": 0.5}) for at in range(40)
    ]
    assert "in numbers" not in read([replace(measured("table1"), rows=many)]).text


def test_quotes_are_told_as_the_papers() -> None:
    page = render([measured("fig6")], PICTURES)
    quotes = page[page.index('<table class="grid quotes">') :]
    assert "What the paper’s text says" in quotes and ">14.3</td>" in quotes and ">1,024</th>" in quotes
    assert "entropy" not in quotes[: quotes.index("</table>")]


def test_verdicts_are_marked_and_counted() -> None:
    page = render(ALL[:2], PICTURES)
    assert page.count('<li class="yes"><b>As in the paper:</b> it is.') == 2
    assert page.count('<li class="no"><b>Not as in the paper:</b> it is not.') == 2
    assert page.count('<li class="remark">By the way.') == 2
    assert page.count("<span>1 of 2</span>") == 2 and '2<span class="of"> of 4</span>' in page


def test_a_figure_that_was_not_measured_says_what_is_missing_and_nothing_else() -> None:
    empty = replace(
        measured("appendix-c"),
        rows=[],
        verdicts=[],
        missing=["A model: `train <it>` trains one; that`s all."],
    )
    page = render([empty, measured("fig4")], {})
    section = page[page.index('id="appendix-c"') : page.index('id="fig4"')]
    assert re.findall(r"<(\w+)", section) == ["h2", "span", "ul", "li", "code", "section"]
    assert "<code>train &lt;it&gt;</code> trains one; that`s all." in section
    assert "not measured" in page and '1<span class="of"> of 2</span>' in page
    assert read([empty], {}).text


def test_the_header_says_what_the_numbers_depend_on() -> None:
    text = read(ALL).text
    for told in (
        "4,599,264: encoder 1,856,928",
        "a judge, float32, 256 positions",
        "held out, 3b156c4f",
        "torch 2.13",
    ):
        assert told in text
    assert (
        "nano, seed 3, 2fda4de7" in text
        and "1\N{NO-BREAK SPACE}min 23\N{NO-BREAK SPACE}s of work" in text
        and "n = 16 throughout" in text
    )
    assert "BERTScore by" not in text and 'class="other"' not in render(ALL, {})
    assert "crocodil reproduce table1 table2" in text and '"seed": 3' in text


def test_a_figure_under_other_conditions_says_so() -> None:
    unasked = replace(measured("fig4"), provenance=replace(PROVENANCE, judge=None))
    other = replace(measured("fig9"), provenance=replace(PROVENANCE, config_hash="00ff", scorer="a scorer"))
    page = render([unasked, measured("fig8"), other], {})
    assert re.findall('class="other">(.*?)<', page) == ["other config hash: 00ff"]
    assert "a judge, float32" in page and "a scorer" in page


def test_texts_stand_beside_what_they_reconstruct_with_what_differs() -> None:
    page = render([measured("examples")], {})
    assert page.count("the program itself") == 2
    assert '<ins title="instead of x">y</ins>' in page
    assert '<del title="left out: import os\n">…</del>' in page
    order = [
        page.index(told) for told in ("NFE 4, CER 0.200", "NFE 16, CER 0.000", "NFE 4, CER 0.500", "α = 0.5")
    ]
    assert order == sorted(order)
    # what has no numbers is no line of the table
    assert "by NFE" in page and "between two" not in page


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("", ""),
        ("a b c", "a x c"),
        ("a\n\nb", "a\nb"),
        ("x", ""),
        ("", "x"),
        ("é ü\t1", "e u 1"),
        ("aa bb", "cc dd"),
    ],
)
def test_marks_leave_the_text_what_it_is(text: str, reference: str) -> None:
    runs = _marked(text, reference)
    assert "".join(piece.replace("↵", "") for kind, piece, _ in runs if kind != "del") == text
    assert "".join(piece if kind == "equal" else before for kind, piece, before in runs) == reference
    assert all(kind == "equal" for kind, _, _ in runs) == (text == reference)


def test_marks_do_not_take_long() -> None:
    texts = ["".join(f"{(at * step) % 97} " for at in range(4000)) for step in (7, 31)]
    start = time.process_time()
    _marked(*texts)
    assert time.process_time() - start < 2


def test_nothing_from_outside_becomes_markup() -> None:
    texts = [
        Passage(f"{HOSTILE}, {HOSTILE}", HOSTILE, HOSTILE, reference) for reference in (None, "x", HOSTILE)
    ]
    texts += [Passage("by k, text 1", HOSTILE, "x", HOSTILE)]
    versions = {HOSTILE: HOSTILE, "crocodil": HOSTILE}
    here = replace(
        PROVENANCE, model=HOSTILE, judge=HOSTILE, scorer=HOSTILE, source=HOSTILE, device=HOSTILE, preset=HOSTILE,
        config={HOSTILE: HOSTILE}, config_hash=HOSTILE, versions=versions, parameters={HOSTILE: 1},
    )  # fmt: skip
    told = [f"{HOSTILE} `{HOSTILE}`", f"As in the paper: {HOSTILE}"]
    odd = replace(
        measured("examples"), place=HOSTILE, title=HOSTILE, finding=HOSTILE, passages=texts, notes=told,
        verdicts=told, missing=told, provenance=here, rows=[Row({HOSTILE: HOSTILE}, {"cer": Estimate(1, 0, 2, 3)})],
    )  # fmt: skip
    plain = replace(measured("fig4"), provenance=here)
    page, reader = render([odd, plain], PICTURES), read([odd, plain])
    assert "script" not in reader.tags and reader.tags.count("img") == len(measured("fig4").charts)
    assert all(value.startswith("data:") for value in reader.loads)
    assert "<img src=x" not in page and not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", page)
    assert "‹ESC›" in page and "‹NUL›" in page and "‹U+202E›" in page


def test_a_page_is_a_function_of_what_it_shows() -> None:
    again = [from_json(to_json(result)) for result in ALL]
    assert render(ALL, PICTURES) == render(ALL, PICTURES) == render(again, dict(PICTURES))
