"""The discrete forward process: masking (CRoCoDiL Eq. 2 with α_t = 1 − t, App. C).

Shape letters: B texts, N positions of one text, T packed positions of all texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from crocodil.attention import Segments
from crocodil.errors import CrocodilError


@dataclass(frozen=True)
class MaskingConfig:
    """How masking levels are drawn in training."""

    all_mask: float = 0.25
    """Probability that the whole text is masked, t = 1 (App. C, the all-mask utilisation schedule)."""
    t_min: float = 0.001
    """Smallest level: otherwise t is uniform between this and 1. Bounds the weight 1/t."""

    def __post_init__(self) -> None:
        if not 0 <= self.all_mask <= 1 or not 0 < self.t_min <= 1:
            raise CrocodilError(
                f"masking: all_mask {self.all_mask} must be from 0 to 1 and t_min {self.t_min} above 0 and at most 1"
            )


@dataclass(frozen=True)
class MaskedTexts:
    """Texts laid end to end, some positions masked: what a demasker sees and what it is asked."""

    ids_T: torch.Tensor
    """The clean token ids, windows with BOS, EOS and tail included."""
    is_masked_T: torch.Tensor
    """True where the demasker sees the mask instead."""
    t_B: torch.Tensor
    """Masking level of each text, float32."""
    segments: Segments
    """Where each text ends."""
    mask_id: int
    seeds: tuple[int, ...] | None = None
    """One for each text, for what is drawn where the network is; None where nothing is."""

    @property
    def visible_T(self) -> torch.Tensor:
        """x_t: the ids with the mask token where masked."""
        return torch.where(self.is_masked_T, self.mask_id, self.ids_T)

    def to(self, device: torch.device | str) -> MaskedTexts:
        return MaskedTexts(
            self.ids_T.to(device),
            self.is_masked_T.to(device),
            self.t_B.to(device),
            self.segments.to(device),
            self.mask_id,
            self.seeds,
        )


def draw_level(generator: torch.Generator, config: MaskingConfig) -> float:
    """t of one text: 1 with probability `all_mask`, else uniform in [t_min, 1)."""
    coin, u = torch.rand(2, generator=generator).tolist()
    return 1.0 if coin < config.all_mask else config.t_min + (1 - config.t_min) * u


def mask(length: int, t: float, generator: torch.Generator) -> torch.Tensor:
    """is_masked (N,): every position independently with probability t; t = 1 masks all."""
    return torch.rand(length, generator=generator) < t
