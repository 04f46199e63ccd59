"""Where registers live: spheres of radius √D, in geometric groups, made robust by noise (CRoCoDiL App. C, D).

Shape letters: K registers, D register width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from crocodil.errors import CrocodilError

MOST_REGISTERS = 1 << 16
"""More than tokens in any window that registers are made of; each is an embedding that is trained."""


@dataclass(frozen=True)
class RegisterNoise:
    """Augmentation of the registers in training (Alg. 1, lines 5–6)."""

    cosine: float = 0.8
    """Target cosine similarity between a register and its noisy copy; 1 adds no noise."""
    renormalise: bool = False
    """Bring the noisy register back to norm √D. Alg. 1 does not."""

    def __post_init__(self) -> None:
        noise_std(self.cosine)  # refuses what is no cosine


@dataclass(frozen=True)
class NestedDropout:
    """How many registers an example exposes (App. C)."""

    draw: Literal["groups", "uniform", "off"] = "groups"
    """k uniform among the group ends 1, 2, 4, …, K; uniform over 1…K; or always K (the ablation)."""
    keep_all: float = 0.0
    """Extra probability of exposing all K, for small models that see few examples."""
    hide_all: float = 0.0
    """Probability of exposing none, k = 0: the same weights then are the unguided demasker. Ours, off in the paper."""

    def __post_init__(self) -> None:
        # written so that NaN, which compares to nothing, is refused as well
        if not (self.keep_all >= 0 and self.hide_all >= 0 and self.keep_all + self.hide_all <= 1):
            raise CrocodilError(
                f"nested_dropout: keep_all {self.keep_all} and hide_all {self.hide_all} must be 0 or more and add up to "
                "at most 1"
            )


def check_count(K: int) -> int:
    """K must be a power of two, so that the groups 1, 1, 2, 4, … fill it, and of a size that a memory holds."""
    if not 1 <= K <= MOST_REGISTERS or K & (K - 1):
        raise CrocodilError(
            f"the number of registers must be a power of two (1, 2, 4, …, {MOST_REGISTERS:,}), not {K}"
        )
    return K


def group_sizes(K: int) -> tuple[int, ...]:
    """Sizes 1, 1, 2, 4, … of the geometric groups of K registers; they sum to K."""
    check_count(K)
    return (1,) + tuple(1 << i for i in range(K.bit_length() - 1))


def group_ends(K: int) -> tuple[int, ...]:
    """1, 2, 4, …, K: the numbers of registers at which a group is complete."""
    check_count(K)
    return tuple(1 << i for i in range(K.bit_length()))


def noise_std(cosine: float) -> float:
    """σ = √(1/c² − 1): noise N(0, σ²) on a register of norm √D leaves cosine c to it, for large D."""
    if not 0 < cosine <= 1:
        raise CrocodilError(f"the target cosine similarity must be in (0, 1], not {cosine}")
    return math.sqrt(1 / cosine**2 - 1)


def normalise(z: torch.Tensor) -> torch.Tensor:
    """z ← √D · z/‖z‖ for each register (…, D), in float32 (float64 where z is) (App. C)."""
    x = z if z.dtype == torch.float64 else z.float()
    return (x * (math.sqrt(z.shape[-1]) / x.norm(dim=-1, keepdim=True).clamp_min(1e-12))).to(z.dtype)


def draw_k(K: int, config: NestedDropout, generator: torch.Generator) -> int:
    """Number of registers that one example exposes."""
    coin, u = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    if coin < config.hide_all:
        return 0
    if config.draw == "off" or coin < config.hide_all + config.keep_all:
        return K
    choices = group_ends(K) if config.draw == "groups" else range(1, K + 1)
    return choices[int(u * len(choices))]


def mix(a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    """Linear interpolation (1 − α) a + α b, renormalised register by register (App. D, Fig. 8)."""
    # float64: far mixtures square to more than float32 holds
    mixed = torch.lerp(a.double(), b.double(), float(alpha))
    norm = mixed.norm(dim=-1)
    if not bool(torch.isfinite(norm).all()) or bool((norm < 1e-6).any()):
        raise CrocodilError(
            f"a mixture with alpha = {alpha} has no direction: its registers cancel or overflow"
        )
    return normalise(mixed).to(a.dtype)
