"""Which networks a configuration trains, and every parameter of them, without any memory."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import Qwen3Config

from crocodil.adapters import LoraSettings, check_rank, trainable
from crocodil.autoencoder import Autoencoder
from crocodil.bundle import BUNDLED, read_index
from crocodil.demasker.llada import LLaDAConfig
from crocodil.errors import CrocodilError
from crocodil.joint import DemaskerRecipe, blueprint, family
from crocodil.plan.released import DEMASKERS, ENCODERS, qwen3_embedding
from crocodil.shards import read_json

FAMILIES = ("guide", "llada")
"""In the order in which they begin to train: one a stage."""
_MAP = re.compile(r"(demasker|encoder)\..*\.(?:blocks|layers)\.\d+\.(?:self_attn\.|mlp\.)?(\w+)\.weight")


@dataclass(frozen=True)
class Weight:
    """A parameter: its name, its shape, and the first stage that trains it (0 or 1; None for never)."""

    name: str
    shape: tuple[int, ...]
    stage: int | None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_adapter(self) -> bool:
        return ".lora_" in self.name

    def trains(self, stage: int) -> bool:
        return self.stage is not None and self.stage <= stage


@dataclass(frozen=True)
class Networks:
    """What a configuration trains."""

    config: DemaskerRecipe
    """With what a model at `start` says in its place."""
    llada: LLaDAConfig
    encoder: Qwen3Config
    weights: tuple[Weight, ...]
    own_rows: int | None = None
    """Of the table that a released encoder came with, before it was re-embedded."""

    @property
    def own_table(self) -> int | None:
        """Parameters of the encoder's backbone with that table."""
        if self.own_rows is None:
            return None
        rows = self.own_rows - self.encoder.vocab_size
        return self.parameters("encoder.backbone.") + rows * self.encoder.hidden_size

    def parameters(self, prefix: str = "") -> int:
        """Parameters whose names begin so, without adapters."""
        return sum(w.numel for w in self.weights if w.name.startswith(prefix) and not w.is_adapter)

    @property
    def adapters(self) -> int:
        """Parameters of adapters."""
        return sum(w.numel for w in self.weights if w.is_adapter)

    def trained(self, stage: int) -> list[Weight]:
        """What a stage trains."""
        return [w for w in self.weights if w.trains(stage)]


def networks(config: DemaskerRecipe) -> Networks:
    """Networks of a configuration: of folders' config.json, of the released ones by name, or of `encoder_shape`.

    Raises:
        CrocodilError: the configuration names a model that is neither here nor known, or asks of it what the training
            refuses.
    """
    own_rows = None
    if config.start is not None:
        config, llada, encoder = _of_model(config)
    else:
        llada = _llada(config.demasker)
        encoder, own_rows = _encoder(config, llada.vocab_size)
    weights = weights_of(blueprint(config, llada, encoder), config.lora)
    return Networks(config, llada, encoder, weights, own_rows)


def weights_of(module: Autoencoder, lora: LoraSettings | None) -> tuple[Weight, ...]:
    """Every parameter of a bare module, and the adapters that it would get."""
    found, adapted = [], {}
    for name, parameter in module.named_parameters():
        stage = FAMILIES.index(family(name))
        if lora is None:
            found.append(Weight(name, tuple(parameter.shape), stage))
            continue
        found.append(Weight(name, tuple(parameter.shape), stage if trainable(name) else None))
        match = _MAP.fullmatch(name)
        if match and match[2] in getattr(lora, match[1]):
            wide, deep = parameter.shape
            at = name.removesuffix(".weight")
            adapted[at] = (wide, deep)
            found.append(Weight(f"{at}.lora_A.weight", (lora.rank, deep), stage))
            found.append(Weight(f"{at}.lora_B.weight", (wide, lora.rank), stage))
    if lora is not None:
        check_rank(lora.rank, adapted)
    return tuple(found)


def _of_model(config: DemaskerRecipe) -> tuple[DemaskerRecipe, LLaDAConfig, Qwen3Config]:
    assert config.start is not None
    folder = BUNDLED if config.start in ("bundled", "nano") else _folder(config.start, "start", ())
    index = read_index(folder)
    if index.kind != "autoencoder":
        raise CrocodilError(
            f"start: {config.start} holds no autoencoder ({index.kind}); give one, or demasker="
        )
    if config.grow_to is not None and (config.grow_to <= index.K or index.K == 1):
        raise CrocodilError(
            f"grow_to: an encoder of {index.K} registers does not grow to {config.grow_to}; give a larger power of two"
        )
    config = replace(
        config,
        K=config.grow_to or index.K,
        layout=index.layout,  # type: ignore[arg-type]
        local_pairs=index.local_pairs,
        scale=index.scale,  # type: ignore[arg-type]
        suffix_from=index.suffix_from,
    )
    return config, _read_llada(folder / "demasker"), _read_encoder(folder / "encoder")


def _llada(name: str) -> LLaDAConfig:
    if (known := DEMASKERS.get(name.partition("@")[0])) and not Path(name).exists():
        return known
    folder = _folder(name, "demasker", tuple(DEMASKERS))
    return _read_llada(folder / "demasker" if (folder / "demasker").is_dir() else folder)


def _encoder(config: DemaskerRecipe, rows: int) -> tuple[Qwen3Config, int | None]:
    """With a row for every id of the demasker, as the table is re-embedded; and the rows that a released one has."""
    if config.encoder is None:
        shape = config.encoder_shape
        return Qwen3Config(
            vocab_size=rows,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            head_dim=shape.hidden_size // shape.num_attention_heads,
            intermediate_size=shape.intermediate_size,
        ), None
    if config.encoder.partition("@")[0] in ENCODERS and not Path(config.encoder).exists():
        return qwen3_embedding(rows), qwen3_embedding().vocab_size
    found = _read_encoder(_folder(config.encoder, "encoder", ENCODERS))
    own_rows, found.vocab_size = found.vocab_size, rows
    return found, own_rows


def _folder(name: str, field: str, known: Sequence[str]) -> Path:
    folder = Path(name)
    if not folder.is_dir():
        others = f"; without a file it knows {', '.join(known)}" if known else ""
        raise CrocodilError(
            f"{field}: {name} is no folder here, and a plan downloads nothing; give a folder with its config.json{others}"
        )
    return folder


def _read_llada(folder: Path) -> LLaDAConfig:
    where = folder / "config.json"
    return LLaDAConfig.from_dict(read_json(where), str(where))


def _read_encoder(folder: Path) -> Qwen3Config:
    where = folder / "config.json"
    values = read_json(where)
    if values.get("model_type") != "qwen3":
        raise CrocodilError(
            f"{where}: model_type is {values.get('model_type')!r}; an encoder is a Qwen3 (qwen3)"
        )
    return Qwen3Config(**values)
