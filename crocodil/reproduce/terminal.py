"""Results in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crocodil.report.visible import visible
from crocodil.reproduce import markdown
from crocodil.reproduce.result import Result

PLAIN_COLUMNS = 400
"""A file or a pipe has no width."""


def show(console: Console, result: Result) -> None:
    """A figure of the paper: what the paper finds, the table with its values, and what to say of ours."""
    if not console.is_terminal:
        console = Console(file=console.file, highlight=False, width=PLAIN_COLUMNS)
    console.print(Text(f"{result.place}: {result.title}", style="bold"))
    console.print(Text(f"The paper: {result.finding}"))
    if any(row.values for row in result.rows):
        table = _table(result, intervals=True)
        if console.measure(table).maximum > console.width:
            # numbers that are cut are worse than none; the intervals are in the files
            table = _table(result, intervals=False)
        console.print(table)
    for quote in result.quotes:
        labels = ", ".join(f"{name} {markdown.label(value)}" for name, value in quote.labels.items())
        values = ", ".join(f"{name} {value:g}" for name, value in quote.values.items())
        console.print(Text(f"the paper, {labels}: {values}", style="dim"))
    for remark in [*result.verdicts, *result.missing]:
        console.print(Text(f"- {visible(remark)}"))
    console.print()


def _table(result: Result, intervals: bool) -> Table:
    columns = [c for c in result.columns if any(c.name in row.values for row in result.rows)]
    printed = [c for c in columns if any(c.name in row.paper for row in result.rows)]
    table = Table(box=box.SIMPLE)
    for name in result.labels:
        table.add_column(name)
    for column in columns:
        table.add_column(column.heading, justify="right")
        if column in printed:
            table.add_column("paper", justify="right", style="dim")
    for row in result.rows:
        cells = [visible(markdown.label(row.labels.get(name, ""))) for name in result.labels]
        for column in columns:
            one = row.values.get(column.name)
            value = (
                markdown.estimate(one, column)
                if intervals
                else markdown.number(one.value if one else None, column)
            )
            cells.append(value)
            if column in printed:
                cells.append(markdown.number(row.paper.get(column.name), column))
        table.add_row(*(Text(cell) for cell in cells))
    return table
