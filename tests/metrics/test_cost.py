"""Counted costs against torch's own counter of FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from crocodil.attention import Segments
from crocodil.demasker.guided import GuideConfig, GuidedDemasker
from crocodil.demasker.llada import LLaDA
from crocodil.metrics.cost import demasker_flops, encoder_flops
from crocodil.registers.encoder import RegisterEncoder


def counted(run: Callable[[], object]) -> int:
    """Attention falls into matrix products here, because the counter does not know the CPU's fused kernel."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize(
    ("lengths", "k"), [((64,), (0,)), ((64, 64, 64), (0, 0, 0)), ((40, 64, 17), (8, 0, 1)), ((200,), (8,))]
)
def test_demasker(
    lengths: tuple[int, ...], k: tuple[int, ...], kv_heads: int, make_llada: Callable[..., LLaDA]
) -> None:
    llada = make_llada(d_model=64, n_heads=4, n_kv_heads=kv_heads, mlp_hidden_size=160, n_layers=3)
    demasker = GuidedDemasker(llada, GuideConfig(8, 8)).initialise()
    ids, scored = torch.zeros(sum(lengths), dtype=torch.long), torch.arange(sum(lengths)) % 3 == 0

    def forward() -> None:
        hidden = demasker.hidden(ids, Segments.of(lengths), torch.zeros(sum(k), 8), k)
        llada.head(hidden[scored])

    prefixes = [shown + 2 if shown else 0 for shown in k]
    ours = demasker_flops(llada.config, lengths, prefixes, int(scored.sum()))
    assert ours == pytest.approx(counted(forward), rel=0.02)


@pytest.mark.parametrize(("lengths", "k"), [((64,), (1,)), ((40, 64, 0), (4, 1, 2))])
def test_encoder(
    lengths: tuple[int, ...], k: tuple[int, ...], make_encoder: Callable[..., RegisterEncoder]
) -> None:
    encoder = make_encoder()
    ids = torch.zeros(sum(lengths), dtype=torch.long)
    theirs = counted(lambda: encoder(ids, Segments.of(lengths), k))
    config = encoder.backbone.config
    # unfused, the causal half that nobody may see is computed too
    pairs = sum((n + shown) ** 2 for n, shown in zip(lengths, k, strict=True))
    unseen = config.num_hidden_layers * 2 * config.num_attention_heads * config.head_dim * pairs
    assert encoder_flops(config, lengths, k) + unseen == pytest.approx(theirs, rel=0.02)


def test_llada_8b_costs_what_is_published(make_llada: Callable[..., LLaDA]) -> None:
    """14.0 GFLOP a position in the body and 1.04 in the head, without attention's own products."""
    config = replace(
        make_llada().config,
        d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32, mlp_hidden_size=12288, embedding_size=126464,
    )  # fmt: skip
    assert demasker_flops(config, [1], [0], 0) == pytest.approx(14.0e9, rel=0.01)
    assert demasker_flops(config, [1], [0], 1) - demasker_flops(config, [1], [0], 0) == pytest.approx(
        1.04e9, rel=0.01
    )
