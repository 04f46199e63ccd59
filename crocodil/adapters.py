"""LoRA adapters of demasker and encoder (arXiv 2106.09685): put in for training, saved beside what else was trained,
merged when a model is loaded.

    config.json                     what the adapters are, and which weights they were trained on
    demasker/adapter_config.json    PEFT's own layout, as PEFT reads it; adapter_model.safetensors beside it
    demasker/guide.safetensors      START, END and P, trained in full
    encoder/adapter_config.json     the same for the Qwen3
    encoder/registers.safetensors   suffix embeddings, and the norm where there is one, trained in full
    README.md                       card

PEFT trains and writes; a merge is one product of matrices, so loading does without it. Only safetensors and JSON are
read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen3Model

from crocodil.autoencoder import Autoencoder
from crocodil.bundle import (
    INDEX,
    Index,
    assemble,
    check_index,
    check_values,
    index_of,
    open_backbones,
    open_demasker,
    pinned,
    read_index,
    resolve,
    save_registers,
    write_json,
)
from crocodil.demasker.llada import LLaDA
from crocodil.errors import CrocodilError, require_number, require_whole
from crocodil.registers.geometry import RegisterNoise
from crocodil.shards import read_json, read_matching, write_file
from crocodil.text.rows import optional
from crocodil.text.vocabulary import Vocabulary
from crocodil.training.limits import LEAST_WINDOW

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT's files put before the name of a module."""
ADAPTER = "default"
"""What PEFT calls an adapter that nobody has named."""
PARTS = ("demasker", "encoder")
# Maps by their names inside a block, never by their names alone: LLaDA's vocabulary head is called ff_out too.
_BLOCKS = {"demasker": r"model\.transformer\.blocks\.\d+\.", "encoder": r"layers\.\d+\.(?:self_attn|mlp)\."}
_MAPS = {
    "demasker": ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"),
    "encoder": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
# Settings of PEFT's file that change nothing here, or are read; whatever else is switched on is another method.
_KNOWN = {
    "r", "lora_alpha", "target_modules", "peft_type", "bias", "init_lora_weights", "lora_dropout", "inference_mode",
    "base_model_name_or_path", "revision", "peft_version", "task_type", "auto_mapping", "megatron_core",
    "qalora_group_size",
}  # fmt: skip
_WHOLE = re.compile(r"demasker\.(boundaries|projection\.weight)|encoder\.(suffix|norm\.(weight|bias))")
_MOST_ALPHA = torch.finfo(torch.float32).max
_MOST_WINDOW = 1 << 20
"""Tokens; a folder that says more is damaged."""
_THREADS = 4


@dataclass(frozen=True)
class LoraSettings:
    """Which linear maps learn a product of two thin matrices, and how thin."""

    rank: int = 16
    alpha: float = 32.0
    """The product counts alpha / rank."""
    dropout: float = 0.0
    """Of what goes into the adapters."""
    demasker: tuple[str, ...] = _MAPS["demasker"]
    """Maps inside LLaDA's blocks, none for `[]`. The vocabulary head is none of them."""
    encoder: tuple[str, ...] = _MAPS["encoder"]
    """Maps inside the Qwen3's layers, none for `[]`."""

    def __post_init__(self) -> None:
        require_whole("lora.rank", self.rank, 1)
        require_number("lora.alpha", self.alpha, 0, _MOST_ALPHA)
        require_number("lora.dropout", self.dropout, 0)
        if not self.alpha > 0 or not self.dropout < 1:
            raise CrocodilError(
                f"lora: alpha {self.alpha} must be above 0, dropout {self.dropout} must be below 1"
            )
        for part in PARTS:
            if odd := [name for name in getattr(self, part) if name not in _MAPS[part]]:
                raise CrocodilError(
                    f"lora.{part}: no linear map {odd[0]!r} inside a block; there are {', '.join(_MAPS[part])}"
                )
        if not self.demasker and not self.encoder:
            raise CrocodilError(
                "lora: neither demasker nor encoder names a linear map; name one, or leave lora out"
            )


@dataclass(frozen=True)
class Base:
    """What adapters were trained on: a model, or a LLaDA and a Qwen3 that had not met."""

    fingerprint: str
    """Of every weight of LLaDA and Qwen3."""
    model: str | None = None
    demasker: str | None = None
    encoder: str | None = None

    def __str__(self) -> str:
        return self.model or f"{self.demasker} with {self.encoder}"


@dataclass(frozen=True)
class Adapters:
    """config.json of a folder of adapters."""

    folder: Path
    index: Index
    base: Base
    adapted: tuple[str, ...]
    """Which of demasker and encoder have adapters."""


# --- training ---


def inject(
    autoencoder: Autoencoder, settings: LoraSettings, seed: int, dtype: torch.dtype | None = None
) -> None:
    """Put adapters into a model, in place and before an engine is built, and freeze what they leave as it is.

    They begin at nothing: what the model computes is unchanged until they are trained.

    Args:
        seed: of the first values, the same on every rank.
        dtype: of what is left as it is; None keeps it. What trains is float32.

    Raises:
        CrocodilError: PEFT is missing, there are adapters already, or they would be larger than what they adapt.
    """
    peft = _peft()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part, backbone in _backbones(autoencoder).items():
            if hasattr(backbone, "peft_config"):
                raise CrocodilError(f"the {part} has adapters already: merge them, or load the model without")
            if maps := getattr(settings, part):
                config = peft.LoraConfig(
                    r=settings.rank,
                    lora_alpha=settings.alpha,
                    lora_dropout=settings.dropout,
                    target_modules=f"{_BLOCKS[part]}({'|'.join(maps)})",
                )
                layers = _adapted(backbone, config.target_modules)
                shapes = {f"{part}.{name}": (m.out_features, m.in_features) for name, m in layers.items()}
                check_rank(settings.rank, shapes)
                peft.inject_adapter_in_model(config, backbone, ADAPTER)
    for name, parameter in autoencoder.named_parameters():
        learns = trainable(name)
        parameter.requires_grad_(learns)
        parameter.data = parameter.data.to(torch.float32 if learns else dtype or parameter.dtype)


def check_rank(rank: int, maps: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a product that is no thinner than a map it would stand beside: by name, the map's outputs and inputs."""
    narrowest = min(maps, key=lambda name: min(maps[name]))
    outputs, inputs = maps[narrowest]
    if rank > min(outputs, inputs):
        raise CrocodilError(
            f"lora.rank is {rank}, which makes nothing smaller: {narrowest} maps {inputs} numbers to {outputs}; give at "
            f"most {min(outputs, inputs)}, or leave that map out of lora"
        )


def trainable(name: str) -> bool:
    """Whether training with adapters changes the parameter of this name: adapters, START, END, P, suffix and its norm."""
    return ".lora_" in name or _WHOLE.fullmatch(name) is not None


def base_of(
    autoencoder: Autoencoder,
    *,
    model: str | None = None,
    demasker: str | None = None,
    encoder: str | None = None,
) -> Base:
    """The record of what adapters are trained on. It reads every weight: call it once, before the engine is built.

    Args:
        model: where it came from, if it was one folder or hub id.
        demasker, encoder: where its two parts came from, if they were two.

    Raises:
        CrocodilError: neither, or a part without an origin, which nobody could merge adapters into again.
    """
    require_base(model, demasker, encoder)
    fingerprint = fingerprint_of(autoencoder)
    if model is not None:
        return Base(fingerprint, pinned(model))
    assert demasker is not None and encoder is not None
    return Base(fingerprint, None, pinned(demasker), pinned(encoder))


def require_base(model: str | None, demasker: str | None, encoder: str | None) -> None:
    """Refuse a part without an origin, which nobody could merge adapters into again."""
    if model is None and (demasker is None or encoder is None):
        raise CrocodilError(
            "lora: adapters are merged into the weights they were trained on, and an encoder from scratch is in no "
            "file; give encoder= or start="
        )


def fingerprint_of(autoencoder: Autoencoder) -> str:
    """Of every weight under adapters, as `Base` has it; it reads them all."""
    backbones = _backbones(autoencoder)
    return _fingerprint(backbones["demasker"], backbones["encoder"])


def save_adapters(
    folder: Path,
    autoencoder: Autoencoder,
    vocabulary: Vocabulary,
    window: int,
    base: Base,
    trained: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapters of a model, and what else was trained, into an empty folder (one that is published as a whole).

    Args:
        autoencoder: with whole tensors: gather sharded parameters first.
        window: the longest window it was trained with.
        base: of `base_of`.
        trained: how it was made, for the record: written to training.json.

    Raises:
        CrocodilError: there are no adapters, or see `check_values`.
    """
    check_values(autoencoder, None)
    origins = {"demasker": base.model or base.demasker, "encoder": base.model or base.encoder}
    adapted = []
    for part, backbone in _backbones(autoencoder).items():
        if not hasattr(backbone, "peft_config"):
            continue
        adapted.append(part)
        (folder / part).mkdir()
        config = backbone.peft_config[ADAPTER]
        config.base_model_name_or_path, config.inference_mode = origins[part], True
        config.save_pretrained(folder / part)
        tensors = {
            PREFIX + name.replace(f".{ADAPTER}.", "."): value.detach().float().cpu().contiguous()
            for name, value in backbone.named_parameters()
            if ".lora_" in name
        }
        write_file(tensors, folder / part / WEIGHTS)
    if not adapted:
        raise CrocodilError("the model has no adapters to save: `inject` puts them in")
    save_registers(folder, autoencoder)
    if trained is not None:
        text = json.dumps(trained, indent=2, default=str)
        (folder / "training.json").write_text(text + "\n", encoding="utf-8")
    index = index_of("adapters", autoencoder, vocabulary, window)
    (folder / "README.md").write_text(_card(index, base, trained or {}), encoding="utf-8")
    write_json(folder / INDEX, asdict(index) | {"base": asdict(base), "adapted": adapted})


def merge(autoencoder: Autoencoder) -> None:
    """Add what adapters have learnt to the weights under them and take them out, in place."""
    for backbone in _backbones(autoencoder).values():
        for name, layer in list(backbone.named_modules()):
            if not hasattr(layer, "lora_A"):
                continue
            plain = layer.get_base_layer()
            A, B = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            _add(plain.weight, A, B, layer.scaling[ADAPTER])
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, plain)
        if hasattr(backbone, "peft_config"):
            del backbone.peft_config


# --- loading ---


def read_adapters(name: str | Path) -> Adapters:
    """config.json of a folder of adapters, or of a hub id.

    Raises:
        CrocodilError: it is missing or damaged, or the folder holds something else.
    """
    folder = resolve(name)
    file = folder / INDEX
    if not file.is_file():
        raise CrocodilError(
            f"{folder} holds no adapters ({INDEX} is missing); give the folder that a run exported"
        )
    values = read_json(file)
    if values.get("kind") != "adapters":
        raise CrocodilError(
            f"{folder} holds no adapters ({INDEX} says {values.get('kind')!r}); load it as a model"
        )
    origin, adapted = values.pop("base", None), values.pop("adapted", None)
    index = check_index(values, file)
    text = dict.fromkeys(("fingerprint", "model", "demasker", "encoder"))
    good = isinstance(origin, dict) and origin.keys() == text.keys() and isinstance(adapted, list)
    if not good or any(not isinstance(value, str | None) for value in origin.values()):
        raise CrocodilError(f"{file}: base or adapted is not as it was written; copy the adapters again")
    base = Base(**origin)
    if not base.fingerprint or not (base.model or (base.demasker and base.encoder)):
        raise CrocodilError(f"{file} does not say what the adapters were trained on; copy the adapters again")
    if not adapted or any(part not in PARTS for part in adapted):
        raise CrocodilError(
            f"{file}: adapted is {adapted!r}, not some of {', '.join(PARTS)}; copy the adapters again"
        )
    for part in PARTS:
        if part not in adapted and (beside := folder / part / CONFIG).exists():
            raise CrocodilError(
                f"{file}: adapted is {adapted!r}, but there is {beside} too; copy the adapters again"
            )
    if not LEAST_WINDOW <= index.window <= _MOST_WINDOW:
        raise CrocodilError(
            f"{file}: window is {index.window}, not {LEAST_WINDOW} to {_MOST_WINDOW:,} tokens; copy the adapters again"
        )
    return Adapters(folder, index, base, tuple(adapted))


def base_folder(adapters: Adapters, base: str | Path | None = None) -> Path:
    """Where the weights of a base lie: of the model, or of its LLaDA where it had not met an encoder.

    Raises:
        CrocodilError: not where the adapters say, and nobody says where.
    """
    folder = resolve(base or adapters.base.model or str(adapters.base.demasker))
    if not folder.exists():
        raise CrocodilError(
            f"{adapters.folder} was trained on {adapters.base}, and {folder} is not here; say where it is: --base FOLDER"
        )
    return folder


def load_adapted(
    adapters: str | Path,
    base: str | Path | None = None,
    noise: RegisterNoise | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Autoencoder, Vocabulary, Adapters]:
    """A model with adapters merged into it.

    Args:
        base: the model they were trained on, wherever it lies now; None takes the one that they name.
        dtype: of the demasker's weights; the encoder's are float32, as in `load_autoencoder`.

    Raises:
        CrocodilError: adapters or base are missing or damaged, or it is not the base they were trained on.
    """
    found = read_adapters(adapters)
    # the fingerprint is of the weights on disk, which a narrower dtype would change
    stored = torch.float32 if dtype == torch.float32 else None
    origin = found.base
    if base is not None and origin.model is None:
        raise CrocodilError(
            f"{found.folder} was trained on {origin}, which no model folder holds: write the whole model with crocodil "
            f"export {found.folder} --out FOLDER, and load that"
        )
    if origin.model is None:
        from crocodil.registers.released import open_encoder

        assert origin.demasker is not None and origin.encoder is not None
        llada, vocabulary = open_demasker(origin.demasker, stored)
        backbone = open_encoder(resolve(origin.encoder), vocabulary, found.index.K).backbone
        name = str(origin)
    else:
        name, folder = str(base or origin.model), base_folder(found, base)
        if read_index(folder).kind != "autoencoder":
            raise CrocodilError(
                f"{name} is a demasker without registers, and {found.folder} holds adapters of {origin}"
            )
        llada, vocabulary, backbone = open_backbones(folder, stored)
    if (
        vocabulary.fingerprint != found.index.vocabulary
        or _fingerprint(llada, backbone) != origin.fingerprint
    ):
        raise CrocodilError(
            f"{name} has other weights than those that {found.folder} was trained on ({origin}, fingerprint "
            f"{origin.fingerprint}); give that model"
        )
    llada.allow(found.index.window)
    for part, module in {"demasker": llada, "encoder": backbone}.items():
        if part in found.adapted:
            _merge_stored(found.folder / part, module, _BLOCKS[part])
    for parameter in llada.parameters():
        parameter.data = parameter.data.to(device, dtype)
    return assemble(found.folder, found.index, llada, backbone, vocabulary, noise, device), vocabulary, found


def _merge_stored(folder: Path, backbone: nn.Module, blocks: str) -> None:
    """Merge adapters in PEFT's layout into the weights of a model that has none; every tensor is accounted for."""
    file = folder / CONFIG
    config = read_json(file)
    rank, alpha, targets = (config.get(key) for key in ("r", "lora_alpha", "target_modules"))
    plain = {"peft_type": "LORA", "bias": "none", "init_lora_weights": True}
    odd = [key for key, value in plain.items() if config.get(key) != value]
    odd += sorted(key for key, value in config.items() if value and key not in _KNOWN)
    if odd:
        raise CrocodilError(
            f"{file}: {odd[0]} is {config.get(odd[0])!r}, a LoRA that crocodil does not merge; take a plain one"
        )
    written = isinstance(targets, str) and re.fullmatch(re.escape(blocks) + r"\([a-z_|]+\)", targets)
    some = type(alpha) in (int, float) and 0 < alpha <= _MOST_ALPHA  # type: ignore[operator]
    if not written or type(rank) is not int or not 1 <= rank < 2**31 or not some:
        raise CrocodilError(
            f"{file}: r, lora_alpha or target_modules is not as crocodil writes it; copy the adapters again"
        )
    layers = _adapted(backbone, str(targets))
    wanted = {}
    for name, layer in layers.items():
        wanted[f"{PREFIX}{name}.lora_A.weight"] = torch.empty(rank, layer.in_features, device="meta")
        wanted[f"{PREFIX}{name}.lora_B.weight"] = torch.empty(layer.out_features, rank, device="meta")
    tensors = read_matching(folder / WEIGHTS, wanted)
    for name, layer in layers.items():
        A, B = (tensors[f"{PREFIX}{name}.lora_{factor}.weight"] for factor in "AB")
        _add(layer.weight, A, B, alpha / rank)  # type: ignore[operator]
        if not layer.weight.isfinite().all():
            raise CrocodilError(
                f"{file}: lora_alpha is {alpha}, with which {name} is no number any more; copy the adapters again"
            )


def _adapted(backbone: nn.Module, targets: str) -> dict[str, nn.Linear]:
    """The linear maps that an expression names."""
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(targets, name)
    }


@torch.no_grad()
def _add(weight: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scale: float) -> None:
    """W ← W + scale · B A, rounded once."""
    weight.copy_(weight.float() + scale * (B.float() @ A.float()))


def _backbones(autoencoder: Autoencoder) -> dict[str, Any]:
    return {"demasker": autoencoder.demasker.llada, "encoder": autoencoder.encoder.backbone}


def _fingerprint(llada: LLaDA, backbone: Qwen3Model) -> str:
    """16 hex digits over every weight and rotary setting of the two, adapters left out."""
    sizes, config = llada.config, backbone.config
    settings = [sizes.n_heads, sizes.rope_theta, sizes.rms_norm_eps]
    settings += [config.rope_parameters["rope_theta"], config.rms_norm_eps]
    weights = {
        f"{part}.{name.replace('.base_layer.', '.')}": tensor
        for part, module in (("demasker", llada), ("encoder", backbone))
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name
    }

    def digest(named: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = named
        values = tensor.detach().float().cpu().contiguous()
        return name.encode() + hashlib.blake2b(values.numpy().data, digest_size=16).digest()

    whole = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(digest, sorted(weights.items(), key=lambda item: item[0])):
            whole.update(part)
    return whole.hexdigest()


def _peft() -> Any:
    try:
        return optional("peft", "peft")
    except CrocodilError:
        raise CrocodilError("lora needs PEFT; pip install peft") from None


def _card(index: Index, base: Base, trained: Mapping[str, Any]) -> str:
    """A card: what the adapters are, what they belong to, how to use them."""
    steps = ""
    if "steps" in trained:
        steps = f"Trained for {trained['steps']:,} optimiser steps; every setting is in `training.json`.\n\n"
    call = f'crocodil.load("{base.model}", adapters="PATH")' if base.model else 'crocodil.load("MERGED")'
    return f"""---
library_name: crocodil
tags:
- lora
- peft
---

# Adapters of a crocodil autoencoder

LoRA adapters in PEFT's layout, and what was trained in full beside them: START, END and P of the demasker, suffix
embeddings of the encoder. They make {index.K} registers of width {index.D} and read windows of {index.window} tokens.

| | |
| --- | --- |
| trained on | {base} |
| fingerprint of those weights | `{base.fingerprint}` |
| vocabulary | fingerprint `{index.vocabulary}` |

{steps}```python
import crocodil

model = {call}
```

`crocodil export PATH --out MERGED` writes the whole model, adapters merged. They inherit the licences of the weights
they were trained on.
"""
