"""A report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from crocodil.atomic import write_atomically
from crocodil.metrics.reconstruction import parses
from crocodil.report.diff import Row, diff
from crocodil.report.forming import at_step
from crocodil.report.palette import ink_on, step_colour
from crocodil.report.records import (
    Demasking,
    GridRow,
    ModelFacts,
    Reconstruction,
    Report,
    Synthesis,
    Token,
)
from crocodil.report.summary import summarise
from crocodil.report.visible import visible
from crocodil.reproduce.paper import CAPTION

TEMPLATES = Path(__file__).parent / "templates"
FRAMES = 6
"""Small pictures under the large one."""
STAGES = 5
"""Times at which a text out of noise is shown on its way."""
MASKED = "▪"
COLUMNS = 16
"""Cells in a line of the map of a window."""


def write_report(folder: str | Path, report: Report) -> Path:
    """Write index.html into a folder, which is made where it is missing; an older page is replaced as a whole.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    write_atomically(page, render(report))
    return page


def render(report: Report) -> str:
    """The page's HTML, a function of the report alone."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"visible": visible, "size": _size, "count": _count}
    return templates.get_template("report.html.jinja").render(
        report=report,
        facts=_facts(report.model, report.k) + (_settings(report.synthesis) if report.synthesis else []),
        summary=summarise(report.reconstructions) if report.reconstructions else [],
        files=_files(report.reconstructions),
        nfes=list(dict.fromkeys(r.nfe for r in report.reconstructions)),
        blocks=[
            _Block(size, list(rows)) for size, rows in groupby(report.grid, key=lambda row: row.block_size)
        ],
        worst=max([1e-9, *(min(row.cer, 1.0) for row in report.grid)]),
        paper=CAPTION,
        picture=_picture(report.demasking) if report.demasking else None,
        lead=_lead(report),
        stages=_stages(report.demasking) if report.synthesis and report.demasking else [],
        refreshed=_after(report.synthesis) if report.synthesis else "",
    )


@dataclass(frozen=True)
class _Run:
    """One file at one NFE, ready to be drawn."""

    result: Reconstruction
    rows: Sequence[Row]
    parses: bool


@dataclass(frozen=True)
class _File:
    name: str
    characters: int
    lines: int
    parses: bool
    """Whether the source is valid Python."""
    runs: Sequence[_Run]


@dataclass(frozen=True)
class _Block:
    size: int
    rows: Sequence[GridRow]


@dataclass(frozen=True)
class _Cell:
    """One token, coloured."""

    label: str
    """What stands in the running text; a newline keeps its sign in front of it."""
    hint: str
    step: int
    kind: str
    colour: str
    ink: str
    x: int
    y: int


@dataclass(frozen=True)
class _Frame:
    step: int
    revealed: int


@dataclass(frozen=True)
class _Picture:
    file: str
    nfe: int
    block_size: int
    cells: Sequence[_Cell]
    frames: Sequence[_Frame]
    counts: Sequence[int]
    """Tokens revealed after step 0 … nfe."""
    colours: Sequence[str]
    columns: int
    lines: int
    given: int
    """Tokens that were not written."""
    tail: int
    """Tokens after the end of the text."""


@dataclass(frozen=True)
class _Stage:
    """A text on its way: runs of tokens that are `masked`, `new` since the stage before, or `old`."""

    step: int
    runs: Sequence[tuple[str, str]]
    """Kind and characters."""


def _files(reconstructions: Sequence[Reconstruction]) -> list[_File]:
    files = []
    for name, group in groupby(reconstructions, key=lambda r: r.file):
        results = list(group)
        source = results[0].source
        runs = [_Run(r, diff(visible(source), visible(r.text)), parses(r.text)) for r in results]
        lines = source.count("\n") + (not source.endswith("\n") and source != "")
        files.append(_File(name, len(source), lines, parses(source), runs))
    return files


def _picture(demasking: Demasking) -> _Picture:
    steps = demasking.nfe
    cells = [_cell(at, token, steps) for at, token in enumerate(demasking.tokens)]
    counts = [sum(token.step <= step for token in demasking.tokens) for step in range(steps + 1)]
    shown = sorted({round(i * steps / (FRAMES - 1)) for i in range(FRAMES)})
    return _Picture(
        demasking.file,
        steps,
        demasking.block_size,
        cells,
        [_Frame(step, counts[step]) for step in shown],
        counts,
        [step_colour(step, steps) for step in range(1, steps + 1)],
        COLUMNS,
        -(-len(cells) // COLUMNS),
        counts[0],
        sum(token.kind == "tail" for token in demasking.tokens),
    )


def _stages(demasking: Demasking) -> list[_Stage]:
    stages, last = [], 0
    for step in sorted({round(i * demasking.nfe / (STAGES - 1)) for i in range(STAGES)}):
        runs = []
        shown = [
            (token.kind if token.kind == "masked" else "new" if token.step > last else "old", token)
            for token in at_step(demasking.tokens, step)
        ]
        for kind, group in groupby(shown, key=lambda one: one[0]):
            tokens = [token for _, token in group]
            text = MASKED * len(tokens) if kind == "masked" else visible("".join(t.text for t in tokens))
            runs.append((kind, text))
        stages.append(_Stage(step, runs))
        last = step
    return stages


def _cell(at: int, token: Token, steps: int) -> _Cell:
    colour = step_colour(max(token.step, 1), steps)
    text = visible(token.text)
    names = {"start": "start of text", "end": "end of text", "tail": "after the end"}
    hint = names.get(token.kind) or repr(token.text)
    return _Cell(
        text.replace("\n", "↵\n"),
        f"{hint}: position {at}, " + (f"step {token.step}" if token.step else "given"),
        token.step,
        token.kind,
        colour,
        ink_on(colour),
        at % COLUMNS,
        at // COLUMNS,
    )


def _facts(model: ModelFacts, k: int) -> list[tuple[str, str]]:
    """The header's lines."""
    parts = {"encoder": model.encoder_parameters, "demasker": model.demasker_parameters}
    parts |= {
        f"{kind} denoiser": count for kind, count in sorted(model.denoiser_parameters.items(), reverse=True)
    }
    each = ", ".join(f"{name} {_count(count)}" for name, count in parts.items())
    facts = [
        ("parameters", f"{_count(sum(parts.values()))}: {each}"),
        ("window", f"{model.window} tokens of a vocabulary of {model.vocabulary:,}"),
        ("registers", f"{k} of {model.K} a window, {model.D} wide"),
        ("weights", f"{_size(model.bytes)}, encoder {model.fingerprint}"),
    ]  # fmt: skip
    if model.trained_steps is not None:
        facts.append(("training", f"{model.trained_steps:,} steps"))
    if model.licence:
        facts.append(("licence", model.licence))
    return facts


