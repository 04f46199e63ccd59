"""Texts out of noise with a latent for every masked token (CADD Alg. 2), and masked diffusion without latents.

The chain goes from t = 1, where everything is masked and latents are noise, to t = 0 in equal steps t → s. A step asks
the network what the masked tokens are, makes some of them visible, and moves the latents of the others towards what is
expected there.

Shape letters: B texts, N positions, K draws, E width of a latent, R positions whose logits are asked for, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from crocodil.cadd.forward import (
    Schedule,
    check_schedule,
    flip,
    noise,
    posterior,
    remask,
    signal,
    transition,
)
from crocodil.cadd.loss import estimate
from crocodil.errors import CrocodilError
from crocodil.sampler.demask import Demasked, Step
from crocodil.sampler.reveal import choose, draw

Predict = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
"""(ids_BN, rows_BN, latents (B, N, E) or None, t) to logits (R, V) where the bool rows_BN is True, row-major."""
Time = TypeVar("Time", float, Tensor)
Reveal = Literal["ancestral", "random", "low_confidence", "entropy"]
"""Which masked tokens a step makes visible. `ancestral`: each by itself with probability ρ_flip (Alg. 2). The others make
as many visible as that does on average: any, the likeliest, or those whose predictions have the least entropy (App. B.2,
code)."""

Guess = Literal["hard", "soft", "drawn"]
"""What latents of tokens that stay masked move towards. `hard`, `soft`: ẑ₀ of Eq. 21, the latent of the likeliest token
or the mean latent. `drawn` (ours): the latent of a token drawn from the prediction, which is the reverse step of Eq. 12
itself, a mixture over tokens."""


@dataclass(frozen=True)
class LatentSpace:
    """What the chain has to know of latents."""

    table_VE: Tensor
    """Clean latents of all tokens (`TokenLatents.clean` of the table)."""
    schedule: Schedule
    draws: int = 1
    """K chains of latents for each text, noised independently, whose predictions are averaged (Eq. 5). Each costs one
    evaluation of the network in every step."""
    estimate: Guess = "hard"
    stochastic: bool = True
    """Draw latents from their posterior; otherwise they go straight to ẑ₀ (`forward.posterior`)."""

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if self.draws < 1:
            raise CrocodilError(f"draws = {self.draws}: at least one chain of latents is needed")
        if self.estimate not in get_args(Guess):
            raise CrocodilError(f"estimate = {self.estimate!r}: choose one of {', '.join(get_args(Guess))}")


@torch.no_grad()
def sample(
    predict: Predict,
    x_BN: Tensor,
    mask_id: int,
    *,
    steps: int,
    generators: Sequence[torch.Generator],
    latents: LatentSpace | None = None,
    reveal: Reveal = "ancestral",
    temperature: float | Callable[[float], float] = 1.0,
    corrector: float = 0.0,
    on_step: Callable[[Step], None] | None = None,
) -> Demasked:
    """Fill every masked position of `x` in `steps` steps, any number of them.

    Without latents this is the ancestral sampler of masked diffusion (Sahoo et al. 2024): the baseline.

    Args:
        predict: the demasker; see `Predict`.
        x_BN: token ids, `mask_id` wherever a token is wanted; every other token is kept, with its clean latent.
        mask_id: the mask token. It is never predicted.
        generators: one per row, on the CPU: a row's text does not depend on its neighbours.
        latents: None for plain masked diffusion.
        temperature: of the draws of tokens, a number or a function of t; 0 takes the likeliest. Soft ẑ₀ are at 1.
        corrector: each step goes this share of itself too far and comes back by the forward process, so that tokens can
            be taken back (Gat et al. 2024). 0 for never.
        on_step: called after every step.

    Returns:
        The tokens; `nfe` counts calls of `predict`, draws times steps, of the longest chain.

    Raises:
        CrocodilError: numbers that do not fit, before any call of `predict`; logits that are not finite, later.
    """
    slot_BN = x_BN == mask_id
    _check(slot_BN, mask_id, steps, generators, reveal, temperature, corrector)
    at_temperature = temperature if callable(temperature) else (lambda t: float(temperature))
    numbers = _Numbers(generators, x_BN)
    chains = None if latents is None else _Chains(latents, x_BN, slot_BN, numbers)

    ids_BN, steps_BN, calls = x_BN, torch.full_like(x_BN, -1), 0
    for step in range(steps):
        t, s = 1 - step / steps, 1 - (step + 1) / steps
        # a step that is taken too far ends earlier than s
        s_far = max(0.0, s - corrector * (t - s)) if s > 0 else 0.0
        rows_BN = ids_BN == mask_id
        where_B, where_N = rows_BN.nonzero(as_tuple=True)
        at = (where_B, where_N)
        uniforms_BN, chances_BN = numbers.uniform(), numbers.uniform()
        # drawn even where it is not needed: a row that is complete for now must not fall behind its neighbours
        noise_KBNE = None if chains is None else chains.noise()
        if len(at[0]):
            # 1. What the masked tokens are.
            log_pi_RV = log_mean(
                predict, ids_BN, rows_BN, None if chains is None else chains.z_KBNE, t, mask_id
            )
            calls += 1 if latents is None else latents.draws

            # 2. Draw them, and make some of them visible.
            warmth = at_temperature(t)
            if not (warmth >= 0 and math.isfinite(warmth)):
                raise CrocodilError(f"temperature is {warmth} at t = {t:.4g}: give 0 or a positive number")
            drawn = draw(log_pi_RV, warmth, uniforms_BN[at], mask_id)
            if reveal == "ancestral":
                revealed_R = chances_BN[at] < flip(s_far, t)
            else:
                score_BN = torch.zeros(x_BN.shape, dtype=torch.float64, device=x_BN.device)
                score_BN[at] = _score(reveal, drawn.confidence_R, log_pi_RV, chances_BN[at])
                left_B = (slot_BN.sum(dim=1) * s_far).round().long()
                revealed_R = choose(score_BN, rows_BN, (rows_BN.sum(dim=1) - left_B).clamp_min(0))[at]
            now = tuple(index[revealed_R] for index in at)
            ids_BN = ids_BN.index_put(now, drawn.ids_R[revealed_R].to(ids_BN.dtype))
            steps_BN = steps_BN.index_put(now, torch.tensor(step, device=x_BN.device))

            # 3. Move the latents.
            if chains is not None and noise_KBNE is not None:
                chains.back(ids_BN, ids_BN == mask_id, at, log_pi_RV, drawn.ids_R, noise_KBNE, s_far, t)

        # 4. Come back, where the step went too far.
        if s_far < s:
            again_BN = slot_BN & (ids_BN != mask_id) & (numbers.uniform() < remask(s_far, s))
            if chains is not None:
                chains.forth(again_BN, ids_BN == mask_id, s_far, s)
            ids_BN, steps_BN = ids_BN.masked_fill(again_BN, mask_id), steps_BN.masked_fill(again_BN, -1)
        if on_step is not None:
            on_step(Step(step + 1, steps, ids_BN, ids_BN == mask_id))
        if not corrector and not bool((ids_BN == mask_id).any()):
            break
    return Demasked(ids_BN, calls, steps_BN)


def cosine_temperature(largest: float) -> Callable[[float], float]:
    """A temperature that falls from `largest` at t = 1 to 0 at t = 0 as a quarter of a cosine (App. B.2, images)."""
    return lambda t: largest * math.cos((1 - t) * math.pi / 2)


class _Chains:
    """The latents of all texts, (K, B, N, E): clean under visible tokens, noised under masked ones.

    In float32 whatever the network is in: a step of many changes less of a latent than bfloat16 can hold.
    """

    def __init__(self, space: LatentSpace, x_BN: Tensor, slot_BN: Tensor, numbers: _Numbers) -> None:
        self.space, self._numbers = space, numbers
        self.z_KBNE = torch.where(slot_BN[..., None], self.noise(), self._clean(x_BN))

    def back(
        self,
        ids_BN: Tensor,
        is_masked_BN: Tensor,
        at: tuple[Tensor, Tensor],
        log_pi_RV: Tensor,
        drawn_R: Tensor,
        noise_KBNE: Tensor,
        s: float,
        t: float,
    ) -> None:
        """From t to s: to the latent of the token where one is visible now, else along the posterior to ẑ₀ (Eq. 16).

        Args:
            at: what was masked at t, whose predictions are `log_pi_RV`, and `drawn_R` a token drawn from each.
        """
        to, table_VE = (
            posterior(s, t, self.space.schedule, self.space.stochastic),
            table_of(self.space, log_pi_RV),
        )
        how = self.space.estimate
        estimate_RE = table_VE[drawn_R] if how == "drawn" else estimate(log_pi_RV, table_VE, how)
        z_KRE = (
            to.keep * self.z_KBNE[:, at[0], at[1]]
            + to.take * estimate_RE.float()
            + to.std * noise_KBNE[:, at[0], at[1]]
        )
        clean_RE = self._clean(ids_BN[at])
        self.z_KBNE[:, at[0], at[1]] = torch.where(is_masked_BN[at][:, None], z_KRE, clean_RE)

    def forth(self, again_BN: Tensor, still_BN: Tensor, s: float, t: float) -> None:
        """From s to t: what is masked again starts from its clean latent (Eq. 11), what still is goes on (Eq. 8)."""
        schedule, noise_KBNE = self.space.schedule, self.noise()
        a, b = float(signal(torch.tensor(t), schedule)), float(noise(torch.tensor(t), schedule))
        on = transition(s, t, schedule)
        z_KBNE = self.z_KBNE
        z_KBNE = torch.where(again_BN[..., None], a * z_KBNE + b * noise_KBNE, z_KBNE)
        self.z_KBNE = torch.where(still_BN[..., None], on.keep * self.z_KBNE + on.std * noise_KBNE, z_KBNE)

    def noise(self) -> Tensor:
        """ε, (K, B, N, E)."""
        return self._numbers.normal(self.space.draws, self.space.table_VE.shape[1])

    def _clean(self, ids: Tensor) -> Tensor:
        """Clean latents of any shape of ids; a mask token beyond the table gets one that nobody looks at."""
        return self.space.table_VE[ids.clamp(max=len(self.space.table_VE) - 1)].float()


class _Numbers:
    """Random numbers of every row from its own generator, always for all positions."""

    def __init__(self, generators: Sequence[torch.Generator], x_BN: Tensor) -> None:
        self._generators, self._positions, self._device = generators, x_BN.shape[1], x_BN.device

    def uniform(self) -> Tensor:
        """(B, N) in [0, 1), float64."""
        rows = [torch.rand(self._positions, generator=g, dtype=torch.float64) for g in self._generators]
        return torch.stack(rows).to(self._device)

    def normal(self, K: int, E: int) -> Tensor:
        """(K, B, N, E), float32."""
        rows = [torch.randn(K, self._positions, E, generator=g) for g in self._generators]
        return torch.stack(rows, dim=1).to(self._device)


def log_mean(
    predict: Callable[[Tensor, Tensor, Tensor | None, Time], Tensor],
    ids_BN: Tensor,
    rows_BN: Tensor,
    z_KBNE: Tensor | None,
    t: Time,
    mask_id: int,
) -> Tensor:
    """log π (R, V), float32: of the mean over draws of what the network says (Alg. 2). The mask token has no share in it.

    Args:
        z_KBNE: latents; None asks the network once, without any.
        t: whatever `predict` takes.
    """
    sum_RV = None
    for z_BNE in [None] if z_KBNE is None else list(z_KBNE):
        logits_RV = predict(ids_BN, rows_BN, z_BNE, t)
        if logits_RV.ndim != 2 or len(logits_RV) != int(rows_BN.sum()):
            raise CrocodilError(
                f"predict gave logits of shape {tuple(logits_RV.shape)} for {int(rows_BN.sum())} positions: "
                "wanted (R, V), one row per True in rows_BN"
            )
        logits_RV = logits_RV.to(torch.float32, copy=True)
        logits_RV[:, mask_id : mask_id + 1] = -math.inf
        part_RV = logits_RV.log_softmax(dim=1)
        sum_RV = part_RV if sum_RV is None else torch.logaddexp(sum_RV, part_RV)
    assert sum_RV is not None
    return sum_RV if z_KBNE is None else sum_RV - math.log(len(z_KBNE))


def table_of(space: LatentSpace, logits_RV: Tensor) -> Tensor:
    """The clean latents of the tokens that logits are about, (V, E).

    Raises:
        CrocodilError: there are tokens without a latent.
    """
    tokens = logits_RV.shape[1]
    if tokens > len(space.table_VE):
        raise CrocodilError(
            f"predict gave logits of {tokens} tokens, the table has latents of {len(space.table_VE)}: "
            "leave out what is no token"
        )
    return space.table_VE[:tokens]


def _score(reveal: Reveal, confidence_R: Tensor, log_pi_RV: Tensor, chances_R: Tensor) -> Tensor:
    """The larger, the sooner a token is made visible."""
    if reveal == "random":
        return chances_R
    if reveal == "low_confidence":
        return confidence_R.double()
    return torch.special.entr(log_pi_RV.exp()).sum(dim=1).double().neg()


def _check(
    slot_BN: Tensor,
    mask_id: int,
    steps: int,
    generators: Sequence[torch.Generator],
    reveal: str,
    temperature: float | Callable[[float], float],
    corrector: float,
) -> None:
    if not bool(slot_BN.any()):
        raise CrocodilError(f"nothing to fill in: no position holds the mask token {mask_id}")
    if steps < 1:
        raise CrocodilError(f"steps = {steps}: at least one is needed")
    if len(generators) != len(slot_BN):
        raise CrocodilError(f"{len(generators)} generators for {len(slot_BN)} rows: give one per row")
    if reveal not in get_args(Reveal):
        raise CrocodilError(f"reveal = {reveal!r}: choose one of {', '.join(get_args(Reveal))}")
    if not callable(temperature) and not (temperature >= 0 and math.isfinite(temperature)):
        raise CrocodilError(
            f"temperature = {temperature}: it must be 0 (the likeliest token) or a positive number"
        )
    if not (corrector >= 0 and math.isfinite(corrector)):
        raise CrocodilError(f"corrector = {corrector}: give 0 or a positive number")
