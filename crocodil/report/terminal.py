"""A report in the terminal: side by side where there is room, one under the other where there is not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crocodil.metrics.likelihood import LevelScore
from crocodil.report.diff import Line, Row, diff
from crocodil.report.palette import ink_on, step_colour
from crocodil.report.records import Demasking, GridRow, Reconstruction
from crocodil.report.summary import summarise
from crocodil.report.visible import visible
from crocodil.reproduce.paper import CAPTION

if TYPE_CHECKING:
    from crocodil.reproduce.measures.masked_tokens import NoiseScore

ROWS = 60
"""Lines of one file that are shown."""
NARROW = 72
"""Columns below which there is no room for two texts beside one another."""
LEFT, RIGHT = "bold red underline", "bold green underline"


def show_reconstructions(console: Console, reconstructions: Sequence[Reconstruction]) -> None:
    """Every file beside its reconstruction at the last NFE, its CER and time at all of them, and a summary."""
    for file, group in groupby(reconstructions, key=lambda r: r.file):
        runs = list(group)
        console.rule(Text(visible(file), style="bold"), align="left", style="dim")
        for run in runs:
            console.print(f"NFE {run.nfe:<4d} CER {run.cer:.3f}   {run.seconds:.2f} s", highlight=False)
        console.print(f"source, and what came back at NFE {runs[-1].nfe}:\n", style="dim", highlight=False)
        _show_rows(console, diff(visible(runs[-1].source), visible(runs[-1].text)))
        console.print()
    _show_summary(console, reconstructions)


def show_grid(console: Console, grid: Sequence[GridRow]) -> None:
    """The table block size × NFE, with the paper's column."""
    title = f"block size × NFE over {grid[0].windows} windows"
    table = Table(title=title, box=box.SIMPLE, title_justify="left", title_style="bold")
    for name in ("block", "NFE", "CER", "exact", "seconds/window"):
        table.add_column(name, justify="right")
    table.add_column(f"CER ({CAPTION})", justify="right", style="dim")
    for _, group in groupby(grid, key=lambda row: row.block_size):
        rows = list(group)
        for row in rows:
            table.add_row(
                str(row.block_size) if row is rows[0] else "",
                str(row.nfe),
                f"{row.cer:.3f}",
                f"{row.exact:.0%}",
                f"{row.seconds:.3f}",
                "" if row.paper_cer is None else f"{row.paper_cer:.3f}",
                end_section=row is rows[-1],
            )
    console.print(table)


def show_demasking(console: Console, demasking: Demasking) -> None:
    """The tokens of a window in the colour of the step that revealed each; nothing where there are no colours."""
    if not console.color_system:
        return
    picture = Text()
    for token in demasking.tokens:
        if token.kind == "text":
            colour = step_colour(token.step, demasking.nfe)
            shown = visible(token.text).replace("\n", "↵\n")
            picture.append(shown, style=f"{ink_on(colour)} on {colour}")
    legend = Text("step 1 ")
    for step in range(1, demasking.nfe + 1):
        legend.append("  ", style=f"on {step_colour(step, demasking.nfe)}")
    legend.append(f" step {demasking.nfe}")
    console.print(Text(f"a window of {visible(demasking.file)}: when each token was revealed", style="bold"))
    console.print(picture)
    console.print(legend)
    console.print()


def _show_summary(console: Console, reconstructions: Sequence[Reconstruction]) -> None:
    table = Table(box=box.SIMPLE)
    for name in ("NFE", "texts", "mean CER", "CER over all characters", "exact", "valid Python", "seconds"):
        table.add_column(name, justify="right")
    for line in summarise(reconstructions):
        table.add_row(
            str(line.nfe),
            str(line.texts),
            f"{line.mean_cer:.3f}",
            f"{line.corpus_cer:.3f}",
            str(line.exact),
            "–" if line.parses is None else f"{line.parses:.0%}",
            f"{line.seconds:.2f}",
        )
    console.print(table)


def _show_rows(console: Console, rows: Sequence[Row]) -> None:
    shown = rows[:ROWS]
    if console.width < NARROW:
        for row in shown:
            _show_stacked(console, row)
    else:
        table = Table.grid(expand=True)
        table.add_column(ratio=1, overflow="fold")
        table.add_column(width=3, justify="center", style="dim")
        table.add_column(ratio=1, overflow="fold")
        for row in shown:
            table.add_row(_text(row.left, LEFT), _sign(row), _text(row.right, RIGHT))
        console.print(table)
    if len(rows) > ROWS:
        console.print(f"… {len(rows) - ROWS} more lines; --report shows them", style="dim", highlight=False)


def _show_stacked(console: Console, row: Row) -> None:
    if row.equal:
        console.print(Text("  ").append(_text(row.left, LEFT)))
        return
    for line, sign, style in ((row.left, "- ", LEFT), (row.right, "+ ", RIGHT)):
        if line is not None:
            console.print(Text(sign, style=style).append(_text(line, style)))


def _text(line: Line | None, style: str) -> Text:
    text = Text(tab_size=4)
    for span in line.spans if line else ():
        text.append(span.text, style=style if span.changed else "")
    return text


def _sign(row: Row) -> str:
    if row.equal:
        return "│"
    return "≠" if row.left and row.right else "<" if row.left else ">"


def show_levels(console: Console, scores: Sequence[LevelScore]) -> None:
    """Fig. 4 as a table: a line for each masking level, two columns for each number of registers."""
    ks = list(dict.fromkeys(score.k for score in scores))
    table = Table(title="Masked tokens by masking level (cross-entropy in nats, top-1)", title_justify="left")
    table.add_column("t", justify="right")
    for k in ks:
        table.add_column("unguided" if k == 0 else f"k = {k}", justify="right")
    for t in dict.fromkeys(score.t for score in scores):
        row = {score.k: score for score in scores if score.t == t}
        table.add_row(f"{t:g}", *(f"{row[k].cross_entropy:.2f}  {row[k].top1:.1%}" for k in ks))
    console.print(table)


def show_noise(console: Console, scores: Sequence[NoiseScore]) -> None:
    """Fig. 7 as a table."""
    table = Table(title="Masked tokens at 90 % masking, by register noise", title_justify="left")
    for name in ("sigma", "cross-entropy", "top-1"):
        table.add_column(name, justify="right")
    for one in scores:
        table.add_row(f"{one.sigma:g}", f"{one.score.cross_entropy:.2f}", f"{one.score.top1:.1%}")
    console.print(table)
