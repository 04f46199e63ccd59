"""FLOPs of a step: as the recipe counts them, and the note's table A2."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from crocodil.autoencoder import Corruption
from crocodil.demasker.masking import MaskingConfig
from crocodil.joint import DemaskerRecipe
from crocodil.metrics.cost import demasker_flops, encoder_flops
from crocodil.plan.networks import networks
from crocodil.plan.work import computed_flops, forward, masked_share, model_flops
from crocodil.registers.geometry import NestedDropout
from crocodil.text.data import DataConfig

RELEASED = {"demasker": "GSAI-ML/LLaDA-8B-Base", "encoder": "Qwen/Qwen3-Embedding-0.6B"}
EVERYTHING = Corruption(nested_dropout=NestedDropout("off"))


def one_length(n: int, K: int) -> DemaskerRecipe:
    return DemaskerRecipe(**RELEASED, K=K, corruption=EVERYTHING, data=DataConfig(lengths=(n,)), batch_size=1)


def test_the_expected_step_is_the_mean_of_real_ones() -> None:
    config = DemaskerRecipe(**RELEASED, K=128, batch_size=512)
    of = networks(config)
    generator = torch.Generator().manual_seed(0)
    from crocodil.demasker.masking import draw_level
    from crocodil.registers.geometry import draw_k

    flops, texts = 0.0, 4000
    for i in range(texts):
        n = config.data.lengths[i % 5]
        k = draw_k(128, config.corruption.nested_dropout, generator)
        t = draw_level(generator, config.corruption.masking)
        flops += demasker_flops(of.llada, [n], [k + 2 if k else 0], round(t * n))
        flops += encoder_flops(of.encoder, [n - 2], [max(k, 1)])
    assert forward(of).total == pytest.approx(flops / texts * 512, rel=0.02)
    assert model_flops(forward(of)) == 3 * forward(of).total


def test_masked_share_is_the_mean_of_t() -> None:
    assert masked_share(0.25, 0.001) == pytest.approx(0.625, abs=1e-3)
    assert MaskingConfig().all_mask == 0.25


@pytest.mark.parametrize(
    ("n", "K", "demasker", "head", "attention", "encoder"),
    [(512, 8, 7.96, 0.067, 0.018, 0.49), (1024, 128, 17.9, 0.059, 0.039, 1.17), (4096, 8, 70.4, 0.060, 0.126, 5.5),
     (4096, 128, 72.6, 0.059, 0.129, 5.8)],
)  # fmt: skip
def test_forwards_are_those_of_table_a2(
    n: int, K: int, demasker: float, head: float, attention: float, encoder: float
) -> None:
    """TFLOP of a text. A forward of the note has the head on every position, one in training on those that are masked."""
    one = forward(networks(one_length(n, K)))
    whole = one.head / masked_share(0.25, 0.001)
    total = one.demasker_maps + one.demasker_attention + whole
    assert total / 1e12 == pytest.approx(demasker, rel=0.01)
    assert whole / total == pytest.approx(head, abs=0.001)
    assert one.demasker_attention / total == pytest.approx(attention, abs=0.002)
    assert (one.encoder_maps + one.encoder_attention) / 1e12 == pytest.approx(encoder, rel=0.03)


@pytest.mark.parametrize(
    ("n", "K", "joint", "frozen", "recomputed"),
    [(512, 8, 48.3, 33.2, 64.4), (1024, 128, 54.6, 37.5, 72.8), (4096, 8, 54.5, 37.7, 72.6),
     (4096, 128, 56.2, 38.9, 75.0)],
)  # fmt: skip
def test_steps_are_those_of_table_a2_where_the_conventions_agree(
    n: int, K: int, joint: float, frozen: float, recomputed: float
) -> None:
    """GFLOP a text token. The note's frozen step has attention's backward as one forward, it is two; its recomputed step
    has the head computed again, which it is not."""
    one = forward(networks(one_length(n, K)))
    assert model_flops(one) / n / 1e9 == pytest.approx(joint, rel=0.01)
    assert computed_flops(one, True, True, False) == pytest.approx(model_flops(one))
    stage_1 = computed_flops(one, False, True, False)
    assert (stage_1 - one.demasker_attention) / n / 1e9 == pytest.approx(frozen, rel=0.01)
    again = computed_flops(one, True, True, True) + one.head
    assert again / n / 1e9 == pytest.approx(recomputed, rel=0.01)


def test_a_mean_length_replaces_the_windows() -> None:
    of = networks(replace(one_length(512, 8), batch_size=7))
    assert forward(of, 512).total == pytest.approx(forward(of).total)
    assert forward(of, 1024).total > 2 * forward(of).total
