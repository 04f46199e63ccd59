"""How fast, and how far from what the machine could do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# Dense bfloat16 FLOP/s from NVIDIA's data sheets; the first name contained in the device's name counts.
_BF16_PEAKS = (
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
)


@dataclass(frozen=True)
class Interval:
    """One logging interval.

    Attributes:
        seconds: wall-clock time, pauses left out.
        steps: optimiser steps in it.
        per_second: what was counted, a second; 0 when nothing was added.
        mfu: model FLOP/s over peak FLOP/s, in [0, 1]; None when the peak is unknown.
    """

    seconds: float
    steps: int
    per_second: float
    mfu: float | None


class Throughput:
    """Counts tokens, or whatever the run counts, and FLOPs per step and gives the rates since it was last asked.

    On a GPU, ask right after a synchronisation, such as reading the loss: kernels run behind the clock.
    """

    def __init__(self, peak: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        """`peak` is in FLOP/s over all devices whose counts and FLOPs are added."""
        self._peak = peak
        self._clock = clock
        self._reset()

    def add(self, count: int, flops: float) -> None:
        """One optimiser step: what it counts, and its forward and backward FLOPs, recomputation left out."""
        self._steps += 1
        self._count += count
        self._flops += flops

    def interval(self) -> Interval:
        """The rates since the last call, or since the start; begins the next interval."""
        seconds = self._clock() - self._started
        per_second = 1.0 / seconds if seconds > 0.0 else 0.0
        mfu = None if self._peak is None else self._flops * per_second / self._peak
        measured = Interval(seconds, self._steps, self._count * per_second, mfu)
        self._reset()
        return measured

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the body (an evaluation, a checkpoint) out of the interval."""
        began = self._clock()
        try:
            yield
        finally:
            self._started += self._clock() - began

    def _reset(self) -> None:
        self._started = self._clock()
        self._steps, self._count, self._flops = 0, 0, 0.0


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one device in matrix products: from the data sheet, or measured where there is none here.

    The measured figure is what this process gets now, with its threads; an MFU against it compares to cuBLAS
    or the CPU library, not to the silicon.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, peak in _BF16_PEAKS:
            if part in name:
                return peak
    return _measured_flops(device, dtype)


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Best of a few square products; each is a twentieth of a second on a CPU core."""
    size = 1024 if device.type == "cpu" else 8192
    left = torch.ones(size, size, device=device, dtype=dtype)
    right = torch.ones_like(left)
    best = float("inf")
    for _ in range(6):  # the first also starts threads and picks a kernel; the best leaves it out
        _synchronise(device)
        began = time.perf_counter()
        left @ right
        _synchronise(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
