"""Demaskers of random weights for the benchmarks."""

from __future__ import annotations

import torch

from crocodil.demasker.guided import GuideConfig, GuidedDemasker
from crocodil.demasker.llada import LLaDA, LLaDAConfig
from recipes.benchmarks.sizes import Network


def config_of(network: Network, longest: int) -> LLaDAConfig:
    """LLaDA's config; the mask is the last id."""
    return LLaDAConfig(
        d_model=network.d_model,
        n_layers=network.n_layers,
        n_heads=network.n_heads,
        n_kv_heads=network.n_heads,
        mlp_hidden_size=network.mlp_hidden_size,
        vocab_size=network.vocab_size,
        embedding_size=network.vocab_size,
        max_sequence_length=longest,
        mask_token_id=network.vocab_size - 1,
        eos_token_id=0,
        rope_theta=10_000.0,
    )


def guided_demasker(network: Network, K: int, longest: int, device: torch.device | str) -> GuidedDemasker:
    """A guided demasker, the same at every call; registers are as wide as tokens.

    Its head is four times as sharp as a fresh one, so that confidences are apart as a trained model's are and rounding
    does not decide which token is surest. It does not predict the mask, which the official sampler does not forbid.
    """
    generator = torch.Generator().manual_seed(0)
    llada = LLaDA(config_of(network, longest)).initialise(generator)
    with torch.no_grad():
        llada.head_weight.mul_(4)
        llada.head_weight[llada.config.mask_token_id] = 0
    demasker = GuidedDemasker(llada, GuideConfig(K, network.d_model)).initialise(generator)
    return demasker.eval().to(device)
