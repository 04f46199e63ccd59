"""Corridor 1: text → registers → guided demasker → text (CRoCoDiL Alg. 1 and 6).

Encoder and demasker are one module with one forward, because accelerate and DeepSpeed carry one engine.

Shape letters: B texts, T packed positions, K registers, D register width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from crocodil.attention import Segments
from crocodil.demasker.guided import GuidedDemasker
from crocodil.demasker.loss import Losses
from crocodil.demasker.masking import MaskedTexts, MaskingConfig, draw_level, mask
from crocodil.registers.encoder import RegisterEncoder
from crocodil.registers.geometry import NestedDropout, RegisterNoise, draw_k, noise_std, normalise
from crocodil.text.vocabulary import Vocabulary
from crocodil.text.windows import Sample

Draw = Callable[[int, str], torch.Generator]
"""(sample id, purpose) → generator: every draw belongs to its sample, whatever batch or rank it lands in."""


@dataclass(frozen=True)
class Corruption:
    """What training does to a text before it asks for it back."""

    masking: MaskingConfig = field(default_factory=MaskingConfig)
    nested_dropout: NestedDropout = field(default_factory=NestedDropout)
    register_noise: RegisterNoise = field(default_factory=RegisterNoise)


@dataclass(frozen=True)
class Batch:
    """One packed micro-batch of B texts."""

    texts: MaskedTexts
    """Windows `BOS text EOS tail`, partly masked: the demasker's side."""
    clean_T: torch.Tensor
    """The same texts without BOS, EOS and tail: the encoder's side."""
    clean: Segments
    k: tuple[int, ...]
    """Registers each text exposes."""
    noise_kD: torch.Tensor | None
    """What is added to the registers, (Σ k, D), or None where they stay exact."""

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            self.texts.to(device),
            self.clean_T.to(device),
            Segments.of(self.clean.lengths, device),
            self.k,
            None if self.noise_kD is None else self.noise_kD.to(device),
        )


def corrupt(
    samples: Sequence[Sample],
    vocabulary: Vocabulary,
    draw: Draw,
    corruption: Corruption,
    K: int,
    D: int,
) -> Batch:
    """Algorithm 1, lines 2, 3 and 5, for a batch: t, mask, number of registers, register noise.

    With K = 0 (the unguided demasker) no register is exposed and nothing is drawn for them.
    """
    windows, levels, masks, ks, noises = [], [], [], [], []
    std = noise_std(corruption.register_noise.cosine)
    for sample in samples:
        window = sample.window(vocabulary)
        t = draw_level(draw(sample.id, "t"), corruption.masking)
        k = draw_k(K, corruption.nested_dropout, draw(sample.id, "k")) if K else 0
        windows.append(torch.tensor(window))
        levels.append(t)
        masks.append(mask(len(window), t, draw(sample.id, "mask")))
        ks.append(k)
        if k and std:
            noises.append(std * torch.randn(k, D, generator=draw(sample.id, "noise")))
    return batch_of(
        samples, windows, masks, levels, ks, torch.cat(noises) if noises else None, vocabulary.mask_id
    )


def at_level(
    samples: Sequence[Sample],
    vocabulary: Vocabulary,
    draw: Draw,
    t: float,
    k: int,
    D: int,
    sigma: float = 0.0,
) -> Batch:
    """A batch for evaluation: every text masked at level t and exposing k registers, disturbed by N(0, σ²)."""
    windows = [torch.tensor(sample.window(vocabulary)) for sample in samples]
    masks = [mask(len(w), t, draw(s.id, "mask")) for s, w in zip(samples, windows, strict=True)]
    noise = [sigma * torch.randn(k, D, generator=draw(s.id, "noise")) for s in samples] if sigma and k else []
    levels, ks = [t] * len(samples), [k] * len(samples)
    return batch_of(
        samples, windows, masks, levels, ks, torch.cat(noise) if noise else None, vocabulary.mask_id
    )


def batch_of(
    samples: Sequence[Sample],
    windows: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor],
    levels: Sequence[float],
    k: Sequence[int],
    noise_kD: torch.Tensor | None,
    mask_id: int,
) -> Batch:
    """Lay drawn texts end to end."""
    texts = MaskedTexts(
        torch.cat(list(windows)),
        torch.cat(list(masks)),
        torch.tensor(levels, dtype=torch.float32),
        Segments.of([len(w) for w in windows]),
        mask_id,
    )
    clean_T = torch.tensor([i for s in samples for i in s.text_ids], dtype=torch.long)
    return Batch(texts, clean_T, Segments.of([len(s.text_ids) for s in samples]), tuple(k), noise_kD)


class Autoencoder(nn.Module):
    """Encoder and guided demasker, trained jointly (Eq. 5)."""

    def __init__(
        self, encoder: RegisterEncoder, demasker: GuidedDemasker, noise: RegisterNoise | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.demasker = demasker
        self.noise = noise or RegisterNoise()
        # what an engine that shards layer by layer (FSDP) keeps together
        self._no_split_modules = ["Qwen3DecoderLayer", *demasker.llada.units]

    def grow(self, K: int) -> None:
        """Encode and demask with K registers instead of fewer (see `RegisterEncoder.grow`); END moves behind them."""
        self.encoder.grow(K)
        self.demasker.config = replace(self.demasker.config, K=K)

    def exposed(self, batch: Batch) -> torch.Tensor:
        """Algorithm 1, lines 4 and 5: the registers that the texts of a batch show, disturbed; (Σ k, D)."""
        # 1. Encode. A text that exposes nothing is encoded too (k = 1), so that no engine waits for a gradient.
        z = self.encoder(batch.clean_T, batch.clean, [max(k, 1) for k in batch.k])
        if 0 in batch.k:
            shown = [torch.full((max(k, 1),), k > 0) for k in batch.k]
            z = z[torch.cat(shown).to(z.device)]
        # 2. Disturb.
        if batch.noise_kD is not None:
            z = z + batch.noise_kD.to(z.dtype)
            if self.noise.renormalise:
                z = normalise(z)
        return z

    def forward(self, batch: Batch) -> Losses:
        """Algorithm 1, lines 4 to 6: encode, disturb the registers, score the masked tokens."""
        return self.demasker(batch.texts, self.exposed(batch), batch.k)
