"""Results as one HTML page that needs nothing but itself: every figure beside the paper's own values."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rapidfuzz.distance import Levenshtein

from crocodil.metrics.bootstrap import Estimate
from crocodil.report import page as report
from crocodil.report.diff import ISLAND, NEWLINE
from crocodil.report.palette import step_colour
from crocodil.report.visible import visible
from crocodil.reproduce.figure import AGREES, DIFFERS, Column, Label, Passage
from crocodil.reproduce.figures.examples import BETWEEN, BY_K, BY_NFE, NEW
from crocodil.reproduce.markdown import command, interval, label, number
from crocodil.reproduce.result import Result

TEMPLATES = Path(__file__).parent / "templates"
LONG = 16
"""Lines of a table that stand open below a picture; a longer table is opened by its reader."""
WAYS = {
    BY_NFE: ("By NFE", "The same registers, read with more and more evaluations of the demasker.", True),
    BY_K: ("By number of registers", "The same program out of its first k registers, from few to all.", True),
    BETWEEN: (
        "Between two programs",
        "Registers of two programs, mixed: α = 0 is the first of them, 1 the second.",
        True,
    ),
    NEW: ("Out of noise", "Programs that nobody wrote, by method.", False),
}
"""Groups of texts: a heading, what is shown, and whether the texts stand in an order."""
_WIDTH = re.compile(r'<svg\b[^>]*?\swidth="(\d{1,6}(?:\.\d{1,9})?)pt"')
_WORDS = re.compile(r"\w+|\n|[^\S\n]+|[^\w\s]")


def render(results: Sequence[Result], pictures: Mapping[str, Sequence[str]]) -> str:
    """The page's HTML, a function of its arguments alone.

    Args:
        results: at least one, in the order of the page.
        pictures: by a result's name, an SVG document for each of its charts that has something to show, in order, then
            for each of its sheets.
    """
    head = results[0].provenance
    sections = [_section(result, pictures.get(result.name, ()), results) for result in results]
    return (
        _templates()
        .get_template("reproduction.html.jinja")
        .render(
            head=head,
            facts=_facts(results),
            sections=sections,
            agreed=sum(section.yes for section in sections),
            judged=sum(section.yes + section.no for section in sections),
            measured=sum(bool(result.rows) for result in results),
            work=_time(sum(result.provenance.seconds for result in results)),
            command=command(results),
            config=json.dumps(
                max((r.provenance.config for r in results), key=len), indent=1, ensure_ascii=False
            ),
        )
    )


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader([TEMPLATES, report.TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"visible": visible, "runs": _runs, "capital": _capital}
    return templates


@dataclass(frozen=True)
class _Verdict:
    kind: str
    """yes, no, or remark."""
    lead: str
    text: str


@dataclass(frozen=True)
class _Plot:
    title: str
    alt: str
    source: str
    """The picture itself, in base64."""
    width: float
    """As drawn, in lines of 12 points."""


@dataclass(frozen=True)
class _Head:
    """The heading of a number."""

    text: str
    width: int
    """Characters of the longest interval below it."""
    printed: bool
    """Whether the paper's values stand beside."""


@dataclass(frozen=True)
class _Stub:
    """A label at the left, for one line or several."""

    text: str
    depth: int
    span: int


@dataclass(frozen=True)
class _Cell:
    value: str
    interval: str
    paper: str
    n: int | None


@dataclass(frozen=True)
class _Line:
    stubs: Sequence[_Stub]
    """Those that begin on this line."""
    cells: Sequence[_Cell]


@dataclass(frozen=True)
class _Table:
    labels: Sequence[str]
    words: Sequence[int]
    """Labels that are words somewhere."""
    heads: Sequence[_Head]
    groups: Sequence[Sequence[_Line]]
    """Lines that share their first label."""
    n: int | None
    """Texts behind every number, where it is the same for all."""

    @property
    def lines(self) -> int:
        return sum(map(len, self.groups))

    @property
    def is_long(self) -> bool:
        return self.lines > LONG and not self.has_paper

    @property
    def has_intervals(self) -> bool:
        return any(head.width for head in self.heads)

    @property
    def has_paper(self) -> bool:
        return any(head.printed for head in self.heads)


@dataclass(frozen=True)
class _Text:
    """A text in a card; `runs` are equal, ins or del, with what stood there before."""

    label: str
    runs: Sequence[tuple[str, str, str]]
    colour: str | None
    is_original: bool


@dataclass(frozen=True)
class _Strip:
    name: str
    texts: Sequence[_Text]


@dataclass(frozen=True)
class _Way:
    title: str
    told: str
    is_marked: bool
    strips: Sequence[_Strip]


