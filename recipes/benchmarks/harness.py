"""The rules that every benchmark keeps: what is compared, how it is timed, and when a number is void.

Both sides run in one process and in turn, A B A B … A, so that whatever else the machine does meets both. A number is
the median of the ratios of neighbours, with their range. The A/A control is by how much one A usually differs from the
next: where that is more than 10 %, the machine was too restless and the row is void.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch

from recipes.benchmarks.anchor import Anchor
from recipes.benchmarks.sizes import Sizes

CONTROL_TOLERANCE = 0.10

Work = Callable[[], object]


class Unequal(AssertionError):
    """The two sides do not compute the same, so nothing of this benchmark is timed."""


@dataclass(frozen=True)
class Bench:
    """Where and at what size to measure."""

    sizes: Sizes
    device: torch.device
    anchor: Anchor
    """The demasking step to compare with (P1, P2)."""


@dataclass(frozen=True)
class Row:
    """One number."""

    name: str
    measure: Literal["time", "peak memory", "exponent", "time / positions", "evaluations"]
    """`time` and `peak memory` are theirs divided by ours: above 1, ours is better."""
    value: float
    """Median."""
    low: float
    high: float
    control: float
    """A/A: by how much the same side, measured twice, usually differs; 1 is not at all. See `unrest`."""
    floor: float | None = None
    """What must be reached; a greatest value where `at_most`."""
    aim: float | None = None
    at_most: bool = False
    ideal: float | None = None
    """What counting operations predicts."""
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Every measurement behind the number, in order: seconds of one call, or bytes."""

    @property
    def verdict(self) -> Literal["void", "aim", "floor", "below", "no target"]:
        """`void` before anything else: a restless machine neither passes nor fails."""
        if not self.control <= 1 + CONTROL_TOLERANCE:
            return "void"
        if self.floor is None:
            return "no target"
        sign = -1 if self.at_most else 1
        if self.aim is not None and sign * self.value >= sign * self.aim:
            return "aim"
        return "floor" if sign * self.value >= sign * self.floor else "below"


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be measured here, and why, in plain words."""

    name: str
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """One of the benchmarks by the name it has in the plan."""

    id: str
    title: str
    anchor: str
    """What ours is compared with."""
    equality: str
    """What is asserted before anything is timed."""
    measure: Callable[[Bench], Iterator[Row | Skipped]]
    """Asserts, then yields rows as they are measured."""


@dataclass(frozen=True)
class Pairs:
    """Seconds of one call: A, B, A, B, …, A."""

    theirs: tuple[float, ...]
    """One more than `ours`."""
    ours: tuple[float, ...]

    def row(
        self,
        name: str,
        floor: float | None = None,
        aim: float | None = None,
        ideal: float | None = None,
        times: float = 1.0,
    ) -> Row:
        """Theirs divided by ours; `times` says how often theirs is done where only one time was measured."""
        ratios = [times * a / b for a, b in zip(self.theirs, self.ours, strict=False)]
        return Row(
            name=name,
            measure="time",
            value=statistics.median(ratios),
            low=min(ratios),
            high=max(ratios),
            control=unrest(pairwise(self.theirs)),
            floor=floor,
            aim=aim,
            ideal=ideal,
            samples={"theirs": self.theirs, "ours": self.ours},
        )

    def evaluations(self, name: str, floor: float | None, aim: float | None, ideal: float) -> Row:
        """Ours in units of theirs, which is one evaluation of the demasker."""
        units = [b / a for a, b in zip(self.theirs, self.ours, strict=False)]
        return Row(
            name=name,
            measure="evaluations",
            value=statistics.median(units),
            low=min(units),
            high=max(units),
            control=unrest(pairwise(self.theirs)),
            floor=floor,
            aim=aim,
            at_most=True,
            ideal=ideal,
            samples={"theirs": self.theirs, "ours": self.ours},
        )


def compare(theirs: Work, ours: Work, bench: Bench) -> Pairs:
    """Time two sides in turn, after a warm-up of each that also settles how often a short one is repeated."""
    sides = ((theirs, _repeats(theirs, bench)), (ours, _repeats(ours, bench)))
    seconds = [_seconds(*sides[turn % 2], bench.device) for turn in range(2 * bench.sizes.pairs + 1)]
    return Pairs(tuple(seconds[0::2]), tuple(seconds[1::2]))


def sweep(points: Mapping[int, Work], bench: Bench) -> tuple[dict[int, tuple[float, ...]], float]:
    """Time the same work at several sizes, all of them in every round.

    Returns:
        Seconds of one call, by size and round; and the A/A control, from a size in the middle that is timed twice
        in a round.
    """
    order = sorted(points)
    twice = order[len(order) // 2]
    repeats = {size: _repeats(points[size], bench) for size in order}
    seconds: dict[int, list[float]] = {size: [] for size in order}
    twins = []
    for _ in range(bench.sizes.pairs):
        for size in order:
            seconds[size].append(_seconds(points[size], repeats[size], bench.device))
            if size == twice:
                again = _seconds(points[size], repeats[size], bench.device)
                twins.append((seconds[size][-1], again))
    return {size: tuple(taken) for size, taken in seconds.items()}, unrest(twins)


def unrest(twins: Iterable[tuple[float, float]]) -> float:
    """The A/A control: the median factor, 1 or more, between two measurements of the same thing.

    The median of their ratios would not do: bursts that meet now the first and now the second leave it at 1.
    """
    return math.exp(statistics.median(abs(math.log(one / other)) for one, other in twins))


def exponent(sizes: Sequence[float], amounts: Sequence[float]) -> float:
    """b of amount = a · size^b, by least squares of the logarithms."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(a) for a in amounts]).slope


