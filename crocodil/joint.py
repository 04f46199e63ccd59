"""The joint model of `recipes/train_demasker.py`: its configuration, and the module that is built of it.

It stands here and not in the recipe, because `crocodil plan` and `crocodil export` read the same configuration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from crocodil.adapters import Base, LoraSettings, require_base
from crocodil.autoencoder import Autoencoder, Corruption
from crocodil.bundle import SHAPE, load_autoencoder, open_demasker, resolve
from crocodil.demasker.guided import GuideConfig, GuidedDemasker, Layout
from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.errors import CrocodilError, require_whole
from crocodil.registers.encoder import RegisterEncoder, Scale, fresh_encoder
from crocodil.registers.geometry import check_count
from crocodil.registers.released import open_encoder
from crocodil.text.data import DataConfig
from crocodil.text.vocabulary import Vocabulary
from crocodil.training.limits import check_rows, require_at_least
from crocodil.training.loop import LoopConfig

_NO_MATTER = ("max_sequence_length", "pad_token_id", "carried")
"""Settings of LLaDA that change nothing of what it computes."""


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder that is trained from scratch; a Qwen3 otherwise."""

    hidden_size: int = 192
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    intermediate_size: int = 576
    rope_theta: float = 1000.0

    def __post_init__(self) -> None:
        require_at_least(1, self, *(f.name for f in fields(self)), section="encoder_shape.")
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        # rotary positions turn pairs of a head's channels
        if self.hidden_size % (2 * heads) or heads % groups:
            raise CrocodilError(
                f"encoder_shape: hidden_size {self.hidden_size} must be a multiple of 2 · num_attention_heads {heads}, "
                f"and that of num_key_value_heads {groups}"
            )


@dataclass(frozen=True)
class DemaskerRecipe(LoopConfig):
    """Everything that says what is trained. Where it runs is said in launch/."""

    run: str = "runs/demasker"
    """Folder of checkpoints, metrics and the export."""
    demasker: str = "runs/base/export"
    """The unguided demasker: an export of train_base.py, or a LLaDA checkpoint (folder or hub id) with its tokenizer."""
    encoder: str | None = None
    """A Qwen3-Embedding folder or hub id; its table is re-embedded for the demasker's vocabulary. Without it an
    encoder of `encoder_shape` is trained from scratch."""
    start: str | None = None
    """A trained model to go on from (weights only), `bundled` for the shipped one. It replaces the two above and the
    fields from `encoder_shape` to `suffix_from` below: those are ignored, and training.json has the model's own."""
    grow_to: int | None = None
    """More registers than the model at `start` has, a power of two."""
    encoder_shape: EncoderShape = field(default_factory=EncoderShape)
    K: int = 128
    """Registers, a power of two."""
    layout: Layout = "anchored"
    local_pairs: tuple[int, ...] | None = None
    scale: Scale = "sqrt_d"
    suffix_from: int | None = None
    """RoPE position of the second register whatever the text's length, so that registers look back over the same
    distances; the longest window less 1 is a good one. None numbers on after the text, as Qwen3 does."""
    lora: LoraSettings | None = None
    """Train low-rank adapters in place of the matrices of encoder and demasker; suffix embeddings, START, END and P train
    whole. `lora={}` takes the defaults, `lora.rank=16` sets one of its fields; left out, everything trains."""
    data: DataConfig = field(default_factory=DataConfig)
    corruption: Corruption = field(default_factory=Corruption)
    noise_from: int = 0
    """Registers are exact before this step: a small model finds them sooner (docs/experiments.md). 0 is the paper."""
    encoder_steps: int = 4000
    """Optimiser steps of the first stage, in which LLaDA's own weights are frozen."""
    steps: int = 70_312
    """Optimiser steps of all stages; 3 epochs of 12 M programs at 512 a step."""
    row_tokens: int = 16384
    """Window tokens of a micro-batch: whole texts are packed into rows of at most this many."""
    recompute: bool = False
    """Activation checkpointing, block by block."""
    compile: bool = False
    """torch.compile of the blocks; the first steps of each stage are slow."""
    prefetch: bool = True
    """Prepare the texts of the next step while this one computes."""
    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    sample_every: int = 0
    """Steps between reconstructions of held-out texts, written to samples.jsonl; 0 for never."""
    samples: int = 4
    """Texts that are reconstructed."""
    sample_nfe: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rows(self)
        require_at_least(0, self, "noise_from", "encoder_steps", "sample_every")
        require_at_least(1, self, "samples", "sample_nfe")
        check_count(self.K)
        if self.suffix_from is not None:
            require_whole("suffix_from", self.suffix_from, 1)
        if self.grow_to is not None:
            check_count(self.grow_to)
            if self.start is None:
                raise CrocodilError(
                    "grow_to grows the model at start; a new one has as many registers as K says"
                )
        if self.lora is not None:
            require_base(self.start, self.demasker, self.encoder)


