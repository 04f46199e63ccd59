"""A training step as the recipes take it: an engine over a joint model of random weights, and one packed row for it.

accelerate and transformers are imported here; what measures memory without them does not import this module.

B texts, T packed positions, K registers, D register width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from crocodil.autoencoder import Autoencoder, Batch, Corruption, corrupt
from crocodil.demasker.guided import GuidedDemasker
from crocodil.demasker.loss import Losses, Score, per_text, row_weights
from crocodil.demasker.masking import MaskedTexts
from crocodil.metrics.cost import demasker_flops, encoder_flops
from crocodil.text.vocabulary import Vocabulary, train_bpe
from crocodil.text.windows import FRAME, Sample
from crocodil.training.engine import Engine
from crocodil.training.optimisation import OptimiserConfig
from crocodil.training.randomness import generator
from recipes.benchmarks.networks import guided_demasker, register_encoder
from recipes.benchmarks.sizes import Network, TrainingSizes

SEED = 7
"""Under it the first few texts are masked as texts are on average, to 63 %, and show 1 to 8 registers."""


@dataclass(frozen=True)
class Training:
    """An engine and what it trains on, the same at every step."""

    engine: Engine
    batch: Any
    texts: int

    def step(self) -> None:
        """Forward, backward, clip, AdamW."""
        self.backward()
        self.engine.update()

    def backward(self) -> Losses:
        """Forward and backward; the gradients stay."""
        (losses,) = self.engine.accumulate([self.batch], self.texts, 0)
        return losses

    def gradients(self) -> tuple[Losses, dict[str, torch.Tensor]]:
        """Losses and gradients by parameter name; none stay."""
        losses = self.backward()
        found = {
            name: parameter.grad.clone()
            for name, parameter in self.engine.module.named_parameters()
            if parameter.grad is not None
        }
        self.engine.optimiser.zero_grad()
        return losses, found


class EveryPosition(GuidedDemasker):
    """The same demasker with the common loss: logits at every position, masked afterwards."""

    def forward(self, texts: MaskedTexts, registers_kD: torch.Tensor, k: Sequence[int]) -> Losses:
        logits_TV = self.llada.head(self.hidden(texts.visible_T, texts.segments, registers_kD, k))
        is_masked, lengths = texts.is_masked_T, texts.segments.lengths
        entropy_R = F.cross_entropy(logits_TV, texts.ids_T, reduction="none")[is_masked]
        correct_R = (logits_TV.argmax(-1) == texts.ids_T)[is_masked]
        total = (entropy_R * row_weights(is_masked, lengths, texts.t_B)).sum()
        return per_text(Score(total, entropy_R.detach(), correct_R), is_masked, lengths)


class Alone(nn.Module):
    """A guided demasker to whom registers are given: encoder and its share of the step left out."""

    def __init__(self, demasker: GuidedDemasker) -> None:
        super().__init__()
        self.demasker = demasker

    def forward(self, given: Given) -> Losses:
        return self.demasker(given.texts, given.registers_kD, given.k)


@dataclass(frozen=True)
class Given:
    """Masked texts and their registers."""

    texts: MaskedTexts
    registers_kD: torch.Tensor
    k: tuple[int, ...]

    def to(self, device: torch.device | str) -> Given:
        return Given(self.texts.to(device), self.registers_kD.to(device), self.k)


def autoencoder(sizes: TrainingSizes, every_position: bool = False) -> Autoencoder:
    """Encoder and demasker, the same at every call, on the CPU."""
    encoder = register_encoder(_vocabulary(sizes), sizes.registers, sizes.encoder_width, sizes.encoder_layers)
    demasker = guided_demasker(sizes.network, sizes.registers, sizes.length, "cpu", sizes.encoder_width)
    if every_position:
        other = EveryPosition(demasker.llada, demasker.config)
        other.load_state_dict(demasker.state_dict())
        demasker = other
    return Autoencoder(encoder, demasker).train()


def batch_of(sizes: TrainingSizes) -> Batch:
    """Windows of random tokens, corrupted as Algorithm 1 says: levels, masks, registers and noise by sample."""
    shape = (sizes.texts, sizes.length - FRAME)
    ids = torch.randint(sizes.network.vocab_size - 1, shape, generator=torch.Generator().manual_seed(0))
    samples = [Sample(index, tuple(text), sizes.length) for index, text in enumerate(ids.tolist())]
    return corrupt(
        samples,
        _vocabulary(sizes),
        partial(generator, SEED, 0),
        Corruption(),
        K=sizes.registers,
        D=sizes.encoder_width,
    )


def training(
    sizes: TrainingSizes,
    device: torch.device | str,
    trainable: Callable[[str], bool] = lambda name: True,
    every_position: bool = False,
) -> Training:
    """The joint step, or one that trains only some parameters or takes the common loss."""
    return _engine(autoencoder(sizes, every_position), batch_of(sizes), sizes.texts, device, trainable)


def demasker_training(sizes: TrainingSizes, device: torch.device | str) -> Training:
    """The demasker alone, under random registers."""
    batch = batch_of(sizes)
    registers = torch.randn(sum(batch.k), sizes.encoder_width, generator=torch.Generator().manual_seed(0))
    return _engine(
        Alone(autoencoder(sizes).demasker), Given(batch.texts, registers, batch.k), sizes.texts, device
    )


def _engine(
    module: nn.Module,
    batch: Any,
    texts: int,
    device: torch.device | str,
    trainable: Callable[[str], bool] = lambda name: True,
) -> Training:
    device = torch.device(device)
    if device.type == "cuda" and device.index is not None:  # accelerate takes the current one
        torch.cuda.set_device(device)
    ranks = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    return Training(Engine(ranks, module, OptimiserConfig(), 1, trainable), batch.to(device), texts)


def _vocabulary(sizes: TrainingSizes) -> Vocabulary:
    """Special ids and a table of the network's size; nothing is tokenised."""
    return Vocabulary(train_bpe([], 259).tokenizer, size=sizes.network.vocab_size)


def sizes_of(values: dict[str, Any]) -> TrainingSizes:
    """Out of what JSON carries to a process that measures memory."""
    return TrainingSizes(**{**values, "network": Network(**values["network"])})


def demasker_forward(demasker: GuidedDemasker, batch: Batch) -> float:
    """Operations of one forward of the demasker."""
    prefixes = [k + 2 if k else 0 for k in batch.k]
    return demasker_flops(
        demasker.llada.config, batch.texts.segments.lengths, prefixes, int(batch.texts.is_masked_T.sum())
    )


def encoder_forward(module: Autoencoder, batch: Batch) -> float:
    """Operations of one forward of the encoder."""
    return encoder_flops(module.encoder.backbone.config, batch.clean.lengths, batch.k)
