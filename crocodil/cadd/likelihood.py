"""How likely texts are: the discrete term that the paper prints, and the whole bound (CADD App. A and C.2).

Tables 5 to 7 of the paper are of ∫ (1/t) Σ_masked −log π dt, the discrete term: `discrete_nats`. For masked diffusion it
is a bound on −log p. With latents it is none by itself, as z_t is made of the very tokens that are asked for: a network
that reads them there is at 0 nats. The bound pays for that: latents have to be made too (Eq. 18 and 19), `bound`.

Shape letters: B texts, N positions, n that count, R masked ones, K draws of latents, E width of one, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crocodil.cadd.forward import add_noise, flip, keep, snr
from crocodil.cadd.loss import estimate
from crocodil.cadd.sampler import LatentSpace, log_mean, table_of
from crocodil.errors import CrocodilError, require_whole
from crocodil.metrics import bootstrap

PredictEach = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""As the sampler's `Predict`, but each text has its own time: (ids_BN, rows_BN, latents (B, N, E) or None, t_B)."""


@dataclass(frozen=True)
class TextNats:
    """Of one text."""

    discrete: float
    """Of its tokens, nats."""
    continuous: float
    """Of its latents, nats; 0 where only the discrete term was asked for, and without latents."""
    tokens: int
    """How many tokens that is."""

    @property
    def nats(self) -> float:
        return self.discrete + self.continuous


def discrete_nats(
    predict: PredictEach,
    ids_BN: Tensor,
    counts_BN: Tensor,
    mask_id: int,
    *,
    samples: int,
    generators: Sequence[torch.Generator],
    latents: LatentSpace | None = None,
) -> list[TextNats]:
    """The 1/t-weighted discrete term of each text, an unbiased estimate.

    Without latents a bound on −log p of what counts given the rest (Eq. 2, MDLM). With latents it is no bound: compare it
    with the same number of others, not with likelihoods.

    Times are those at which a text of n tokens, each masked at a uniform time, loses its l-th, with l spread evenly over
    1 … n: E[(n/l) Σ_masked −log π] is the integral, and unlike a uniform t with weight 1/t it has a finite variance.

    Args:
        predict: the demasker; see `PredictEach`. The mask token has no share in its answers, as in `sample`.
        ids_BN: texts, without any mask.
        counts_BN: bool; what does not count is given, and never masked.
        samples: evaluations of every text; `draws` times as many with latents.
        generators: one per text, on the CPU: a text's number does not depend on its neighbours.
        latents: of these the table, the schedule and the draws matter.

    Raises:
        CrocodilError: numbers that do not fit, before any call of `predict`.
    """

    def forward(n: int, u: float, generator: torch.Generator) -> _Look:
        masked = 1 + min(int(u * n), n - 1)
        times_n = torch.rand(n, generator=generator, dtype=torch.float64)
        t = times_n.kthvalue(masked).values
        return _Look(times_n <= t, float(t), n / masked, 0.0)

    return _mean(forward, predict, ids_BN, counts_BN, mask_id, samples, generators, latents)


def bound(
    predict: PredictEach,
    ids_BN: Tensor,
    counts_BN: Tensor,
    mask_id: int,
    *,
    steps: int,
    samples: int,
    generators: Sequence[torch.Generator],
    latents: LatentSpace | None = None,
) -> list[TextNats]:
    """A bound on −log p of each text under `sample` with as many steps (Eq. 24), an unbiased estimate.

    The sampler that it is about reveals `ancestral`, at temperature 1 and without a corrector, from the same `latents`;
    soft estimates ẑ₀ make it smaller than hard ones. With z₀ known a step t → s costs
    Σ_masked [ρ_flip (−log π) + ρ_keep ½ (SNR_s − SNR_t) ‖z₀ − ẑ₀‖²] (Eq. 18 and 19); there is no prior term, as at t = 1
    nothing is left of z₀, and the last step has no ρ_keep. C(x₀) of Eq. 32 is a slip.

    Args:
        steps: T. Without latents T → ∞ is `discrete_nats`.
        samples: steps of each text that are looked at, spread evenly over all T; as many as T look at each step once.
        latents: with K draws the chain has K latents at every token, and each has to be made.
        predict, ids_BN, counts_BN, mask_id, generators: see `discrete_nats`.

    Raises:
        CrocodilError: numbers that do not fit, or latents without chance, before any call of `predict`.
    """
    require_whole("steps", steps, 1)
    if latents is not None and not latents.stochastic:
        raise CrocodilError(
            "latents that go straight to ẑ₀ have no density, so no bound: take stochastic ones"
        )
    if latents is not None and latents.estimate == "drawn":
        raise CrocodilError(
            "latents that go to a drawn token's have a mixture for a density, and no bound of this form: take soft ones"
        )

    def forward(n: int, u: float, generator: torch.Generator) -> _Look:
        step = min(int(u * steps), steps - 1)
        s, t = step / steps, (step + 1) / steps
        is_masked_n = torch.rand(n, generator=generator, dtype=torch.float64) < t
        if latents is None or step == 0:
            return _Look(is_masked_n, t, steps * flip(s, t), 0.0)
        snr_s, snr_t = snr(torch.tensor([s, t], dtype=torch.float64), latents.schedule).tolist()
        return _Look(is_masked_n, t, steps * flip(s, t), steps * keep(s, t) * (snr_s - snr_t) / 2)

    return _mean(forward, predict, ids_BN, counts_BN, mask_id, samples, generators, latents)


def per_token(texts: Sequence[TextNats]) -> bootstrap.Estimate:
    """Nats per token, with its interval over texts."""
    return bootstrap.ratio([one.nats for one in texts], [one.tokens for one in texts])


