"""Steps that must not count: a loss or gradient that is no number, and a loss out of all proportion."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

REMEMBERED = 100
"""Losses that the median is taken of."""
ENOUGH = 20
"""Losses below which nothing is called a spike."""


class Guard:
    """Judges one step after another; the same on every rank, because it sees what all ranks see.

    Args:
        spike: how many times the median of the last 100 losses is too much; 0 for never.
        limit: so many steps in a row that did not count end the run.
        losses: what an earlier guard remembered.
    """

    def __init__(self, spike: float, limit: int, losses: Sequence[float] = ()) -> None:
        self.spike, self.limit = spike, limit
        self.losses = deque(losses, maxlen=REMEMBERED)
        self.skipped = 0
        """Steps that did not count, in all."""
        self.in_a_row = 0
        """Those just now, one after another."""
        self.verdict: str | None = None
        """Why the run ends, once so many steps in a row did not count that it does."""

    @property
    def ceiling(self) -> float:
        """The loss above which a step does not count; known before the step, so that the engine can drop it."""
        if not self.spike or len(self.losses) < ENOUGH:
            return math.inf
        return self.spike * statistics.median(self.losses)

    def judge(self, step: int, loss: float, norm: float, applied: bool) -> str | None:
        """Why step `step` did not count, or None.

        Args:
            loss: of the global batch.
            norm: of the gradient, before clipping.
            applied: whether the engine moved the weights.
        """
        if applied:
            self.losses.append(loss)
            self.in_a_row = 0
            return None
        self.skipped += 1
        self.in_a_row += 1
        if not math.isfinite(loss):
            reason = f"the loss is {loss}"
        elif loss > self.ceiling:
            reason = f"the loss of {loss:.4g} is above {self.ceiling:.4g}, {self.spike:g} times the median"
        else:
            reason = f"the gradient's norm is {norm}"
        if self.in_a_row >= self.limit:
            self.verdict = (
                f"step {step}: {reason}, and {self.in_a_row} steps in a row did not count; the weights are those "
                f"before step {step - self.in_a_row + 1}"
            )
        return reason
