"""The parts of a training run that are the same whatever is trained: what it says, saves, survives and stops for.

A recipe keeps its loop in plain sight and calls these at each step's end.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from crocodil.errors import CrocodilError
from crocodil.training.checkpoints import checkpoint_name, prune, publishing
from crocodil.training.config import flat, save_config
from crocodil.training.engine import Engine, Update
from crocodil.training.guard import Guard
from crocodil.training.log import MetricsLog, Progress
from crocodil.training.loop import LoopConfig
from crocodil.training.ranks import broadcast, gather
from crocodil.training.signals import StopRequest
from crocodil.training.start import Start
from crocodil.training.throughput import Throughput, peak_flops
from crocodil.training.watchdog import Watchdog

RETRY_SHARE = 10
"""A checkpoint that could not be written is tried again after this share of `save_every`."""

_log = logging.getLogger(__name__)


class Aside:
    """What became of an evaluation, on every rank alike; known after its `with`."""

    failed = False


class Run:
    """One run in its folder. Use it in a `with`; all methods are collective.

    Attributes:
        start: where it goes on; `save` moves it to the newest checkpoint.
    """

    def __init__(
        self, config: LoopConfig, ranks: Accelerator, start: Start, corpus: str, unit: str = "tokens"
    ) -> None:
        """
        Args:
            corpus: digest of the training texts, which a resumed run must find again.
            unit: what is counted a second.
        """
        self._config, self._ranks = config, ranks
        self.folder = Path(config.run)
        self.start = start
        self._corpus, self._unit = corpus, unit
        self._described = flat(config)
        self._stack = ExitStack()
        self._failed_at: int | None = None
        self._published = [start.checkpoint.name] if start.checkpoint else []
        if ranks.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(config, self.folder / "config.yaml")
        if config.tracker:
            ranks.init_trackers("crocodil", config=self._described)
        self._log = MetricsLog(self.folder, start.step)
        peak = peak_flops(ranks.device, torch.bfloat16 if ranks.mixed_precision == "bf16" else torch.float32)
        self.throughput = Throughput(peak * ranks.num_processes)
        self.guard = Guard(config.spike, config.max_skipped, start.losses)

    def __enter__(self) -> Run:
        self._watchdog = self._stack.enter_context(Watchdog(60 * self._config.timeout))
        self._stop = self._stack.enter_context(StopRequest())
        self._progress = self._stack.enter_context(
            Progress(self._config.steps, self.start.step, unit=self._unit)
        )
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def say(self, message: str) -> None:
        """A line for people."""
        self._progress.say(message)

    def beat(self, step: int, operation: str) -> None:
        """What this rank begins to do, for the watchdog."""
        self._watchdog.beat(step, operation)

    def did(
        self,
        step: int,
        values: Mapping[str, float],
        update: Update,
        engine: Engine,
        work: tuple[float, float],
        ids: Sequence[int],
        always: bool = False,
    ) -> None:
        """Optimiser step `step` (the first is 1) is done: judge it, and tell of it when it is time.

        Args:
            values: of the global batch; `loss` is one of them.
            work: tokens and FLOPs, over all ranks.
            ids: samples of the step, which are written down if it did not count.
            always: tell whatever `log_every` says.

        Raises:
            CrocodilError: too many steps in a row did not count.
        """
        self.throughput.add(int(work[0]), work[1])
        reason = self.guard.judge(step, values["loss"], update.norm, update.applied)
        if reason is not None:
            self._log.write(step, {"skipped": reason, "samples": [int(i) for i in ids]})
            self.say(f"step {step} did not count: {reason} ({self.guard.skipped} so far)")
        if step % self._config.log_every and step != self._config.steps and not always:
            return
        interval = self.throughput.interval()
        told = {**values, "grad_norm": update.norm, "lr": engine.rate}
        speed = {f"{self._unit}_per_second": interval.per_second, "mfu": interval.mfu}
        self._log.write(step, {**told, **speed})
        self._progress.report(
            step, {name: value for name, value in told.items() if name != "stage"}, interval
        )
        if self._config.tracker:
            self._ranks.log({**told, **speed}, step=step)

    def due(self, step: int, every: int) -> bool:
        """Whether something is done after this step: each `every` steps, and at the end; 0 is never."""
        return bool(every) and (step % every == 0 or step == self._config.steps)

    @contextmanager
    def aside(self, step: int, operation: str) -> Iterator[Aside]:
        """Evaluation or sampling: it is left out of the throughput, and whatever it raises is told, and training goes on.

        The body has no collective of its own, because one rank may leave it early: gather after it, if it has not failed.
        Under an engine that keeps weights in pieces a forward is a collective, unless it is of `engine.whole()`.
        """
        outcome = Aside()
        self.beat(step, operation)
        with self.throughput.paused():
            failure: str | None = None
            try:
                yield outcome
            except Exception as error:  # a fault of an evaluation is no reason to lose a training
                failure = f"{type(error).__name__}: {error}"
            told = [f"rank {rank}: {text}" for rank, text in enumerate(gather(failure)) if text]
            if told:
                outcome.failed = True
                self._log.write(step, {"failed": operation, "reason": told[0]})
                self.say(
                    f"step {step}: {operation} failed ({' '.join(told[0].split()):.200}); training goes on"
                )

    def measured(self, step: int, values: Mapping[str, Any]) -> None:
        """Write down what an evaluation found, the same on every rank."""
        self._log.write(step, values)
        numbers = {name: value for name, value in values.items() if isinstance(value, float)}
        self.say("  ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
        if self._config.tracker:
            self._ranks.log(numbers, step=step)

    def save(self, engine: Engine, step: int, stage: int = 0, must: bool = False) -> bool:
        """Save a checkpoint when it is time; returns whether the run was asked to stop.

        A disk that is full costs checkpoints and not the run: it is tried again soon.

        Args:
            must: without this checkpoint the run cannot go on.

        Raises:
            OSError: a checkpoint that must be there could not be written.
        """
        asked = any(gather(self._stop.requested))
        again = self._failed_at is not None and step - self._failed_at >= max(
            1, self._config.save_every // RETRY_SHARE
        )
        must = must or asked or step == self._config.steps
        if must or again or step % self._config.save_every == 0:
            self.beat(step, "checkpoint")
            try:
                with self.throughput.paused():
                    self._write(engine, step, stage)
                self._failed_at = None
            except OSError as error:
                if must:
                    raise
                self._failed_at = step
                self.say(
                    f"step {step}: checkpoint not written ({error}); training goes on and tries again soon"
                )
                self._log.write(step, {"failed": "checkpoint", "reason": str(error)})
        self.beat(step, "texts of the next step")
        if asked:
            self.say(f"stopped after step {step}; the same command with --resume goes on")
        return asked

    def _write(self, engine: Engine, step: int, stage: int) -> None:
        wanted = engine.state_bytes()
        free = broadcast(shutil.disk_usage(self.folder).free if self.folder.is_dir() else 0)
        if free < wanted:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint takes {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
                self.folder,
            )
        values = {
            "step": step,
            "stage": stage,
            "corpus": self._corpus,
            "config": self._described,
            "losses": list(self.guard.losses),
        }
        with publishing(self.folder, checkpoint_name(step)) as directory:
            engine.save(directory, values)
        self._published.append(checkpoint_name(step))
        prune(self.folder, self._config.keep, trusted=self._published)
        self.start = Start(self.folder / checkpoint_name(step), step, stage)

    def export(
        self, engine: Engine, write: Callable[[Path, torch.nn.Module], None], name: str = "export"
    ) -> None:
        """Publish a folder, in place of an earlier one, from whole weights; `write` runs on one process."""
        self.beat(self._config.steps, "export")
        with engine.whole() as module, publishing(self.folder, name, replace=True) as directory:
            if self._ranks.is_main_process:
                write(directory, module)
        self.say(f"exported to {self.folder / name}")


def require_room(config: LoopConfig, engine: Engine) -> None:
    """Refuse at the start a disk that will not hold the checkpoints that are to be kept, and the one being written."""
    folder = Path(config.run)
    present = sum(1 for _ in folder.glob("step-*"))
    wanted = engine.state_bytes() * max(1, config.keep + 1 - present)
    free = broadcast(shutil.disk_usage(folder).free)
    if free < wanted:
        raise CrocodilError(
            f"{folder}: {config.keep + 1} checkpoints take {engine.state_bytes() * (config.keep + 1) / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; make room, lower keep, or give another run="
        )
