"""Pictures of results, by matplotlib: SVG for pages, PNG for everything else."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce.figure import NOWHERE, Chart, Column, Label, Row, Sheet
from crocodil.reproduce.result import Result

COLOURS = ("#1f6b54", "#c8553d", "#3d5a98", "#b8860b", "#7a4b94", "#4d9078", "#8a5a44", "#5d676a")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, SOFT, LINE = "#22282a", "#5d676a", "#d9d7ce"
EDGES = (":", "--", "-.")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1, 1.5)))
PANEL, WIDE = (4.1, 3.1), 6.4
"""Inches; the width of a picture of one panel, with its legend beside it."""
DECADE = 10
LEGEND_INCHES, LETTER = 0.75, 0.068
"""Width of a legend's entry without its words, and of a letter."""
CROWDED = 11.5
"""Letters of an inch, at most, where names of bars stand side by side; longer ones are turned."""
PAPER = "the paper"
PIXEL, GAP, BARE = 8, 1, 255
"""Of images: the side of a pixel, pixels between two, and the level of what is between."""
DPI = 160
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "path",  # the reader's machine may lack the font
}


@dataclass(frozen=True)
class Picture:
    """One chart."""

    title: str
    svg: str
    png: bytes


def draw(result: Result) -> list[Picture]:
    """A picture for each chart that has something to show, and for each sheet. The same result gives the same bytes."""
    charts = [_picture(result.name, chart, result.rows_of(chart), panels) for chart, panels in result.drawn()]
    return charts + [_sheet(result.name, sheet) for sheet in result.sheets]


def _picture(name: str, chart: Chart, rows: Sequence[Row], panels: Sequence[Column]) -> Picture:
    import matplotlib  # here, because it takes a second that other verbs need not wait for

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"{name} {chart.title}"}):
        width = WIDE if len(panels) == 1 else PANEL[0] * len(panels)
        canvas = _canvas(width, PANEL[1])
        axes = canvas.subplots(1, len(panels), squeeze=False)[0]
        for ax, column in zip(axes, panels, strict=True):
            (_bars if chart.kind == "bars" else _curves)(ax, chart, rows, column)
            ax.set_title(column.heading + (" (%)" if column.percent else ""))
            lows = [_low(one) for row in rows if (one := row.values.get(column.name))]
            highs = [_high(one) for row in rows if (one := row.values.get(column.name))]
            # less than a decade has few ticks on a logarithmic axis, and bars stand on 0
            if column.name in chart.log_y and chart.kind == "curves" and 0 < DECADE * min(lows) < max(highs):
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter(lambda value, at: f"{value:g}")
                ax.yaxis.set_minor_formatter(lambda value, at: "")
            elif _begins_at_zero(lows):
                ax.set_ylim(bottom=0)
        # a panel may show what another has no number of
        known = [zip(*ax.get_legend_handles_labels(), strict=True) for ax in axes]
        dressed = {words: handle for pairs in known for handle, words in pairs}
        labels, handles = list(dressed), list(dressed.values())
        if len(labels) > 1 or PAPER in labels:
            entry = LEGEND_INCHES + LETTER * max(map(len, labels))
            place = "outside right upper" if len(panels) == 1 else "outside lower center"
            ncols = 1 if len(panels) == 1 else max(1, min(len(labels), int(width / entry)))
            canvas.legend(handles, labels, loc=place, ncols=ncols)
        return _saved(canvas, chart.title)


def _canvas(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(canvas)
    return canvas


def _saved(canvas: Any, title: str) -> Picture:
    svg, png = io.StringIO(), io.BytesIO()
    canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    canvas.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return Picture(title, svg.getvalue(), png.getvalue())


def _sheet(name: str, sheet: Sheet) -> Picture:
    import matplotlib
    import numpy as np

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"{name} {sheet.title}"}):
        strips = []
        for images in sheet.rows:
            levels = [
                255 - np.frombuffer(bytes.fromhex(one), np.uint8).reshape(-1, sheet.width) for one in images
            ]
            framed = [np.pad(one, GAP, constant_values=BARE) for one in levels]
            strips.append(np.hstack(framed).repeat(PIXEL, 0).repeat(PIXEL, 1))
        height = 0.2 + sum(WIDE * 0.8 * strip.shape[0] / strip.shape[1] + 0.25 for strip in strips)
        canvas = _canvas(WIDE, height)
        axes = canvas.subplots(len(strips), 1, squeeze=False)[:, 0]
        for ax, title, strip in zip(axes, sheet.names, strips, strict=True):
            ax.imshow(strip, cmap="gray", vmin=0, vmax=255, interpolation="none")
            ax.set_title(title)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            ax.grid(False)
        return _saved(canvas, sheet.title)