@dataclass(frozen=True)
class _Section:
    result: Result
    verdicts: Sequence[_Verdict]
    plots: Sequence[_Plot]
    table: _Table | None
    quotes: _Table | None
    ways: Sequence[_Way]
    time: str
    differs: Sequence[tuple[str, str]]
    """What the numbers of this figure depend on, where the header says otherwise."""

    @property
    def yes(self) -> int:
        return sum(verdict.kind == "yes" for verdict in self.verdicts)

    @property
    def no(self) -> int:
        return sum(verdict.kind == "no" for verdict in self.verdicts)


def _section(result: Result, pictures: Sequence[str], results: Sequence[Result]) -> _Section:
    return _Section(
        result,
        [_verdict(text) for text in result.verdicts],
        [_plot(*one) for one in zip(_shown(result), pictures, strict=False)],
        _table(result),
        _quotes(result),
        _ways(result.passages),
        _time(result.provenance.seconds),
        _differs(result, results),
    )


def _differs(result: Result, results: Sequence[Result]) -> list[tuple[str, str]]:
    """What the header says of the first figure that it applies to, and this one says otherwise."""
    found = []
    for name in (
        "model",
        "model_digest",
        "preset",
        "config_hash",
        "texts_digest",
        "judge",
        "scorer",
        "device",
    ):
        first, *_ = [*_told(name, results), None]
        here = getattr(result.provenance, name)
        if here is not None and here != first:
            found.append((name.replace("_", " "), here))
    return found


def _told(name: str, results: Sequence[Result]) -> list[str]:
    """A judge is told of where one was asked."""
    values = (getattr(result.provenance, name) for result in results)
    return [value for value in values if value is not None]


def _verdict(text: str) -> _Verdict:
    for kind, lead in (("yes", AGREES), ("no", DIFFERS)):
        if text.startswith(lead):
            return _Verdict(kind, lead, text.removeprefix(lead).lstrip())
    return _Verdict("remark", "", text)


def _shown(result: Result) -> list[tuple[str, str, int]]:
    """Of each picture its title, what stands in its place, and how many panels it has."""
    found = []
    for chart, columns in result.drawn():
        kind = "Bar chart" if chart.kind == "bars" else "Line chart"
        alt = f"{kind}, {result.place}, {chart.title}: {', '.join(c.heading for c in columns)} over {chart.x}"
        alt += f", for each {' and '.join(chart.curves)}" if chart.curves else ""
        found.append((chart.title, f"{alt}. The numbers stand in the table.", len(columns)))
    for sheet in result.sheets:
        found.append((sheet.title, f"Images, {result.place}, {sheet.title}: {', '.join(sheet.names)}.", 1))
    return found


def _plot(shown: tuple[str, str, int], svg: str) -> _Plot:
    title, alt, panels = shown
    source = base64.b64encode(svg.encode("utf-8", "replace")).decode("ascii")
    drawn = _WIDTH.search(svg)
    width = round(float(drawn[1]) / 12, 1) if drawn else 25 * panels
    return _Plot(title, alt, source, width)


def _table(result: Result) -> _Table | None:
    # a line of texts to look at has no numbers; elsewhere, that there are none is worth saying
    rows = [row for row in result.rows if row.values or not result.passages]
    columns = [column for column in result.columns if any(column.name in row.values for row in rows)]
    if not columns:
        return None
    counts = {one.n for row in rows for one in row.values.values()}
    n = counts.pop() if len(counts) == 1 else None
    cells = [
        [
            _cell(row.values.get(column.name), row.paper.get(column.name), column, n is None)
            for column in columns
        ]
        for row in rows
    ]
    heads = [
        _Head(
            column.heading,
            max(len(line[at].interval) for line in cells),
            any(line[at].paper for line in cells),
        )
        for at, column in enumerate(columns)
    ]
    return _laid_out([row.labels for row in rows], heads, cells, n)


def _quotes(result: Result) -> _Table | None:
    columns = [column for column in result.columns if any(column.name in one.values for one in result.quotes)]
    if not columns:
        return None
    cells = [
        [_Cell(number(one.values.get(column.name), column) or "–", "", "", None) for column in columns]
        for one in result.quotes
    ]
    heads = [_Head(column.heading, 0, False) for column in columns]
    return _laid_out([one.labels for one in result.quotes], heads, cells, None)


def _laid_out(
    rows: Sequence[Mapping[str, Label]],
    heads: Sequence[_Head],
    cells: Sequence[Sequence[_Cell]],
    n: int | None,
) -> _Table:
    labels = list(dict.fromkeys(name for row in rows for name in row))
    words = [at for at, name in enumerate(labels) if any(isinstance(row.get(name), str) for row in rows)]
    return _Table(labels, words, heads, _grouped(labels, rows, cells), n)


def _cell(one: Estimate | None, paper: float | None, column: Column, says_n: bool) -> _Cell:
    printed = number(paper, column)
    if one is None:
        return _Cell("–", "", printed, None)
    return _Cell(number(one.value, column), interval(one, column), printed, one.n if says_n else None)


