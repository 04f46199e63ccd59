"""Micro-batches as a plan sees them, against rows that were packed and networks that ran on them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from crocodil.autoencoder import Corruption
from crocodil.joint import DemaskerRecipe
from crocodil.plan.rows import Row, densest, micro_steps, register_counts, step_tokens, windows
from crocodil.registers.geometry import NestedDropout, draw_k
from crocodil.text.data import DataConfig
from crocodil.text.windows import pack
from crocodil.training.deal import deal
from tests.plan.live import batch_of, encoder_config, llada_config, network, row_of

PAPER = DemaskerRecipe(batch_size=512)


@pytest.mark.parametrize("k", [0, 1, 5])
def test_positions_are_those_that_the_networks_meet(k: int) -> None:
    seen = {}
    module = network(llada_config(layers=1), encoder_config(layers=1))
    module.demasker.llada.blocks[0].register_forward_pre_hook(
        lambda _, args: seen.update(demasker=args[0].shape[1])
    )
    module.encoder.backbone.layers[0].register_forward_pre_hook(
        lambda _, args: seen.update(encoder=args[0].shape[1])
    )
    batch = batch_of([9, 20, 30], k, 32)
    module(batch)
    row = row_of([9, 20, 30], k) if k else Row(3, 59, 0, 0)
    assert seen == {"demasker": row.positions, "encoder": row.clean}


@pytest.mark.parametrize(
    "config",
    [NestedDropout(), NestedDropout("uniform", 0.3, 0.1), NestedDropout("off", 0.0, 0.25), NestedDropout("groups", 0.5)],
)  # fmt: skip
def test_registers_are_drawn_as_often_as_counted(config: NestedDropout) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = 4000
    found: dict[int, int] = {}
    for _ in range(draws):
        k = draw_k(16, config, generator)
        found[k] = found.get(k, 0) + 1
    counts = register_counts(16, config)
    assert sum(counts.values()) == pytest.approx(1)
    for k in found.keys() | counts.keys():
        assert counts.get(k, 0) == pytest.approx(found.get(k, 0) / draws, abs=0.03), k


def test_hardly_any_row_is_denser_than_the_densest() -> None:
    """Rows of the shortest windows, 3,000 of them: fewer than one in a hundred has more registers."""
    row = densest(PAPER, 4096)
    generator = torch.Generator().manual_seed(0)
    sums = [
        sum(draw_k(PAPER.K, PAPER.corruption.nested_dropout, generator) for _ in range(row.texts)) for _ in range(3000)
    ]  # fmt: skip
    assert row.texts == 16
    assert sum(total > row.registers for total in sums) < 0.01 * len(sums)
    assert row.registers < 2.5 * sum(sums) / len(sums)


def test_everyone_with_all_registers_is_the_most_there_can_be() -> None:
    everything = Corruption(nested_dropout=NestedDropout("off"))
    row = densest(replace(PAPER, corruption=everything), 16384)
    assert (row.registers, row.positions) == (64 * 128, 16384 + 64 * 130)


@pytest.mark.parametrize("gpus", [1, 8, 64])
def test_micro_batches_are_as_many_as_are_dealt(gpus: int) -> None:
    random.seed(0)
    for config in (PAPER, replace(PAPER, row_tokens=8192), replace(PAPER, data=DataConfig(lengths=(128,)))):
        lengths = [random.choice(config.data.lengths) for _ in range(config.batch_size)]
        dealt = deal(pack(lengths, config.row_tokens), gpus)
        counted = micro_steps(config, gpus, config.row_tokens)
        assert abs(len(dealt[0]) - counted) <= max(1, 0.1 * counted)


def test_windows_are_as_likely_as_each_other_unless_a_length_is_given() -> None:
    assert step_tokens(PAPER) == pytest.approx(512 * (256 + 512 + 1024 + 2048 + 4096) / 5)
    assert step_tokens(PAPER, 1303) == 512 * 1303
    assert windows(PAPER, 100.0) == [(100.0, 1.0)]
