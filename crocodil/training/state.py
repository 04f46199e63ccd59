"""The tensors and numbers of a resume state on disk: safetensors and JSON, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from crocodil.errors import CrocodilError
from crocodil.shards import write_file
from crocodil.training.optimisation import MOMENTS


def save_tensors(directory: Path, tensors: Mapping[str, Tensor], name: str) -> None:
    """Write `NAME.safetensors` into `directory` (inside `publishing`, which flushes it).

    Tensors that share memory are written once each.

    Raises:
        OSError: the disk is full or the directory is not writable.
    """
    seen: set[int] = set()
    whole: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        address = plain.untyped_storage().data_ptr()
        whole[key] = plain.clone() if address in seen else plain
        seen.add(address)
    write_file(whole, directory / f"{name}.safetensors")


def save_values(directory: Path, values: Mapping[str, Any], name: str) -> None:
    """Write `NAME.json` into `directory`. `values` must be JSON; floats come back bit for bit.

    Raises:
        OSError: the disk is full or the directory is not writable.
    """
    (directory / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def load_values(directory: Path, name: str) -> dict[str, Any]:
    """The values that `save_values` wrote (tuples come back as lists).

    Raises:
        CrocodilError: the file is missing or unreadable, or holds something else.
    """
    try:
        values = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise CrocodilError(
            f"{directory}: no readable state {name!r}: {error}; if it is no checkpoint, move it away"
        ) from None
    return values


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of several safetensors files, each read when it is asked for."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._opened = {path: safe_open(path, framework="pt") for path in files}
        self._file = {key: file for file in self._opened.values() for key in file.keys()}

    def __getitem__(self, key: str) -> Tensor:
        return self._file[key].get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def open_tensors(directory: Path, pattern: str = "state-*.safetensors") -> StoredTensors:
    """The tensors that the ranks of a run saved, each its share, under one roof.

    Raises:
        CrocodilError: there is no such file, or one is unreadable.
    """
    files = sorted(directory.glob(pattern))
    if not files:
        raise CrocodilError(f"{directory}: no file {pattern}; it is no checkpoint of this version")
    try:
        stored = StoredTensors(files)
    except (OSError, SafetensorError) as error:
        raise CrocodilError(f"{directory}: unreadable: {error}") from None
    trained = {key.split("/", 2)[2] for key in stored if key.startswith("optimiser/") and key.count("/") > 1}
    wanted = {f"optimiser/{moment}/{name}" for name in trained for moment in MOMENTS}
    if any(key.startswith("ema/average/") for key in stored):
        wanted.add("ema/updates")
    if missing := sorted(wanted - set(stored)):
        raise CrocodilError(f"{directory}: lacks {missing[0]}; choose another checkpoint")
    return stored
