"""How near predicted registers are to clean ones (CRoCoDiL App. E, Fig. 9).

Shape letters: B samples, K registers, D register width.
"""

from __future__ import annotations

import torch

from crocodil.errors import CrocodilError


def register_psnr(predicted_BKD: torch.Tensor, clean_BKD: torch.Tensor) -> torch.Tensor:
    """PSNR = −10 log₁₀ MSE of every sample, in dB: (B,) float64; infinite where the prediction is exact.

    The paper names no peak. Ours is 1, the root mean square of a coordinate of a register of norm √D, because the
    largest coordinate would change with the batch; another peak p adds 20 log₁₀ p to every value. A prediction of
    all zeros then has 0 dB.

    Args:
        predicted_BKD: as the denoiser gives them, not brought back to norm √D.
        clean_BKD: registers of norm √D.

    Raises:
        CrocodilError: the shapes differ, or are not (B, K, D).
    """
    if predicted_BKD.shape != clean_BKD.shape or clean_BKD.ndim != 3:
        raise CrocodilError(
            f"PSNR wants predicted and clean registers of one shape (B, K, D), not {tuple(predicted_BKD.shape)} "
            f"and {tuple(clean_BKD.shape)}"
        )
    return -10 * (predicted_BKD.double() - clean_BKD.double()).pow(2).mean(dim=(1, 2)).log10()
