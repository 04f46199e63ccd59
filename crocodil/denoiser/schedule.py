"""How registers become noise: the cosine schedule, and one time for each register (CRoCoDiL App. E).

A register at noise level s is √ᾱ(s) z + √(1 − ᾱ(s)) ε, with s = 0 clean and s = 1 destroyed. Groups of registers are
offset from one another, so the coarse ones are known before the fine ones: at base time τ group b stands at
clip(τ + Δ_b, 0, 1). τ runs over [−Δ_max, 1], so that every group sees all of [0, 1].

Shape letters: B samples, K registers, D register width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crocodil.errors import CrocodilError
from crocodil.registers.geometry import group_sizes

FLOOR = 1e-3
"""ᾱ falls at most by this factor in the last thousandth (the cap of DDPM's β at 0.999), so ᾱ(1) is small, not 0."""
_OFFSET = 0.008  # Nichol & Dhariwal 2021, Eq. 17


def signal(s: Tensor) -> Tensor:
    """ᾱ(s), the share of variance that is signal: the cosine schedule (Nichol & Dhariwal 2021, Eq. 17), float64.

    At s = i/1000 it is the cumulative product that diffusers' `squaredcos_cap_v2` builds from 1,000 capped betas.
    """
    s = s.double().clamp(0.0, 1.0)
    whole = lambda x: torch.cos((x + _OFFSET) / (1 + _OFFSET) * (math.pi / 2)).square()  # noqa: E731
    least = whole(torch.tensor(0.999, dtype=torch.float64, device=s.device)) * FLOOR
    start = whole(torch.zeros((), dtype=torch.float64, device=s.device))
    return torch.maximum(whole(s), least) / start


def offsets(K: int, largest: float = 0.2) -> Tensor:
    """Δ of every register (K,), float64: `largest` · (b − 1)/(B − 1) for the b-th of the B groups 1, 1, 2, 4, …

    Raises:
        CrocodilError: K is no power of two, or `largest` is outside 0 … 1.
    """
    if not 0 <= largest <= 1:
        raise CrocodilError(f"the largest offset must be between 0 and 1, not {largest}")
    sizes = group_sizes(K)
    steps = torch.linspace(0, largest, len(sizes), dtype=torch.float64) if len(sizes) > 1 else torch.zeros(1)
    return steps.double().repeat_interleave(torch.tensor(sizes))


def times(base_B: Tensor, offsets_K: Tensor) -> Tensor:
    """Noise level of every register (B, K) at base times (B,), float64."""
    return (base_B.double()[:, None] + offsets_K.to(base_B.device)).clamp(0.0, 1.0)


def add_noise(z_BKD: Tensor, s_BK: Tensor, noise_BKD: Tensor) -> Tensor:
    """√ᾱ z + √(1 − ᾱ) ε at noise level s of every register."""
    share = signal(s_BK)[..., None]
    return (share.sqrt().to(z_BKD.dtype) * z_BKD + (1 - share).sqrt().to(z_BKD.dtype) * noise_BKD).to(
        z_BKD.dtype
    )
