"""What the denoiser is trained on: registers, noised group by group, to be given back (CRoCoDiL App. E).

Shape letters: B samples, K registers, D register width, M registers of the condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crocodil.denoiser.dit import Denoiser
from crocodil.denoiser.schedule import add_noise, times


@dataclass(frozen=True, eq=False)
class NoisyRegisters:
    """A batch for the denoiser."""

    clean_BKD: Tensor
    noisy_BKD: Tensor
    s_BK: Tensor
    """Noise level of each register."""
    condition_BMD: Tensor | None = None
    """Registers of the partly known text."""

    def to(self, device: torch.device | str) -> NoisyRegisters:
        condition = None if self.condition_BMD is None else self.condition_BMD.to(device)
        return NoisyRegisters(
            self.clean_BKD.to(device), self.noisy_BKD.to(device), self.s_BK.to(device), condition
        )


@dataclass(frozen=True, eq=False)
class RegisterErrors:
    """Squared errors of predicted registers."""

    total: Tensor
    """Sum over samples of the mean over registers and coordinates, with gradient."""
    error_BK: Tensor
    """Mean squared error of each register, without gradient."""


def draw_base_time(offsets_K: Tensor, generator: torch.Generator) -> float:
    """τ ~ U(−Δ_max, 1): every group of registers then sees every noise level."""
    largest = float(offsets_K.max())
    u = float(torch.rand((), generator=generator, dtype=torch.float64))
    return -largest + (1 + largest) * u


def noisy(
    clean_BKD: Tensor,
    base_B: Tensor,
    offsets_K: Tensor,
    noise_BKD: Tensor,
    condition_BMD: Tensor | None = None,
) -> NoisyRegisters:
    """Registers at base times (B,)."""
    s_BK = times(base_B, offsets_K)
    return NoisyRegisters(clean_BKD, add_noise(clean_BKD, s_BK, noise_BKD), s_BK, condition_BMD)


class DenoiserLoss(nn.Module):
    """A denoiser whose forward is its loss, as the training engine wants it."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, batch: NoisyRegisters) -> RegisterErrors:
        """Mean squared error of the clean registers, averaged over registers (App. E)."""
        predicted = self.denoiser(batch.noisy_BKD, batch.s_BK, batch.condition_BMD)
        error_BK = (predicted.float() - batch.clean_BKD.float()).square().mean(dim=-1)
        return RegisterErrors(error_BK.mean(dim=-1).sum(), error_BK.detach())
