"""Demaskers, encoders and denoisers of random weights for the benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from crocodil.demasker.guided import GuideConfig, GuidedDemasker
from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.denoiser.dit import Denoiser, DenoiserConfig
from recipes.benchmarks.sizes import DenoiserShape, Network

if TYPE_CHECKING:
    from crocodil.registers.encoder import RegisterEncoder
    from crocodil.text.vocabulary import Vocabulary


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


def guided_demasker(
    network: Network, K: int, longest: int, device: torch.device | str, D: int | None = None
) -> GuidedDemasker:
    """A guided demasker, the same at every call; registers are as wide as tokens unless D says otherwise.

    Its head is four times as sharp as a fresh one, so that confidences are apart as a trained model's are and rounding
    does not decide which token is surest. It does not predict the mask, which the official sampler does not forbid.
    """
    generator = torch.Generator().manual_seed(0)
    llada = LLaDA(config_of(network, longest)).initialise(generator)
    with torch.no_grad():
        llada.head_weight.mul_(4)
        llada.head_weight[llada.config.mask_token_id] = 0
    demasker = GuidedDemasker(llada, GuideConfig(K, D or network.d_model)).initialise(generator)
    return demasker.eval().to(device)


def denoiser(shape: DenoiserShape, K: int, device: torch.device | str, conditional: bool = False) -> Denoiser:
    """A denoiser, the same at every call; unlike a fresh one it predicts something."""
    sizes = DenoiserConfig(K, shape.D, shape.width, shape.layers, shape.heads, conditional=conditional)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Denoiser(sizes)
        nn.init.xavier_uniform_(made.write.weight)
    return made.eval().requires_grad_(False).to(device)


def register_encoder(vocabulary: Vocabulary, K: int, hidden_size: int, layers: int) -> RegisterEncoder:
    """A register encoder, the same at every call, on the CPU."""
    from crocodil.registers.encoder import fresh_encoder  # imports transformers

    heads = max(1, hidden_size // 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fresh_encoder(
            vocabulary.size,
            K,
            vocabulary.eos_id,
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=3 * hidden_size,
            rope_theta=1e6,
        )
