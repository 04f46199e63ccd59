"""The guided demasker f(x_t, z): LLaDA behind a prefix of registers (CRoCoDiL App. C).

Input embeddings are `START, P(z^(1)) … P(z^(k)), END, E(x_t)`. The prefix slots turn a few rotary pairs by their own
index; at k = 0 the whole prefix is absent and the model is LLaDA, bit for bit. Hidden registers are not in the row at
all, and those that are keep their positions, so nothing depends on what is hidden.

Shape letters: B texts, T packed text positions, S packed positions with prefixes, K registers, D register width,
E demasker width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from crocodil.attention import Segments
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.loss import Losses, per_text, row_weights
from crocodil.demasker.masking import MaskedTexts
from crocodil.demasker.rotary import default_local_pairs, two_axis_angles
from crocodil.errors import CrocodilError

Layout = Literal["anchored", "contiguous"]


@dataclass(frozen=True)
class GuideConfig:
    """The prefix that carries the registers into the demasker."""

    K: int
    """Registers at most."""
    D: int
    """Width of a register."""
    layout: Layout = "anchored"
    """Global position of prefix slots: all at −1, or −(K+2) … −1. The paper does not say (docs/choices.md)."""
    local_pairs: tuple[int, ...] | None = None
    """Rotary pairs that turn by the prefix-local index; None takes the default for the head size."""


class GuidedDemasker(nn.Module):
    """LLaDA with learned START and END and a linear map P from registers to token embeddings."""

    def __init__(self, llada: LLaDA, config: GuideConfig) -> None:
        super().__init__()
        self.llada = llada
        self.config = config
        E = llada.config.d_model
        table = llada.model.transformer.wte.weight
        pairs = llada.config.channels // 2
        self.local_pairs = (
            default_local_pairs(llada.config.channels)
            if config.local_pairs is None
            else tuple(config.local_pairs)
        )
        if any(not 0 <= p < pairs for p in self.local_pairs):
            raise CrocodilError(f"local_pairs {self.local_pairs} must name rotary pairs 0…{pairs - 1}")
        self.boundaries = nn.Parameter(torch.empty(2, E, device=table.device, dtype=table.dtype))
        self.projection = nn.Linear(config.D, E, bias=False, device=table.device, dtype=table.dtype)

    def initialise(self, generator: torch.Generator | None = None) -> GuidedDemasker:
        """START, END and the output of P begin at the scale of token embeddings."""
        rms = float(self.llada.model.transformer.wte.weight.detach().float().pow(2).mean().sqrt())
        nn.init.normal_(self.boundaries, std=rms, generator=generator)
        # a register has coordinates of unit variance, so D of them through this std give `rms` again
        nn.init.normal_(self.projection.weight, std=rms / self.config.D**0.5, generator=generator)
        return self

    def hidden(
        self,
        ids_T: torch.Tensor,
        segments: Segments,
        registers_kD: torch.Tensor,
        k: Sequence[int],
        tokens_TE: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The states that text positions are predicted from: (T, E).

        Args:
            ids_T: token ids, masked ones already replaced by the mask token.
            segments: where each text ends.
            registers_kD: the exposed registers of all texts end to end, (Σ k, D); spare rows at the end of a text
                with k = 0 are not allowed.
            k: registers each text exposes, 0 ≤ k ≤ K.
            tokens_TE: what the network sees in place of the embeddings of the ids.
        """
        if len(k) != len(segments.lengths):
            raise CrocodilError(f"k names {len(k)} texts, the batch has {len(segments.lengths)}")
        if min(k, default=0) < 0 or max(k, default=0) > self.config.K:
            raise CrocodilError(f"k must be between 0 and K = {self.config.K}, not {min(k)}…{max(k)}")
        if registers_kD.shape != (sum(k), self.config.D):
            raise CrocodilError(
                f"registers have shape {tuple(registers_kD.shape)}, wanted {(sum(k), self.config.D)}: "
                "Σ k rows of the width this demasker was trained with"
            )
        if segments.annealing is not None:
            raise CrocodilError(
                "attention is annealed in a demasker without registers: adapt it before it gets registers"
            )
        device = ids_T.device
        index, glob, local, prefix, lengths, text = [], [], [], [], [], []
        first_token = 2 + sum(k)
        z = start = at = 0
        for n, shown in zip(segments.lengths, k, strict=True):
            if shown:
                slots = torch.cat([torch.arange(shown + 1), torch.tensor([self.config.K + 1])])
                index += [torch.tensor([0]), 2 + z + torch.arange(shown), torch.tensor([1])]
                glob.append(
                    torch.full_like(slots, -1)
                    if self.config.layout == "anchored"
                    else slots - self.config.K - 2
                )
                local.append(slots)
                prefix.append(torch.ones_like(slots, dtype=torch.bool))
            index.append(first_token + start + torch.arange(n))
            glob.append(torch.arange(n))
            local.append(torch.zeros(n, dtype=torch.long))
            prefix.append(torch.zeros(n, dtype=torch.bool))
            slots_used = shown + 2 if shown else 0
            text.append(at + slots_used + torch.arange(n))
            lengths.append(slots_used + n)
            z, start, at = z + shown, start + n, at + slots_used + n
        tokens = self.llada.embed(ids_T) if tokens_TE is None else tokens_TE
        # one gather from (START, END, registers, tokens), so every parameter stays in the graph whatever k is
        pool = torch.cat(
            [
                self.boundaries.to(tokens.dtype),
                self.projection(registers_kD.to(tokens.dtype)).to(tokens.dtype),
                tokens,
            ]
        )
        angles = two_axis_angles(
            torch.cat(glob).to(device),
            torch.cat(local).to(device),
            torch.cat(prefix).to(device),
            self.local_pairs,
            self.llada.config.channels,
            self.llada.config.rope_theta,
        )
        out = self.llada.run(pool[torch.cat(index).to(device)][None], angles, Segments.of(lengths, device))
        return self.llada.read(out[0, torch.cat(text).to(device)], segments)

    def forward(self, texts: MaskedTexts, registers_kD: torch.Tensor, k: Sequence[int]) -> Losses:
        """The loss of Eq. 5 on a packed batch, as sum and count; arguments as in `hidden`."""
        hidden_TE = self.hidden(texts.visible_T, texts.segments, registers_kD, k)
        is_masked, lengths = texts.is_masked_T, texts.segments.lengths
        score = self.llada.score(
            hidden_TE[is_masked], texts.ids_T[is_masked], row_weights(is_masked, lengths, texts.t_B)
        )
        return per_text(score, is_masked, lengths)

    def logits(
        self, ids_BN: torch.Tensor, rows_BN: torch.Tensor, registers_BKD: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits (R, V) at the R positions where `rows_BN` is True, in row-major order.

        Args:
            ids_BN: token ids, masked ones already replaced by the mask token.
            registers_BKD: (B, k, D), or None for the unguided demasker.
        """
        B, N = ids_BN.shape
        k = 0 if registers_BKD is None else registers_BKD.shape[1]
        registers = (
            ids_BN.new_zeros(0, self.config.D, dtype=self.boundaries.dtype)
            if registers_BKD is None
            else registers_BKD.flatten(0, 1)
        )
        hidden_TE = self.hidden(ids_BN.flatten(), Segments.of([N] * B, ids_BN.device), registers, [k] * B)
        return self.llada.head(hidden_TE[rows_BN.flatten()])
