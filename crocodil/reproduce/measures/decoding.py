"""Texts out of the registers of other texts: reconstructions (Tab. 1, 2) and mixtures (Fig. 8).

Shape letters: B texts, K registers, D register width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from crocodil.metrics.reconstruction import cer, token_accuracy
from crocodil.model import Model
from crocodil.registers.registers import Registers
from crocodil.reproduce.lab import MAIN, Lab, Task, check_decoding
from crocodil.reproduce.store import Measured
from crocodil.text.windows import Sample


@dataclass(frozen=True)
class Reconstructed(Task):
    """Held-out windows, encoded and decoded (Alg. 6), beside what they were."""

    length: int
    part: tuple[int, int]
    k: int
    block_size: int
    nfe: int
    model: str = MAIN
    reads = ("texts",)

    def check(self, lab: Lab) -> None:
        check_decoding(lab.model(self.model), self.length, self.nfe, self.block_size, self.k)

    def run(self, lab: Lab) -> Measured:
        model, samples = lab.model(self.model), lab.windows(self.length, self.part, self.model)
        registers = encoded(model, samples, self.k)
        options = {"nfe": self.nfe, "block_size": self.block_size, "length": self.length}
        texts, references = model.decode(registers, **options), plain(model, samples)  # type: ignore[arg-type]
        pairs = list(zip(texts, references, strict=True))
        ids = model.vocabulary.encode
        return Measured(
            {
                "texts": texts,
                "references": references,
                "cer": [cer(text, reference) for text, reference in pairs],
                "exact": [float(text == reference) for text, reference in pairs],
                "token_accuracy": [token_accuracy([ids(text)], [ids(ref)]) for text, ref in pairs],
            }
        )

    def weight(self, lab: Lab) -> float:
        return (self.part[1] - self.part[0]) * self.nfe * float(self.length + self.k)


@dataclass(frozen=True)
class Mixed(Task):
    """Texts on the way between the windows 2i and 2i + 1, for i in a part of the pairs (App. D)."""

    length: int
    part: tuple[int, int]
    k: int
    alpha: float
    nfe: int
    reads = ("texts",)

    def check(self, lab: Lab) -> None:
        check_decoding(lab.model(MAIN), self.length, self.nfe, None, self.k)

    def run(self, lab: Lab) -> Measured:
        model = lab.model(MAIN)
        both = lab.windows(self.length, (2 * self.part[0], 2 * self.part[1]))
        first, second = both[0::2], both[1::2]
        mixed = encoded(model, first, self.k).mix(encoded(model, second, self.k), self.alpha)
        texts = model.decode(mixed, nfe=self.nfe, length=self.length)
        ends = [plain(model, first), plain(model, second)]
        distances = [[cer(text, end) for text, end in zip(texts, side, strict=True)] for side in ends]
        return Measured({"texts": texts, "ends": ends, "cer_first": distances[0], "cer_second": distances[1]})

    def weight(self, lab: Lab) -> float:
        return (self.part[1] - self.part[0]) * self.nfe * float(self.length + self.k)


@dataclass(frozen=True)
class Real(Task):
    """Held-out windows as texts, that others are compared with."""

    length: int
    part: tuple[int, int]
    reads = ("texts",)

    def run(self, lab: Lab) -> Measured:
        return Measured({"texts": plain(lab.model(MAIN), lab.windows(self.length, self.part))})


def encoded(model: Model, samples: Sequence[Sample], k: int) -> Registers:
    """Registers of windows, each a text of its own."""
    values_WkD = model.encode_ids([sample.text_ids for sample in samples], k)
    return Registers(values_WkD, (1,) * len(samples), model.fingerprint)


def plain(model: Model, samples: Sequence[Sample]) -> list[str]:
    """What the windows say."""
    return [model.vocabulary.decode(torch.tensor(sample.window(model.vocabulary))) for sample in samples]