def _grouped(
    names: Sequence[str], rows: Sequence[Mapping[str, Label]], cells: Sequence[Sequence[_Cell]]
) -> list[list[_Line]]:
    """Lines under their labels; one that repeats, below labels that do, is said once."""
    prefixes = [
        [tuple(row.get(name) for name in names[: at + 1]) for at in range(len(names))] for row in rows
    ]
    groups: list[list[_Line]] = []
    for at, row in enumerate(rows):
        stubs = []
        for depth, name in enumerate(names):
            last = depth == len(names) - 1
            if not last and at and prefixes[at][depth] == prefixes[at - 1][depth]:
                continue
            same = (later[depth] == prefixes[at][depth] for later in prefixes[at:])
            span = 1 if last else next((i for i, equal in enumerate(same) if not equal), len(rows) - at)
            stubs.append(_Stub(label(row.get(name, "")), depth, span))
        if not groups or prefixes[at][0] != prefixes[at - 1][0]:
            groups.append([])
        groups[-1].append(_Line(stubs, cells[at]))
    # where nothing repeats, nothing is grouped
    return (
        groups if any(len(group) > 1 for group in groups) else [[line for group in groups for line in group]]
    )


def _ways(passages: Sequence[Passage]) -> list[_Way]:
    """Texts by what they show, and within that by the text that they are about."""
    ways: dict[str, dict[str, list[Passage]]] = {}
    for passage in passages:
        way, _, name = passage.group.partition(", ")
        ways.setdefault(way, {}).setdefault(name, []).append(passage)
    found = []
    for way, groups in ways.items():
        title, told, is_ordered = WAYS.get(way, (way, "", False))
        strips = [_Strip(name, _texts(group, is_ordered)) for name, group in groups.items()]
        marked = any(one.reference is not None for group in groups.values() for one in group)
        found.append(_Way(title, told, marked, strips))
    return found


def _texts(group: Sequence[Passage], is_ordered: bool) -> list[_Text]:
    found: list[_Text] = []
    before: str | None = None
    for at, passage in enumerate(group, 1):
        text, reference = visible(passage.text), passage.reference
        if reference is not None and reference != before:
            found.append(_Text("the program itself", [("equal", visible(reference), "")], None, True))
        before = reference
        runs = [("equal", text, "")] if reference is None else _marked(text, visible(reference))
        found.append(_Text(passage.label, runs, step_colour(at, len(group)) if is_ordered else None, False))
    return found


def _marked(text: str, reference: str) -> list[tuple[str, str, str]]:
    """The text cut where it differs from its reference, by words: kind, characters, what stood there before."""
    ids: dict[str, int] = {}
    old, new = (_WORDS.findall(one) for one in (reference, text))
    ops = Levenshtein.opcodes(*([ids.setdefault(word, len(ids)) for word in one] for one in (old, new)))
    pairs: list[tuple[bool, str, str]] = []
    for at, op in enumerate(ops):
        gone, put = "".join(old[op.src_start : op.src_end]), "".join(new[op.dest_start : op.dest_end])
        # a few equal characters between two changes meet by chance
        island = 0 < at < len(ops) - 1 and len(put) < ISLAND and "\n" not in put
        equal = op.tag == "equal" and not island
        if pairs and not equal and not pairs[-1][0]:
            pairs[-1] = (False, pairs[-1][1] + gone, pairs[-1][2] + put)
        else:
            pairs.append((equal, gone, put))
    return [
        ("equal", put, "")
        if equal
        else ("ins", put.replace("\n", f"{NEWLINE}\n"), gone)
        if put
        else ("del", "…", gone)
        for equal, gone, put in pairs
    ]


def _facts(results: Sequence[Result]) -> list[tuple[str, str]]:
    """The header's lines."""
    head = results[0].provenance
    sizes = ", ".join(f"{name} {count:,}" for name, count in head.parameters.items())
    judges = [("judge", _told("judge", results)), ("BERTScore by", _told("scorer", results))]
    return [
        ("model", head.model),
        ("parameters", f"{sum(head.parameters.values()):,}: {sizes}"),
        *((name, told[0]) for name, told in judges if told),
        ("held-out texts", f"{head.source}, {head.texts_digest}"),
        ("configuration", f"{head.preset}, seed {head.seed}, {head.config_hash}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in head.versions.items())),
        ("measured on", head.device),
    ]


def _runs(text: str) -> Iterable[tuple[bool, str]]:
    """Cut at `backquotes`: whether it is code, and characters. A single backquote stays what it is."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        pieces[-2:] = ["`".join(pieces[-2:])]
    return ((at % 2 == 1, piece) for at, piece in enumerate(pieces) if piece)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,}\N{NO-BREAK SPACE}h {minutes}\N{NO-BREAK SPACE}min"
    if minutes:
        return f"{minutes}\N{NO-BREAK SPACE}min {rest}\N{NO-BREAK SPACE}s"
    return f"{seconds:.{0 if seconds >= 10 else 1}f}\N{NO-BREAK SPACE}s"
