"""Rotary angles, plain and two-axis."""

from __future__ import annotations

import math

import pytest
import torch

from crocodil.demasker.rotary import angles, default_local_pairs, rotate, two_axis_angles

C, THETA = 16, 10000.0


def vectors(total: int, seed: int = 0) -> torch.Tensor:
    """(T, 1 head, C)"""
    return torch.randn(total, 1, C, generator=torch.Generator().manual_seed(seed))


def test_angles_are_positions_times_frequencies() -> None:
    positions = torch.tensor([-130, -1, 0, 1, 4095])
    found = angles(positions, C, THETA)
    assert found.shape == (5, C // 2) and found.dtype == torch.float32
    for row, position in enumerate(positions.tolist()):
        for pair in range(C // 2):
            assert found[row, pair] == pytest.approx(position * THETA ** (-2 * pair / C), rel=1e-5)
    assert torch.equal(found[0], -angles(-positions, C, THETA)[0])


def test_rotation_keeps_norms_and_position_0_turns_nothing() -> None:
    x = vectors(5)
    turned = rotate(x, angles(torch.tensor([0, 1, 7, -3, 500]), C, THETA))
    assert torch.equal(turned[0], x[0])
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1))


def test_rotation_is_complex_multiplication_of_the_two_halves() -> None:
    x = vectors(3)
    found = rotate(x, angles(torch.tensor([2, -5, 9]), C, THETA))
    turn = torch.polar(torch.ones(3, C // 2), angles(torch.tensor([2, -5, 9]), C, THETA))[:, None]
    wanted = torch.complex(*x.chunk(2, dim=-1)) * turn
    assert torch.allclose(found, torch.cat([wanted.real, wanted.imag], dim=-1), atol=1e-6)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = vectors(1, 0), vectors(1, 1)

    def score(at_q: int, at_k: int) -> float:
        turned = [rotate(x, angles(torch.tensor([at]), C, THETA)) for x, at in ((q, at_q), (k, at_k))]
        return float((turned[0] * turned[1]).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) == pytest.approx(score(2, -2), abs=1e-4)
    assert abs(score(7, 3) - score(3, 7)) > 1e-2


def test_float32_rotation_of_16_bit_values() -> None:
    x, turn = vectors(6).bfloat16(), angles(torch.arange(4000, 4006), C, THETA)
    assert rotate(x, turn).dtype == torch.bfloat16
    assert torch.equal(rotate(x, turn), rotate(x.float(), turn).bfloat16())
    assert not torch.equal(rotate(x, turn), rotate(x, turn, full_precision=False))


def test_without_prefix_slots_two_axes_are_plain() -> None:
    positions = torch.arange(-4, 20)
    nothing = torch.zeros(24, dtype=torch.bool)
    two = two_axis_angles(positions, positions * 3 + 1, nothing, (0, 2, 5), C, THETA)
    assert torch.equal(two, angles(positions, C, THETA))


def test_prefix_slots_turn_the_local_pairs_by_the_local_index_and_text_stays_plain() -> None:
    where = torch.tensor([-1, -1, -1, 0, 1, 2])
    local = torch.tensor([0, 1, 9, 0, 0, 0])
    is_prefix = torch.tensor([True, True, True, False, False, False])
    pairs = (0, 2, 5)
    found = two_axis_angles(where, local, is_prefix, pairs, C, THETA)
    assert torch.equal(found[3:], angles(where[3:], C, THETA))
    others = [p for p in range(C // 2) if p not in pairs]
    assert torch.equal(found[:3, list(pairs)], angles(local[:3], C, THETA)[:, list(pairs)])
    assert torch.equal(found[:3, others], angles(where[:3], C, THETA)[:, others])
    assert torch.equal(two_axis_angles(where, local, is_prefix, (), C, THETA), angles(where, C, THETA))


def test_default_pairs_of_llada_are_eight_spread_over_the_fast_ones() -> None:
    pairs = default_local_pairs(128)
    assert len(pairs) == 8 and pairs[0] == 0 and pairs[-1] == 24
    steps = [b - a for a, b in zip(pairs, pairs[1:], strict=False)]
    assert max(steps) - min(steps) <= 1
    # over 130 slots, at LLaDA's theta, the slowest still turns by more than a tenth of a circle
    assert 130 * 500000.0 ** (-2 * pairs[-1] / 128) > 2 * math.pi / 10


@pytest.mark.parametrize("channels", [4, 8, 16, 32, 48, 64, 256])
def test_default_pairs_of_other_heads_are_distinct_and_fast(channels: int) -> None:
    pairs = default_local_pairs(channels)
    assert 1 <= len(pairs) <= 8 and len(set(pairs)) == len(pairs) and pairs[0] == 0
    assert all(0 <= pair < channels // 2 for pair in pairs)
    assert pairs[-1] <= max(1, round(channels / 2 * 24 / 64))
