"""Attention over packed rows: several texts lie end to end in one row and none sees another.

This is the ground floor of both networks. Everything that must be without influence (padding, hidden registers,
masked positions of a half-known text) is *left out* of the row and its neighbours keep their positions, so no dense
mask is ever built and no computation is spent on what nobody may see.

Shape letters: B texts, T packed positions of all texts together, H heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import cast

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Segments:
    """How a packed row of T positions is divided into texts: the lengths, in order."""

    lengths: tuple[int, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        return Segments(tuple(int(n) for n in lengths), torch.device(device))

    @property
    def total(self) -> int:
        """T, the number of packed positions."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @cached_property
    def boundaries(self) -> torch.Tensor:
        """Cumulative lengths (B+1,) int32 on the device, as varlen kernels want them."""
        return F.pad(torch.tensor(self.lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0)).to(
            self.device
        )

    @cached_property
    def groups(self) -> list[torch.Tensor]:
        """For every length that occurs, the packed positions of its texts: (texts of that length, length)."""
        starts: dict[int, list[int]] = {}
        at = 0
        for length in self.lengths:
            if length:
                starts.setdefault(length, []).append(at)
            at += length
        return [
            (torch.tensor(first)[:, None] + torch.arange(length)[None]).to(self.device)
            for length, first in starts.items()
        ]


def _heads(x: torch.Tensor, copies: int) -> torch.Tensor:
    """(…, T, H, C) to (…, H, T, C), key/value heads repeated for grouped-query attention."""
    x = x.transpose(-3, -2)
    return x if copies == 1 else x.repeat_interleave(copies, dim=-3)


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, visible: torch.Tensor | None
) -> torch.Tensor:
    """(G, L, H, C) each; `visible` broadcastable to (G, H, L, L), True where a query may look."""
    copies = q.shape[-2] // k.shape[-2]
    out = F.scaled_dot_product_attention(
        _heads(q, 1), _heads(k, copies), _heads(v, copies), attn_mask=visible, is_causal=causal
    )
    return out.transpose(-3, -2)


@torch.compiler.disable  # its loops over texts are for Python; the kernels inside are fused already
def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: Segments | None,
    *,
    causal: bool = False,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention, block-diagonal over `segments`.

    Args:
        q: (1, T, H, C) packed, or (B, N, H, C) when `segments` is None.
        k, v: the same with H or fewer (grouped-query) heads.
        segments: the texts of the packed row; None for an ordinary batch.
        causal: each position sees itself and what stands before it in its own text.
        visible: only for an ordinary batch: (B, 1, N, N) bool, True where a query may look.

    Returns:
        The shape of q, the dtype of v.
    """
    # under autocast a norm leaves queries and keys in float32 beside 16-bit values
    q, k = q.to(v.dtype), k.to(v.dtype)
    if segments is None:
        return _dense(q, k, v, causal, visible)
    if len(set(segments.lengths)) == 1:
        batch = len(segments.lengths)
        fold = lambda x: x.reshape(batch, -1, *x.shape[2:])  # noqa: E731
        return _dense(fold(q), fold(k), fold(v), causal, None).reshape(q.shape)
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        return _varlen(q, k, v, segments, causal)
    out = torch.empty_like(q)
    for index in segments.groups:
        out[0, index] = _dense(q[0, index], k[0, index], v[0, index], causal, None)
    return out


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, causal: bool
) -> torch.Tensor:
    """Variable-length flash attention, one kernel for the whole row (CUDA, 16 bit): flash-attn's where it is installed,
    else torch's own."""
    ends, longest = segments.boundaries, segments.longest
    flash_attn = _flash_attn()
    if flash_attn is not None:
        return flash_attn(q[0], k[0], v[0], ends, ends, longest, longest, causal=causal)[None]
    from torch.nn.attention.varlen import varlen_attn

    window, shared = (-1, 0) if causal else (-1, -1), q.shape[-2] != k.shape[-2]
    out = varlen_attn(
        q[0], k[0], v[0], ends, ends, longest, longest, window_size=window, enable_gqa=shared
    )  # fmt: skip
    return cast(torch.Tensor, out)[None]


@cache
def _flash_attn() -> Callable[..., torch.Tensor] | None:
    """flash-attn's kernel, which shares key/value heads among queries without copying them; None without the package."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return cast(Callable[..., torch.Tensor], flash_attn_varlen_func)
