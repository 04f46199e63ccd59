"""A demasker that is trained from scratch: its sizes, and its first weights."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.errors import CrocodilError
from crocodil.text.vocabulary import Vocabulary
from crocodil.training.limits import require_at_least


@dataclass(frozen=True)
class DemaskerShape:
    """Sizes of a demasker that is trained from scratch; the rest of LLaDA's config is as released."""

    d_model: int = 192
    n_layers: int = 4
    n_heads: int = 4
    mlp_hidden_size: int = 576
    rope_theta: float = 1000.0
    vocabulary: int = 2048
    """Rows of the table; a byte-level BPE of this size is trained on the training texts."""

    def __post_init__(self) -> None:
        require_at_least(1, self, *(f.name for f in fields(self)), section="shape.")
        if self.d_model % (2 * self.n_heads):  # rotary positions turn pairs of a head's channels
            raise CrocodilError(
                f"shape: d_model {self.d_model} must be a multiple of 2 · n_heads {self.n_heads}"
            )


def fresh_config(shape: DemaskerShape, vocabulary: Vocabulary, longest: int) -> LLaDAConfig:
    return LLaDAConfig(
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_heads,
        mlp_hidden_size=shape.mlp_hidden_size,
        vocab_size=vocabulary.size,
        embedding_size=vocabulary.size,
        max_sequence_length=longest,
        mask_token_id=vocabulary.mask_id,
        eos_token_id=vocabulary.eos_id,
        pad_token_id=vocabulary.eos_id,
        rope_theta=shape.rope_theta,
    )


def fresh_demasker(shape: DemaskerShape, vocabulary: Vocabulary, longest: int, seed: int) -> LLaDA:
    """A LLaDA of these sizes, its weights drawn from `seed`."""
    model = LLaDA(fresh_config(shape, vocabulary, longest))
    return model.initialise(torch.Generator().manual_seed(seed))