def perplexity(texts: Sequence[TextNats]) -> bootstrap.Estimate:
    """exp of the nats per token."""
    return bootstrap.ratio([one.nats for one in texts], [one.tokens for one in texts], torch.exp)


def bits_per_character(texts: Sequence[TextNats], characters: Sequence[int]) -> bootstrap.Estimate:
    """Bits per character.

    Args:
        characters: of each text, what its tokens that count stand for.
    """
    return bootstrap.ratio([one.nats / math.log(2) for one in texts], characters)


@dataclass(frozen=True)
class _Look:
    """One text as the forward process leaves it, and what is seen there weighs."""

    is_masked_n: Tensor
    t: float
    discrete: float
    """Weight of Σ −log π."""
    continuous: float
    """Weight of Σ ‖z₀ − ẑ₀‖²."""


@torch.no_grad()
def _mean(
    forward: Callable[[int, float, torch.Generator], _Look],
    predict: PredictEach,
    ids_BN: Tensor,
    counts_BN: Tensor,
    mask_id: int,
    samples: int,
    generators: Sequence[torch.Generator],
    latents: LatentSpace | None,
) -> list[TextNats]:
    """The mean over samples of what `forward` weighs, of each text.

    Args:
        forward: (n, u in [0, 1), generator): how a text is looked at. Its u are an even grid with a random start.
    """
    _check(ids_BN, counts_BN, mask_id, samples, generators)
    device, n_B = ids_BN.device, counts_BN.sum(dim=1).tolist()
    starts_B = [float(torch.rand((), generator=g, dtype=torch.float64)) for g in generators]
    sums_2B = torch.zeros(2, len(ids_BN), dtype=torch.float64, device=device)
    # a bfloat16 error of ẑ₀ would be multiplied by the largest signal to noise
    table_VE = None if latents is None else latents.table_VE.float()
    for sample in range(samples):
        looks = [
            forward(n, (sample + start) / samples, g)
            for n, start, g in zip(n_B, starts_B, generators, strict=True)
        ]
        rows_BN = torch.zeros_like(counts_BN)
        rows_BN[counts_BN] = torch.cat([look.is_masked_n for look in looks]).to(device)
        t_B = torch.tensor([look.t for look in looks], device=device)
        z_KBNE = None
        if latents is not None and table_VE is not None:
            clean_BNE = table_VE[ids_BN]
            noise_KBNE = _noise(latents.draws, counts_BN, clean_BNE, generators)
            noised_KBNE = add_noise(clean_BNE, t_B[:, None], noise_KBNE, latents.schedule)
            z_KBNE = torch.where(rows_BN[..., None], noised_KBNE, clean_BNE)
        if not bool(rows_BN.any()):
            continue
        log_pi_RV = log_mean(predict, ids_BN.masked_fill(rows_BN, mask_id), rows_BN, z_KBNE, t_B, mask_id)
        targets_R, text_R = ids_BN[rows_BN], rows_BN.nonzero()[:, 0]
        weights = [[look.discrete for look in looks], [look.continuous for look in looks]]
        weights_2B = torch.tensor(weights, dtype=torch.float64, device=device)
        entropy_R = -log_pi_RV.gather(1, targets_R[:, None])[:, 0].double()
        if bool(entropy_R.isnan().any()):
            raise CrocodilError("predict gave logits that are no numbers")
        sums_2B[0].index_add_(0, text_R, entropy_R * weights_2B[0, text_R])
        if latents is not None and table_VE is not None and bool(weights_2B[1].any()):
            rows = len(table_of(latents, log_pi_RV))
            assert latents.estimate != "drawn"  # `bound` refuses it, and nobody else has continuous terms
            guess_RE = estimate(log_pi_RV, table_VE[:rows], latents.estimate)
            squared_R = latents.draws * (table_VE[targets_R] - guess_RE).square().sum(dim=1).double()
            sums_2B[1].index_add_(0, text_R, squared_R * weights_2B[1, text_R])
    means_2B = (sums_2B / samples).tolist()
    return [TextNats(*one) for one in zip(*means_2B, n_B, strict=True)]


def _noise(K: int, counts_BN: Tensor, clean_BNE: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """ε where it counts, (K, B, N, E), of each text from its own generator."""
    E = clean_BNE.shape[-1]
    n_B = counts_BN.sum(dim=1).tolist()
    parts = [torch.randn(K, n, E, generator=g) for n, g in zip(n_B, generators, strict=True)]
    noise_KBNE = clean_BNE.new_zeros(K, *clean_BNE.shape)
    noise_KBNE[:, counts_BN] = torch.cat(parts, dim=1).to(clean_BNE)
    return noise_KBNE


def _check(
    ids_BN: Tensor, counts_BN: Tensor, mask_id: int, samples: int, generators: Sequence[torch.Generator]
) -> None:
    if counts_BN.shape != ids_BN.shape or counts_BN.dtype != torch.bool:
        raise CrocodilError(
            f"what counts is {counts_BN.dtype} of shape {tuple(counts_BN.shape)}: wanted bool, "
            f"{tuple(ids_BN.shape)} as the ids"
        )
    if bool((ids_BN == mask_id).any()):
        raise CrocodilError(f"these texts hold the mask token {mask_id}: give them whole")
    empty = (~counts_BN.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise CrocodilError(f"no token of text {empty[0]} counts: leave it out")
    if samples < 1:
        raise CrocodilError(f"samples = {samples}: at least one is needed")
    if len(generators) != len(ids_BN):
        raise CrocodilError(f"{len(generators)} generators for {len(ids_BN)} texts: give one per text")
