"""What a run says: JSON lines for later, one line at a time for now. Rank 0 speaks for all."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from crocodil.atomic import write_atomically
from crocodil.training.ranks import rank_and_world
from crocodil.training.throughput import Interval

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"

_log = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file in order; a line that a kill cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def forget_beyond(path: Path, step: int) -> None:
    """Leave the records up to a step in a file of JSON lines: what comes after it will be done again."""
    if path.exists():
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


class MetricsLog:
    """`metrics.jsonl` in the run directory: a JSON object per line with its `step`, written at once.

    A full disk costs records, with one warning, and not the run.
    """

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        """Go on at `resume_step`; records beyond it go."""
        self._path = run_dir / METRICS
        self._writes = rank_and_world()[0] == 0
        self._failed = False
        if self._writes:
            forget_beyond(self._path, resume_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one record. Numbers that are not finite become null, which every JSON reader takes."""
        if not self._writes:
            return
        record = {"step": step, **{key: _finite(value) for key, value in values.items()}}
        # A line that failed may have been written in part: end it, so that it spoils no other.
        line = ("\n" if self._failed else "") + json.dumps(record) + "\n"
        try:
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(line)
            self._failed = False
        except OSError as error:
            if not self._failed:
                _log.warning("%s: not written at step %d (%s); training goes on", self._path, step, error)
            self._failed = True


class Progress:
    """Console lines on stderr, with a bar below them on a terminal and plain elsewhere or under CI.

    Use it in a `with`, which takes the bar away at the end.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
        unit: str = "tokens",
    ) -> None:
        """`unit` is what the intervals count."""
        self._total, self._start, self._unit = total_steps, start_step, unit
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._began = clock()
        self._speaks = rank_and_world()[0] == 0
        self._bar: Bar | None = None
        if self._speaks and self._stream.isatty() and not os.environ.get("CI"):
            columns = (TextColumn("step"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
            self._bar = Bar(*columns, console=Console(file=self._stream), transient=True)
            self._task = self._bar.add_task("", total=total_steps, completed=start_step)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.stop()

    def report(self, step: int, values: Mapping[str, float], interval: Interval) -> None:
        """One line after optimiser step `step` (the first is 1): the values in order, then speed and cost."""
        done = step - self._start
        remaining = (self._clock() - self._began) / done * (self._total - step) if done > 0 else math.inf
        parts = [f"step {step:>{len(str(self._total))}}/{self._total}"]
        parts += [f"{name} {value:.4g}" for name, value in values.items()]
        parts.append(f"{interval.per_second:,.0f} {self._unit}/s")
        if interval.mfu is not None:
            parts.append(f"mfu {interval.mfu:.1%}")
        parts += [f"eta {_duration(remaining)}", f"mem {peak_memory_gib():.2f} GiB"]
        self.say("  ".join(parts))
        if self._bar is not None:
            with suppress(OSError):
                self._bar.update(self._task, completed=step)

    def say(self, message: str) -> None:
        """Any other line, such as where a checkpoint went; above the bar, on rank 0 only."""
        with suppress(OSError):  # what cannot be said is no reason to lose a run
            if self._bar is not None:
                self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
            elif self._speaks:
                print(message, file=self._stream, flush=True)


def peak_memory_gib() -> float:
    """The most memory this process has held, in GiB: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident * (1 if sys.platform == "darwin" else 1024) / 2**30


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _duration(seconds: float) -> str:
    """h:mm:ss; `?` before the first step."""
    if not math.isfinite(seconds):
        return "?"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{left:02d}"
