"""Texts out of noise before a judge: Gen-PPL and MAUVE against NFE (Fig. 6, Fig. 12), and the ablations of Fig. 11."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from crocodil.metrics.generation import GenerationScore, Judge, generative_perplexity, text_features
from crocodil.metrics.mauve import mauve
from crocodil.model import Model
from crocodil.synthesis import Generated
from crocodil.text.windows import Sample

MAUVE_SEEDS = 3


@dataclass(frozen=True)
class Setting:
    """One way to write texts."""

    method: str
    nfe: int
    k: int | None = None
    refresh: tuple[float, ...] | None = None
    remasking: str = "low_confidence"


@dataclass(frozen=True)
class SynthesisRow:
    """What a setting gives, means over its texts."""

    setting: Setting
    nfe: float
    nfe_paper: float
    nfe_wall: float
    score: GenerationScore | None
    """None where no text has a token to score."""
    mauve: float | None
    """Mean over seeds of its k-means; None where there are too few texts with a token."""
    texts: int
    seconds: float
    """Wall time of the batch that a text was written in."""


@dataclass(frozen=True)
class Reference:
    """Held-out texts that generated ones are compared with."""

    texts: tuple[str, ...]
    features_NE: Tensor
    score: GenerationScore


def reference(model: Model, judge: Judge, samples: Sequence[Sample]) -> Reference:
    """What the judge says of real texts: the floor that generated ones are measured against."""
    texts = tuple(model.vocabulary.decode(sample.window(model.vocabulary)) for sample in samples)
    return Reference(texts, text_features(texts, judge).features_BE, generative_perplexity(texts, judge))


def sweep(
    model: Model,
    judge: Judge,
    real: Reference,
    settings: Sequence[Setting],
    *,
    texts: int,
    min_length: int,
    temperature: float = 1.0,
    latent_steps: int,
    refresh_steps: int,
    seed: int = 0,
    on_row: Callable[[SynthesisRow, list[Generated]], None] | None = None,
) -> list[SynthesisRow]:
    """Write `texts` texts in each setting, with the same seeds, and judge them.

    Args:
        min_length: see `synthesis.generate`; the window, to compare texts of one length.
        on_row: told each row, with its texts, as it is done.
    """
    rows = []
    for setting in settings:
        made = model.generate(
            texts,
            method=setting.method,
            nfe=setting.nfe,
            k=setting.k,
            refresh=setting.refresh,
            remasking=setting.remasking,
            min_length=min_length,
            temperature=temperature,
            latent_steps=latent_steps,
            refresh_steps=refresh_steps,
            seed=seed,
        )
        rows.append(_judged(setting, made, judge, real))
        if on_row is not None:
            on_row(rows[-1], made)
    return rows


def _judged(setting: Setting, made: Sequence[Generated], judge: Judge, real: Reference) -> SynthesisRow:
    written = [one.text for one in made]
    mean = lambda name: sum(getattr(one, name) for one in made) / len(made)  # noqa: E731
    score, area = None, None
    if any(written):
        score = generative_perplexity(written, judge)
        features = text_features(written, judge).features_BE
        if len(features) >= 2:
            area = (
                sum(mauve(features, real.features_NE, seed=seed).mauve for seed in range(MAUVE_SEEDS))
                / MAUVE_SEEDS
            )
    return SynthesisRow(
        setting, mean("nfe"), mean("nfe_paper"), mean("nfe_wall"), score, area, len(made), mean("seconds")
    )
