"""Results in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crocodil.report.visible import visible
from crocodil.reproduce import markdown
from crocodil.reproduce.result import Result


def show(console: Console, result: Result) -> None:
    """A figure of the paper: the table with the paper's values, and what to say of it."""
    if any(row.values for row in result.rows):
        columns = [c for c in result.columns if any(c.name in row.values for row in result.rows)]
        printed = [c for c in columns if any(c.name in row.paper for row in result.rows)]
        table = Table(
            title=f"{result.place}: {result.title}", box=box.SIMPLE, title_justify="left", title_style="bold"
        )
        for name in result.labels:
            table.add_column(name)
        for column in columns:
            table.add_column(column.heading, justify="right")
            if column in printed:
                table.add_column("paper", justify="right", style="dim")
        for row in result.rows:
            cells = [visible(markdown.label(row.labels.get(name, ""))) for name in result.labels]
            for column in columns:
                cells.append(markdown.estimate(row.values.get(column.name), column))
                if column in printed:
                    cells.append(markdown.number(row.paper.get(column.name), column))
            table.add_row(*(Text(cell) for cell in cells))
        console.print(table)
    else:
        console.print(Text(f"{result.place}: {result.title}", style="bold"))
    for remark in [*result.verdicts, *result.missing]:
        console.print(Text(f"- {visible(remark)}"))
    console.print()