def _curves(ax: Any, chart: Chart, rows: Sequence[Row], column: Column) -> None:
    shown = [row for row in rows if column.name in row.values and _is_place(row.labels[chart.x], chart.log_x)]
    for name, group, colour, mark, dash in _dressed(chart, shown):
        xs = [float(row.labels[chart.x]) for row in group]
        estimates = [row.values[column.name] for row in group]
        ys = [_scaled(one.value, column) for one in estimates]
        ax.plot(xs, ys, marker=mark, color=colour, linestyle=dash, label=name)
        edges = [(_scaled(_low(one), column), _scaled(_high(one), column)) for one in estimates]
        ax.fill_between(xs, *zip(*edges, strict=True), color=colour, alpha=0.1, linewidth=0)
        printed = [
            (x, _scaled(row.paper[column.name], column))
            for x, row in zip(xs, group, strict=True)
            if column.name in row.paper
        ]
        if printed:
            ax.plot(
                *zip(*printed, strict=True), linestyle=":", marker=mark, markerfacecolor="white", color=colour,
                linewidth=1.1, label=f"{name}, paper",
            )  # fmt: skip
    # what has no place on the axis, as real texts, is an edge to measure curves by
    edges_of = [r for r in rows if column.name in r.values and not _is_place(r.labels[chart.x], chart.log_x)]
    for at, row in enumerate(edges_of):
        words = [_say(name, value) for name in chart.curves if (value := row.labels[name]) != NOWHERE]
        height, dash = _scaled(row.values[column.name].value, column), EDGES[at % len(EDGES)]
        ax.axhline(height, color=SOFT, linestyle=dash, linewidth=1.2, label=", ".join(words))
    ax.set_xlabel(chart.x_heading or chart.x)
    places = sorted({float(row.labels[chart.x]) for row in shown})
    if chart.log_x and places:
        ax.set_xscale("log", base=2)
    if places and len(places) <= 12:
        ax.set_xticks(places, [f"{place:g}" for place in places])
        ax.minorticks_off()


def _bars(ax: Any, chart: Chart, rows: Sequence[Row], column: Column) -> None:
    shown = [row for row in rows if column.name in row.values]
    places = list(dict.fromkeys(row.labels[chart.x] for row in shown))
    groups = _groups(chart, shown)
    width = 0.8 / max(1, len(groups))
    for at, (name, group) in enumerate(groups):
        xs = [places.index(row.labels[chart.x]) + (at - (len(groups) - 1) / 2) * width for row in group]
        estimates = [row.values[column.name] for row in group]
        ys = [_scaled(one.value, column) for one in estimates]
        strays = [
            [y - _scaled(_low(one), column) for y, one in zip(ys, estimates, strict=True)],
            [_scaled(_high(one), column) - y for y, one in zip(ys, estimates, strict=True)],
        ]
        colour = COLOURS[at % len(COLOURS)]
        ax.bar(xs, ys, width * 0.92, yerr=strays, color=colour, ecolor=INK, capsize=2, label=name)
        printed = [
            (x, row.paper[column.name]) for x, row in zip(xs, group, strict=True) if column.name in row.paper
        ]
        if printed:
            xs, ys = [x for x, _ in printed], [_scaled(value, column) for _, value in printed]
            label = PAPER if PAPER not in ax.get_legend_handles_labels()[1] else None
            ax.plot(xs, ys, "D", markerfacecolor="white", color=INK, label=label)
    names = [str(place) if "=" in str(place) else str(place).replace(" ", "\n", 1) for place in places]
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    crowded = len(places) * longest > CROWDED * ax.figure.get_figwidth() / len(ax.figure.axes)
    if crowded:
        names = list(map(str, places))
    ax.set_xticks(range(len(places)), names)
    if crowded:
        for name in ax.get_xticklabels():
            name.set(rotation=30, ha="right", rotation_mode="anchor")
    ax.grid(False, axis="x")


def _groups(chart: Chart, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows by the labels that tell curves apart, each curve under its name."""
    found: dict[tuple[Label, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.labels.get(name, "") for name in chart.curves), []).append(row)
    return [(", ".join(map(_say, chart.curves, key)), group) for key, group in found.items()]


def _dressed(chart: Chart, rows: Sequence[Row]) -> list[tuple[str, list[Row], str, str, Any]]:
    """Curves with their colour, mark and dash. Where two labels tell them apart, the first is the dash."""
    two = len(chart.curves) == 2
    known = lambda name: list(dict.fromkeys(row.labels.get(name, "") for row in rows))  # noqa: E731
    tints = known(chart.curves[-1]) if chart.curves else []
    dashes = known(chart.curves[0]) if two else []
    found = []
    for name, group in _groups(chart, rows):
        tint = tints.index(group[0].labels.get(chart.curves[-1], "")) if chart.curves else 0
        dash = dashes.index(group[0].labels.get(chart.curves[0], "")) if two else 0
        colour, mark = COLOURS[tint % len(COLOURS)], MARKS[tint % len(MARKS)]
        found.append((name, group, colour, mark, DASHES[dash % len(DASHES)]))
    return found


def _begins_at_zero(lows: Sequence[float]) -> bool:
    """Whether an axis may begin at 0 without squeezing its curves: nothing is below, and something is near."""
    return min(lows, default=-1) >= 0 and min(lows) <= 0.6 * max([*lows, 1e-12])


def _say(name: str, value: Label) -> str:
    """A label in a legend; one that is a word needs no name before it."""
    return f"{name} {value}" if not isinstance(value, str) or _is_share(value) else value


def _is_share(value: str) -> bool:
    return value.endswith("%") or value == "nothing"


def _is_place(value: Label, log: bool) -> bool:
    return isinstance(value, int | float) and (not log or value > 0)


def _scaled(value: float, column: Column) -> float:
    return 100 * value if column.percent else value


def _low(one: Estimate) -> float:
    return one.value if one.low is None or math.isnan(one.low) else min(one.low, one.value)


def _high(one: Estimate) -> float:
    return one.value if one.high is None or math.isnan(one.high) else max(one.high, one.value)
