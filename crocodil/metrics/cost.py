"""What a forward costs, counted from shapes: FLOPs without padding and without recomputation.

One multiply-add is two FLOPs. A training step counts as three forwards (MFU convention, docs/training.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Qwen3Config

from crocodil.demasker.llada import LLaDAConfig
from crocodil.denoiser.dit import TIME_CHANNELS, DenoiserConfig


def demasker_flops(
    config: LLaDAConfig, lengths: Sequence[int], prefixes: Sequence[int], scored: int
) -> float:
    """One forward over texts of `lengths` behind `prefixes` slots each, with the head on `scored` positions."""
    E, M = config.d_model, config.mlp_hidden_size
    keys = config.n_kv_heads * config.channels
    matrices = 2 * (2 * E * E + 2 * E * keys + 3 * E * M)
    positions = sum(lengths) + sum(prefixes)
    pairs = sum((n + p) ** 2 for n, p in zip(lengths, prefixes, strict=True))
    return config.n_layers * (matrices * positions + 4 * E * pairs) + 2.0 * E * config.embedding_size * scored


def encoder_flops(config: Qwen3Config, lengths: Sequence[int], k: Sequence[int]) -> float:
    """One forward over clean texts of `lengths`, EOS and k − 1 suffix embeddings; causal, so half the pairs."""
    D, M = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    matrices = 2 * (2 * D * queries + 2 * D * keys + 3 * D * M)
    totals = [n + registers for n, registers in zip(lengths, k, strict=True)]
    return float(config.num_hidden_layers * sum(matrices * n + 2 * queries * n * n for n in totals))


def denoiser_flops(config: DenoiserConfig, samples: int, k: int) -> float:
    """One forward over k registers of each sample; a conditional denoiser looks at k registers of the condition."""
    D, W = config.D, config.width
    matrices = 2 * (4 * W * W + 2 * config.mlp_ratio * W * W)
    pairs = 4 * W * k * k
    ends = 2 * (2 * D * W + TIME_CHANNELS * W + W * W + 6 * W * W)
    if config.conditional:
        matrices += 2 * 4 * W * W
        pairs *= 2
        ends += 2 * (D * W + W * W)
    return float(samples) * (config.layers * (k * matrices + pairs) + k * ends)
