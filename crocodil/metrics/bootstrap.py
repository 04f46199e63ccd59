"""Confidence intervals by bootstrap: texts are drawn again with replacement, and the number is computed anew.

Shape letters: B texts, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crocodil.errors import CrocodilError

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number, and where it would lie in 95 of 100 other samples as large as this one."""

    value: float
    low: float | None
    """None where there is no interval: a single text, or a number that resampling does not fit."""
    high: float | None
    n: int
    """Texts that it rests on."""


def mean(values: Sequence[float] | Tensor, seed: int = 0) -> Estimate:
    """The mean over texts."""
    values_B = torch.as_tensor(values, dtype=torch.float64)
    return ratio(values_B, torch.ones_like(values_B), seed=seed)


def ratio(
    above: Sequence[float] | Tensor,
    below: Sequence[float] | Tensor,
    finish: Callable[[Tensor], Tensor] = lambda x: x,
    seed: int = 0,
) -> Estimate:
    """finish(Σ above / Σ below), both summed over texts: nats per token, and with exp a perplexity.

    Args:
        above, below: (B,), a number for each text; no text is left out of one alone.
        finish: applied to the ratio, monotone.

    Raises:
        CrocodilError: there are no texts, the two differ in number, or nothing is below.
    """
    above_B, below_B = (torch.as_tensor(x, dtype=torch.float64) for x in (above, below))
    if above_B.ndim != 1 or above_B.shape != below_B.shape or not len(above_B):
        raise CrocodilError(
            f"an interval wants a number of each text, at least one, not {tuple(above_B.shape)} and "
            f"{tuple(below_B.shape)}"
        )
    if not float(below_B.sum()):
        raise CrocodilError("there is nothing to divide by: no text has a token that counts")
    value = float(finish(above_B.sum() / below_B.sum()))
    counts_RB = resamples(len(above_B), seed)
    sums_R, wholes_R = counts_RB @ above_B, counts_RB @ below_B
    return interval(value, finish(sums_R / wholes_R), len(above_B))


def resamples(n: int, seed: int = 0, times: int = RESAMPLES) -> Tensor:
    """How often each of n texts is drawn in each resample: (R, n) float64, every row a sum of n."""
    generator = torch.Generator().manual_seed(seed)
    drawn_RB = torch.randint(n, (times, n), generator=generator)
    return torch.zeros(times, n, dtype=torch.float64).scatter_add_(
        1, drawn_RB, torch.ones(times, n, dtype=torch.float64)
    )


def interval(value: float, resampled_R: Tensor, n: int) -> Estimate:
    """Percentile interval of a number from its resamples, widened for few texts; what is no number does not count."""
    known = resampled_R[torch.isfinite(resampled_R)].double()
    if n < 2 or len(known) < 2 or not math.isfinite(value):
        return Estimate(value, None, None, n)
    edge = expanded_edge(n)
    low, high = torch.quantile(known, torch.tensor([edge, 1 - edge], dtype=torch.float64)).tolist()
    return Estimate(value, low, high, n)


def expanded_edge(n: int) -> float:
    """The share that is cut off on either side, smaller for few texts: Φ(−√(n/(n−1)) t), t of n − 1 degrees of freedom.

    Percentiles of resamples are too near to one another for few texts; this is Hesterberg's (2015) expanded interval,
    which is Student's where the number is a mean of normal ones; below about
    six texts the resamples themselves do not reach as far. t is Hill's (1970) expansion in 1/(n − 1).
    """
    z = float(torch.special.ndtri(torch.tensor((1 + LEVEL) / 2, dtype=torch.float64)))
    v = n - 1
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return float(torch.special.ndtr(torch.tensor(-math.sqrt(n / v) * t, dtype=torch.float64)))
