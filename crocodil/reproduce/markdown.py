"""Results as Markdown: a page for `docs/` and code hosts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from crocodil.metrics.bootstrap import Estimate
from crocodil.report.visible import visible
from crocodil.reproduce.figure import AGREES, DIFFERS, Column, Label
from crocodil.reproduce.result import Result

HUGE = 1e6
"""From here on a number is told by its power of ten."""
SHOWN = 900
"""Characters of an example."""


def render(results: Sequence[Result], pictures: Mapping[str, Sequence[str]]) -> str:
    """The page, a function of the results alone.

    Args:
        pictures: for each result, paths of its pictures, relative to the page.
    """
    head = results[0].provenance
    sizes = ", ".join(f"{name} {count:,}" for name, count in head.parameters.items())
    versions = ", ".join(f"{name} {version}" for name, version in head.versions.items())
    texts = f"`{_plain(head.source)}` ({head.texts_digest})"
    parts = [
        "# Reproduction\n",
        "Written by `crocodil reproduce`; a change by hand is lost with the next run.\n",
        f"```sh\n{command(results)}\n```\n",
        f"Model `{_plain(head.model)}`: {sizes} parameters. {judges(results)}Held-out texts: {texts}. Seed {head.seed}, "
        f"configuration {_each('config_hash', results)}. {versions}; {_each('device', results)}. In brackets: 95 % "
        "intervals by bootstrap over texts, widened for few; a verdict takes for different what lies beyond them.\n",
        overview(results),
    ]
    return "\n".join(parts + [section(result, pictures.get(result.name, ())) for result in results])


def _each(name: str, results: Sequence[Result]) -> str:
    """What all figures say of one thing; where they say several, which one is whose first."""
    first: dict[str, str] = {}
    for result in results:
        first.setdefault(_plain(getattr(result.provenance, name)), result.place)
    return ", ".join(
        value if at == 0 else f"from {place} on {value}" for at, (value, place) in enumerate(first.items())
    )


def judges(results: Sequence[Result]) -> str:
    """Who judged, where anybody did."""
    found = [
        ("Judge", [r.provenance.judge for r in results]),
        ("BERTScore by", [r.provenance.scorer for r in results]),
    ]
    return "".join(
        f"{what} {_plain(name)}. " for what, names in found for name in dict.fromkeys(names) if name
    )


def command(results: Sequence[Result]) -> str:
    """What measures this again, from the preset."""
    head = results[0].provenance
    words = ["crocodil", "reproduce", *(result.name for result in results), "--model", head.model]
    return _plain(shlex.join([*words, "--preset", head.preset, *head.overrides]))


def overview(results: Sequence[Result]) -> str:
    """One line for each figure: what the paper finds, and how many of our verdicts agree."""
    lines = ["| | the paper finds | here |", "| --- | --- | --- |"]
    for result in results:
        yes = sum(verdict.startswith(AGREES) for verdict in result.verdicts)
        no = sum(verdict.startswith(DIFFERS) for verdict in result.verdicts)
        told = (
            f"{yes} of {yes + no} findings"
            if yes + no
            else "to look at"
            if result.passages
            else "not measured"
        )
        lines.append(f"| [{result.place}](#{anchor(result)}) | {result.finding} | {told} |")
    return "\n".join(lines) + "\n"


def anchor(result: Result) -> str:
    """The link to a section, by a code host's rule."""
    kept = "".join(c for c in heading(result).lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def heading(result: Result) -> str:
    return f"{result.place}: {result.title}"


def section(result: Result, pictures: Sequence[str]) -> str:
    """One figure."""
    parts = [f"## {heading(result)}\n", f"The paper: {result.finding}\n"]
    parts += [
        f"![{result.title}: {title}]({path})\n"
        for title, path in zip(result.pictures(), pictures, strict=False)
    ]
    remarks = [*result.verdicts, *result.missing]
    if remarks:
        parts.append("\n".join(f"- {one}" for one in remarks) + "\n")
    if any(row.values for row in result.rows):
        parts.append(table(result))
    if result.quotes:
        parts.append(quotes(result))
    parts += [f"{note}\n" for note in result.notes]
    parts += [_passage(one.group, one.label, one.text) for one in result.passages]
    parts.append(f"{texts(result)}{result.provenance.seconds:,.0f} s of work.\n")
    return "\n".join(parts)


def table(result: Result) -> str:
    """Labels, our values with their intervals, and the paper's where it prints them."""
    columns = [c for c in result.columns if any(c.name in row.values for row in result.rows)]
    printed = [c for c in columns if any(c.name in row.paper for row in result.rows)]
    heads = [*result.labels]
    for column in columns:
        heads += [column.heading, *(["paper"] if column in printed else [])]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in result.rows:
        cells = [label(row.labels.get(name, "")) for name in result.labels]
        for column in columns:
            cells.append(estimate(row.values.get(column.name), column))
            if column in printed:
                cells.append(number(row.paper.get(column.name), column))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def texts(result: Result) -> str:
    """How many texts, or whatever else, the numbers rest on."""
    counts = {one.n for row in result.rows for one in row.values.values()}
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    count = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{count} {result.counted} a number. "


def quotes(result: Result) -> str:
    """What the paper's text names."""
    labels = list(dict.fromkeys(name for one in result.quotes for name in one.labels))
    columns = [c for c in result.columns if any(c.name in one.values for one in result.quotes)]
    lines = ["| the paper | " + " | ".join([*labels[1:], *(c.heading for c in columns)]) + " |"]
    lines.append("|" + " --- |" * (len(labels) + len(columns)))
    for one in result.quotes:
        first, *others = labels
        cells = [
            f"{first} {label(one.labels.get(first, ''))}",
            *(label(one.labels.get(name, "")) for name in others),
        ]
        cells += [number(one.values.get(column.name), column) for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def label(value: Label) -> str:
    """A label in a cell."""
    return (
        f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )


def number(value: float | None, column: Column) -> str:
    """A number as its column wants it, or nothing."""
    if value is None:
        return ""
    value = 100 * value if column.percent else value
    told = f"{value:,.{column.digits}f}" if abs(value) < HUGE else f"{value:.1e}"
    if told.startswith("-"):
        # rounding may have left nothing of it
        told = "−" + told[1:] if any(digit in told for digit in "123456789") else told[1:]
    return f"{told} %" if column.percent else told


def estimate(one: Estimate | None, column: Column) -> str:
    """A number and its interval."""
    if one is None:
        return ""
    return " ".join(filter(None, (number(one.value, column), interval(one, column))))


def interval(one: Estimate, column: Column) -> str:
    """[low, high] in the digits of the column, or nothing."""
    if one.low is None or one.high is None:
        return ""
    low, high = (number(edge, column).removesuffix(" %") for edge in (one.low, one.high))
    return f"[{low}, {high}]"


def _plain(text: str) -> str:
    """A name from outside, without what would end a code span or a cell, or hide."""
    return visible(text).replace("`", "'").replace("|", "/").replace("\n", " ")


def _passage(group: str, name: str, text: str) -> str:
    shown = visible(text[:SHOWN]) + ("…" if len(text) > SHOWN else "")
    fence = "`" * (3 + max((len(run) for run in shown.split() if set(run) == {"`"}), default=0))
    return f"**{group}, {name}**\n\n{fence}text\n{shown}\n{fence}\n"
