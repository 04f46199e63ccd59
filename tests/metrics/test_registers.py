"""PSNR of registers: its limits, its scale, and that samples are apart."""

from __future__ import annotations

import math

import pytest
import torch

from crocodil.errors import CrocodilError
from crocodil.metrics.registers import register_psnr
from crocodil.registers.geometry import normalise


def registers(B: int = 3, K: int = 4, D: int = 24) -> torch.Tensor:
    return normalise(torch.randn(B, K, D, generator=torch.Generator().manual_seed(0)))


def test_it_is_minus_ten_log_mse_of_each_sample() -> None:
    clean = registers()
    predicted = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    for b, value in enumerate(register_psnr(predicted, clean)):
        error = [
            (float(p) - float(c)) ** 2
            for p, c in zip(predicted[b].flatten(), clean[b].flatten(), strict=True)
        ]
        assert float(value) == pytest.approx(-10 * math.log10(sum(error) / len(error)))


def test_limits() -> None:
    clean = registers()
    assert register_psnr(torch.zeros_like(clean), clean) == pytest.approx([0.0] * 3, abs=1e-5)
    assert register_psnr(-clean, clean) == pytest.approx([-10 * math.log10(4)] * 3, abs=1e-5)
    assert torch.isinf(register_psnr(clean, clean)).all()


def test_a_tenth_of_the_error_is_20_db() -> None:
    clean, noise = registers(), torch.randn(3, 4, 24, generator=torch.Generator().manual_seed(1))
    gain = register_psnr(clean + 0.1 * noise, clean) - register_psnr(clean + noise, clean)
    assert gain == pytest.approx([20.0] * 3, abs=1e-4)


def test_low_precision_is_compared_in_float64() -> None:
    clean = registers().bfloat16()
    predicted = clean * 1.01
    assert register_psnr(predicted, clean).dtype == torch.float64
    torch.testing.assert_close(
        register_psnr(predicted, clean), register_psnr(predicted.double(), clean.double())
    )


@pytest.mark.parametrize("shapes", [((2, 4, 8), (2, 4, 9)), ((2, 4, 8), (1, 4, 8)), ((4, 8), (4, 8))])
def test_shapes_that_do_not_pair_up_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(CrocodilError, match="one shape"):
        register_psnr(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
