"""Masked-token prediction on held-out texts: by masking level (Fig. 4), under register noise (Fig. 7), and how far
tokens that are drawn at once are from independent (Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from crocodil.autoencoder import at_level, batch_of
from crocodil.demasker.loss import Losses
from crocodil.demasker.masking import mask
from crocodil.metrics.bootstrap import Estimate, ratio
from crocodil.metrics.likelihood import LevelScore, score_levels
from crocodil.model import Model
from crocodil.reproduce.lab import MAIN, Lab, Task
from crocodil.reproduce.store import Measured
from crocodil.text.windows import Sample
from crocodil.training.randomness import generator

TEXTS_PER_BATCH = 32
FIGURE_7_LEVEL = 0.9


@dataclass(frozen=True)
class NoiseScore:
    """Masked-token prediction with disturbed registers."""

    sigma: float
    score: LevelScore


def by_level(
    model: Model, samples: Sequence[Sample], ks: Sequence[int], levels: Sequence[float], seed: int = 0
) -> list[LevelScore]:
    """Fig. 4: cross-entropy and top-1 of masked tokens for k = 0 (unguided) and more registers."""
    return score_levels(
        lambda t, k: losses(model, samples, t=t, k=k, sigma=0.0, seed=seed), levels, ks
    )  # fmt: skip


def by_noise(
    model: Model, samples: Sequence[Sample], sigmas: Sequence[float], k: int, seed: int = 0
) -> list[NoiseScore]:
    """Fig. 7: the same at 90 % masking, with N(0, σ²) added to the registers."""
    scores = []
    for sigma in sigmas:
        losses_at: Callable[[float, int], list[Losses]] = lambda t, k, sigma=sigma: losses(  # type: ignore[misc]  # noqa: E731
            model, samples, t=t, k=k, sigma=sigma, seed=seed
        )
        scores.append(NoiseScore(sigma, score_levels(losses_at, [FIGURE_7_LEVEL], [k])[0]))
    return scores


def losses(
    model: Model, samples: Sequence[Sample], *, t: float, k: int, sigma: float, seed: int
) -> list[Losses]:
    """Each batch of texts, masked at level t, under k registers with N(0, σ²) added."""
    draw = partial(generator, seed, 0)
    parts = [samples[i : i + TEXTS_PER_BATCH] for i in range(0, len(samples), TEXTS_PER_BATCH)]
    batches = (at_level(part, model.vocabulary, draw, t, k, model.D, sigma) for part in parts)
    return [model.autoencoder(batch.to(model.device)) for batch in batches]


def nats_and_hits(found: Sequence[Losses]) -> Measured:
    """Of each text: nats of its masked tokens, those that were named, and how many they are."""
    of = lambda name: torch.cat([getattr(one, name) for one in found]).double().cpu()  # noqa: E731
    masked_B = of("masked_B")
    return Measured(
        {
            "nats": (of("entropy_B") * masked_B).tolist(),
            "right": (of("accuracy_B") * masked_B).tolist(),
            "masked": masked_B.tolist(),
        }
    )


@dataclass(frozen=True)
class MaskedTokens(Task):
    """Nats and hits of the masked tokens of each text."""

    length: int
    part: tuple[int, int]
    t: float
    k: int
    sigma: float = 0.0
    model: str = MAIN
    reads = ("texts",)

    def check(self, lab: Lab) -> None:
        lab.model(self.model).resolve_length(self.length)

    def run(self, lab: Lab) -> Measured:
        samples = lab.windows(self.length, self.part, self.model)
        found = losses(
            lab.model(self.model), samples, t=self.t, k=self.k, sigma=self.sigma, seed=lab.config.seed
        )
        return nats_and_hits(found)

    def weight(self, lab: Lab) -> float:
        return (self.part[1] - self.part[0]) * (2.0 * self.length + self.k)


@dataclass(frozen=True)
class RevealedTokens(Task):
    """Nats of the masked tokens of each text, all at once, and one after the other in random orders.

    The second is estimated: the next of j revealed tokens, j uniform over 0 … m − 1, is as likely as any to be any of
    the m − j others, so their mean is what it costs on average.
    """

    length: int
    part: tuple[int, int]
    t: float
    k: int
    draws: int
    reads = ("texts",)

    def run(self, lab: Lab) -> Measured:
        model, seed = lab.model(MAIN), lab.config.seed
        samples = lab.windows(self.length, self.part)
        windows = [torch.tensor(sample.window(model.vocabulary)) for sample in samples]
        masks = [
            mask(len(w), self.t, generator(seed, 0, s.id, "mask"))
            for s, w in zip(samples, windows, strict=True)
        ]

        def nats(masks: list[torch.Tensor]) -> torch.Tensor:
            levels, ks = [self.t] * len(samples), [self.k] * len(samples)
            batch = batch_of(samples, windows, masks, levels, ks, None, model.vocabulary.mask_id)
            return model.autoencoder(batch.to(model.device)).entropy_B.double().cpu()

        at_once = nats(masks)
        in_turn = torch.zeros_like(at_once)
        for draw in range(self.draws):
            left = [
                _reveal(one, generator(seed, 0, sample.id, f"reveal {draw}"))
                for one, sample in zip(masks, samples, strict=True)
            ]
            in_turn += nats(left) / self.draws
        return Measured(
            {
                "at_once": at_once.tolist(),
                "in_turn": in_turn.tolist(),
                "masked": [int(one.sum()) for one in masks],
            }
        )

    def weight(self, lab: Lab) -> float:
        return (self.part[1] - self.part[0]) * (1 + self.draws) * (2.0 * self.length + self.k)


def _reveal(is_masked_N: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A mask from which j of the m masked positions are taken, j uniform over 0 … m − 1; one at least stays."""
    places = is_masked_N.nonzero()[:, 0]
    if not len(places):
        return is_masked_N
    j = int(torch.randint(len(places), (), generator=random))
    left = is_masked_N.clone()
    left[places[torch.randperm(len(places), generator=random)[:j]]] = False
    return left


def predicted(lab: Lab, tasks: Sequence[Task]) -> dict[str, Estimate]:
    """Nats per masked token, and the share of masked tokens whose most likely token is right (`figure.PREDICTED`)."""
    return {
        "cross_entropy": _ratio(lab, tasks, "nats", "masked"),
        "top1": _ratio(lab, tasks, "right", "masked"),
    }


def _ratio(lab: Lab, tasks: Sequence[Task], above: str, below: str) -> Estimate:
    results = [lab.result(task).values for task in tasks]
    return ratio(
        [x for one in results for x in one[above]], [x for one in results for x in one[below]]
    )  # fmt: skip
