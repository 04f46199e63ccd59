"""How well registers are denoised (Fig. 9), and how much of their space is reached (PRDC, App. E).

Shape letters: B texts, k registers in use, D register width, M made and N real registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from crocodil.demasker.masking import mask
from crocodil.denoiser.schedule import add_noise, signal, times
from crocodil.denoiser.weights import TrainedDenoiser
from crocodil.errors import CrocodilError
from crocodil.metrics.prdc import prdc
from crocodil.metrics.registers import register_psnr
from crocodil.model import Model
from crocodil.registers.geometry import normalise
from crocodil.reproduce.lab import MAIN, Lab, Task
from crocodil.reproduce.store import Measured
from crocodil.sampler.ddim import Denoise, ddim
from crocodil.text.windows import Sample
from crocodil.training.randomness import generator


@dataclass(frozen=True)
class Denoised(Task):
    """PSNR in dB of g's prediction for each text, at base time s with the block offsets."""

    length: int
    part: tuple[int, int]
    s: float
    visible: float | None
    """Share of the text that the conditional denoiser sees; None asks the unconditional one."""
    k: int
    reads = ("texts",)
    model: str = MAIN

    def run(self, lab: Lab) -> Measured:
        samples = lab.windows(self.length, self.part)
        psnr_B = psnr(lab.model(MAIN), samples, self.s, self.visible, self.k, lab.config.seed)
        return Measured({"psnr": psnr_B.tolist()})

    def weight(self, lab: Lab) -> float:
        return (self.part[1] - self.part[0]) * (self.length + 2.0 * self.k)


@dataclass(frozen=True)
class Encoded(Task):
    """Registers of held-out texts."""

    length: int
    part: tuple[int, int]
    k: int
    reads = ("texts",)
    model: str = MAIN

    def run(self, lab: Lab) -> Measured:
        samples = lab.windows(self.length, self.part)
        ids = [sample.text_ids for sample in samples]
        return Measured({}, {"registers_BkD": lab.model(MAIN).encode_ids(ids, self.k)})

    def weight(self, lab: Lab) -> float:
        return (self.part[1] - self.part[0]) * float(self.length + self.k)


@dataclass(frozen=True)
class Drawn(Task):
    """Registers out of noise, as many as there are texts; the conditional denoiser sees a share of each."""

    length: int
    part: tuple[int, int]
    visible: float | None
    k: int
    steps: int
    reads = ("texts",)
    model: str = MAIN

    def run(self, lab: Lab) -> Measured:
        samples = lab.windows(self.length, self.part)
        made = draw(lab.model(MAIN), samples, self.visible, self.k, self.steps, lab.config.seed)
        return Measured({}, {"registers_BkD": made})

    def weight(self, lab: Lab) -> float:
        return (self.part[1] - self.part[0]) * float(self.length + self.k * self.steps)


@dataclass(frozen=True)
class Covered(Task):
    """PRDC of some registers, each a space of its own."""

    drawn: tuple[Task, ...]
    real: tuple[Task, ...]
    registers: tuple[int, int]

    def run(self, lab: Lab) -> Measured:
        first, end = self.registers
        made, real = (
            torch.cat([lab.result(task).tensors["registers_BkD"][:, first:end] for task in tasks])
            for tasks in (self.drawn, self.real)
        )
        device = lab.model(MAIN).device
        scores = [
            asdict(prdc(made[:, j].to(device), real[:, j].to(device))) for j in range(end - first)
        ]  # fmt: skip
        return Measured({name: [score[name] for score in scores] for name in scores[0]})


def psnr(
    model: Model, samples: Sequence[Sample], s: float, visible: float | None, k: int, seed: int = 0
) -> Tensor:
    """Fig. 9: PSNR of g's prediction against the clean registers (B,), in dB.

    Args:
        visible: share of the text that the conditional denoiser sees; None asks the unconditional one.

    Raises:
        CrocodilError: the model lacks that denoiser.
    """
    trained = _denoiser(model, visible)
    clean_BkD = model.encode_ids([sample.text_ids for sample in samples], k)
    noise_BkD = _noise(model, samples, k, seed, 0)
    s_Bk = times(torch.full((len(samples),), s), trained.offsets_K[:k])
    noisy_BkD = add_noise(clean_BkD, s_Bk, noise_BkD).to(model.device)
    predicted_BkD = _denoise(model, trained, samples, visible, k, seed)(noisy_BkD, s_Bk.to(model.device))
    return register_psnr(predicted_BkD.cpu(), clean_BkD)


def draw(
    model: Model, samples: Sequence[Sample], visible: float | None, k: int, steps: int, seed: int = 0
) -> Tensor:
    """Registers (B, k, D) of norm √D out of noise, by DDIM; on the CPU."""
    trained = _denoiser(model, visible)
    noise_BkD = _noise(model, samples, k, seed, 1).to(model.device)
    denoise = _denoise(model, trained, samples, visible, k, seed)
    return normalise(ddim(denoise, noise_BkD, signal, trained.offsets_K[:k], steps=steps).registers_BKD).cpu()


def _denoise(
    model: Model,
    trained: TrainedDenoiser,
    samples: Sequence[Sample],
    visible: float | None,
    k: int,
    seed: int,
) -> Denoise:
    """The denoiser, looking at a share of each text where it is the conditional one."""
    if visible is None:
        return trained.denoiser
    windows_BN = torch.tensor([sample.window(model.vocabulary) for sample in samples], device=model.device)
    masks = [mask(windows_BN.shape[1], 1 - visible, generator(seed, 0, x.id, "mask")) for x in samples]
    condition_BkD = model.encode_partial(windows_BN, torch.stack(masks).to(model.device), k)
    return partial(trained.denoiser, condition_BMD=condition_BkD)


def _noise(model: Model, samples: Sequence[Sample], k: int, seed: int, epoch: int) -> Tensor:
    draws = [torch.randn(k, model.D, generator=generator(seed, epoch, x.id, "noise")) for x in samples]
    return torch.stack(draws)


def _denoiser(model: Model, visible: float | None) -> TrainedDenoiser:
    kind = "unconditional" if visible is None else "conditional"
    trained: TrainedDenoiser | None = getattr(model.denoisers, kind)
    if trained is None:
        raise CrocodilError(f"{model.name} lacks the {kind} denoiser: train one with train_denoiser.py")
    return trained
