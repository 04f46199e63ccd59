"""The forward process: its limits and its frequencies."""

from __future__ import annotations

import math

import pytest
import torch

from crocodil.attention import Segments
from crocodil.demasker.masking import MaskedTexts, MaskingConfig, draw_level, mask


def levels(config: MaskingConfig, draws: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.tensor([draw_level(generator, config) for _ in range(draws)], dtype=torch.float64)


def test_level_1_masks_everything_and_level_0_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    assert mask(100_000, 1.0, generator).all()
    assert not mask(100_000, 0.0, generator).any()


@pytest.mark.parametrize("t", [0.001, 0.1, 0.5, 0.93])
def test_each_position_is_masked_with_probability_t_on_its_own(t: float) -> None:
    N = 100_000
    masked = mask(N, t, torch.Generator().manual_seed(0)).float()
    assert masked.mean() == pytest.approx(t, abs=4 * math.sqrt(t * (1 - t) / N))
    both = (masked[1:] * masked[:-1]).mean()
    assert both == pytest.approx(t * t, abs=4 * math.sqrt(t * t / N))


def test_levels_are_uniform_above_the_least_beside_the_all_mask_coin() -> None:
    drawn = levels(MaskingConfig())
    whole = drawn == 1.0
    assert whole.double().mean() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
    others = drawn[~whole].sort().values
    assert others[0] >= 0.001 and others[-1] < 1
    grid = torch.linspace(0.001, 1, len(others), dtype=torch.float64)
    assert (others - grid).abs().max() < 1.95 / math.sqrt(
        len(others)
    )  # Kolmogorov-Smirnov, one in a thousand


def test_the_coin_at_its_ends() -> None:
    assert (levels(MaskingConfig(all_mask=1.0), 100) == 1).all()
    assert (levels(MaskingConfig(all_mask=0.0), 100) < 1).all()


def test_the_demasker_sees_the_mask_token_at_masked_positions_only() -> None:
    ids = torch.arange(10, 16)
    is_masked = torch.tensor([True, False, False, True, True, False])
    texts = MaskedTexts(ids, is_masked, torch.tensor([0.5, 0.6]), Segments.of([2, 4]), mask_id=99)
    assert texts.visible_T.tolist() == [99, 11, 12, 99, 99, 15]
    moved = texts.to("cpu")
    assert torch.equal(moved.visible_T, texts.visible_T) and moved.segments.lengths == (2, 4)
    assert moved.mask_id == 99 and torch.equal(moved.t_B, texts.t_B)
