"""Masked-token prediction on held-out texts: against the masking level (Fig. 4) and against register noise (Fig. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from crocodil.autoencoder import at_level
from crocodil.demasker.loss import Losses
from crocodil.metrics.likelihood import LevelScore, score_levels
from crocodil.model import Model
from crocodil.text.data import DataConfig, load_split
from crocodil.text.tokens import tokenise
from crocodil.text.windows import Sample, Windows
from crocodil.training.randomness import generator

TEXTS_PER_BATCH = 32
FIGURE_7_LEVEL = 0.9


@dataclass(frozen=True)
class NoiseScore:
    """Masked-token prediction with disturbed registers."""

    sigma: float
    score: LevelScore


def held_out_windows(model: Model, source: str, count: int, seed: int = 0) -> list[Sample]:
    """Windows of held-out files of a source, drawn at random; the same for the same source and seed."""
    documents = load_split(DataConfig(source=source)).held_out
    windows = Windows(tokenise(documents, model.vocabulary), (model.window,), seed, short_fraction=0.0)
    return [windows.sample(int(i), 0) for i in windows.order(0)[:count]]


def by_level(
    model: Model, samples: Sequence[Sample], ks: Sequence[int], levels: Sequence[float], seed: int = 0
) -> list[LevelScore]:
    """Fig. 4: cross-entropy and top-1 of masked tokens for k = 0 (unguided) and more registers."""
    return score_levels(partial(_losses, model, samples, 0.0, seed), levels, ks)


def by_noise(
    model: Model, samples: Sequence[Sample], sigmas: Sequence[float], k: int, seed: int = 0
) -> list[NoiseScore]:
    """Fig. 7: the same at 90 % masking, with N(0, σ²) added to the registers."""
    scores = []
    for sigma in sigmas:
        losses_at = partial(_losses, model, samples, sigma, seed)
        scores.append(NoiseScore(sigma, score_levels(losses_at, [FIGURE_7_LEVEL], [k])[0]))
    return scores


def _losses(
    model: Model, samples: Sequence[Sample], sigma: float, seed: int, t: float, k: int
) -> list[Losses]:
    draw = partial(generator, seed, 0)
    parts = [samples[i : i + TEXTS_PER_BATCH] for i in range(0, len(samples), TEXTS_PER_BATCH)]
    batches = (at_level(part, model.vocabulary, draw, t, k, model.D, sigma) for part in parts)
    return [model.autoencoder(batch.to(model.device)) for batch in batches]