def _settings(synthesis: Synthesis) -> list[tuple[str, str]]:
    """The header's lines for texts out of noise."""
    steps = []
    if synthesis.method not in ("mdm", "alg3"):
        steps.append(f"{synthesis.latent_steps} from noise")
    if synthesis.refreshes:
        steps.append(f"{synthesis.refresh_steps} a refresh")
    facts = [("method", f"{synthesis.method}, NFE {synthesis.nfe}, temperature {synthesis.temperature:g}")]
    return facts + ([("denoising steps", ", ".join(steps))] if steps else [])


def _lead(report: Report) -> str:
    """What was done, in a sentence."""
    if report.synthesis is None:
        return (
            f"Each text was written into {report.k} continuous registers per window, and back into text by a masked "
            "diffusion language model that saw nothing but those registers."
        )
    if report.synthesis.method == "mdm":
        return "A masked diffusion language model wrote each text by itself, without registers."
    again = _after(report.synthesis)
    return (
        f"A diffusion model drew {report.k} continuous registers out of noise"
        f"{f', and anew {again}, given what stood there by then' if again else ''}; "
        "a masked diffusion language model wrote the text under them."
    )


def _after(synthesis: Synthesis) -> str:
    """When registers were drawn anew: `after steps 10 and 20`, or nothing."""
    if synthesis.method == "alg3":
        return "after every step"
    *first, last = map(str, synthesis.refreshes) if synthesis.refreshes else [""]
    steps = f"steps {', '.join(first)} and {last}" if first else f"step {last}"
    return f"after {steps}" if last else ""


def _size(count: int) -> str:
    return (f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB").replace(
        " ", "\N{NO-BREAK SPACE}"
    )


def _count(number: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.1f}\N{NO-BREAK SPACE}{name}"
    return str(number)
