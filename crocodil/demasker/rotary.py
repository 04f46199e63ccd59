"""Rotary position embedding, plain and two-axis (CRoCoDiL App. C, after MRoPE).

Angles are computed from positions, never looked up, so positions may be negative and nothing is a buffer that a
cast or a meta-device load could spoil.
"""

from __future__ import annotations

import torch


def inverse_frequencies(channels: int, theta: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """theta^(-2i/channels) for the channels/2 rotary pairs, float32, as LLaDA computes them."""
    return 1.0 / (theta ** (torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels))


def angles(positions_T: torch.Tensor, channels: int, theta: float) -> torch.Tensor:
    """Plain RoPE angles (T, channels/2), float32, of integer positions (T,)."""
    return positions_T.float()[:, None] * inverse_frequencies(channels, theta, positions_T.device)[None]


def two_axis_angles(
    global_T: torch.Tensor,
    local_T: torch.Tensor,
    is_prefix_T: torch.Tensor,
    local_pairs: tuple[int, ...],
    channels: int,
    theta: float,
) -> torch.Tensor:
    """Angles (T, channels/2) where prefix slots turn `local_pairs` by their prefix-local index.

    Text positions keep plain RoPE on every pair; prefix slots use the global axis on all other pairs.
    """
    out = angles(global_T, channels, theta)
    if local_pairs:
        pairs = torch.tensor(local_pairs, device=out.device)
        local = angles(local_T, channels, theta)[:, pairs]
        out[:, pairs] = torch.where(is_prefix_T[:, None], local, out[:, pairs])
    return out


def default_local_pairs(channels: int) -> tuple[int, ...]:
    """Eight pairs spread over the fast indices 0–24 of 64 (docs/choices.md), in proportion for other head sizes.

    Slower pairs turn too little over a prefix of 130 slots to tell registers apart.
    """
    pairs = channels // 2
    fastest = max(1, round(pairs * 24 / 64))
    count = min(8, fastest + 1)
    return tuple(sorted({round(i * fastest / (count - 1)) for i in range(count)})) if count > 1 else (0,)


def rotate(x: torch.Tensor, angles_TC: torch.Tensor, full_precision: bool = True) -> torch.Tensor:
    """Turn (…, T, H, C) by angles (T, C/2) or (…, T, C/2), half-split layout; in float32 as released, then cast back."""
    dtype = x.dtype
    if full_precision:
        x = x.float()
    cos = angles_TC.cos().to(x.dtype).unsqueeze(-2)
    sin = angles_TC.sin().to(x.dtype).unsqueeze(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(dtype)
