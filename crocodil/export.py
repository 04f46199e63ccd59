"""A whole model folder out of what there is: another dtype, a training checkpoint, adapters merged into their base.

What is written appears whole or not at all, and never in place of something else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from crocodil.adapters import (
    base_folder,
    fingerprint_of,
    inject,
    load_adapted,
    merge,
    read_adapters,
    trainable,
)
from crocodil.augmented import Augmented, CaddRecipe
from crocodil.augmented import build as augmented_of
from crocodil.augmented import origin as augmented_origin
from crocodil.autoencoder import Autoencoder
from crocodil.bundle import (
    DTYPES,
    INDEX,
    blaming,
    check_values,
    is_exact,
    open_augmented,
    read_index,
    resolve,
    save_autoencoder,
    save_unguided,
)
from crocodil.cadd.latents import TokenLatents
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.weights import save_llada
from crocodil.errors import CrocodilError
from crocodil.images.data import PixelSpace
from crocodil.images.unet import PixelDemasker, fresh_unet
from crocodil.images.weights import load_pixels, save_pixels
from crocodil.joint import DemaskerRecipe, as_built, build, origin
from crocodil.shards import SHARD_BYTES, list_tensors, read_json
from crocodil.text.data import Texts
from crocodil.text.vocabulary import Vocabulary
from crocodil.training.checkpoints import latest, publishing, require_complete
from crocodil.training.config import CONFIG, load_config
from crocodil.training.start import check_origin, read_values
from crocodil.training.state import open_tensors

_OF_DENOISER = ("config.json", "training.json", "*.safetensors", "*.safetensors.index.json", "README.md")
_STORED = {"BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    source: str
    kind: str
    """What the source is: `model`, `demasker`, `images`, `checkpoint` or `adapters`."""
    out: str
    dtype: str
    bytes: int
    """Of all weights on disk."""
    step: int | None = None
    """Optimiser steps of a checkpoint."""
    averaged: bool | None = None
    """Whether a checkpoint's average was taken."""
    denoisers: tuple[str, ...] = ()
    """Those that went along: those of a model whose encoder is still the same to the last bit."""
    left: tuple[str, ...] = ()
    """Those that did not."""


@dataclass(frozen=True)
class _Opened:
    """A source in memory."""

    kind: str
    module: Autoencoder | LLaDA | PixelDemasker
    vocabulary: Vocabulary | None
    """None of images."""
    dtype: str
    """What it is written in unless another is asked for."""
    window: int = 0
    trained: Mapping[str, Any] | None = None
    step: int | None = None
    averaged: bool | None = None
    card: Path | None = None
    """Of the source, which tells more than ours can."""
    denoisers: list[Path] = field(default_factory=list)
    latents: TokenLatents | None = None
    frozen: bool = False
    """Its encoder was not trained."""


