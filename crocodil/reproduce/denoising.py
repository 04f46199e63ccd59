"""How well registers are denoised (Fig. 9) and how much of their space is reached (PRDC, App. E)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from crocodil.demasker.masking import mask
from crocodil.denoiser.schedule import add_noise, signal, times
from crocodil.denoiser.weights import TrainedDenoiser
from crocodil.errors import CrocodilError
from crocodil.metrics.prdc import RegisterPRDC, prdc_of_registers
from crocodil.metrics.registers import register_psnr
from crocodil.model import Model
from crocodil.registers.geometry import normalise
from crocodil.sampler.ddim import Denoise, ddim
from crocodil.text.windows import Sample
from crocodil.training.randomness import generator

SAMPLES_PER_BATCH = 32
VISIBLE = (0.25, 0.5, 0.75)
"""Shares of a text that the conditional denoiser sees in Fig. 9."""


@dataclass(frozen=True)
class PsnrRow:
    """PSNR of predicted registers at one noise level, mean over samples, in dB."""

    s: float
    visible: float | None
    """Share of the text that is seen; None for the unconditional denoiser."""
    psnr: float


@dataclass(frozen=True)
class PrdcRow:
    """PRDC of one way to make registers."""

    visible: float | None
    score: RegisterPRDC
    samples: int


def psnr_by_time(
    model: Model,
    samples: Sequence[Sample],
    levels: Sequence[float],
    visible: Sequence[float] = VISIBLE,
    k: int | None = None,
    seed: int = 0,
) -> list[PsnrRow]:
    """Fig. 9: PSNR of g's prediction against the clean registers, by base time s, with the block offsets.

    Args:
        visible: shares of the text that the conditional denoiser sees; each is a line of the figure.
        k: registers; all that the denoisers make if left out.
    """
    ways = _ways(model, visible)
    k = min(trained.config.K for trained, _ in ways) if k is None else k
    rows = []
    for trained, share in ways:
        draw = partial(generator, seed, 0)
        offsets_k = trained.offsets_K[:k]
        for s in levels:
            found = []
            for part in _parts(samples):
                clean_BkD = model.encode_ids([sample.text_ids for sample in part], k)
                noise_BkD = torch.stack(
                    [torch.randn(k, model.D, generator=draw(x.id, "noise")) for x in part]
                )
                s_Bk = times(torch.full((len(part),), s), offsets_k)
                inputs = [add_noise(clean_BkD, s_Bk, noise_BkD).to(model.device), s_Bk.to(model.device)]
                if share is not None:
                    inputs.append(_condition(model, part, share, k, seed))
                found.append(register_psnr(trained.denoiser(*inputs).cpu(), clean_BkD))
            rows.append(PsnrRow(s, share, float(torch.cat(found).mean())))
    return rows


def coverage(
    model: Model,
    samples: Sequence[Sample],
    *,
    k: int,
    latent_steps: int,
    refresh_steps: int,
    visible: float = 0.5,
    seed: int = 0,
) -> list[PrdcRow]:
    """PRDC of made registers against those of held-out texts, register by register (App. E).

    The unconditional denoiser makes as many as there are samples, the conditional one as many given a random half of
    each.
    """
    real = torch.cat([model.encode_ids([x.text_ids for x in part], k) for part in _parts(samples)])
    rows = []
    for trained, share in _ways(model, (visible,)):
        made = []
        for part in _parts(samples):
            noise = torch.stack(
                [torch.randn(k, model.D, generator=generator(seed, 1, x.id, "noise")) for x in part]
            )
            denoise: Denoise = trained.denoiser
            if share is not None:
                condition = _condition(model, part, share, k, seed)
                denoise = partial(trained.denoiser, condition_BMD=condition)
            steps = latent_steps if share is None else refresh_steps
            out = ddim(denoise, noise.to(model.device), signal, trained.offsets_K[:k], steps=steps)
            made.append(normalise(out.registers_BKD).cpu())
        rows.append(PrdcRow(share, prdc_of_registers(torch.cat(made), real), len(real)))
    return rows


def _ways(model: Model, visible: Sequence[float]) -> list[tuple[TrainedDenoiser, float | None]]:
    denoisers = model.denoisers
    if denoisers.unconditional is None or denoisers.conditional is None:
        raise CrocodilError(
            f"{model.name} lacks a denoiser, conditional or not: train both with train_denoiser.py"
        )
    return [(denoisers.unconditional, None), *((denoisers.conditional, share) for share in visible)]


def _condition(model: Model, part: Sequence[Sample], share: float, k: int, seed: int) -> Tensor:
    windows_BN = torch.tensor([sample.window(model.vocabulary) for sample in part], device=model.device)
    masks = [mask(windows_BN.shape[1], 1 - share, generator(seed, 0, x.id, "mask")) for x in part]
    return model.encode_partial(windows_BN, torch.stack(masks).to(model.device), k)


def _parts(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    return [samples[i : i + SAMPLES_PER_BATCH] for i in range(0, len(samples), SAMPLES_PER_BATCH)]
