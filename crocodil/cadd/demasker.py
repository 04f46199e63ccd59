"""The demasker of CADD: LLaDA, unguided or behind registers, that also sees a latent at every token (CADD §4).

Shape letters: B texts, N positions of a text, T packed positions, R masked ones, k registers a text shows, D their width,
E demasker width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from crocodil.attention import Segments
from crocodil.cadd.forward import add_noise
from crocodil.cadd.latents import TokenLatents
from crocodil.cadd.loss import Objective, score
from crocodil.demasker.guided import GuidedDemasker
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.loss import Losses, per_text
from crocodil.demasker.masking import MaskedTexts
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.errors import CrocodilError


class AugmentedDemasker(nn.Module):
    """A demasker with latents. It stands wherever its host can stand, behind registers too.

    Args:
        latents: None for plain masked diffusion, the baseline on the same path.
    """

    def __init__(
        self,
        host: UnguidedDemasker | GuidedDemasker,
        latents: TokenLatents | None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.host = host
        self.latents = latents
        self.objective = objective or Objective()
        # what an engine that shards layer by layer (FSDP) keeps together
        self._no_split_modules = host.llada.units

    @property
    def llada(self) -> LLaDA:
        return self.host.llada

    def clean_table(self) -> torch.Tensor:
        """Clean latents of all tokens, (V, E)."""
        assert self.latents is not None
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
        lengths, is_masked = texts.segments.lengths, texts.is_masked_T
        if self.latents is None:
            z0_TE = None
            hidden_TE = self._hidden(texts.visible_T, None, texts.segments, registers_kD, k)
        else:
            if texts.seeds is None:
                raise CrocodilError("these texts have no seeds, so their latents have no noise: use `seeded`")
            t_T = texts.t_B.repeat_interleave(torch.tensor(lengths, device=texts.t_B.device))
            # one lookup of both, so that a sharded table is gathered once
            tokens_TE, clean_TE = self.llada.embed(torch.cat([texts.visible_T, texts.ids_T])).chunk(2)
            z0_TE = self.latents.clean(clean_TE)
            noised_TE = add_noise(z0_TE, t_T, noise_of(texts, z0_TE), self.latents.config.schedule)
            z_TE = torch.where(is_masked[:, None], noised_TE, z0_TE)
            fused_TE = self.latents.fuse(tokens_TE, z_TE, t_T)
            hidden_TE = self._hidden(texts.visible_T, fused_TE, texts.segments, registers_kD, k)
        found = score(
            self.llada,
            self.latents,
            self.objective,
            hidden_TE[is_masked],
            texts.ids_T[is_masked],
            None if z0_TE is None else z0_TE[is_masked],
            self.objective.weights(is_masked, lengths, texts.t_B),
        )
        return per_text(found, is_masked, lengths)

    def logits(
        self,
        ids_BN: torch.Tensor,
        rows_BN: torch.Tensor,
        registers_BKD: torch.Tensor | None,
        z_BNE: torch.Tensor | None = None,
        t: float | torch.Tensor = 1.0,
    ) -> torch.Tensor:
        """Logits (R, V) at the R positions where `rows_BN` is True, in row-major order.

        Args:
            ids_BN: token ids, masked ones already replaced by the mask token.
            registers_BKD: (B, k, D), or None without registers.
            z_BNE: latents, clean under visible tokens; None where the demasker has none.
            t: masking level, or one for each text, (B,).
        """
        B, N = ids_BN.shape
        ids_T, segments = ids_BN.flatten(), Segments.of([N] * B, ids_BN.device)
        k = None if registers_BKD is None else [registers_BKD.shape[1]] * B
        registers_kD = None if registers_BKD is None else registers_BKD.flatten(0, 1)
        fused_TE = None
        if self.latents is not None:
            assert z_BNE is not None
            t_T = torch.as_tensor(t, device=ids_T.device).reshape(-1, 1).expand(B, N).flatten()
            fused_TE = self.latents.fuse(self.llada.embed(ids_T), z_BNE.flatten(0, 1), t_T)
        hidden_TE = self._hidden(ids_T, fused_TE, segments, registers_kD, k)
        return self.llada.head(hidden_TE[rows_BN.flatten()])

    def _hidden(
        self,
        visible_T: torch.Tensor,
        tokens_TE: torch.Tensor | None,
        segments: Segments,
        registers_kD: torch.Tensor | None,
        k: Sequence[int] | None,
    ) -> torch.Tensor:
        if isinstance(self.host, UnguidedDemasker):
            return self.host.hidden(visible_T, segments, tokens_TE)
        if registers_kD is None or k is None:
            registers_kD = self.host.boundaries.new_zeros(0, self.host.config.D)
            k = [0] * len(segments.lengths)
        return self.host.hidden(visible_T, segments, registers_kD, k, tokens_TE)


def seeded(texts: MaskedTexts, generators: Iterable[torch.Generator]) -> MaskedTexts:
    """These texts with a seed for each, drawn from its generator."""
    seeds = [int(torch.randint(2**62, (), generator=generator)) for generator in generators]
    return replace(texts, seeds=tuple(seeds))


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
