"""`crocodil passk`: a model on a set of problems, samples and scores in a folder, a table in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from crocodil.atomic import write_atomically
from crocodil.harness.passk import Scores, score
from crocodil.harness.problems import Problem
from crocodil.harness.samplers import crocodil_sampler, identity
from crocodil.harness.samples import Sample
from crocodil.harness.sandbox import Limits
from crocodil.model import Model
from crocodil.report.visible import visible


def run(
    model: Model,
    problems: Sequence[Problem],
    samples: int = 4,
    ks: Sequence[int] = (1, 4),
    *,
    seed: int = 0,
    workers: int | None = None,
    limits: Limits | None = None,
    folder: str | Path | None = None,
    require_network_isolation: bool = False,
    on_done: Callable[[Sample], None] | None = None,
    **options: Any,
) -> Scores:
    """Score a model. With `folder`, samples.jsonl grows there, from which a killed run goes on, and scores.json ends it.

    Args:
        options: of `crocodil.synthesis.generate`, as nfe=32; the rest as in `passk.score`.

    Raises:
        CrocodilError: as `passk.score` and `crocodil.synthesis.generate`.
    """
    scores = score(
        problems,
        crocodil_sampler(model, **options),
        samples,
        ks,
        workers=workers,
        limits=limits,
        seed=seed,
        file=None if folder is None else Path(folder) / "samples.jsonl",
        label=identity(model, **options),
        require_network_isolation=require_network_isolation,
        on_done=on_done,
    )
    if folder is not None:
        write_atomically(Path(folder) / "scores.json", json.dumps(asdict(scores), indent=2) + "\n")
    return scores


def show(console: Console, scores: Scores) -> None:
    """pass@k with its interval, what became of the samples, and the problems of which some passed."""
    table = Table(title=f"pass@k over {len(scores.problems)} problems", box=box.SIMPLE, title_justify="left")
    for name in ("k", "pass@k", "95 % interval"):
        table.add_column(name, justify="right")
    for row in scores.pass_at:
        table.add_row(str(row.k), f"{row.value:.1%}", f"{row.low:.1%} to {row.high:.1%}")
    console.print(table)
    table = Table(title=f"{scores.samples_per_problem} samples of each", box=box.SIMPLE, title_justify="left")
    table.add_column("outcome")
    table.add_column("samples", justify="right")
    for outcome, count in scores.outcomes.items():
        table.add_row(outcome, str(count))
    console.print(table)
    solved = [row for row in scores.problems if row.passed]
    names = ", ".join(f"{visible(row.task_id)} ({row.passed})" for row in solved)
    console.print(f"passed: {names or 'none'}", markup=False)
    console.print(
        f"isolation: {', '.join(scores.isolations) or 'nothing was run'}", style="dim", markup=False
    )
