"""Tiny things that many tests need: programs, a vocabulary, networks of random weights, a model on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crocodil.autoencoder import Autoencoder
from crocodil.bundle import save_autoencoder
from crocodil.cadd.latents import LatentConfig, TokenLatents
from crocodil.demasker.guided import GuideConfig, GuidedDemasker, Layout
from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.registers.encoder import RegisterEncoder, Scale, fresh_encoder
from crocodil.registers.geometry import RegisterNoise
from crocodil.text.vocabulary import Vocabulary, train_bpe

WINDOW = 32
PROGRAMS = (
    "def area(side):\n    return side * side\n",
    "class Shape:\n    def __init__(self, side):\n        self.side = side\n",
    "for number in range(10):\n    print(number)\n",
    "x = {'side': 3}",
    "",
)


@pytest.fixture(scope="session")
def programs() -> tuple[str, ...]:
    """Five programs, the last one empty."""
    return PROGRAMS


@pytest.fixture(scope="session")
def tiny_vocabulary() -> Vocabulary:
    """A byte-level BPE with a few dozen merges."""
    return train_bpe(PROGRAMS * 3, 320)


@pytest.fixture(scope="session")
def make_llada(tiny_vocabulary: Vocabulary) -> Callable[..., LLaDA]:
    """`make_llada(seed=0, **config)`: a demasker of random weights, with spare rows in its table."""

    def make(seed: int = 0, **config: Any) -> LLaDA:
        sizes: dict[str, Any] = {
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 2,
            "n_kv_heads": 1,
            "mlp_hidden_size": 48,
            "vocab_size": tiny_vocabulary.size,
            "embedding_size": tiny_vocabulary.size + 5,
            "max_sequence_length": 2 * WINDOW,
            "mask_token_id": tiny_vocabulary.mask_id,
            "eos_token_id": tiny_vocabulary.eos_id,
            "rope_theta": 10000.0,
        }
        return LLaDA(LLaDAConfig(**(sizes | config))).initialise(torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def make_encoder(tiny_vocabulary: Vocabulary) -> Callable[..., RegisterEncoder]:
    """`make_encoder(K=4, scale="sqrt_d", seed=0)`: a register encoder of random weights, D = 24."""

    def make(K: int = 4, scale: Scale = "sqrt_d", seed: int = 0) -> RegisterEncoder:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return fresh_encoder(
                tiny_vocabulary.size,
                K,
                tiny_vocabulary.eos_id,
                scale,
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=40,
                rope_theta=1000.0,
            )

    return make


@pytest.fixture(scope="session")
def make_autoencoder(
    make_llada: Callable[..., LLaDA], make_encoder: Callable[..., RegisterEncoder]
) -> Callable[..., Autoencoder]:
    """`make_autoencoder(K=4, layout="anchored", scale="sqrt_d", noise=None, seed=0, suffix_from=None, **llada)`."""

    def make(
        K: int = 4,
        layout: Layout = "anchored",
        scale: Scale = "sqrt_d",
        noise: RegisterNoise | None = None,
        seed: int = 0,
        suffix_from: int | None = None,
        **config: Any,
    ) -> Autoencoder:
        encoder = make_encoder(K, scale, seed)
        encoder.suffix_from = suffix_from
        demasker = GuidedDemasker(make_llada(seed, **config), GuideConfig(K, encoder.D, layout))
        return Autoencoder(encoder, demasker.initialise(torch.Generator().manual_seed(seed)), noise)

    return make


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    make_autoencoder: Callable[..., Autoencoder],
    tiny_vocabulary: Vocabulary,
) -> Path:
    """A model folder in float32, K = 4, D = 24, windows of 32 tokens. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    save_autoencoder(folder, make_autoencoder(), tiny_vocabulary, WINDOW)
    return folder


@pytest.fixture(scope="session")
def tiny_latents(
    tmp_path_factory: pytest.TempPathFactory,
    make_autoencoder: Callable[..., Autoencoder],
    tiny_vocabulary: Vocabulary,
) -> Path:
    """The same with latents of tokens."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    autoencoder = make_autoencoder()
    sizes = autoencoder.demasker.llada.config
    latents = TokenLatents(LatentConfig(), sizes.vocab_size, sizes.d_model)
    save_autoencoder(folder, autoencoder, tiny_vocabulary, WINDOW, latents=latents)
    return folder
