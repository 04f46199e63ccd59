"""The unguided demasker as a training module: the baseline that the guided one starts from (CRoCoDiL §5)."""

from __future__ import annotations

import torch
from torch import nn

from crocodil.attention import Segments
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.loss import Losses, per_text, row_weights
from crocodil.demasker.masking import MaskedTexts
from crocodil.errors import CrocodilError


class UnguidedDemasker(nn.Module):
    """LLaDA with the masked-diffusion loss over packed texts (arXiv 2502.09992, Eq. 3)."""

    def __init__(self, llada: LLaDA) -> None:
        super().__init__()
        self.llada = llada
        # what an engine that shards layer by layer (FSDP) keeps together
        self._no_split_modules = llada.units

    def hidden(
        self, ids_T: torch.Tensor, segments: Segments, tokens_TE: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The states (T, E) that positions of texts packed in one row are predicted from.

        Args:
            segments: where each text ends, and how far attention is annealed.
            tokens_TE: what the network sees in place of the embeddings of the ids.
        """
        tokens = self.llada.embed(ids_T) if tokens_TE is None else tokens_TE
        out = self.llada.run(tokens[None], self.llada.angles(segments.positions.to(ids_T.device)), segments)
        return self.llada.read(out[0], segments)

    def forward(self, texts: MaskedTexts) -> Losses:
        """Sum and count of (1/n) Σ CE / t."""
        hidden_TE = self.hidden(texts.visible_T, texts.segments)
        is_masked, lengths = texts.is_masked_T, texts.segments.lengths
        score = self.llada.score(
            hidden_TE[is_masked], texts.ids_T[is_masked], row_weights(is_masked, lengths, texts.t_B)
        )
        return per_text(score, is_masked, lengths)

    def logits(
        self, ids_BN: torch.Tensor, rows_BN: torch.Tensor, registers_BKD: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (R, V) at the R positions where `rows_BN` is True, in row-major order.

        Raises:
            CrocodilError: registers are given.
        """
        if registers_BKD is not None:
            raise CrocodilError("this demasker has no registers: leave them out, or take a model that has")
        B, N = ids_BN.shape
        hidden_TE = self.hidden(ids_BN.flatten(), Segments.of([N] * B, ids_BN.device))
        return self.llada.head(hidden_TE[rows_BN.flatten()])
