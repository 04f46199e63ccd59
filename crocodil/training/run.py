"""The parts of a training run that are the same whatever is trained: what it says, saves, survives and stops for.

A recipe keeps its loop in plain sight and calls these at each step's end.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.filesize import decimal

from crocodil.atomic import fsync
from crocodil.errors import CrocodilError
from crocodil.training.checkpoints import checkpoint_name, prune, publishing, together
from crocodil.training.config import CONFIG, flat, save_config
from crocodil.training.engine import Engine, Update
from crocodil.training.guard import Guard
from crocodil.training.log import METRICS, SAMPLES, MetricsLog, Progress, forget_beyond
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
        self,
        config: LoopConfig,
        ranks: Accelerator,
        start: Start,
        corpus: str,
        unit: str = "tokens",
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            corpus: digest of the training texts, which a resumed run must find again.
            unit: what is counted a second.
            origin: what else it must find again, as JSON (see `find_start`).
        """
        self._config, self._ranks = config, ranks
        self.folder = Path(config.run)
        self.start = start
        self._corpus, self._unit, self._origin = corpus, unit, origin
        self._described = flat(config)
        self._stack = ExitStack()
        self._owed: float = math.inf
        """Step from which a checkpoint is to be made up for."""
        # of one that is kept elsewhere there is no namesake here: it has been set aside
        self._published = [start.checkpoint.name] if start.checkpoint else []
        with together(f"begin in {self.folder}"):
            if ranks.is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                if start.abandoned:
                    aside = set_aside(self.folder, start.abandoned)
                    names = ", ".join(start.abandoned)
                    _log.warning("going back to step %d: %s are now in %s", start.step, names, aside)
                save_config(config, self.folder / CONFIG)
                forget_beyond(self.folder / SAMPLES, start.step)
            self._log = MetricsLog(self.folder, start.step)
            if config.tracker:
                self._begin_tracking(config.tracker)
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

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self._track(lambda tracker: tracker.finish())
            self._ranks.trackers = []
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
        self._track(lambda tracker: tracker.log({**told, **speed}, step=step))

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
        self._track(lambda tracker: tracker.log(numbers, step=step))

    def save(self, engine: Engine, step: int, stage: int = 0, must: bool = False) -> bool:
        """Save a checkpoint when it is time; returns whether the run was asked to stop.

        A disk that is full costs checkpoints and not the run: it is tried again soon. Right after a step that did not
        count none is made, unless it must be: the weights may be why, and it would push out a good one.

        Args:
            must: without this checkpoint the run cannot go on.

        Raises:
            OSError: a checkpoint that must be there could not be written.
            CrocodilError: too many steps in a row did not count; the weights from before them have been saved.
        """
        told = gather((self._stop.requested, self.guard.verdict, self.guard.in_a_row))
        asked, (_, verdict, dropped) = any(requested for requested, _, _ in told), told[0]
        must = must or asked or step == self._config.steps or verdict is not None
        is_due = step % self._config.save_every == 0 or step >= self._owed
        if must or (is_due and not dropped):
            self.beat(step, "checkpoint")
            with self.throughput.paused():
                failure = self._write(engine, step, stage)
                if failure is None and not dropped:  # else there may be no good one but those from before
                    self._prune()
            if verdict is not None:
                saved = f"not saved ({failure})" if failure else f"saved in {self.start.checkpoint}"
                raise CrocodilError(
                    f"{verdict}, {saved}. Go on with --resume and a lower optimiser.lr, or from an earlier checkpoint"
                )
            if failure is not None and must:
                raise failure
            if failure is not None:
                self.say(
                    f"step {step}: checkpoint not written ({failure}); training goes on and tries again soon"
                )
                self._log.write(step, {"failed": "checkpoint", "reason": str(failure)})
            soon = step + max(1, self._config.save_every // RETRY_SHARE)
            self._owed = math.inf if failure is None else soon
        elif is_due:
            self._owed = step + 1
        self.beat(step, "texts of the next step")
        if asked:
            self.say(f"stopped after step {step}; the same command with --resume goes on")
        return asked

    def _prune(self) -> None:
        """Housekeeping: what fails in it costs nothing."""
        try:
            prune(self.folder, self._config.keep, trusted=self._published)
        except OSError as error:
            self.say(f"older checkpoints not removed ({error}); training goes on")

    def _write(self, engine: Engine, step: int, stage: int) -> OSError | None:
        """Publish a checkpoint; returns why it could not be written, on every rank alike."""
        values = {
            "step": step,
            "stage": stage,
            "corpus": self._corpus,
            "config": self._described,
            "losses": list(self.guard.losses),
        } | ({} if self._origin is None else {"origin": dict(self._origin)})
        try:
            _require_free(self.folder, engine.state_bytes())
            with publishing(self.folder, checkpoint_name(step)) as directory:
                engine.save(directory, values)
        except OSError as error:
            return error
        self._published.append(checkpoint_name(step))
        self.start = Start(self.folder / checkpoint_name(step), step, stage)
        return None

    def export(
        self, engine: Engine, write: Callable[[Path, torch.nn.Module], None], name: str = "export"
    ) -> None:
        """Publish a folder, in place of an earlier one, from whole weights; `write` runs on one process.

        Raises:
            CrocodilError: it could not be written, or there is something else in its place.
        """
        self.beat(self._config.steps, "export")
        try:
            with engine.whole() as module, publishing(self.folder, name, replace=True) as directory:
                if self._ranks.is_main_process:
                    write(directory, module)
        except OSError as error:
            raise CrocodilError(
                f"{self.folder / name}: not written ({error}); mend that, and the same command with --resume exports "
                "from the last checkpoint"
            ) from None
        self.say(f"exported to {self.folder / name}")

    def _begin_tracking(self, name: str) -> None:
        try:
            self._ranks.init_trackers("crocodil", config=self._described)
        except Exception as error:  # trackers raise what they like
            raise CrocodilError(
                f"tracker={name} does not begin ({type(error).__name__}: {error}); mend that, or leave tracker out"
            ) from None

    def _track(self, tell: Callable[[Any], None]) -> None:
        """Tell the trackers; one that fails is told nothing more, and the run goes on."""
        for tracker in list(self._ranks.trackers):
            try:
                tell(tracker)
            except Exception as error:  # trackers raise what they like
                self._ranks.trackers.remove(tracker)
                self.say(
                    f"tracker={tracker.name} failed ({type(error).__name__}: {' '.join(str(error).split()):.200}); "
                    f"it is told no more, {METRICS} has everything"
                )


def set_aside(folder: Path, names: Sequence[str]) -> Path:
    """Move checkpoints and exports of a run into a folder of their own, `abandoned-1`, …, with a copy of what it said: a
    run's folder too. Returns which."""
    aside = next(path for n in count(1) if not os.path.lexists(path := folder / f"abandoned-{n}"))
    aside.mkdir()
    for file in (CONFIG, METRICS, SAMPLES):
        if (folder / file).is_file():
            shutil.copy2(folder / file, aside / file)
    for name in names:
        os.rename(folder / name, aside / name)
    fsync(aside)
    fsync(folder)
    return aside


def _require_free(folder: Path, wanted: int) -> None:
    """Collective. Refuse to begin a checkpoint that the disk will not hold.

    Raises:
        OSError: so it is, or the folder has gone.
    """
    free = broadcast(_free(folder))
    if free is None:
        raise OSError(errno.ENOENT, "the run's folder has gone", str(folder))
    if free < wanted:
        said = f"a checkpoint takes {decimal(wanted)}, {decimal(free)} are free; make room"
        raise OSError(errno.ENOSPC, said, str(folder))


def _free(folder: Path) -> int | None:
    """Bytes that are free, None where there is no folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def require_room(config: LoopConfig, engine: Engine) -> None:
    """Refuse at the start a disk that will not hold the checkpoints that are to be kept, and the one being written."""
    folder = Path(config.run)
    present, free = broadcast((sum(1 for _ in folder.glob("step-*")), _free(folder) or 0))
    wanted = engine.state_bytes() * max(1, config.keep + 1 - present)
    if free < wanted:
        raise CrocodilError(
            f"{folder}: {config.keep + 1} checkpoints take {decimal(engine.state_bytes() * (config.keep + 1))}, "
            f"{decimal(free)} are free; make room, lower keep, or give another run="
        )
