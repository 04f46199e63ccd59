"""What latents tell: of one masked token (CADD Table 12), and of many, beside registers.

Shape letters: B texts, N positions, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from crocodil.autoencoder import at_level
from crocodil.cadd.demasker import AugmentedDemasker, seeded
from crocodil.cadd.forward import add_noise
from crocodil.errors import CrocodilError
from crocodil.model import Model
from crocodil.reproduce.lab import Lab, Task
from crocodil.reproduce.measures.masked_tokens import TEXTS_PER_BATCH, nats_and_hits
from crocodil.reproduce.store import Measured
from crocodil.text.windows import Sample
from crocodil.training.randomness import generator

SHOWN = 60
"""Characters before and behind the token, at most."""


@dataclass(frozen=True)
class PlantedToken(Task):
    """One token of each text is masked, and under its mask stands the latent of a token, noised to t.

    `own`: of the token that stood there; else of another token of the same text, so that rare and common ones are as
    many. The places, the tokens and ε are those of the text, the same for every t and every model of one vocabulary.
    """

    length: int
    part: tuple[int, int]
    t: float
    own: bool
    model: str
    reads = ("texts",)

    def check(self, lab: Lab) -> None:
        require_latents(lab.model(self.model))

    def run(self, lab: Lab) -> Measured:
        model, seed = lab.model(self.model), lab.config.seed
        vocabulary, augmented = model.vocabulary, model.augmented
        assert augmented is not None and augmented.latents is not None
        samples = [
            (one, *chosen)
            for one in lab.windows(self.length, self.part, self.model)
            if (chosen := _choose(one, seed)) is not None
        ]
        if not samples:
            return Measured(
                {name: [] for name in ("there", "planted", "predicted", "nearest", "before", "behind")}
            )
        ids_BN = torch.tensor([one.window(vocabulary) for one, _, _ in samples])
        at_B = torch.tensor([1 + at for _, at, _ in samples])  # BOS goes first
        there_B = ids_BN[range(len(samples)), at_B]
        other_B = torch.tensor([one.text_ids[other] for one, _, other in samples])
        planted_B = there_B if self.own else other_B
        rows_BN = torch.arange(self.length) == at_B[:, None]

        table_VE = augmented.clean_table()[: vocabulary.size].float().cpu()
        draws = [generator(seed, 0, one.id, "planted noise") for one, _, _ in samples]
        noise_BE = torch.stack([torch.randn(table_VE.shape[1], generator=draw) for draw in draws])
        t_B = torch.full((len(samples),), self.t)
        noised_BE = add_noise(table_VE[planted_B], t_B, noise_BE, augmented.latents.config.schedule)
        z_BNE = table_VE[ids_BN]
        z_BNE[rows_BN] = noised_BE
        hidden_BN = ids_BN.masked_fill(rows_BN, vocabulary.mask_id)
        device = model.device
        logits_BV = augmented.logits(
            hidden_BN.to(device), rows_BN.to(device), None, z_BNE.to(device, augmented.clean_table().dtype), self.t
        )[:, : vocabulary.size].float().cpu()  # fmt: skip
        # all rows have one norm, so the nearest is the one in whose direction it lies
        nearest_BV = noised_BE @ table_VE.T
        for scores_BV in (logits_BV, nearest_BV):
            scores_BV[:, vocabulary.mask_id : vocabulary.mask_id + 1] = -torch.inf
        around = [
            (vocabulary.decode(ids[1:at])[-SHOWN:], vocabulary.decode(ids[at + 1 :])[:SHOWN])
            for ids, at in zip(ids_BN, at_B.tolist(), strict=True)
        ]
        return Measured(
            {
                "there": there_B.tolist(),
                "planted": planted_B.tolist(),
                "predicted": logits_BV.argmax(dim=1).tolist(),
                "nearest": nearest_BV.argmax(dim=1).tolist(),
                "before": [before for before, _ in around],
                "behind": [behind for _, behind in around],
            }
        )

    def weight(self, lab: Lab) -> float:
        return (self.part[1] - self.part[0]) * float(self.length)


def _choose(sample: Sample, seed: int) -> tuple[int, int] | None:
    """A place in the text, and another where a different token stands; None where there is none."""
    text, random = sample.text_ids, generator(seed, 0, sample.id, "planted")
    if not text:
        return None
    at = int(torch.randint(len(text), (), generator=random))
    others = [other for other, token in enumerate(text) if token != text[at]]
    return (at, others[int(torch.randint(len(others), (), generator=random))]) if others else None


@dataclass(frozen=True)
class MaskedUnderBoth(Task):
    """Nats and hits of the masked tokens of each text under k registers, with latents or without."""

    length: int
    part: tuple[int, int]
    t: float
    k: int
    latents: bool
    model: str
    reads = ("texts",)

    def check(self, lab: Lab) -> None:
        model = lab.model(self.model)
        if self.latents:
            require_latents(model)
        if self.k > model.K:
            raise CrocodilError(f"{self.k} registers are wanted of {model.name}, which has {model.K}")

    def run(self, lab: Lab) -> Measured:
        model = lab.model(self.model)
        draw = partial(generator, lab.config.seed, 0)
        samples = lab.windows(self.length, self.part, self.model)
        latents = model.augmented.latents if self.latents and model.augmented is not None else None
        demasker = AugmentedDemasker(model.demasker, latents)
        found = []
        for start in range(0, len(samples), TEXTS_PER_BATCH):
            some = samples[start : start + TEXTS_PER_BATCH]
            batch = at_level(some, model.vocabulary, draw, self.t, self.k, model.D).to(model.device)
            texts = seeded(batch.texts, (draw(one.id, "latents") for one in some))
            if self.k:
                found.append(demasker(texts, model.autoencoder.exposed(batch), batch.k))
            else:
                found.append(demasker(texts))
        return nats_and_hits(found)

    def weight(self, lab: Lab) -> float:
        return (self.part[1] - self.part[0]) * (2.0 * self.length + self.k)


def require_latents(model: Model) -> None:
    """Raise CrocodilError unless the model was trained with latents."""
    if model.augmented is None:
        raise CrocodilError(
            f"{model.name} was not trained with latents, which are what is measured: name a model of train_cadd.py"
        )


def counted(lab: Lab, tasks: Sequence[Task], what: str, like: str) -> list[float]:
    """Of each text of `PlantedToken`s, 1 where two tokens are one, else 0."""
    results = [lab.result(task).values for task in tasks]
    return [float(a == b) for values in results for a, b in zip(values[what], values[like], strict=True)]
