"""Which positions are revealed next, and which token each of them gets."""

from __future__ import annotations

import math

import pytest
import torch

from crocodil.errors import CrocodilError
from crocodil.sampler.reveal import choose, draw, plan


def uniforms(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- how many -----------------------------------------------------------------------------------------------


def test_the_schedule_is_floor_and_the_remainder_first() -> None:
    counts = plan(torch.tensor([16, 7, 0, 3]), 6, 16).count_BS
    assert counts.tolist() == [[3, 3, 3, 3, 2, 2], [2, 1, 1, 1, 1, 1], [0] * 6, [1, 1, 1, 0, 0, 0]]


def test_a_plan_reveals_every_slot_once_and_never_rests() -> None:
    for slots in (1, 2, 5, 16, 17, 64):
        for block_size in (1, 2, 3, 7, 16, 64):
            blocks = -(-slots // block_size)
            for nfe in range(blocks, slots + 1):
                spread = plan(torch.tensor([slots]), nfe, block_size)
                assert int(spread.count_BS.min()) >= 1
                per_block = torch.zeros(blocks, dtype=torch.long).index_add(
                    0, spread.block_BS[0], spread.count_BS[0]
                )
                assert per_block.tolist() == [min(block_size, slots - i * block_size) for i in range(blocks)]
                assert (spread.block_BS[0].diff() >= 0).all()


def test_where_nfe_does_not_divide_blocks_differ_by_one_step() -> None:
    spread = plan(torch.tensor([32]), 10, 8)
    assert spread.block_BS[0].bincount().tolist() == [3, 3, 2, 2]
    assert spread.count_BS.tolist() == [[3, 3, 2, 3, 3, 2, 4, 4, 4, 4]]


def test_a_short_last_block_gets_a_short_share() -> None:
    assert plan(torch.tensor([20]), 10, 16).block_BS[0].bincount().tolist() == [8, 2]


def test_rows_are_planned_alone() -> None:
    slots = [5, 32, 17, 0, 1]
    together = plan(torch.tensor(slots), 12, 4)
    for row, n in enumerate(slots):
        steps = min(n, 12)
        if n:
            alone = plan(torch.tensor([n]), steps, 4)
            assert together.count_BS[row, :steps].tolist() == alone.count_BS[0].tolist()
            assert together.block_BS[row, :steps].tolist() == alone.block_BS[0].tolist()
            assert together.t_BS[row, :steps].tolist() == alone.t_BS[0].tolist()
        assert together.count_BS[row, steps:].sum() == 0


def test_the_level_falls_to_zero_within_each_block() -> None:
    assert plan(torch.tensor([8]), 6, 4).t_BS[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 2 / 3, 1 / 3, 0])


# --- which positions ----------------------------------------------------------------------------------------


def test_the_best_candidates_are_chosen_and_ties_go_to_the_earlier() -> None:
    score = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1], [0.0, 0.0, 0.0, 0.0, 1.0]])
    candidates = torch.tensor([[False, True, True, True, True], [True, True, True, True, False]])
    chosen = choose(score, candidates, torch.tensor([2, 3]))
    assert chosen.int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 1, 0, 0]]


def test_no_more_than_the_candidates_are_chosen() -> None:
    candidates = torch.tensor([[True, False, True]])
    assert torch.equal(choose(torch.zeros(1, 3), candidates, torch.tensor([9])), candidates)


# --- which token --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [5, 512, 513, 1031])
def test_greedy_is_the_likeliest_token_but_the_mask(vocabulary: int) -> None:
    logits = torch.randn(40, vocabulary, generator=torch.Generator().manual_seed(1)) * 3
    mask_id = 3
    logits[::2, mask_id] = 50.0
    before = logits.clone()
    ids, confidence = draw(logits, 0.0, None, mask_id)
    assert torch.equal(logits, before)
    wanted = logits.clone()
    wanted[:, mask_id] = -math.inf
    assert torch.equal(ids, wanted.argmax(1))
    # as in the official sampler, the mask's mass counts
    torch.testing.assert_close(confidence, logits.softmax(1).gather(1, ids[:, None])[:, 0], rtol=1e-5, atol=0)


def test_equal_logits_give_the_earliest_token() -> None:
    assert draw(torch.zeros(2, 1500), 0.0, None, 0).ids_R.tolist() == [1, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("vocabulary", [40, 1100])
def test_draws_follow_the_softmax(temperature: float, vocabulary: int) -> None:
    draws, mask_id = 40_000, 7
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(2)) * 1.5
    wanted = logits.double().clone()
    wanted[mask_id] = -math.inf
    expected = (wanted / temperature).softmax(0) * draws
    ids = draw(logits.expand(draws, -1), temperature, uniforms(draws), mask_id).ids_R
    counts = ids.bincount(minlength=vocabulary).double()
    assert counts[mask_id] == 0
    often = expected >= 5
    seldom, wanted_seldom = counts[~often].sum(), expected[~often].sum().clamp(min=1e-9)
    chi = ((counts - expected)[often] ** 2 / expected[often]).sum() + (
        seldom - wanted_seldom
    ) ** 2 / wanted_seldom
    degrees = int(often.sum())
    assert abs(chi - degrees) < 4 * math.sqrt(2 * degrees)


