"""The register denoiser g: a one-dimensional DiT in PixArt style (CRoCoDiL App. E; Chen et al. 2023, PixArt-α).

It reads K noisy registers, each with its own noise level, and predicts the clean ones. One network computes the
modulation of all blocks from the noise level (adaLN-single); every block adds a small table of its own. The
conditional variant looks, in every block, at the registers of a text that is known in part.

Shape letters: B samples, K registers, D register width, M registers of the condition, W width of the denoiser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crocodil.errors import CrocodilError
from crocodil.recompute import RECOMPUTE

TIME_CHANNELS = 256
TIME_SCALE = 1000.0
"""Noise levels are embedded as the 1,000 steps that DiT knows."""


@dataclass(frozen=True)
class DenoiserConfig:
    """Sizes of a denoiser."""

    K: int
    """Registers that it makes at most."""
    D: int
    """Width of a register."""
    width: int
    layers: int
    heads: int
    mlp_ratio: int = 4
    conditional: bool = False
    """Whether every block also looks at the registers of a partly known text."""

    def __post_init__(self) -> None:
        if min(self.K, self.D, self.width, self.layers, self.heads, self.mlp_ratio) < 1:
            raise CrocodilError(f"every size of a denoiser must be at least 1: {self}")
        if self.width % self.heads:
            raise CrocodilError(
                f"the denoiser's width {self.width} must be a multiple of its {self.heads} heads"
            )


PRESETS = {
    "tiny": {"width": 96, "layers": 4, "heads": 4},
    "nano": {"width": 192, "layers": 6, "heads": 4},
    # 28 layers as PixArt; 17 heads of 64 make 409 M parameters at D = 1024, K = 128 without cross-attention
    "pixart-400m": {"width": 1088, "layers": 28, "heads": 17},
}


def time_embedding(s: Tensor, channels: int = TIME_CHANNELS) -> Tensor:
    """Sinusoids (…, channels) of noise levels (…), float32: cosines, then sines, as DiT."""
    half = channels // 2
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(half, device=s.device, dtype=torch.float32) / half
    )
    turns = (s.float() * TIME_SCALE)[..., None] * frequencies
    return torch.cat([turns.cos(), turns.sin()], dim=-1)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _attend(heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention of (B, K, W) on (B, M, W)."""
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    return F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Self-attention, cross-attention (conditional only), MLP; modulated by the noise level of each register."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        W = config.width
        self.heads = config.heads
        self.modulation = nn.Parameter(torch.randn(6, W) / W**0.5)
        self.qkv = nn.Linear(W, 3 * W)
        self.out = nn.Linear(W, W)
        self.up = nn.Linear(W, config.mlp_ratio * W)
        self.down = nn.Linear(config.mlp_ratio * W, W)
        if config.conditional:
            self.cross_q = nn.Linear(W, W)
            self.cross_kv = nn.Linear(W, 2 * W)
            self.cross_out = nn.Linear(W, W)

    def forward(self, x_BKW: Tensor, level_BK6W: Tensor, memory_BMW: Tensor | None) -> Tensor:
        modulation = level_BK6W + self.modulation
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(dim=-2)
        q, k, v = self.qkv(_modulate(x_BKW, shift_a, scale_a)).chunk(3, -1)
        x = x_BKW + gate_a * self.out(_attend(self.heads, q, k, v))
        if memory_BMW is not None:
            k, v = self.cross_kv(memory_BMW).chunk(2, -1)
            x = x + self.cross_out(_attend(self.heads, self.cross_q(x), k, v))
        return x + gate_m * self.down(F.gelu(self.up(_modulate(x, shift_m, scale_m)), approximate="tanh"))


class Denoiser(nn.Module):
    """g: noisy registers and their noise levels to clean registers."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        W = config.width
        self.read = nn.Linear(config.D, W)
        self.place = nn.Parameter(torch.randn(config.K, W) * 0.02)
        self.time = nn.Sequential(nn.Linear(TIME_CHANNELS, W), nn.SiLU(), nn.Linear(W, W))
        self.level = nn.Sequential(nn.SiLU(), nn.Linear(W, 6 * W))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.modulation = nn.Parameter(torch.randn(2, W) / W**0.5)
        self.write = nn.Linear(W, config.D)
        if config.conditional:
            self.condition = nn.Sequential(
                nn.Linear(config.D, W), nn.GELU(approximate="tanh"), nn.Linear(W, W)
            )
        self._initialise()

    def _initialise(self) -> None:
        """As PixArt: Xavier everywhere, the doors of cross-attention and of the output closed."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for sequential in (self.time, self.level):
            for module in sequential:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Block) and self.config.conditional:
                nn.init.zeros_(module.cross_out.weight)
        nn.init.zeros_(self.write.weight)

    @property
    def parameters_in_all(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def grow(self, K: int) -> None:
        """Make K registers instead of fewer: a new one begins with the mean of the places that there are."""
        if K < self.config.K:
            raise CrocodilError(f"a denoiser of {self.config.K} registers does not shrink to {K}")
        new = self.place.mean(dim=0, keepdim=True).expand(K - self.config.K, -1)
        self.place = nn.Parameter(torch.cat([self.place, new]))
        self.config = replace(self.config, K=K)

    def forward(self, z_BKD: Tensor, s_BK: Tensor, condition_BMD: Tensor | None = None) -> Tensor:
        """Clean registers (B, K, D) out of noisy ones.

        Args:
            z_BKD: noisy registers, the first of an encoder; fewer than the K of its config, for a denoiser that was
                trained with nested dropout.
            s_BK: noise level of each, 0 clean … 1 noise.
            condition_BMD: registers of the partly known text, M of them up to the config's K; for a conditional
                denoiser, and only for one.

        Raises:
            CrocodilError: a shape that does not belong to this denoiser.
        """
        config = self.config
        k = z_BKD.shape[1]
        if not 1 <= k <= config.K or z_BKD.shape[2] != config.D or s_BK.shape != z_BKD.shape[:2]:
            raise CrocodilError(
                f"registers {tuple(z_BKD.shape)} with noise levels {tuple(s_BK.shape)}: this denoiser wants "
                f"(B, k, {config.D}) and (B, k), k up to {config.K}"
            )
        if (condition_BMD is not None) != config.conditional:
            has = (
                "wants the registers of a known text"
                if config.conditional
                else "is unconditional and takes none"
            )
            raise CrocodilError(f"this denoiser {has}")
        dtype = self.read.weight.dtype
        place = self.place.to(dtype)
        x = self.read(z_BKD.to(dtype)) + place[:k]
        # where one row of levels stands for all samples, as in DDIM, so does what is computed from it
        s_BK = s_BK[:1] if s_BK.stride(0) == 0 else s_BK
        time = self.time(time_embedding(s_BK).to(dtype))
        level = self.level(time).unflatten(-1, (6, config.width))
        memory = None
        if condition_BMD is not None:
            memory = self.condition(condition_BMD.to(dtype)) + place[: condition_BMD.shape[1]]
        for block in self.blocks:
            if self.recompute and self.training:
                x = checkpoint(block, x, level, memory, **RECOMPUTE)
            else:
                x = block(x, level, memory)
        shift, scale = (time[..., None, :] + self.modulation).unbind(dim=-2)
        return self.write(_modulate(x, shift, scale))
