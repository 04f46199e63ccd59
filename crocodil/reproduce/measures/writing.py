"""Texts out of noise (Fig. 6, 11, 12)."""

from __future__ import annotations

from dataclasses import dataclass

from crocodil.errors import CrocodilError
from crocodil.model import Model
from crocodil.reproduce.lab import MAIN, Lab, Task, check_decoding
from crocodil.reproduce.store import Measured


@dataclass(frozen=True)
class Written(Task):
    """Texts of the seeds part[0] … part[1] − 1 by one method; the same seeds in every setting."""

    part: tuple[int, int]
    method: str
    nfe: int
    length: int
    k: int | None
    refresh: tuple[float, ...] | None
    remasking: str
    temperature: float
    latent_steps: int
    refresh_steps: int
    min_length: int
    seed: int
    model: str = MAIN

    def check(self, lab: Lab) -> None:
        model = lab.model(self.model)
        check_decoding(model, self.length, self.nfe, None, self.k or 1)
        first = model.denoisers.unconditional
        if self.k is not None and first is not None and self.k > first.config.K:
            raise CrocodilError(f"{self.k} registers are wanted of a denoiser that makes {first.config.K}")

    def run(self, lab: Lab) -> Measured:
        made = lab.model(self.model).generate(
            self.part[1] - self.part[0],
            method=self.method,
            nfe=self.nfe,
            length=self.length,
            min_length=self.min_length,
            k=self.k,
            refresh=self.refresh,
            latent_steps=self.latent_steps,
            refresh_steps=self.refresh_steps,
            temperature=self.temperature,
            remasking=self.remasking,
            draws=0,  # the first paper has no latents of tokens
            seed=self.seed + self.part[0],
        )
        names = ("text", "nfe", "nfe_paper", "nfe_wall")
        values = {name: [getattr(one, name) for one in made] for name in names}
        return Measured({"texts": values.pop("text"), **values})

    def weight(self, lab: Lab) -> float:
        evaluations = self.nfe * float(self.length + (self.k or 0))
        return (self.part[1] - self.part[0]) * (
            evaluations + (0 if self.method == "mdm" else 8 * self.length)
        )


def written(
    lab: Lab,
    method: str,
    nfe: int,
    length: int,
    k: int | None = None,
    *,
    refresh: tuple[float, ...] | None = None,
    remasking: str = "low_confidence",
    model: str = MAIN,
) -> tuple[Written, ...]:
    """All texts of one setting, in parts. `k` says nothing to `mdm`."""
    config = lab.config.synthesis
    return tuple(
        Written(
            part, method, nfe, length, None if method == "mdm" else k, refresh, remasking, config.temperature,
            config.latent_steps, config.refresh_steps, length if config.fill else 0, lab.config.seed, model,
        )
        for part in lab.parts(config.texts)
    )  # fmt: skip


def refuse(model: Model, k: int) -> str | None:
    """Why this model writes nothing under k registers, or None where it does."""
    both = (model.denoisers.unconditional, model.denoisers.conditional)
    if any(one is None for one in both):
        return "the model lacks a denoiser, conditional or not: train both with recipes/train_denoiser.py"
    most = min(one.config.K for one in both if one is not None)
    return f"its denoisers make {most} registers" if k > most else None