def family(name: str) -> str:
    """LLaDA's own weights begin to train in the second stage; encoder, START, END and P in the first."""
    return "llada" if name.startswith("demasker.llada.") else "guide"


def build(config: DemaskerRecipe, mapped: bool = False) -> tuple[Autoencoder, Vocabulary]:
    """Encoder and demasker, released, trained before, or new.

    Args:
        mapped: leave LLaDA's released weights in their files and their dtype: an engine that takes them apart reads only
            its pieces. Otherwise everything is in memory, in float32.
    """
    if config.start is not None:
        module, vocabulary = load_autoencoder(config.start, noise=config.corruption.register_noise)
        module.demasker.llada.allow(max(config.data.lengths))
        if config.grow_to is not None:
            module.grow(config.grow_to)
        return module, vocabulary
    llada, vocabulary = open_demasker(config.demasker, None if mapped else torch.float32, mapped)
    llada.allow(max(config.data.lengths))
    if config.encoder is not None:
        encoder = open_encoder(resolve(config.encoder), vocabulary, config.K, config.scale)
    else:
        encoder = fresh_encoder(
            vocabulary.size, config.K, vocabulary.eos_id, config.scale, **asdict(config.encoder_shape)
        )
    encoder.suffix_from = config.suffix_from
    guide = GuideConfig(config.K, encoder.D, config.layout, config.local_pairs)
    return Autoencoder(
        encoder, GuidedDemasker(llada, guide).initialise(), config.corruption.register_noise
    ), vocabulary


def as_built(config: DemaskerRecipe, module: Autoencoder) -> dict[str, Any]:
    """The configuration for the record: the model's own values in place of what a model at `start` or `encoder`
    came with."""
    encoder, demasker = module.encoder, module.demasker
    backbone = encoder.backbone.config
    sizes = {f.name: getattr(backbone, f.name, None) for f in fields(EncoderShape)}
    record = asdict(config) | {
        "encoder_shape": sizes | {"rope_theta": backbone.rope_parameters["rope_theta"]},
        "K": encoder.K,
        "layout": demasker.config.layout,
        "local_pairs": demasker.local_pairs,
        "scale": encoder.scale,
        "suffix_from": encoder.suffix_from,
    }
    return record | ({"demasker": None, "encoder": None} if config.start is not None else {})


def origin(module: Autoencoder, vocabulary: Vocabulary, base: Base | None = None) -> dict[str, Any]:
    """What decides what a checkpoint's weights compute, and is not in them: a run that goes on, and an export of it, must
    find the same again.

    Args:
        base: what lies under adapters, where there are any.
    """
    encoder, demasker = module.encoder, module.demasker
    found = origin_of_demasker(demasker.llada, vocabulary) | {
        "K": encoder.K,
        "layout": demasker.config.layout,
        "local_pairs": list(demasker.local_pairs),
        "scale": encoder.scale,
        "suffix_from": encoder.suffix_from,
    }
    sizes = encoder.backbone.config
    found |= {f"encoder.{name}": getattr(sizes, name) for name in SHAPE if name != "rope_parameters"}
    found["encoder.rope_theta"] = sizes.rope_parameters["rope_theta"]
    return found | ({} if base is None else {"base": base.fingerprint})


def origin_of_demasker(llada: LLaDA, vocabulary: Vocabulary) -> dict[str, Any]:
    """The same of a demasker alone."""
    sizes = {f.name: getattr(llada.config, f.name) for f in fields(LLaDAConfig) if f.name not in _NO_MATTER}
    return {"vocabulary": vocabulary.fingerprint} | {f"demasker.{name}": size for name, size in sizes.items()}


def blueprint(config: DemaskerRecipe, llada: LLaDAConfig, encoder: Qwen3Config) -> Autoencoder:
    """The module of `build` without any memory, on the meta device, for networks of these configs.

    Args:
        encoder: with as many rows as the demasker's vocabulary has: the table is re-embedded.
    """
    with torch.device("meta"):
        registers = RegisterEncoder(
            Qwen3Model(encoder), config.K, llada.eos_token_id, config.scale, config.suffix_from
        )
        guide = GuideConfig(config.K, registers.D, config.layout, config.local_pairs)
        demasker = GuidedDemasker(LLaDA(llada), guide)
    return Autoencoder(registers, demasker, config.corruption.register_noise)


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """torch.compile blocks in place, for any length; attention itself stays as it is (its kernels are fused)."""
    for block in blocks:
        block.compile(dynamic=True)
