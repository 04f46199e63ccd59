"""How long the parts of a synthesis take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Wall time of a batch: all of it, demasker evaluations, and what registers took."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = self._now()
        self.latent_seconds = 0.0
        self._evaluation_seconds = 0.0
        self._evaluations = 0

    @property
    def seconds(self) -> float:
        return self._now() - self._began

    @property
    def per_evaluation(self) -> float:
        """Seconds of a demasker evaluation of this batch."""
        return self._evaluation_seconds / max(1, self._evaluations)

    @contextmanager
    def latent(self) -> Iterator[None]:
        began = self._now()
        yield
        self.latent_seconds += self._now() - began

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        began = self._now()
        yield
        self._evaluation_seconds += self._now() - began
        self._evaluations += 1

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
