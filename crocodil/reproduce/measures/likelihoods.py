"""Nats of held-out texts under CADD and under masked diffusion (CADD Tables 5 to 7).

A window's text is asked for, given its BOS and its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crocodil.cadd.likelihood import bound, discrete_nats
from crocodil.cadd.sampler import LatentSpace
from crocodil.metrics.bootstrap import Estimate, ratio
from crocodil.model import Model
from crocodil.reproduce.lab import CADD, Lab, Task
from crocodil.reproduce.measures.sources import windows
from crocodil.reproduce.store import Measured
from crocodil.training.randomness import generator


@dataclass(frozen=True)
class Nats(Task):
    """Of each text of a part: the 1/t-weighted discrete term, and the bound under a sampler of so many steps."""

    source: str
    digest: str
    """Of the source's texts."""
    part: tuple[int, int]
    samples: int
    steps: int
    seed: int
    model: str

    def run(self, lab: Lab) -> Measured:
        model = lab.model(self.model)
        found = windows(lab, self.source, self.model.removeprefix(CADD))[1][slice(*self.part)]
        ids_BN = torch.tensor([one.window(model.vocabulary) for one in found], device=model.device)
        counts_BN = torch.ones_like(ids_BN, dtype=torch.bool)
        counts_BN[:, [0, -1]] = False

        def options(purpose: str) -> dict[str, Any]:
            draws = [generator(self.seed, 0, one.id, purpose) for one in found]
            return {"samples": self.samples, "generators": draws, "latents": space(model)}

        def predict(ids: Tensor, rows: Tensor, z: Tensor | None, t: Tensor) -> Tensor:
            if z is None or model.augmented is None:
                logits_RV = model.demasker.logits(ids, rows, None)
            else:
                logits_RV = model.augmented.logits(ids, rows, None, z, t)
            return logits_RV[:, : model.vocabulary.size]

        mask_id = model.vocabulary.mask_id
        discrete = discrete_nats(predict, ids_BN, counts_BN, mask_id, **options("discrete"))
        whole = bound(predict, ids_BN, counts_BN, mask_id, steps=self.steps, **options("bound"))
        return Measured(
            {
                "discrete": [one.discrete for one in discrete],
                "bound": [one.nats for one in whole],
                "latents": [one.continuous for one in whole],
                "tokens": [one.tokens for one in whole],
                "characters": [
                    len(model.vocabulary.decode(torch.tensor(one.text_ids, dtype=torch.long)))
                    for one in found
                ],
            }
        )

    def weight(self, lab: Lab) -> float:
        return (self.part[1] - self.part[0]) * 2.0 * self.samples * lab.model(self.model).window


def space(model: Model) -> LatentSpace | None:
    """Latents of a model, with soft estimates, which have the smaller bound; None where it has none."""
    if model.augmented is None or model.augmented.latents is None:
        return None
    table_VE = model.augmented.clean_table()[: model.vocabulary.size]
    return LatentSpace(table_VE, model.augmented.latents.config.schedule, estimate="soft")


def likelihoods(lab: Lab, name: str, source: str, count: int, samples: int, steps: int) -> tuple[Nats, ...]:
    """At most `count` texts of a source under a model of the section `cadd`, in parts."""
    digest, full = windows(lab, source, name)
    parts = lab.parts(min(count, len(full)))
    return tuple(Nats(source, digest, part, samples, steps, lab.config.seed, CADD + name) for part in parts)


def per(lab: Lab, tasks: Sequence[Task], what: str, among: str, finish: Any = lambda x: x) -> Estimate:
    """finish(Σ what / Σ among) over all texts, as nats per token."""
    return ratio(_all(lab, tasks, what), _all(lab, tasks, among), finish)


def beyond(
    lab: Lab, tasks: Sequence[Task], others: Sequence[Task], what: str, among: str, finish: Any = lambda x: x
) -> Estimate:
    """How much more that is than under another model, text by text, so that hard texts do not widen the interval."""
    pairs = zip(_all(lab, tasks, what), _all(lab, others, what), strict=True)
    return ratio([a - b for a, b in pairs], _all(lab, tasks, among), finish)


def _all(lab: Lab, tasks: Iterable[Task], what: str) -> list[float]:
    return [one for task in tasks for one in lab.result(task).values[what]]
