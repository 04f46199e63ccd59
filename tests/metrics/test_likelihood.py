"""Cross-entropy and top-1 by masking level are means over masked tokens, however the texts are batched."""

from __future__ import annotations

import math

import pytest
import torch

from crocodil.demasker.loss import Losses
from crocodil.errors import CrocodilError
from crocodil.metrics.likelihood import score_levels


def record(entropy: list[float], accuracy: list[float], masked: list[int]) -> Losses:
    return Losses(
        torch.tensor(0.0),
        torch.tensor(float(len(masked))),
        torch.tensor(entropy),
        torch.tensor(accuracy),
        torch.tensor(masked, dtype=torch.float32),
    )


def test_tokens_weigh_alike_whatever_their_text_and_batch() -> None:
    # text 1: 4 tokens at 1 nat, all right; text 2: 1 token at 6 nats, wrong; text 3: nothing masked
    whole = [record([1.0, 6.0, 0.0], [1.0, 0.0, 0.0], [4, 1, 0])]
    parts = [record([1.0], [1.0], [4]), record([6.0, 0.0], [0.0, 0.0], [1, 0])]
    for records in (whole, parts):
        (score,) = score_levels(lambda t, k, r=records: r, [0.5], [0])
        assert score.cross_entropy == pytest.approx(2.0) and score.top1 == pytest.approx(0.8)
        assert (score.t, score.k, score.tokens) == (0.5, 0, 5)


def test_every_level_of_every_k_is_asked_for_and_named() -> None:
    asked: list[tuple[float, int]] = []

    def losses_at(t: float, k: int) -> list[Losses]:
        asked.append((t, k))
        return [record([10 * k + t], [t], [3])]

    scores = score_levels(losses_at, [0.25, 1.0], [0, 8])
    assert asked == [(0.25, 0), (1.0, 0), (0.25, 8), (1.0, 8)] == [(s.t, s.k) for s in scores]
    assert [s.cross_entropy for s in scores] == pytest.approx([0.25, 1.0, 80.25, 81.0])
    assert [s.top1 for s in scores] == pytest.approx([0.25, 1.0, 0.25, 1.0])


def test_where_nothing_is_masked_nothing_is_scored() -> None:
    (score,) = score_levels(lambda t, k: [record([0.0], [0.0], [0])], [0.0], [0])
    assert score.tokens == 0 and math.isfinite(score.cross_entropy) and math.isfinite(score.top1)


def test_no_text_has_no_score() -> None:
    with pytest.raises(CrocodilError, match="no text to score"):
        score_levels(lambda t, k: [], [0.5], [0])


def test_no_gradient_is_kept() -> None:
    def losses_at(t: float, k: int) -> list[Losses]:
        assert not torch.is_grad_enabled()
        return [record([1.0], [1.0], [1])]

    score_levels(losses_at, [0.5], [0])
