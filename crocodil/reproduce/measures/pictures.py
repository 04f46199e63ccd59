"""Images out of noise before a classifier (CADD Table 1).

Shape letters: B images, N pixels, F features, R resamples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from crocodil.bundle import resolve
from crocodil.cadd.sampler import Guess, cosine_temperature
from crocodil.images.data import ImagesConfig, PixelSpace, load_split
from crocodil.images.metrics import digits_extractor, extract, fit, frechet_distance, inception_score
from crocodil.images.unet import PixelDemasker
from crocodil.images.weights import INDEX, generate_images, load_pixels
from crocodil.metrics.bootstrap import Estimate, interval
from crocodil.reproduce.lab import CADD, Lab, Task
from crocodil.reproduce.store import Measured, add_tensors

FID_RESAMPLES = 100
DIGITS = PixelSpace(C=1, H=8, W=8, V=17)


@dataclass(frozen=True)
class DrawnImages(Task):
    """Levels of the images of the seeds part[0] … part[1] − 1."""

    part: tuple[int, int]
    nfe: int
    hottest: float | None
    corrector: float
    estimate: Guess
    seed: int
    demasker: str
    digest: str
    """Of its folder."""

    def run(self, lab: Lab) -> Measured:
        made = generate_images(
            pixels(lab, self.demasker),
            self.part[1] - self.part[0],
            nfe=self.nfe,
            temperature=1.0 if self.hottest is None else cosine_temperature(self.hottest),
            corrector=self.corrector,
            estimate=self.estimate,
            seed=self.seed + self.part[0],
        )
        return Measured({}, {"ids_BN": made.ids_BN.to(torch.uint8)})

    def weight(self, lab: Lab) -> float:
        return (self.part[1] - self.part[0]) * self.nfe * float(DIGITS.N)


@dataclass(frozen=True)
class HeldOutImages(Task):
    """Levels of the digits that nobody was trained on."""

    def run(self, lab: Lab) -> Measured:
        held_out = load_split(ImagesConfig()).held_out
        assert held_out is not None
        return Measured({}, {"ids_BN": held_out.ids.flatten(1)})


@dataclass(frozen=True)
class SeenImages(Task):
    """Levels of some digits of training, at most all of them."""

    count: int

    def run(self, lab: Lab) -> Measured:
        train = load_split(ImagesConfig()).train
        random = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(train), generator=random)[: self.count]
        return Measured({}, {"ids_BN": train.ids.flatten(1)[rows]})


def possible() -> bool:
    """Whether what U-Nets are made of is installed."""
    return find_spec("diffusers") is not None


@lru_cache(maxsize=4)
def pixels(lab: Lab, name: str) -> PixelDemasker:
    """A model of images of the section `cadd`."""
    return load_pixels(lab.path_of(CADD + name), lab.device or "cpu")


def drawn(lab: Lab, name: str, nfe: int, estimate: Guess = "hard") -> list[DrawnImages]:
    """All images of one setting, in parts."""
    config = lab.config.cadd_table1
    digest = hashlib.blake2b((resolve(lab.path_of(CADD + name)) / INDEX).read_bytes(), digest_size=8)
    add_tensors(digest, pixels(lab, name).state_dict())
    return [
        DrawnImages(
            part, nfe, config.hottest, config.corrector, estimate, lab.config.seed, name, digest.hexdigest()
        )
        for part in lab.parts(config.images)
    ]


def seen(lab: Lab, tasks: Sequence[Task]) -> dict[str, Estimate]:
    """FID to the digits of training, and IS, before a classifier of digits that was trained on them."""
    ids_BN = torch.cat([lab.result(task).tensors["ids_BN"] for task in tasks])
    found = extract(DIGITS.pixels(ids_BN), _extractor())
    score = inception_score(found.probabilities_BP).mean
    # its interval is over parts of the images; what it rests on is all of them
    return {"fid": _fid(found.features_BF), "inception_score": replace(score, n=len(ids_BN))}


def _fid(features_BF: Tensor) -> Estimate:
    real = fit(extract(load_split(ImagesConfig()).train.pixels(), _extractor()).features_BF)
    value = frechet_distance(fit(features_BF), real)
    random = torch.Generator().manual_seed(0)
    rows_RB = torch.randint(len(features_BF), (FID_RESAMPLES, len(features_BF)), generator=random)
    strays_R = torch.tensor([frechet_distance(fit(features_BF[rows]), real) for rows in rows_RB])
    # resampling raises the distance; what is wanted of it is how far it strays
    return interval(value, (strays_R - strays_R.mean() + value).clamp_min(0), len(features_BF))


_extractor = lru_cache(maxsize=1)(digits_extractor)


def in_hexadecimal(ids_BN: Tensor) -> list[str]:
    """Of each image two digits a pixel, from 00 to ff."""
    levels_BN = (ids_BN.double() * 255 / (DIGITS.V - 1)).round().to(torch.uint8)
    return [bytes(image.tolist()).hex() for image in levels_BN]
