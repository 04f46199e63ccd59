"""Texts out of noise by CADD's sampler (CADD Fig. 3 to 6, Tables 8 to 10), and what they are compared with.

All texts fill their window, so that those of different models, and held-out ones, are of one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce.lab import CADD, Lab, Task
from crocodil.reproduce.measures.judging import Judged, judged, mauve, of_kind
from crocodil.reproduce.measures.latents import require_latents
from crocodil.reproduce.store import Measured
from crocodil.text.windows import FRAME

IMAGES = ("digits_mdm", "digits_cadd")
"""What has no tokens."""
REFERENCES = 4
"""Held-out texts for each that is written, at most."""


@dataclass(frozen=True)
class Chained(Task):
    """Texts of the seeds part[0] … part[1] − 1, each token revealed by itself (`ancestral`, CADD Alg. 2).

    `draws` 0 is masked diffusion; `k` registers guide too, where there are any.
    """

    part: tuple[int, int]
    steps: int
    draws: int
    k: int | None
    length: int
    temperature: float
    estimate: str
    latent_steps: int
    seed: int
    model: str

    def check(self, lab: Lab) -> None:
        lab.model(self.model).resolve_length(self.length)
        if self.draws:
            require_latents(lab.model(self.model))

    def run(self, lab: Lab) -> Measured:
        model = lab.model(self.model)
        method = "mdm" if self.k is None else "conthendisc"
        # the seeds of `mdm` and `cadd` are the same, and so is where they begin
        made = model.generate(
            self.part[1] - self.part[0],
            method="cadd" if self.k is None and self.draws else method,
            nfe=self.steps,
            length=self.length,
            min_length=self.length,
            k=self.k,
            latent_steps=max(1, self.latent_steps),
            temperature=self.temperature,
            remasking="ancestral",
            draws=self.draws,
            estimate=self.estimate,
            seed=self.seed + self.part[0],
        )
        values = {name: [getattr(one, name) for one in made] for name in ("text", "nfe", "nfe_wall")}
        return Measured({"texts": values.pop("text"), **values})

    def weight(self, lab: Lab) -> float:
        positions = float(self.length + (self.k or 0))
        return (self.part[1] - self.part[0]) * self.steps * max(1, self.draws) * positions


@dataclass(frozen=True)
class Original(Task):
    """Those of some held-out windows that their texts fill, in a model's tokens."""

    length: int
    part: tuple[int, int]
    model: str
    reads = ("texts",)

    def run(self, lab: Lab) -> Measured:
        vocabulary = lab.model(self.model).vocabulary
        full = [
            one
            for one in lab.windows(self.length, self.part, self.model)
            if len(one.text_ids) == self.length - FRAME
        ]
        return Measured({"texts": [vocabulary.decode(torch.tensor(one.text_ids)) for one in full]})


def length_of(lab: Lab, name: str) -> int:
    """Positions of the texts that a model writes."""
    window = lab.model(CADD + name).window
    return min(lab.config.chains.length or window, window)


def chains(
    lab: Lab, name: str, steps: int, draws: int, *, k: int | None = None, estimate: str | None = None
) -> list[Judged]:
    """All texts of one setting before the judge, in parts.

    Args:
        name: of the configuration's section `cadd`.
        estimate: that of the section `chains` if left out.
    """
    config = lab.config.chains
    how = (estimate or config.estimate) if draws else "hard"  # nothing is estimated without latents
    latent_steps = 0 if k is None else lab.config.synthesis.latent_steps
    return [
        Judged(
            Chained(
                part, steps, draws, k, length_of(lab, name), config.temperature, how, latent_steps, lab.config.seed,
                CADD + name,
            )
        )
        for part in lab.parts(config.texts)
    ]  # fmt: skip


def originals(lab: Lab, name: str) -> list[Judged]:
    """Held-out texts of the length that a model writes, before the judge; the same tasks for models of one vocabulary."""
    length, same = length_of(lab, name), alike(lab, name)
    parts = lab.parts(REFERENCES * lab.config.chains.texts, length, same)
    return [Judged(Original(length, part, same)) for part in parts]


def alike(lab: Lab, name: str) -> str:
    """The first model of the section `cadd` that has this one's tokens."""
    tokens = lab.model(CADD + name).vocabulary.fingerprint
    there = (one for one in vars(lab.config.cadd) if one not in IMAGES and lab.has(one))
    return next(CADD + one for one in there if lab.model(CADD + one).vocabulary.fingerprint == tokens)


def quality(lab: Lab, tasks: Sequence[Task]) -> dict[str, Estimate]:
    """MAUVE, and what the judge says (`figure.JUDGED`), of the texts among these tasks; of held-out ones no MAUVE."""
    made, real = of_kind(tasks, Chained), of_kind(tasks, Original)
    found = judged(lab, made or real)
    if found and made:
        found["mauve"] = mauve(lab, made, real)
    return found
