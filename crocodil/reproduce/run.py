"""From the names of figures to results: deal the work out, do it, make numbers of it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
import transformers
import yaml

import crocodil
from crocodil.errors import CrocodilError
from crocodil.metrics.bootstrap import Estimate
from crocodil.report.facts import machine, model_facts
from crocodil.reproduce.config import ReproduceConfig
from crocodil.reproduce.figure import Figure, Line, Row
from crocodil.reproduce.lab import MAIN, Lab, Task, everything_read
from crocodil.reproduce.result import Provenance, Result

POLL_SECONDS = 0.5


def ranks() -> tuple[int, int]:
    """(this process's number, how many there are), as `accelerate launch` tells each.

    They share nothing but the folder of results, so none waits for another until everything is measured.
    """
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise CrocodilError(
            f"RANK={rank} and WORLD_SIZE={world} in the environment: no such process; unset both"
        )
    return rank, world


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise CrocodilError(
            f"{name}={text!r} in the environment is no number; unset it, or launch with accelerate"
        )
    return int(text)


def own_device() -> str | None:
    """The GPU of this process where there are several of both; None leaves the choice to the model."""
    if ranks()[1] == 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{_number('LOCAL_RANK', 0) % torch.cuda.device_count()}"


def reproduce(
    lab: Lab,
    figures: Sequence[Figure],
    preset: str,
    progress: Callable[[str, float, float], None] = lambda what, done, total: None,
    overrides: Sequence[str] = (),
) -> list[Result] | None:
    """Measure figures; what has been measured before is taken from the lab's store.

    Args:
        preset: the name of the configuration, for the record.
        overrides: what was changed in it, as typed, for the record.
        progress: told what is being done, how much is done, and how much there is to do, in one unit.

    Returns:
        A result for each figure; None on every process but the first.
    """
    planned, short = [], {}
    for figure in figures:
        lab.short.clear()
        planned.append((figure, figure.lines(lab)))
        short[figure.name] = [
            f"{asked:,} windows of {length} tokens were asked for; {lab.config.source} has {there:,}."
            for length, (asked, there) in lab.short.items()
        ]
    for figure, lines in planned:
        for task in (task for line in lines for task in line.tasks):
            try:
                task.check(lab)
            except CrocodilError as error:
                section = figure.name.replace("-", "_")
                raise CrocodilError(
                    f"{figure.name}: {error}; change {section}'s fields, as {section}.…=…, or leave {figure.name} out"
                ) from None
    owners: dict[str, tuple[str, Task]] = {}
    for figure, lines in planned:
        for task in (task for line in lines for task in line.tasks):
            owners.setdefault(lab.key(task), (figure.place, task))
    todo = [(key, place, task) for key, (place, task) in owners.items() if key not in lab.store]
    weights = {key: task.weight(lab) for key, _, task in todo}
    total, done = sum(weights.values()), 0.0
    rank, world = ranks()
    for key, place, task in todo[rank::world]:
        progress(place, done, total / world)
        lab.result(task)
        done += weights[key]
    if rank:
        return None
    while waiting := sum(key not in lab.store for key, _, _ in todo):
        progress(f"waiting for {waiting} pieces of other processes", done, total / world)
        time.sleep(POLL_SECONDS)
    results = []
    for figure, lines in planned:
        progress(f"{figure.place}, numbers", total / world, total / world)
        results.append(_result(lab, figure, lines, preset, overrides, short[figure.name]))
    return results


def _result(
    lab: Lab,
    figure: Figure,
    lines: Sequence[Line],
    preset: str,
    overrides: Sequence[str],
    short: Sequence[str],
) -> Result:
    rows, unmeasured = [], []
    for line in lines:
        values: dict[str, Estimate] = {}
        try:
            values = _finite(figure.values(lab, line))
        except CrocodilError as error:
            # texts without a token, levels without a mask: this line alone is without numbers
            told = ", ".join(f"{name} {value}" for name, value in line.labels.items())
            unmeasured.append(f"No number for {told}: {error}.")
        rows.append(Row(line.labels, values, line.paper))
    tasks = [task for line in lines for task in line.tasks]
    seconds = {lab.key(task): lab.result(task).seconds for task in tasks}
    reads = {name for task in tasks for name in everything_read(task)}
    return Result(
        figure.name,
        figure.place,
        figure.title,
        figure.finding,
        figure.columns,
        figure.charts,
        rows,
        figure.quotes,
        _verdicts(lab, figure, rows),
        [*figure.missing(lab), *short, *unmeasured],
        figure.notes,
        figure.passages(lab, lines),
        _provenance(lab, figure, preset, overrides, sum(seconds.values()), reads),
        figure.sheets(lab, lines),
        figure.counted,
    )


def _verdicts(lab: Lab, figure: Figure, rows: Sequence[Row]) -> list[str]:
    try:
        return figure.verdicts(lab, rows) if any(row.values for row in rows) else []
    except KeyError as error:
        # a verdict compares what is in the table; where a number is missing there, it has nothing to say
        return [f"No verdict: {error.args[0]} is missing in a line."]


def _finite(values: dict[str, Estimate]) -> dict[str, Estimate]:
    """Without numbers that are none: a MAUVE of too few texts, a perplexity beyond all bounds."""
    return {name: one for name, one in values.items() if math.isfinite(one.value)}


def _read(figure: Figure, config: ReproduceConfig) -> dict[str, Any]:
    """What of the configuration a figure may read: those of the first paper nothing of CADD's sections."""
    return {
        name: value
        for name, value in asdict(config).items()
        if figure.name.startswith("cadd-") or not name.startswith(("cadd", "chains"))
    }


def _provenance(
    lab: Lab, figure: Figure, preset: str, overrides: Sequence[str], seconds: float, reads: set[str]
) -> Provenance:
    model, config = lab.model(MAIN), lab.config
    read = _read(figure, config)
    text = yaml.safe_dump(json.loads(json.dumps(read)), sort_keys=False, allow_unicode=True)
    facts = model_facts(model)
    parameters = {"encoder": facts.encoder_parameters, "demasker": facts.demasker_parameters}
    return Provenance(
        model=facts.name,
        model_digest=lab.digest(MAIN),
        parameters=parameters | {f"{kind} denoiser": n for kind, n in facts.denoiser_parameters.items()},
        preset=preset,
        overrides=list(overrides),
        config=read,
        config_hash=hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
        source=config.source,
        texts_digest=lab.digest("texts"),
        judge=f"{config.judge} ({lab.judge.dtype}, {lab.judge.context} positions)"
        if "judge" in reads
        else None,
        scorer=f"{config.scorer} (layer {lab.scorer.layer}, {lab.scorer.dtype})"
        if "scorer" in reads
        else None,
        seed=config.seed,
        versions={
            "crocodil": crocodil.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        device=machine(model.device),
        seconds=seconds,
    )
