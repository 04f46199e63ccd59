"""A figure that has been measured, with all that its numbers depend on; as JSON and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crocodil.errors import CrocodilError
from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce.figure import Chart, Column, Passage, Quote, Row, Sheet

FORMAT = "crocodil-figure-1"


@dataclass(frozen=True)
class Provenance:
    """What the numbers of a figure depend on."""

    model: str
    model_digest: str
    parameters: Mapping[str, int]
    """Of encoder, demasker and each denoiser."""
    preset: str
    overrides: Sequence[str]
    """Fields that were changed on the command line, and denoisers that were given, as typed."""
    config: Mapping[str, Any]
    """All that the figure may read of it."""
    config_hash: str
    source: str
    texts_digest: str
    judge: str | None
    """Name, arithmetic and positions, where a judge was asked."""
    scorer: str | None
    """Name, layer and arithmetic of the encoder of BERTScore, where it was asked."""
    seed: int
    versions: Mapping[str, str]
    device: str
    seconds: float
    """Time of the work that this figure rests on, added up over processes and over interrupted runs. Work that several
    figures share counts in each."""


@dataclass(frozen=True)
class Result:
    """A figure's numbers, and what to say of them."""

    name: str
    place: str
    title: str
    finding: str
    columns: Sequence[Column]
    charts: Sequence[Chart]
    rows: Sequence[Row]
    quotes: Sequence[Quote]
    verdicts: Sequence[str]
    missing: Sequence[str]
    notes: Sequence[str]
    passages: Sequence[Passage]
    provenance: Provenance
    sheets: Sequence[Sheet] = ()
    counted: str = "texts"
    """What a number rests on several of."""

    @property
    def labels(self) -> list[str]:
        """The names of the rows' labels, in order."""
        return list(dict.fromkeys(name for row in self.rows for name in row.labels))

    def drawn(self) -> list[tuple[Chart, list[Column]]]:
        """Charts that have something to show, each with its panels that do."""
        columns, found = {column.name: column for column in self.columns}, []
        for chart in self.charts:
            names = {name for row in self.rows_of(chart) for name in row.values}
            panels = [columns[name] for name in chart.panels if name in names]
            if panels:
                found.append((chart, panels))
        return found

    def pictures(self) -> list[str]:
        """Titles of all pictures: charts that have something to show, then sheets."""
        return [chart.title for chart, _ in self.drawn()] + [sheet.title for sheet in self.sheets]

    def rows_of(self, chart: Chart) -> list[Row]:
        """The rows that a chart shows."""
        return [
            row
            for row in self.rows
            if chart.x in row.labels and all(row.labels.get(k) == v for k, v in chart.where.items())
        ]


def to_json(result: Result) -> str:
    """One document, without numbers that JSON does not have."""
    return json.dumps({"format": FORMAT} | asdict(result), indent=1, allow_nan=False) + "\n"


def from_json(text: str, where: str | Path = "result") -> Result:
    """What `to_json` wrote.

    Raises:
        CrocodilError: it is something else.
    """
    try:
        values = json.loads(text)
        if values.pop("format") != FORMAT:
            raise KeyError("format")
        estimates = lambda row: {name: Estimate(**one) for name, one in row["values"].items()}  # noqa: E731
        return Result(
            **values
            | {
                "columns": [Column(**one) for one in values["columns"]],
                "charts": [_chart(one) for one in values["charts"]],
                "rows": [Row(row["labels"], estimates(row), row["paper"]) for row in values["rows"]],
                "quotes": [Quote(**one) for one in values["quotes"]],
                "passages": [Passage(**one) for one in values["passages"]],
                "sheets": [Sheet(**one) for one in values.get("sheets", ())],
                "provenance": Provenance(**values["provenance"]),
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CrocodilError(
            f"{where} is no figure that `crocodil reproduce` wrote ({type(error).__name__}: {error}); measure it again"
        ) from None


def _chart(values: dict[str, Any]) -> Chart:
    lists = {name: tuple(values[name]) for name in ("panels", "curves", "log_y")}
    return Chart(**values | lists)