def test_a_draw_inverts_the_cumulative_distribution_at_llada_s_vocabulary() -> None:
    logits = torch.randn(16, 126_464, generator=torch.Generator().manual_seed(3)) * 2
    u = uniforms(16, 4)
    ids, confidence = draw(logits, 0.7, u, 126_336)
    wanted = logits.double().clone()
    wanted[:, 126_336] = -math.inf
    ends = (wanted / 0.7).softmax(1).cumsum(1)
    starts = torch.cat([torch.zeros(16, 1), ends[:, :-1]], dim=1)
    assert (starts.gather(1, ids[:, None])[:, 0] <= u + 1e-6).all()
    assert (ends.gather(1, ids[:, None])[:, 0] >= u - 1e-6).all()
    torch.testing.assert_close(
        confidence.double(), logits.double().softmax(1).gather(1, ids[:, None])[:, 0], rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_what_has_no_probability_is_never_drawn_even_at_the_ends(u: float) -> None:
    logits = torch.full((3, 1300), -math.inf)
    logits[0, 600], logits[1, [2, 1290]], logits[2, 700:720] = 1.0, 0.0, 5.0
    logits[2, [700, 719]] = 400.0
    for temperature in (0.1, 1.0, 3.0):
        ids = draw(logits, temperature, torch.full((3,), u, dtype=torch.float64), 700).ids_R
        assert logits[torch.arange(3), ids].isfinite().all()
        assert ids[0] == 600 and ids[1] == (2 if u == 0 else 1290) and ids[2] == 719


def test_a_mask_logit_above_all_others_changes_no_draw() -> None:
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(5))
    drowned = logits.clone()
    drowned[:, 4] = 1e4
    assert torch.equal(draw(logits, 1.0, uniforms(200), 4).ids_R, draw(drowned, 1.0, uniforms(200), 4).ids_R)


def test_a_head_without_a_mask_column_is_fine() -> None:
    logits = torch.randn(9, 256, generator=torch.Generator().manual_seed(6))
    assert torch.equal(draw(logits, 0.0, None, 256).ids_R, logits.argmax(1))


def test_an_endless_temperature_is_uniform_but_for_the_mask() -> None:
    logits = torch.tensor([[0.0, 9.0, 30.0, -5.0]]).expand(4000, -1)
    ids = draw(logits, 1e300, uniforms(4000), 2).ids_R
    assert torch.allclose(ids.bincount(minlength=4) / 4000, torch.tensor([1, 1, 0, 1]) / 3, atol=0.03)


def test_a_vanishing_temperature_is_greedy() -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(7))
    for temperature in (1e-6, 1e-30, 1e-300):
        assert torch.equal(draw(logits, temperature, uniforms(50), 0).ids_R, draw(logits, 0.0, None, 0).ids_R)


def test_rows_do_not_depend_on_one_another() -> None:
    # more rows than are taken at once
    logits = torch.randn(700, 2000, generator=torch.Generator().manual_seed(8))
    u = uniforms(700)
    together = draw(logits, 1.0, u, 1)
    for row in (0, 523, 524, 699):
        alone = draw(logits[row : row + 1], 1.0, u[row : row + 1], 1)
        assert alone.ids_R[0] == together.ids_R[row] and alone.confidence_R[0] == together.confidence_R[row]


def test_sixteen_bit_logits_are_drawn_in_float32() -> None:
    logits = torch.randn(30, 900, generator=torch.Generator().manual_seed(9)).bfloat16()
    low, high = draw(logits, 1.0, uniforms(30), 1), draw(logits.float(), 1.0, uniforms(30), 1)
    assert torch.equal(low.ids_R, high.ids_R) and torch.equal(low.confidence_R, high.confidence_R)
    assert low.confidence_R.dtype == torch.float32


def test_no_rows_give_no_tokens() -> None:
    assert draw(torch.zeros(0, 10), 1.0, uniforms(0), 1).ids_R.shape == (0,)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(poison: float, temperature: float) -> None:
    logits = torch.zeros(4, 50)
    logits[2, 9] = poison
    with pytest.raises(CrocodilError, match="not a number in 1 of 4 rows"):
        draw(logits, temperature, uniforms(4), 1)