def ratio_of_bytes(
    name: str, theirs: Sequence[int], ours: int, floor: float | None = None, aim: float | None = None
) -> Row:
    """Peak memory, theirs divided by ours; theirs is measured twice for the A/A control."""
    ratios = [their / ours for their in theirs]
    return Row(
        name=name,
        measure="peak memory",
        value=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        control=unrest([(theirs[0], theirs[1])]),
        floor=floor,
        aim=aim,
        samples={"theirs": theirs, "ours": [ours]},
    )


def mean_of_ratios(name: str, rows: Sequence[Row], floor: float, aim: float) -> Row:
    """The geometric mean of several rows, with the smallest and the largest of them."""
    values = [row.value for row in rows]
    return Row(
        name=name,
        measure="time",
        value=statistics.geometric_mean(values),
        low=min(values),
        high=max(values),
        control=max(row.control for row in rows),
        floor=floor,
        aim=aim,
    )


def assert_equal(what: str, theirs: torch.Tensor, ours: torch.Tensor) -> None:
    """Every element the same, or `Unequal`."""
    if theirs.shape != ours.shape:
        raise Unequal(f"{what}: shapes {tuple(theirs.shape)} and {tuple(ours.shape)}")
    if not torch.equal(theirs, ours):
        raise Unequal(f"{what}: {int((theirs != ours).sum())} of {theirs.numel()} differ")


def assert_close(
    what: str, theirs: torch.Tensor, ours: torch.Tensor, *, relative: float = 0, largest: float = 0
) -> None:
    """`relative`: norm of the difference over the norm; `largest`: greatest difference of two elements."""
    if theirs.shape != ours.shape:
        raise Unequal(f"{what}: shapes {tuple(theirs.shape)} and {tuple(ours.shape)}")
    apart = theirs.double() - ours.double()
    norm = float(apart.norm() / theirs.double().norm())
    most = float(apart.abs().max())
    if relative and not norm <= relative:
        raise Unequal(f"{what}: relative difference {norm:.1e}, at most {relative:.0e} is allowed")
    if largest and not most <= largest:
        raise Unequal(f"{what}: largest difference {most:.1e}, at most {largest:.0e} is allowed")


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were taken on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def calibrate(bench: Bench) -> dict[str, float]:
    """What this machine does at best, now: float32 matrix product and a copy in memory (bytes copied, not touched)."""
    size = bench.sizes.gemm
    a, b = torch.randn(2, size, size, device=bench.device)
    source = torch.ones(bench.sizes.copy_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    gemm, copy = (lambda: a @ b), (lambda: target.copy_(source))
    rates = {}
    for name, work, amount in (
        ("gemm_gflops", gemm, 2 * size**3 / 1e9),
        ("memcpy_gb_per_second", copy, bench.sizes.copy_bytes / 1e9),
    ):
        repeats = _repeats(work, bench)
        rates[name] = amount / statistics.median(_seconds(work, repeats, bench.device) for _ in range(5))
    return rates


def _repeats(work: Work, bench: Bench) -> int:
    """Warm up; then how many calls are long enough to be timed."""
    once = _seconds(work, 1, bench.device)
    if once < bench.sizes.least_seconds:
        once = _seconds(work, 1, bench.device)  # the first call pays for what is made once
    return max(1, math.ceil(bench.sizes.least_seconds / once))


def _seconds(work: Work, repeats: int, device: torch.device) -> float:
    """Seconds of one call, the mean of `repeats`."""
    gc.collect(
        0
    )  # what the last timing left, as the collector was off; a full collection takes long with torch loaded
    gc.disable()
    try:
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        _wait(device)
        return (time.perf_counter() - start) / repeats
    finally:
        gc.enable()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
