"""DDIM over registers with a time for each register (Song et al. 2021, Eq. 12 at η = 0; CRoCoDiL App. E).

Shape letters: B samples, K registers, D register width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crocodil.errors import CrocodilError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(registers (B, K, D), their noise levels (B, K)) to the clean registers (B, K, D)."""
Signal = Callable[[Tensor], Tensor]
"""Noise level to ᾱ."""


@dataclass(frozen=True)
class Denoised:
    """Registers out of noise."""

    registers_BKD: Tensor
    """As the last step left them: bring them to norm √D before they condition anything (SPEC: App. E)."""
    steps: int
    """Calls of `denoise`."""


@torch.no_grad()
def ddim(
    denoise: Denoise,
    noisy_BKD: Tensor,
    signal: Signal,
    offsets_K: Tensor,
    *,
    steps: int,
    start: float = 1.0,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Denoised:
    """Bring registers from base time `start` down to −Δ_max, where every one of them is clean.

    With all offsets 0 this is diffusers' DDIM with trailing spacing and no clipping.

    Args:
        denoise: predicts clean registers; see `Denoise`.
        noisy_BKD: registers at base time `start`: pure noise at 1.
        signal: ᾱ of a noise level (`denoiser.schedule.signal`).
        offsets_K: Δ of each register, not negative.
        steps: evaluations of `denoise`, at least 1.
        start: base time of `noisy_BKD`, above 0 and at most 1.
        on_step: told (steps done, the prediction) after each step.

    Raises:
        CrocodilError: no step, or a start outside (0, 1].
    """
    if steps < 1:
        raise CrocodilError(f"denoising needs at least one step, not {steps}")
    if not 0 < start <= 1:
        raise CrocodilError(f"denoising starts at a noise level above 0 and at most 1, not {start}")
    offsets_K = offsets_K.double().to(noisy_BKD.device)
    end = -float(offsets_K.max())
    at = lambda base: (base + offsets_K).clamp(0.0, 1.0).expand(len(noisy_BKD), -1)  # noqa: E731
    x, level_BK = noisy_BKD, at(start)
    for step in range(steps):
        next_BK = at(end + (start - end) * (steps - step - 1) / steps)
        clean = denoise(x, level_BK)
        now, then = signal(level_BK)[..., None], signal(next_BK)[..., None]
        then = torch.where(next_BK[..., None] == 0, torch.ones_like(then), then)
        # the noise that the prediction leaves; where s = 0 already nothing is left, and nothing moves
        noise = (x.double() - now.sqrt() * clean.double()) / (1 - now).sqrt().clamp_min(1e-12)
        moved = then.sqrt() * clean.double() + (1 - then).sqrt() * noise
        x = torch.where((next_BK == level_BK)[..., None], x.double(), moved).to(x.dtype)
        level_BK = next_BK
        if on_step is not None:
            on_step(step + 1, clean)
    return Denoised(x, steps)
