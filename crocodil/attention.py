"""Attention over packed rows: several texts lie end to end in one row and none sees another.

This is the ground floor of both networks. Everything that must be without influence (padding, hidden registers,
masked positions of a half-known text) is *left out* of the row and its neighbours keep their positions, so no dense
mask is ever built and no computation is spent on what nobody may see.

Shape letters: B texts, T packed positions of all texts together, H heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import cast

import torch
import torch.nn.functional as F

from crocodil.errors import CrocodilError


@dataclass(frozen=True)
class Annealing:
    """Attention between causal and full: what is ahead of a position is open to it with a probability."""

    share: float
    """0 ≤ share < 1 of all pairs of a query and a later key, each drawn by itself."""
    seeds: tuple[int, ...]
    """One for each text, from which its pairs are drawn where the network is."""


@dataclass(frozen=True)
class Segments:
    """How a packed row of T positions is divided into texts: the lengths, in order."""

    lengths: tuple[int, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    annealing: Annealing | None = None
    """None where every position sees its whole text (or, in causal attention, what is before it)."""

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        return Segments(tuple(int(n) for n in lengths), torch.device(device))

    def to(self, device: torch.device | str) -> Segments:
        return replace(self, device=torch.device(device))

    def annealed(self, share: float, seeds: Sequence[int]) -> Segments:
        """The same texts, their attention open by `share` from causal (0) to full (1 and above).

        Raises:
            CrocodilError: a negative share, or not one seed for each text.
        """
        if not share >= 0 or len(seeds) != len(self.lengths):
            raise CrocodilError(
                f"attention of {len(self.lengths)} texts cannot be annealed by {share} with {len(seeds)} seeds: give a "
                "share from 0 to 1 and one seed for each text"
            )
        return replace(self, annealing=None if share >= 1 else Annealing(share, tuple(seeds)))

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
    def positions(self) -> torch.Tensor:
        """Of every packed position, its place in its own text: (T,) int64."""
        return torch.cat([torch.arange(n) for n in self.lengths]).to(self.device)

    @cached_property
    def before(self) -> torch.Tensor:
        """Of every packed position, the one before it in its text; of a text's first, itself: (T,) int64."""
        return torch.arange(self.total, device=self.device) - (self.positions > 0).long()

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

    @cached_property
    def visible(self) -> list[torch.Tensor]:
        """For every group, what annealing lets its texts see: (texts of that length, 1, length, length) bool."""
        assert self.annealing is not None
        of_length: dict[int, list[torch.Tensor]] = {}
        for n, seed in zip(self.lengths, self.annealing.seeds, strict=True):
            draws = torch.Generator(self.device).manual_seed(seed)
            ahead = torch.rand(n, n, generator=draws, device=self.device) < self.annealing.share
            of_length.setdefault(n, []).append(ahead | torch.ones_like(ahead).tril())
        return [torch.stack(texts)[:, None] for n, texts in of_length.items() if n]


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
        segments: the texts of the packed row, and how far their attention is annealed; None for an ordinary batch.
        causal: each position sees itself and what stands before it in its own text.
        visible: only for an ordinary batch: (B, 1, N, N) bool, True where a query may look.

    Returns:
        The shape of q, the dtype of v.
    """
    # under autocast a norm leaves queries and keys in float32 beside 16-bit values
    q, k = q.to(v.dtype), k.to(v.dtype)
    if segments is None:
        return _dense(q, k, v, causal, visible)
    if segments.annealing is not None:
        if segments.annealing.share and not causal:
            out = torch.empty_like(q)
            for index, seen in zip(segments.groups, segments.visible, strict=True):
                out[0, index] = _dense(q[0, index], k[0, index], v[0, index], False, seen)
            return out
        causal = True
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
