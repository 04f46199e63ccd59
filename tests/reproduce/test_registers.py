"""Fig. 9 and PRDC with denoisers whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crocodil import CrocodilError
from crocodil.denoiser.dit import DenoiserConfig
from crocodil.denoiser.weights import Denoisers, TrainedDenoiser
from crocodil.metrics.prdc import prdc
from crocodil.model import Model, load
from crocodil.reproduce.measures.registers import draw, psnr
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
    for s in (0.3, 0.9):
        assert psnr(model, samples, s, None, 4).tolist() == pytest.approx([0.0] * len(samples), abs=1e-5)
    little, much = (psnr(model, samples, 0.3, share, 4).mean() for share in (0.2, 0.95))
    assert much > little
    assert torch.equal(psnr(model, samples, 0.3, 0.2, 4), psnr(model, samples, 0.9, 0.2, 4))


def test_a_texts_psnr_does_not_depend_on_its_batch(model: Model, samples: list[Sample]) -> None:
    whole = psnr(model, samples, 0.5, 0.5, 2)
    parts = torch.cat([psnr(model, samples[:3], 0.5, 0.5, 2), psnr(model, samples[3:], 0.5, 0.5, 2)])
    assert torch.allclose(whole, parts, atol=1e-4)


def test_registers_drawn_from_the_text_cover_the_real_ones(model: Model, samples: list[Sample]) -> None:
    drawn = draw(model, samples, 1.0, k=2, steps=2, seed=3)
    real = model.encode_ids([sample.text_ids for sample in samples], 2)
    assert drawn.shape == (len(samples), 2, model.D)
    assert torch.allclose(drawn.norm(dim=-1), torch.full((len(samples), 2), model.D**0.5))
    score = prdc(drawn[:, 1], real[:, 1])
    assert score.recall >= 0.9 and score.coverage >= 0.9


def test_a_model_without_denoisers_is_refused(model: Model, samples: list[Sample]) -> None:
    model.__dict__["denoisers"] = Denoisers()
    with pytest.raises(CrocodilError, match="lacks the unconditional denoiser"):
        psnr(model, samples, 0.5, None, 2)
