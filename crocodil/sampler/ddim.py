"""DDIM over registers with a time for each register (Song et al. 2021, Eq. 12 at η = 0; CRoCoDiL App. E).

Shape letters: B samples, K registers, D register width, T base times.
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
    base_T = torch.linspace(start, -float(offsets_K.max()), steps + 1, dtype=torch.float64)
    level_TK = (base_T.to(offsets_K.device)[:, None] + offsets_K).clamp(0.0, 1.0)
    keep_TK, take_TK = _weights(level_TK, signal)
    # what cancels has cancelled in float64: two numbers a register are left
    dtype = torch.promote_types(noisy_BKD.dtype, torch.float32)
    keep_TK1, take_TK1 = keep_TK[..., None].to(dtype), take_TK[..., None].to(dtype)
    x = noisy_BKD
    for step in range(steps):
        clean = denoise(x, level_TK[step].expand(len(x), -1))
        x = (keep_TK1[step] * x + take_TK1[step] * clean).to(x.dtype)
        if on_step is not None:
            on_step(step + 1, clean)
    return Denoised(x, steps)


def _weights(level_TK: Tensor, signal: Signal) -> tuple[Tensor, Tensor]:
    """What a step keeps of x and takes of the prediction ẑ: x' = keep · x + take · ẑ.

    With ε = (x − √ᾱ ẑ) / √(1 − ᾱ), the noise that the prediction leaves, Eq. 12 is x' = √ᾱ' ẑ + √(1 − ᾱ') ε.
    """
    now, then = level_TK[:-1], level_TK[1:]
    share, next_share = signal(now), torch.where(then == 0, 1.0, signal(then))
    keep = ((1 - next_share) / (1 - share).clamp_min(1e-24)).sqrt()
    take = next_share.sqrt() - keep * share.sqrt()
    # a level that stays has not begun or is at 0 already: nothing moves
    waits = then == now
    return keep.masked_fill(waits, 1.0), take.masked_fill(waits, 0.0)
