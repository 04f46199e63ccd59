"""Corridor 3: a demasker with a latent at every masked token, alone or behind registers (CADD, and CADD with CRoCoDiL).

The configuration of `recipes/train_cadd.py` and the module that is built of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn

from crocodil import joint
from crocodil.autoencoder import Autoencoder, Batch, Corruption
from crocodil.bundle import open_augmented, resolve
from crocodil.cadd.demasker import AugmentedDemasker
from crocodil.cadd.latents import LatentConfig, TokenLatents
from crocodil.cadd.loss import Objective
from crocodil.demasker.guided import GuidedDemasker
from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.demasker.loss import Losses
from crocodil.demasker.masking import MaskingConfig
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.errors import CrocodilError
from crocodil.fresh import DemaskerShape, fresh_demasker
from crocodil.images.data import ImagesConfig
from crocodil.images.unet import UNetShape
from crocodil.text.characters import character_vocabulary
from crocodil.text.data import DataConfig, Texts
from crocodil.text.vocabulary import Vocabulary, train_bpe
from crocodil.training.limits import check_rows, require_at_least
from crocodil.training.loop import LoopConfig


@dataclass(frozen=True)
class CaddRecipe(LoopConfig):
    """Everything that says what is trained. Where it runs is said in launch/."""

    run: str = "runs/cadd"
    """Folder of checkpoints, metrics and the export."""
    init: str | None = None
    """A trained demasker to go on from (weights only): an export of train_base.py, train_demasker.py or this recipe, a
    LLaDA checkpoint (folder or hub id), `bundled`. Without it a demasker of `shape` is trained from scratch."""
    registers: bool = False
    """Keep the encoder and the registers of the model at `init`: the demasker sees both, registers and latents."""
    train_encoder: bool = False
    """Of that encoder. Frozen, its denoisers go on fitting."""
    anneal_steps: int = 0
    """Steps in which the attention of a causal model at `init` is opened (CADD §5.3); 0 is open from the first."""
    tokenizer: str | None = None
    """A byte-level BPE for a demasker from scratch, folder or hub id, special tokens that it lacks added. Without it one
    is trained on the texts, or has 27 letters with data.letters."""
    shape: DemaskerShape = field(default_factory=DemaskerShape)
    images: ImagesConfig | None = None
    """Train on images instead of texts: `images={source: digits}` is a section of its own fields. `unet` is then the
    network; what is said of texts, registers and `shape` is not looked at."""
    unet: UNetShape = field(default_factory=UNetShape)
    latents: LatentConfig | None = field(default_factory=LatentConfig)
    """null trains plain masked diffusion on the same path: the baseline. A model at `init` that has latents keeps its
    own: what is asked for otherwise is refused."""
    objective: Objective = field(default_factory=Objective)
    data: DataConfig = field(default_factory=DataConfig)
    corruption: Corruption = field(default_factory=lambda: Corruption(masking=MaskingConfig(all_mask=0.0)))
    """Masking, and of registers nested dropout and noise."""
    row_tokens: int = 16384
    """Window tokens of a micro-batch: whole texts are packed into rows of at most this many."""
    recompute: bool = False
    """Activation checkpointing, block by block."""
    compile: bool = False
    """torch.compile of the blocks; the first steps are slow."""
    prefetch: bool = True
    """Prepare the texts of the next step while this one computes."""
    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    sample_every: int = 0
    """Steps between new texts, written to samples.jsonl; 0 for never."""
    samples: int = 4
    """Texts that are written."""
    sample_nfe: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images is None:
            check_rows(self)
        else:
            require_at_least(1, self, "row_tokens")
        require_at_least(0, self, "sample_every", "anneal_steps")
        require_at_least(1, self, "samples", "sample_nfe")
        if self.images is not None and (self.init is not None or self.registers):
            raise CrocodilError("init and registers are for texts: leave them out with images")
        if self.registers and self.init is None:
            raise CrocodilError("registers are those of the model at init: name one, as init=bundled")
        if self.train_encoder and not self.registers:
            raise CrocodilError("train_encoder wants registers=true: there is no encoder otherwise")
        if self.latents is None and self.objective.squared is not None:
            raise CrocodilError("objective.squared compares latents: it wants latents, not null")

    @property
    def keeps_encoder(self) -> bool:
        """Whether there is an encoder that is not trained, and so in no checkpoint."""
        return self.registers and not self.train_encoder


class Augmented(nn.Module):
    """What is trained: a demasker with latents, and the autoencoder whose registers it sees, if any."""

    def __init__(self, demasker: AugmentedDemasker, autoencoder: Autoencoder | None = None) -> None:
        super().__init__()
        self.demasker = demasker
        # its demasker is the host of ours, so only the encoder is new here
        self.encoder = None if autoencoder is None else autoencoder.encoder
        self._autoencoder = [autoencoder]  # in a list, so that its parameters are not named twice
        self._no_split_modules = [*demasker.llada.units] + (["Qwen3DecoderLayer"] if autoencoder else [])

    @property
    def autoencoder(self) -> Autoencoder | None:
        return self._autoencoder[0]

    def forward(self, batch: Batch) -> Losses:
        """Eq. 20 of a packed batch, under registers where there are any (CRoCoDiL Alg. 1, lines 4 and 5)."""
        if self.autoencoder is None:
            return self.demasker(batch.texts)
        return self.demasker(batch.texts, self.autoencoder.exposed(batch), batch.k)


def build(config: CaddRecipe, texts: Texts, mapped: bool = False) -> tuple[Augmented, Vocabulary]:
    """The module, from weights at `init` or from nothing.

    Args:
        texts: on which a new vocabulary is trained.
        mapped: see `load_llada`.
    """
    host: UnguidedDemasker | GuidedDemasker
    longest = max(config.data.lengths)
    if config.init is None:
        vocabulary = _vocabulary(config, texts)
        host = UnguidedDemasker(fresh_demasker(config.shape, vocabulary, longest, config.seed))
        return Augmented(AugmentedDemasker(host, _latents(config, host), config.objective)), vocabulary
    found = open_augmented(
        config.init, None if mapped else torch.float32, mapped=mapped, registers=config.registers
    )
    if config.registers and found.autoencoder is None:
        raise CrocodilError(
            f"init: {config.init} has no registers; train_demasker.py makes a model that has, or leave out registers"
        )
    host = found.demasker.host
    host.llada.allow(longest)
    latents = found.demasker.latents
    if config.latents is not None and latents is not None:
        _refuse_others(config.init, config.latents, latents.settled)
    if config.latents is None or latents is None:
        latents = _latents(config, host)
    demasker = AugmentedDemasker(host, latents, config.objective)
    return Augmented(demasker, found.autoencoder), found.vocabulary


def _vocabulary(config: CaddRecipe, texts: Texts) -> Vocabulary:
    """Of a demasker from scratch."""
    if config.tokenizer is not None:
        return Vocabulary.load(resolve(config.tokenizer), complete=True)
    if config.data.letters:
        return character_vocabulary()
    return train_bpe(texts.sample(), config.shape.vocabulary)


def _refuse_others(init: str, asked: LatentConfig, found: LatentConfig) -> None:
    """What is asked of latents that a model brings along must be what they are, or be left out."""
    for one in fields(LatentConfig):
        wanted, is_there = getattr(asked, one.name), getattr(found, one.name)
        if wanted not in (one.default, is_there):
            raise CrocodilError(
                f"latents.{one.name} is {wanted}, and {init} has latents of its own, with {is_there}: leave it out, or "
                "take a model without latents as init"
            )


def _latents(config: CaddRecipe, host: UnguidedDemasker | GuidedDemasker) -> TokenLatents | None:
    """New latents over the host's table."""
    if config.latents is None:
        return None
    sizes, table_VE = host.llada.config, host.llada.model.transformer.wte.weight
    return TokenLatents(config.latents, sizes.vocab_size, sizes.d_model).initialise(table_VE)


def origin(module: Augmented, vocabulary: Vocabulary, frozen: bool) -> dict[str, Any]:
    """What decides what a checkpoint's weights compute, and is not in them: what the model at `init` brought along.

    Args:
        frozen: the encoder is not trained, and so in no checkpoint.
    """
    demasker, autoencoder = module.demasker, module.autoencoder
    if autoencoder is None:
        found = joint.origin_of_demasker(demasker.llada, vocabulary)
    else:
        found = joint.origin(autoencoder, vocabulary)
        if frozen:
            found["encoder"] = autoencoder.encoder.fingerprint(vocabulary.fingerprint)
    if demasker.latents is not None:
        found |= {f"latents.{name}": value for name, value in asdict(demasker.latents.settled).items()}
    return found


def blueprint(config: CaddRecipe, llada: LLaDAConfig) -> Augmented:
    """The module of `build` for texts without any memory, on the meta device, for a demasker of this config."""
    with torch.device("meta"):
        host = UnguidedDemasker(LLaDA(llada))
        latents = None
        if config.latents is not None:
            latents = TokenLatents(config.latents, llada.vocab_size, llada.d_model)
    return Augmented(AugmentedDemasker(host, latents, config.objective))
