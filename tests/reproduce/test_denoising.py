"""Fig. 9 and PRDC with denoisers whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crocodil import CrocodilError
from crocodil.denoiser.dit import DenoiserConfig
from crocodil.denoiser.weights import Denoisers, TrainedDenoiser
from crocodil.model import Model, load
from crocodil.reproduce.denoising import coverage, psnr_by_time
from crocodil.text.windows import Sample

PIECES = [
    "def area(side):\n",
    "x = {'side': 3}",
    "for number in range(10):",
    "import os\n",
    "y = 1\n",
    "z = 2\n",
    "a = 3\n",
]


class Answers(nn.Module):
    """Gives back what it is told to; the condition, where it has one."""

    def __init__(self, D: int, conditional: bool) -> None:
        super().__init__()
        self.config = DenoiserConfig(K=4, D=D, width=8, layers=1, heads=1, conditional=conditional)
        self.parameters_in_all = 1

    def forward(self, z_BKD: Tensor, s_BK: Tensor, condition_BMD: Tensor | None = None) -> Tensor:
        return torch.zeros_like(z_BKD) if condition_BMD is None else condition_BMD


@pytest.fixture
def model(tiny_bundle: Path) -> Model:
    model = load(tiny_bundle, "cpu")
    both = (TrainedDenoiser(Answers(model.D, c), model.fingerprint, 0.2) for c in (False, True))  # type: ignore[arg-type]
    model.__dict__["denoisers"] = Denoisers(*both)
    return model


@pytest.fixture
def samples(model: Model) -> list[Sample]:
    """Texts that fill their window but for one EOS, so that a window that is wholly seen is the text itself."""
    ids = [tuple((model.vocabulary.encode(piece) * 9)[:30]) for piece in PIECES]
    return [Sample(i, text, 32) for i, text in enumerate(ids)]


def test_the_conditional_oracle_is_above_the_unconditional_guess(model: Model, samples: list[Sample]) -> None:
    """Zeros have 0 dB at any noise; the condition is the nearer to the answer the more of the text it sees."""
    rows = psnr_by_time(model, samples, [0.3, 0.9], visible=(0.2, 0.95))
    assert [(row.s, row.visible) for row in rows] == [
        (s, share) for share in (None, 0.2, 0.95) for s in (0.3, 0.9)
    ]
    values = [row.psnr for row in rows]
    assert values[:2] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert values[2] == values[3] and values[4] == values[5] > values[2]


def test_registers_made_from_the_text_cover_the_real_ones(model: Model, samples: list[Sample]) -> None:
    zeros, near = coverage(model, samples, k=2, latent_steps=2, refresh_steps=2, visible=1.0, seed=3)
    assert zeros.visible is None and near.visible == 1.0 and near.samples == len(samples)
    assert near.score.mean.recall >= 0.9 and near.score.mean.coverage >= 0.9
    assert len(near.score.registers) == 2


def test_a_model_without_denoisers_is_refused(model: Model, samples: list[Sample]) -> None:
    model.__dict__["denoisers"] = Denoisers()
    with pytest.raises(CrocodilError, match="lacks a denoiser"):
        psnr_by_time(model, samples, [0.5])
