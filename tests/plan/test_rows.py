"""Micro-batches as a plan sees them, against rows that were packed and networks that ran on them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from crocodil.autoencoder import Corruption
from crocodil.joint import DemaskerRecipe
from crocodil.plan.rows import (
    Row,
    densest,
    micro_steps,
    register_counts,
    rows_of_step,
    step_tokens,
    windows,
)
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


@pytest.mark.parametrize(("length", "row", "rows"), [(4096, 8191, 512), (4096, 8192, 256), (128, 1000, 74)])
@pytest.mark.parametrize("mean", [None, "length"])
def test_what_does_not_fill_a_row_leaves_it_empty(length: int, row: int, rows: int, mean: str | None) -> None:
    """Of windows of one length exactly as many rows as are packed."""
    config = replace(PAPER, row_tokens=row, data=DataConfig(lengths=(length,)))
    packed = pack([length] * config.batch_size, row)
    assert len(packed) == rows
    for gpus in (1, 8, 16):
        counted = micro_steps(config, gpus, row, None if mean is None else float(length))
        assert counted == len(deal(packed, gpus)[0]) == -(-rows // gpus)


@pytest.mark.parametrize(("lengths", "row"), [((1024, 2048), 3000), ((256, 4096), 4100), ((700, 1000), 2048)])
def test_windows_of_several_lengths_are_packed_to_be_counted(lengths: tuple[int, ...], row: int) -> None:
    draws = random.Random(0)
    config = replace(PAPER, row_tokens=row, data=DataConfig(lengths=lengths))
    packed = pack([draws.choice(lengths) for _ in range(config.batch_size)], row)
    assert rows_of_step(config, row) == pytest.approx(len(packed), rel=0.1)


def test_a_batch_of_any_size_is_counted_at_once() -> None:
    few = replace(PAPER, batch_size=4096, row_tokens=5000)
    many = replace(few, batch_size=4096 * 10**12)
    assert rows_of_step(many, 5000) == 10**12 * rows_of_step(few, 5000)


def test_windows_are_as_likely_as_each_other_unless_a_length_is_given() -> None:
    assert step_tokens(PAPER) == pytest.approx(512 * (256 + 512 + 1024 + 2048 + 4096) / 5)
    assert step_tokens(PAPER, 1303) == 512 * 1303
    assert windows(PAPER, 100.0) == [(100.0, 1.0)]
