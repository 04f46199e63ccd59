"""The forward process of CADD: tokens are masked, and the latent of what is masked becomes noise (CADD §4.1, App. A).

Time t runs from 0, clean, to 1, destroyed. A token is masked at t with probability 1 − α(t), α(t) = 1 − t. Each token
has a latent z₀ in a continuous space. It stays z₀ as long as the token is visible; under a masked one it is
z_t = a(t) z₀ + b(t) ε (Eq. 11). A schedule is these two functions, and everything else follows from them.

For the two chains s < t of one latent, z_t | z_s has mean (a_t/a_s) z_s and variance v = b_t² − (a_t/a_s)² b_s²; with
Bayes' rule z_s | z_t, z₀ is normal too. For the variance-preserving chain, a² + b² = 1, that is Eq. 17; for flow
matching it is not, which the paper does not say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from crocodil.errors import CrocodilError

Schedule = Literal["flow", "vp"]
"""`flow`: flow matching, z_t = (1 − t) z₀ + t ε (App. B.1). `vp`: variance preserving, with γ̄_t = cos²(πt/2)."""


def signal(t: Tensor, schedule: Schedule) -> Tensor:
    """a(t), what is left of the latent; float64."""
    t = t.double()
    return 1 - t if schedule == "flow" else torch.cos(t * (math.pi / 2)).clamp_min(0)


def noise(t: Tensor, schedule: Schedule) -> Tensor:
    """b(t), the standard deviation of the noise; float64."""
    t = t.double()
    return t.clone() if schedule == "flow" else torch.sin(t * (math.pi / 2))


def snr(t: Tensor, schedule: Schedule) -> Tensor:
    """Signal to noise a²/b², infinite at t = 0."""
    return (signal(t, schedule) / noise(t, schedule)).square()


def add_noise(clean_RE: Tensor, t_R: Tensor, noise_RE: Tensor, schedule: Schedule) -> Tensor:
    """z_t of the latents of masked tokens (Eq. 11), each at its own time."""
    t_R1 = t_R[..., None]
    a, b = signal(t_R1, schedule).to(clean_RE.dtype), noise(t_R1, schedule).to(clean_RE.dtype)
    return a * clean_RE + b * noise_RE


@dataclass(frozen=True)
class Posterior:
    """q(z_s | z_t, z₀) of a token that is masked at s too: N(keep · z_t + take · z₀, std² I)."""

    keep: float
    take: float
    std: float


def posterior(s: float, t: float, schedule: Schedule, stochastic: bool = True) -> Posterior:
    """How a latent goes from time t back to s (Eq. 16 and 17; SPEC §9 for flow matching).

    Args:
        s: 0 ≤ s < t. At 0 it is z₀ itself.
        stochastic: draw from the posterior. Otherwise the noise that z₀ leaves in z_t stays, and only its share
            changes, as in DDIM: for flow matching z_s = (s/t) z_t + (1 − s/t) z₀.

    Raises:
        CrocodilError: times out of order.
    """
    _ordered(s, t)
    a_s, a_t, b_s, b_t = _levels(s, t, schedule)
    if not stochastic:
        share = b_s / b_t
        return Posterior(share, a_s - share * a_t, 0.0)
    on = transition(s, t, schedule)
    return Posterior(on.keep * b_s**2 / b_t**2, a_s * on.std**2 / b_t**2, on.std * b_s / b_t)


@dataclass(frozen=True)
class Transition:
    """q(z_t | z_s) of a token that is masked at both: N(keep · z_s, std² I)."""

    keep: float
    std: float


def transition(s: float, t: float, schedule: Schedule) -> Transition:
    """How a latent goes on from time s to a later t (Eq. 8; a product of such steps is Eq. 11).

    Raises:
        CrocodilError: times out of order.
    """
    _ordered(s, t)
    a_s, a_t, b_s, b_t = _levels(s, t, schedule)
    ratio = a_t / a_s
    return Transition(ratio, math.sqrt(max(b_t**2 - ratio**2 * b_s**2, 0.0)))


def flip(s: float, t: float) -> float:
    """ρ_flip (Eq. 38): how probable it is that a token masked at t is visible at s < t."""
    return (t - s) / t


def keep(s: float, t: float) -> float:
    """ρ_keep (Eq. 38): how probable it is that it is still masked. (The text around Eq. 21 has the two swapped.)"""
    return s / t


def remask(s: float, t: float) -> float:
    """How probable it is that a token visible at s is masked at t > s: 1 − α_t/α_s (Eq. 7)."""
    return (t - s) / (1 - s)


def _ordered(s: float, t: float) -> None:
    if not 0 <= s < t <= 1:
        raise CrocodilError(f"times of a step are 0 ≤ s < t ≤ 1, not s = {s} and t = {t}")


def _levels(s: float, t: float, schedule: Schedule) -> tuple[float, float, float, float]:
    """a(s), a(t), b(s), b(t)."""
    times = torch.tensor([s, t], dtype=torch.float64)
    a_s, a_t, b_s, b_t = torch.cat([signal(times, schedule), noise(times, schedule)]).tolist()
    return a_s, a_t, b_s, b_t


def check_schedule(name: str) -> None:
    """Raise CrocodilError unless it is a schedule."""
    if name not in get_args(Schedule):
        raise CrocodilError(f"schedule {name!r} is not one of {', '.join(get_args(Schedule))}")
