"""The loss of CADD: cross-entropy of the masked tokens (Eq. 20), and optionally a squared error of latents (App. C.3).

Shape letters: R masked positions, E demasker width, V rows of the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crocodil.cadd.latents import TokenLatents
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.loss import CHUNK_LOGITS, Score, row_weights
from crocodil.errors import CrocodilError
from crocodil.recompute import RECOMPUTE

Weighting = Literal["one", "inverse_t"]
Estimate = Literal["hard", "soft"]
"""ẑ₀ of Eq. 21: the latent of the likeliest token, or the mean latent under the prediction."""


@dataclass(frozen=True)
class Objective:
    """What is minimised."""

    weighting: Weighting = "one"
    """Of a text's cross-entropies: 1, as Eq. 20 is printed, or 1/t, the bound of masked diffusion (Eq. 2, MDLM)."""
    squared: Estimate | None = None
    """Add ‖ẑ₀ − z₀‖²/ρ² of masked tokens: ẑ₀ the mean latent under the prediction (soft), or the latent of the likeliest
    token (hard), which only moves the table (Table 10)."""
    share: float = 1.0
    """Weight of the squared error beside the cross-entropy; the paper names none."""

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise CrocodilError(
                f"objective: weighting {self.weighting!r} is not one of {', '.join(get_args(Weighting))}"
            )
        if self.squared is not None and self.squared not in get_args(Estimate):
            raise CrocodilError(
                f"objective: squared {self.squared!r} is not one of null, {', '.join(get_args(Estimate))}"
            )
        if not (self.share >= 0 and math.isfinite(self.share)):
            raise CrocodilError(f"objective: share {self.share} must be finite and not negative")

    def weights(self, is_masked_T: Tensor, lengths: Sequence[int], t_B: Tensor) -> Tensor:
        """Of every masked position, (R,): 1/n or 1/(n t)."""
        return row_weights(
            is_masked_T, lengths, t_B if self.weighting == "inverse_t" else torch.ones_like(t_B)
        )


def score(
    llada: LLaDA,
    latents: TokenLatents | None,
    objective: Objective,
    hidden_RE: Tensor,
    targets_R: Tensor,
    clean_RE: Tensor | None,
    weights_R: Tensor,
) -> Score:
    """Σ weight · (CE + share · ‖ẑ₀ − z₀‖²/ρ²) of R masked positions.

    Args:
        latents, clean_RE: and z₀ of the targets; None without latents, where only the cross-entropy counts.
    """
    found = llada.score(hidden_RE, targets_R, weights_R)
    if objective.squared is None or latents is None or clean_RE is None:
        return found
    rows = torch.arange(llada.config.vocab_size, device=hidden_RE.device)
    table_VE = latents.clean(llada.embed(rows))
    squares = []
    chunk = max(1, CHUNK_LOGITS[hidden_RE.device.type] // len(table_VE))
    for start in range(0, len(hidden_RE), chunk):
        part = slice(start, start + chunk)
        # logits of a chunk are made again in the backward, so that no two chunks' are in memory
        squares.append(
            checkpoint(
                _squares,
                llada,
                objective.squared,
                hidden_RE[part],
                clean_RE[part],
                table_VE,
                **RECOMPUTE,
            )
        )
    squared = (torch.cat(squares) * weights_R).sum() if squares else found.total.new_zeros(())
    return found._replace(total=found.total + objective.share / latents.rho**2 * squared)


def _squares(llada: LLaDA, how: Estimate, hidden_RE: Tensor, clean_RE: Tensor, table_VE: Tensor) -> Tensor:
    """‖ẑ₀ − z₀‖² of each row, float32."""
    logits_RV = llada.head(hidden_RE)[:, : len(table_VE)].float()
    return (estimate(logits_RV, table_VE, how).float() - clean_RE.float()).square().sum(dim=1)


def estimate(logits_RV: Tensor, table_VE: Tensor, how: Estimate) -> Tensor:
    """ẑ₀ of Eq. 21, (R, E)."""
    if how == "hard":
        return table_VE[logits_RV.argmax(dim=1)]
    return logits_RV.softmax(dim=1).to(table_VE.dtype) @ table_VE
