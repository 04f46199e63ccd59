"""The demasker of CADD: LLaDA, unguided or behind registers, that also sees a latent at every token (CADD §4).

Shape letters: B texts, N positions of a text, T packed positions, R masked ones, k registers a text shows, D their width,
E demasker width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from crocodil.attention import Segments
from crocodil.cadd.forward import add_noise
from crocodil.cadd.latents import LatentConfig, TokenLatents
from crocodil.cadd.loss import Objective, score
from crocodil.demasker.guided import GuidedDemasker
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.loss import Losses, per_text
from crocodil.demasker.masking import MaskedTexts
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.errors import CrocodilError


class AugmentedDemasker(nn.Module):
    """A demasker with latents. It stands wherever its host can stand, in an autoencoder too."""

    def __init__(
        self,
        host: UnguidedDemasker | GuidedDemasker,
        config: LatentConfig,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.host = host
        sizes = host.llada.config
        self.latents = TokenLatents(config, sizes.vocab_size, sizes.d_model)
        self.objective = objective or Objective()
        # what an engine that shards layer by layer (FSDP) keeps together
        self._no_split_modules = host.llada.units

    @property
    def llada(self) -> LLaDA:
        return self.host.llada

    def initialise(self) -> AugmentedDemasker:
        """Take from the table what the configuration of the latents leaves open."""
        self.latents.initialise(self.llada.model.transformer.wte.weight)
        return self

    def clean_table(self) -> torch.Tensor:
        """Clean latents of all tokens, (V, E)."""
        rows = torch.arange(self.llada.config.vocab_size, device=self.llada.head_weight.device)
        # by the module and not its weight, so that an engine that shards weights gathers them
        return self.latents.clean(self.llada.embed(rows))

    def forward(
        self, texts: MaskedTexts, registers_kD: torch.Tensor | None = None, k: Sequence[int] | None = None
    ) -> Losses:
        """Algorithm 1 on a packed batch: noise the latents of masked tokens, predict the tokens (Eq. 20).

        Args:
            texts: with a seed for each text, from which its noise is drawn where the network is.
            registers_kD, k: see `GuidedDemasker.hidden`; None for a host without registers.
        """
        if texts.seeds is None:
            raise CrocodilError("these texts have no seeds, so their latents have no noise: use `seeded`")
        lengths, is_masked = texts.segments.lengths, texts.is_masked_T
        t_T = texts.t_B.repeat_interleave(torch.tensor(lengths, device=texts.t_B.device))
        # one lookup of both, so that a sharded table is gathered once
        tokens_TE, clean_TE = self.llada.embed(torch.cat([texts.visible_T, texts.ids_T])).chunk(2)
        z0_TE = self.latents.clean(clean_TE)
        noised_TE = add_noise(z0_TE, t_T, noise_of(texts, z0_TE), self.latents.config.schedule)
        z_TE = torch.where(is_masked[:, None], noised_TE, z0_TE)
        hidden_TE = self._hidden(texts.visible_T, tokens_TE, z_TE, t_T, texts.segments, registers_kD, k)
        found = score(
            self.llada,
            self.latents,
            self.objective,
            hidden_TE[is_masked],
            texts.ids_T[is_masked],
            z0_TE[is_masked],
            self.objective.weights(is_masked, lengths, texts.t_B),
        )
        return per_text(found, is_masked, lengths)

    def logits(
        self,
        ids_BN: torch.Tensor,
        rows_BN: torch.Tensor,
        registers_BKD: torch.Tensor | None,
        z_BNE: torch.Tensor,
        t: float,
    ) -> torch.Tensor:
        """Logits (R, V) at the R positions where `rows_BN` is True, in row-major order.

        Args:
            ids_BN: token ids, masked ones already replaced by the mask token.
            registers_BKD: (B, k, D), or None without registers.
            z_BNE: latents, clean under visible tokens.
            t: masking level.
        """
        B, N = ids_BN.shape
        ids_T, segments = ids_BN.flatten(), Segments.of([N] * B, ids_BN.device)
        k = None if registers_BKD is None else [registers_BKD.shape[1]] * B
        registers_kD = None if registers_BKD is None else registers_BKD.flatten(0, 1)
        t_T = torch.full(ids_T.shape, t, device=ids_T.device)
        hidden_TE = self._hidden(
            ids_T, self.llada.embed(ids_T), z_BNE.flatten(0, 1), t_T, segments, registers_kD, k
        )
        return self.llada.head(hidden_TE[rows_BN.flatten()])

    def _hidden(
        self,
        visible_T: torch.Tensor,
        tokens_TE: torch.Tensor,
        z_TE: torch.Tensor,
        t_T: torch.Tensor,
        segments: Segments,
        registers_kD: torch.Tensor | None,
        k: Sequence[int] | None,
    ) -> torch.Tensor:
        fused_TE = self.latents.fuse(tokens_TE, z_TE, t_T)
        if isinstance(self.host, UnguidedDemasker):
            return self.host.hidden(visible_T, segments, fused_TE)
        if registers_kD is None or k is None:
            registers_kD = fused_TE.new_zeros(0, self.host.config.D)
            k = [0] * len(segments.lengths)
        return self.host.hidden(visible_T, segments, registers_kD, k, fused_TE)


def noise_of(texts: MaskedTexts, like_TE: torch.Tensor) -> torch.Tensor:
    """ε at every position, (T, E) in float32, of each text from its own seed.

    It is drawn where the network is: at 8B a text's noise is larger than all else that is sent there. What is drawn at a
    position depends on no other text, and not on what is masked.
    """
    assert texts.seeds is not None
    device, width = like_TE.device, like_TE.shape[1]
    parts = [
        torch.randn(n, width, generator=torch.Generator(device).manual_seed(seed), device=device)
        for n, seed in zip(texts.segments.lengths, texts.seeds, strict=True)
    ]
    return torch.cat(parts).to(like_TE.dtype)