def export(
    source: str | Path,
    out: str | Path,
    dtype: str | None = None,
    *,
    llada: bool = False,
    average: bool | None = None,
    base: str | Path | None = None,
    replace: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write a model folder, or LLaDA alone.

    Args:
        source: a model folder or hub id; a run of train_demasker.py or train_cadd.py (its newest whole checkpoint) or
            one of its checkpoints; or a folder of adapters, which are merged.
        out: a folder that does not exist yet.
        dtype: of the weights on disk, `bfloat16`, `float16` or `float32`; None keeps a model's, takes the base's for
            adapters, and for a checkpoint what the configuration of the run says.
        llada: write the demasker alone, in the released LLaDA layout, with the tokenizer beside it.
        average: take a checkpoint's average of weights, or the weights; None takes the average where there is one.
        base: the model that adapters were trained on, where it is not where they say.
        replace: take the place of what a former export wrote.
        shard_bytes: the most a file of LLaDA alone holds, unless one tensor is larger.

    Raises:
        CrocodilError: a source that cannot be read, an option it does not have, or something at `out` already.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    out = Path(out).expanduser()
    if out.name in ("", "..") or (os.path.lexists(out) and not replace):
        raise CrocodilError(f"{out} exists already: name a folder that does not, or remove it")
    if dtype is not None and dtype not in DTYPES:
        raise CrocodilError(f"dtype = {dtype!r}: it is one of {', '.join(DTYPES)}")
    opened = _open(source, dtype, llada, average, base)
    module, kind = opened.module, DTYPES[opened.dtype]
    if llada and isinstance(module, PixelDemasker):
        raise CrocodilError(f"{source} is of images: there is no LLaDA in it; leave out --llada")
    same = isinstance(module, Autoencoder) and is_exact(module.encoder, kind)
    kept, left = (opened.denoisers, []) if same and not llada else ([], opened.denoisers)
    # a folder that is not there yet is not to be made for the sake of the `..` behind it
    with publishing(out.parent.resolve(), out.name, replace=replace) as folder:
        _write(opened, folder, kind, llada, shard_bytes)
        for denoiser in kept:
            _copy_denoiser(denoiser, folder / "denoiser" / denoiser.name)
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return Exported(
        str(source), opened.kind, str(out), opened.dtype, size, opened.step, opened.averaged,
        tuple(one.name for one in kept), tuple(one.name for one in left),
    )  # fmt: skip


def _write(opened: _Opened, folder: Path, kind: torch.dtype, llada: bool, shard_bytes: int) -> None:
    """All but the denoisers."""
    module, vocabulary = opened.module, opened.vocabulary
    if isinstance(module, PixelDemasker):
        save_pixels(folder, module, kind, opened.trained)
        return
    assert vocabulary is not None
    if llada:
        demasker = module if isinstance(module, LLaDA) else module.demasker.llada
        check_values(demasker, kind)
        save_llada(demasker, folder, shard_bytes, kind)
        vocabulary.save(folder)
    elif isinstance(module, LLaDA):
        save_unguided(folder, module, vocabulary, kind, opened.latents, opened.trained)
    else:
        save_autoencoder(
            folder, module, vocabulary, opened.window, kind, opened.trained, opened.latents, opened.frozen
        )
        if opened.card is not None:
            shutil.copyfile(opened.card, folder / "README.md")


def _open(
    source: str | Path, dtype: str | None, llada: bool, average: bool | None, base: str | Path | None
) -> _Opened:
    """The source in memory, whatever it is."""
    folder = resolve(source)
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    is_checkpoint = folder.name.startswith("step-") and (folder.parent / CONFIG).is_file()
    if is_checkpoint or (not index and (folder / CONFIG).is_file()):
        if base is not None:
            raise CrocodilError(f"{source} is of a run, which names its base itself; leave base out")
        return _open_checkpoint(folder, folder.parent if is_checkpoint else folder, dtype, average)
    if average is not None:
        raise CrocodilError(f"{source} is no checkpoint: it has no average to take or to leave")
    if index.get("kind") == "adapters":
        return _open_adapters(folder, dtype, base)
    if base is not None:
        raise CrocodilError(f"{source} holds no adapters: it has no base")
    if index.get("kind") == "images":
        kept = dtype or _kept(folder)
        return _Opened("images", load_pixels(folder), None, kept, trained=_record(folder))
    if index.get("model_type") == "llada":
        if not llada:
            raise CrocodilError(f"{source} is a LLaDA by itself: with --llada it is written anew as one")
        guided = False
    else:
        guided = read_index(folder).kind == "autoencoder"
    wanted = None if dtype is None else DTYPES[dtype]
    found = open_augmented(folder, wanted, registers=guided and not llada)
    latents = found.demasker.latents
    if found.autoencoder is None:
        kept = dtype or _kept(_demasker(folder))
        record = None if llada else _record(folder)
        return _Opened(
            "demasker", found.demasker.llada, found.vocabulary, kept, trained=record, latents=latents
        )
    kept = _kept(folder / "demasker", folder / "encoder") if dtype is None else dtype
    card = folder / "README.md"
    return _Opened(
        "model", found.autoencoder, found.vocabulary, kept, found.window, _record(folder),
        card=card if card.is_file() else None, denoisers=_denoisers(folder), latents=latents,
    )  # fmt: skip


def _open_adapters(folder: Path, dtype: str | None, base: str | Path | None) -> _Opened:
    """Adapters, merged into their base."""
    found = read_adapters(folder)
    kept = dtype or _kept(_demasker(base_folder(found, base)))
    autoencoder, vocabulary, _ = load_adapted(folder, base, dtype=DTYPES[kept])
    record = (_record(folder) or {}) | {"adapters": asdict(found.base)}
    return _Opened(
        "adapters", autoencoder, vocabulary, kept, found.index.window, record, denoisers=_denoisers(folder)
    )


@dataclass(frozen=True)
class _Begun:
    """What a run began with, before any of a checkpoint's weights."""

    recipe: str
    module: Autoencoder | Augmented | PixelDemasker
    vocabulary: Vocabulary | None
    origin: dict[str, Any]
    record: dict[str, Any]
    window: int
    dtype: str
    is_stored: Callable[[str], bool]
    """Says of a parameter name whether it is in checkpoints."""
    frozen: bool = False


def _open_checkpoint(folder: Path, run: Path, dtype: str | None, average: bool | None) -> _Opened:
    """A checkpoint; every file of it is verified first, and every tensor accounted for."""
    if folder == run:
        newest = latest(run)
        if newest is None:
            raise CrocodilError(
                f"{run} has no whole checkpoint; what a finished run wrote is {run / 'export'}"
            )
        folder = newest
    else:
        require_complete(folder)
    values, tensors = read_values(folder), open_tensors(folder)
    has_average = any(name.startswith("ema/average/") for name in tensors)
    if average and not has_average:
        raise CrocodilError(f"{folder} has no average of weights (ema was 0); leave --average out")
    averaged = has_average if average is None else average
    before = values.get("origin", {})
    begun = _begin(run, before)
    check_origin(folder, before, begun.origin)
    # a merge wants all the digits of what lies under adapters too
    everything = dict(begun.module.named_parameters())
    parameters = {key: parameter for key, parameter in everything.items() if begun.is_stored(key)}
    for key in everything.keys() - parameters.keys():
        everything[key].data = everything[key].data.float()
    name = dtype or begun.dtype
    kind = DTYPES[name] if len(parameters) == len(everything) else torch.float32
    stored = {key.removeprefix("model/") for key in tensors if key.startswith("model/")}
    if odd := sorted(stored ^ parameters.keys()):
        raise CrocodilError(
            f"{folder}: parameter {odd[0]!r} is on one side only; {run / CONFIG} is of another model"
        )
    for key, parameter in parameters.items():
        mean = f"ema/average/{key}"
        value = tensors[mean if averaged and mean in tensors else f"model/{key}"]
        if value.shape != parameter.shape:
            raise CrocodilError(
                f"{folder}: {key} has shape {tuple(value.shape)}, {run / CONFIG} asks for {tuple(parameter.shape)}: "
                "they are not of one run"
            )
        parameter.data = value.to(kind, copy=True)
    module: Autoencoder | LLaDA | PixelDemasker
    latents = None
    if isinstance(begun.module, Augmented):
        latents = begun.module.demasker.latents
        module = begun.module.autoencoder or begun.module.demasker.llada
    else:
        module = begun.module
    if isinstance(module, Autoencoder):
        merge(module)
    step = values["step"]
    trained = {"recipe": begun.recipe, "steps": step, "config": begun.record}
    return _Opened(
        "checkpoint", module, begun.vocabulary, name, begun.window, trained, step, averaged, latents=latents,
        frozen=begun.frozen,
    )  # fmt: skip


def _begin(run: Path, before: Mapping[str, Any]) -> _Begun:
    """The model of a run's configuration.

    Args:
        before: what its checkpoints say that they depend on beside it.
    """
    try:
        config: DemaskerRecipe | CaddRecipe = load_config(DemaskerRecipe, str(run / CONFIG))
    except CrocodilError as error:
        try:
            config = load_config(CaddRecipe, str(run / CONFIG))
        except CrocodilError:
            raise CrocodilError(f"{run} is no run of train_demasker.py or train_cadd.py ({error})") from None
    window = max(config.data.lengths)
    if isinstance(config, CaddRecipe):
        if config.images is not None:
            with blaming(run):
                space = PixelSpace(**before.get("space", {}))
            images = fresh_unet(space, config.unet, config.latents, config.objective, config.seed)
            return _Begun(
                "train_cadd", images, None, {"space": asdict(space)}, asdict(config), 0, config.export_dtype,
                lambda name: True,
            )  # fmt: skip
        frozen = config.keeps_encoder
        augmented, vocabulary = augmented_of(config, Texts(config.data), mapped=not config.registers)
        return _Begun(
            "train_cadd", augmented, vocabulary, augmented_origin(augmented, vocabulary, frozen),
            asdict(config), window, config.export_dtype,
            lambda name: not (frozen and name.startswith("encoder.")), frozen,
        )  # fmt: skip
    module, vocabulary = build(config, mapped=True)  # of its weights only those under adapters stay
    now = origin(module, vocabulary)
    if config.lora is not None and "base" in before:
        now["base"] = fingerprint_of(module)
    record = as_built(config, module)
    if config.lora is not None:
        inject(module, config.lora, config.seed)
    return _Begun(
        "train_demasker", module, vocabulary, now, record, window, config.export_dtype,
        lambda name: config.lora is None or trainable(name),
    )  # fmt: skip


def _demasker(folder: Path) -> Path:
    """Where the LLaDA of a folder is: below it, or all of it."""
    return folder / "demasker" if (folder / "demasker").is_dir() else folder


def _kept(*folders: Path) -> str:
    """The dtype of the weights in these folders."""
    found = {
        _STORED.get(tensor.dtype, "float32") for folder in folders for tensor in list_tensors(folder).values()
    }
    if len(found) > 1:
        raise CrocodilError(
            f"{folders[0].parent} mixes {' and '.join(sorted(found))}: say which --dtype you want"
        )
    return found.pop()


def _record(folder: Path) -> dict[str, Any] | None:
    """How a model was made, if it says so."""
    file = folder / "training.json"
    return read_json(file) if file.is_file() else None


def _denoisers(folder: Path) -> list[Path]:
    return sorted((folder / "denoiser").glob("[!.]*/"))


def _copy_denoiser(folder: Path, out: Path) -> None:
    out.mkdir(parents=True)
    for pattern in _OF_DENOISER:
        for file in folder.glob(pattern):
            shutil.copyfile(file, out / file.name)
