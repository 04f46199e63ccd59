"""Cross-entropy and top-1 of masked tokens against the masking level (CRoCoDiL Fig. 4).

Shape letters: B texts, K registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from crocodil.demasker.loss import Losses
from crocodil.errors import CrocodilError


@dataclass(frozen=True)
class LevelScore:
    """Masked-token prediction at one masking level, averaged over masked tokens."""

    t: float
    k: int
    cross_entropy: float
    """Nats per masked token."""
    top1: float
    tokens: int
    """Masked tokens that were scored."""


@torch.no_grad()
def score_levels(
    losses_at: Callable[[float, int], Sequence[Losses]], levels: Sequence[float], ks: Sequence[int]
) -> list[LevelScore]:
    """Score every (k, level). `losses_at(t, k)` gives the records of one pass over the evaluation texts.

    Raises:
        CrocodilError: there are no texts.
    """
    scores = []
    for k in ks:
        for t in levels:
            records = losses_at(t, k)
            if not records:
                raise CrocodilError("there is no text to score; hold out more, or give other texts")
            masked = torch.cat([r.masked_B for r in records]).double()
            entropy = torch.cat([r.entropy_B for r in records]).double()
            accuracy = torch.cat([r.accuracy_B for r in records]).double()
            total = masked.sum().clamp_min(1)
            scores.append(
                LevelScore(
                    t,
                    k,
                    float((entropy * masked).sum() / total),
                    float((accuracy * masked).sum() / total),
                    int(masked.sum()),
                )
            )
    return scores
