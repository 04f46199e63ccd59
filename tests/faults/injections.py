"""Faults, done inside a rank: deeds, and the moments at which they are done.

A point is `module:name` or `module:Class.name`, the place where a function is looked up when it is called.
"""

from __future__ import annotations

import errno
import importlib
import os
import resource
import signal
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial, reduce, wraps
from pathlib import Path
from typing import Any

Deed = Callable[[], None]

now: tuple[int, str] = (-1, "start")
"""Step and operation that the run says it is in."""


def inject(do: Sequence[Any], when: Sequence[Any] | None) -> None:
    """Do a deed of this module now, or at a moment of this module."""
    deed = partial(globals()[do[0]], *do[1:])
    if when is None:
        deed()
    else:
        globals()[when[0]](deed, *when[1:])


def wrap(point: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put `make(function)` in the place of a function."""
    module, _, path = point.partition(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, importlib.import_module(module))
    function = getattr(owner, name)
    setattr(owner, name, wraps(function)(make(function)))


# --- moments ---


def before(deed: Deed, point: str, call: int = 1) -> None:
    """Before that call of a function; the first is 1."""
    _around(point, call, deed, lambda: None)


def after(deed: Deed, point: str, call: int = 1) -> None:
    """After that call of a function."""
    _around(point, call, lambda: None, deed)


def at(deed: Deed, step: int, operation: str) -> None:
    """When the run begins an operation of a step (the first is 0): forward and backward, update, checkpoint, …"""

    def beat(function: Callable[..., None]) -> Callable[..., None]:
        def told(run: Any, at_step: int, doing: str) -> None:
            function(run, at_step, doing)
            if (at_step, doing) == (step, operation):
                deed()

        return told

    wrap("crocodil.training.run:Run.beat", beat)


def _around(point: str, call: int, first: Deed, then: Deed) -> None:
    calls = 0

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            mine = calls == call
            if mine:
                first()
            result = function(*arguments, **options)
            if mine:
                then()
            return result

        return called

    wrap(point, counting)


# --- deeds ---


def kill(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def sleep(seconds: float, sign: str | None = None) -> None:
    """`sign` is a file that appears when sleep begins."""
    if sign is not None:
        Path(sign).touch()
    time.sleep(seconds)


def fail(message: str) -> None:
    raise RuntimeError(message)


def die_at_byte(count: int) -> None:
    """From now on the kernel ends this process, without a word, at byte `count` of a file that it writes.

    safetensors sets a file's size before it writes, which would be beyond the limit at once; so it only serialises here.
    """
    from safetensors.torch import save

    def plain(tensors: Any, path: Any, metadata: Any = None) -> None:
        with open(path, "wb") as stream:
            stream.write(save(tensors, metadata))

    for module in ("safetensors.torch", "crocodil.shards"):
        wrap(f"{module}:save_file", lambda _: plain)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    _limit(resource.RLIMIT_FSIZE, count)


def fill_disk(count: int) -> None:
    """From now on a file takes no more than `count` bytes: writing more is an OSError."""
    _limit(resource.RLIMIT_FSIZE, count)


def free_disk() -> None:
    _limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)


def fill_stderr() -> None:
    """From now on what is said fails, as into a file on a full disk, or to a terminal that is gone."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def disk_says(free: int, calls: int) -> None:
    """`shutil.disk_usage` finds so many bytes free, the next so many times."""
    left = calls

    def usage(function: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            return function(*arguments) if left < 0 else namedtuple("usage", "total used free")(0, 0, free)

        return asked

    wrap("shutil:disk_usage", usage)


def busy(point: str, name: str) -> None:
    """From now on a function fails with what has this name (a pattern), as where a file of it is open elsewhere."""

    def occupied(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any, *arguments: Any, **options: Any) -> Any:
            if not fnmatch(Path(path).name, name):
                return function(path, *arguments, **options)
            if not options.get("ignore_errors"):
                raise OSError(errno.EBUSY, "Device or resource busy")

        return called

    wrap(point, occupied)


def move(source: str, target: str) -> None:
    os.rename(source, target)


def scale_loss(steps: Sequence[int], factor: float | str) -> None:
    """Multiply the loss of this rank in these steps, and so its gradient."""

    def forward(function: Callable[..., Any]) -> Callable[..., Any]:
        def scaled(module: Any, batch: Any) -> Any:
            losses = function(module, batch)
            spoilt = now[0] in steps and now[1] == "forward and backward"
            return losses._replace(total=losses.total * float(factor)) if spoilt else losses

        return scaled

    _keep_now()
    wrap("crocodil.autoencoder:Autoencoder.forward", forward)


def edges(kinds: Sequence[dict[str, Any]]) -> None:
    """This rank's micro-batches, one after another, are of these kinds: `unmasked` (no token is masked), `level` (every
    text is masked at this t), `tokens` (at most so many in a text)."""
    from dataclasses import replace

    left = iter(kinds)
    kind: dict[str, Any] = {}

    def corrupt(function: Callable[..., Any]) -> Callable[..., Any]:
        def edged(samples: Any, *arguments: Any) -> Any:
            nonlocal kind
            kind = next(left)
            cut = [replace(sample, text_ids=sample.text_ids[: kind.get("tokens")]) for sample in samples]
            batch = function(cut, *arguments)
            if "unmasked" in kind:
                batch.texts.is_masked_T.zero_()
            return batch

        return edged

    def draw_level(function: Callable[..., float]) -> Callable[..., float]:
        return lambda *arguments: kind["level"] if "level" in kind else function(*arguments)

    wrap("recipes.train_demasker:corrupt", corrupt)
    wrap("crocodil.autoencoder:draw_level", draw_level)


def spoil_sample(call: int) -> None:
    """That call for a text (from 1) raises."""
    before(partial(fail, "the text cannot be read"), "crocodil.text.windows:Windows.sample", call)


def run_out_of_memory(bytes_more: int) -> None:
    """Ask for more memory than this process may have."""
    import torch

    with open("/proc/self/statm") as sizes:
        present = int(sizes.read().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, present + bytes_more // 2)
    torch.empty(bytes_more, dtype=torch.uint8)


def write_down_samples(path: str) -> None:
    """Ids of every step's texts, a line for each step."""

    def did(function: Callable[..., None]) -> Callable[..., None]:
        def told(
            run: Any, step: int, values: Any, update: Any, engine: Any, work: Any, ids: Any, **o: Any
        ) -> None:
            with open(path, "a") as lines:
                lines.write(f"{step} {sorted(map(int, ids))}\n")
            function(run, step, values, update, engine, work, ids, **o)

        return told

    wrap("crocodil.training.run:Run.did", did)


def write_down_seed(path: str) -> None:
    """What the process-wide generator was last seeded with."""
    import torch

    with open(path, "w") as file:
        file.write(str(torch.initial_seed()))


def _limit(what: int, soft: int) -> None:
    resource.setrlimit(what, (soft, resource.getrlimit(what)[1]))


def _keep_now() -> None:
    def beat(function: Callable[..., None]) -> Callable[..., None]:
        def told(run: Any, step: int, operation: str) -> None:
            global now
            now = step, operation
            function(run, step, operation)

        return told

    wrap("crocodil.training.run:Run.beat", beat)
