"""Released LLaDA checkpoints in and out: config.json and safetensors by their released names.

No remote code is run and no pickle is read. A checkpoint is accounted for before any weight is touched: every
tensor that the network has must be there with its shape, and no other. What is written appears whole or not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from crocodil.atomic import fsync
from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.errors import CrocodilError
from crocodil.shards import (
    SHARD_BYTES,
    StoredTensor,
    checkpoint_folder,
    list_tensors,
    map_tensors,
    read_json,
    read_tensors,
    save_tensors,
    some,
)

_TABLE, _HEAD = "model.transformer.wte.weight", "model.transformer.ff_out.weight"


def load_llada(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    mapped: bool = False,
) -> LLaDA:
    """Read a checkpoint in the released layout: config.json and one safetensors file, or shards and an index.

    Tensors go one by one into a model that was built without memory, so that weights are never held twice.
    Other files in the folder are left alone.

    Args:
        path: folder of the checkpoint.
        dtype: dtype of the weights; None keeps the checkpoint's.
        device: where the weights go.
        mapped: leave the weights in their files, in the checkpoint's dtype, and read what is touched: several processes
            of a machine then share one copy. `dtype` and `device` are not looked at.

    Raises:
        CrocodilError: the folder, its config or one of its tensors is not what a LLaDA needs.
    """
    folder = checkpoint_folder(Path(path))
    where = folder / "config.json"
    config = LLaDAConfig.from_dict(read_json(where), str(where))
    try:
        with torch.device("meta"):
            model = LLaDA(config)
    except (RuntimeError, TypeError, OverflowError):  # torch, over sizes that do not fit into an address
        raise CrocodilError(
            f"{where}: sizes too large for any machine; take the released config.json"
        ) from None
    stored = list_tensors(folder)
    if config.weight_tying and _HEAD in stored and _TABLE in stored:
        pair = read_tensors(folder, {name: stored[name] for name in (_HEAD, _TABLE)}, None, "cpu")
        if not torch.equal(pair[_HEAD], pair[_TABLE]):
            raise CrocodilError(
                f"{folder}: config.json ties the head to the embedding, but {_HEAD} differs from {_TABLE}: "
                "set weight_tying to false"
            )
        del stored[_HEAD]
    account({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, stored, folder)
    tensors = map_tensors(folder, stored) if mapped else read_tensors(folder, stored, dtype, device)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model


def save_llada(
    model: LLaDA, path: str | Path, shard_bytes: int = SHARD_BYTES, dtype: torch.dtype | None = None
) -> None:
    """Write a checkpoint in the released layout; `load_llada` and the official code read it.

    The folder is written beside its final place, flushed, and renamed, so that it is never seen half-written.

    Args:
        model: with whole tensors: gather sharded parameters first.
        path: a folder that does not exist yet or is empty.
        shard_bytes: the most a shard holds, unless one tensor is larger.
        dtype: dtype on disk; None keeps the model's.

    Raises:
        CrocodilError: something is at `path` already, or a parameter is not whole.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in LLaDA(model.config).state_dict().items()}
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        # a parameter that is spread over ranks is an empty tensor here
        if tensor.shape != wanted[name]:
            raise CrocodilError(
                f"{name} has shape {tuple(tensor.shape)} instead of {tuple(wanted[name])}: "
                "gather the sharded parameters before saving"
            )
    with _appearing(Path(path)) as folder:
        save_tensors(tensors, folder, shard_bytes, dtype)
        (folder / "config.json").write_text(
            json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8"
        )
        fsync(folder / "config.json")


def account(wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor], folder: Path) -> None:
    """Every tensor that the network has, with its shape, and no other."""
    missing, extra = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if _TABLE in missing:
        for name in extra:
            if name.endswith("wte.weight"):
                raise CrocodilError(
                    f"{folder}: tensors are named like {name}, the released layout says {_TABLE}: "
                    "rename them (a wrapper has changed the prefix)"
                )
    if missing:
        raise CrocodilError(
            f"{folder} lacks {some(missing)}: fetch the checkpoint again, or mend its config.json"
        )
    if extra:
        raise CrocodilError(
            f"{folder} has {some(extra)}, which this LLaDA does not have: is config.json its own?"
        )
    for name, shape in wanted.items():
        if stored[name].shape != shape:
            raise CrocodilError(
                f"{folder / stored[name].file}: {name} has shape {stored[name].shape}, config.json asks for "
                f"{shape}: they are not of one checkpoint"
            )


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A folder that is filled beside `path` and takes its name once everything in it is on the disk."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CrocodilError(f"{path} exists already: choose another folder or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had our number
    try:
        temporary.mkdir()
        yield temporary
        fsync(temporary)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync(path.parent)
