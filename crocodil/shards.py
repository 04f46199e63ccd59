"""Tensors in a folder: one safetensors file, or shards and their index, as the hub lays them out.

No pickle is read. Everything that headers and index say is checked before a value is touched.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from crocodil.atomic import fsync
from crocodil.errors import CrocodilError

SHARD_BYTES = 5_000_000_000
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a folder, known from its file's header alone."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    """safetensors' name of it: F32, BF16, …"""

    @property
    def bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * _FLOATS[self.dtype].itemsize


def save_tensors(
    tensors: Mapping[str, torch.Tensor],
    folder: str | Path,
    shard_bytes: int = SHARD_BYTES,
    dtype: torch.dtype | None = None,
) -> None:
    """Write floating tensors as `model.safetensors`, or as shards and an index above `shard_bytes`.

    Conversion to `dtype` and to the CPU happens shard by shard. The caller makes the folder appear whole.

    Args:
        tensors: by name; whole tensors that share no memory.
        folder: an existing folder.
        shard_bytes: the most a shard holds, unless one tensor is larger.
        dtype: dtype on disk; None keeps each tensor's.

    Raises:
        CrocodilError: the folder holds weights already.
    """
    folder = Path(folder)
    if present := sorted(file.name for file in folder.glob("model*.safetensors*")):
        raise CrocodilError(f"{folder} holds {present[0]} already: write into another folder")
    shards = _shards(tensors, shard_bytes, dtype)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = _SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        values = {
            name: tensors[name].detach().to("cpu", dtype or tensors[name].dtype).contiguous()
            for name in names
        }
        write_file(values, folder / file)
        fsync(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(_bytes(tensor, dtype) for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        fsync(folder / _INDEX)


def write_file(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """One safetensors file of tensors on the CPU that share no memory.

    Raises:
        OSError: the disk is full or not writable, in safetensors' own words.
    """
    try:
        save_file(dict(tensors), file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file}: {error}") from error
    # safetensors lets only its owner read a file; a run is often read by others, as far as the umask lets them
    mask = os.umask(0o077)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def load_tensors(
    folder: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """Every tensor of a folder that `save_tensors` or the hub wrote.

    Args:
        folder: with model.safetensors, or shards and their index.
        dtype: None keeps the folder's, which must then be one and the same for all.
        device: where the tensors go, one after another.

    Raises:
        CrocodilError: the folder is not whole; nothing has been read then.
    """
    folder = checkpoint_folder(Path(folder))
    return read_tensors(folder, list_tensors(folder), dtype, device)


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Names, files, shapes and dtypes from the headers alone; the index, if any, must agree with its shards.

    Raises:
        CrocodilError: no safetensors, a file that is damaged or missing, or an index that says otherwise.
    """
    if (folder / _INDEX).exists():
        if (folder / _SINGLE).exists():
            raise CrocodilError(
                f"{folder} holds both {_SINGLE} and {_INDEX}: remove the one that does not belong"
            )
        return _list_shards(folder)
    if (folder / _SINGLE).exists():
        return list_file(folder / _SINGLE)
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise CrocodilError(
            f"{folder} offers {pickles[0]}, a pickle, which can run code and is never read: "
            "convert it to safetensors"
        )
    raise CrocodilError(f"{folder} has neither {_SINGLE} nor {_INDEX}: is this the folder of a checkpoint?")


def _list_shards(folder: Path) -> dict[str, StoredTensor]:
    """`list_tensors` for an index and its shards."""
    index = read_json(folder / _INDEX)
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CrocodilError(f"{folder / _INDEX} has no weight_map of tensor names to files: fetch it again")
    stored: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or file in ("", ".."):
            raise CrocodilError(
                f"{folder / _INDEX} names {file!r}, which is not a file of this folder: fetch it again"
            )
        if not (folder / file).exists():
            raise CrocodilError(f"{folder / file} is missing, though {_INDEX} names it: fetch that shard")
        found = list_file(folder / file)
        if astray := sorted(found.keys() ^ {name for name, shard in weight_map.items() if shard == file}):
            raise CrocodilError(
                f"{folder / file} and {_INDEX} disagree on {some(astray)}: fetch shard and index again"
            )
        stored |= found
    total = sum(entry.bytes for entry in stored.values())
    announced = metadata.get("total_size", total) if isinstance(metadata, dict) else total
    if announced != total:
        raise CrocodilError(
            f"{folder / _INDEX} announces {announced} bytes of weights, its shards hold {total}: "
            "they are not of one checkpoint"
        )
    return stored


def list_file(file: Path) -> dict[str, StoredTensor]:
    """`list_tensors` for one file, whatever its name; all its tensors are of a floating dtype."""
    stored = {}
    with _opened(file) as opened:
        for name in opened.keys():
            view = opened.get_slice(name)
            if view.get_dtype() not in _FLOATS:
                raise CrocodilError(
                    f"{file}: {name} has dtype {view.get_dtype()}: quantised checkpoints are not "
                    "read, take the 16- or 32-bit one"
                )
            stored[name] = StoredTensor(file.name, tuple(view.get_shape()), view.get_dtype())
    return stored


def read_tensors(
    folder: Path, stored: Mapping[str, StoredTensor], dtype: torch.dtype | None, device: torch.device | str
) -> dict[str, torch.Tensor]:
    """The tensors themselves, file by file; see `load_tensors`."""
    if dtype is None and len(kinds := sorted({entry.dtype for entry in stored.values()})) > 1:
        raise CrocodilError(f"{folder} mixes {' and '.join(kinds)} tensors: say which dtype you want")
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted({entry.file for entry in stored.values()}):
        with _opened(folder / file) as opened:
            for name in (name for name, entry in stored.items() if entry.file == file):
                # a copy, because what safetensors returns is a view of the mapped file
                tensors[name] = opened.get_tensor(name).to(device, dtype, copy=True)
    return tensors


def map_tensors(folder: Path, stored: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
    """The tensors as views of their files, on the CPU: nothing is read before it is touched, and what is read is shared
    with other processes. Writing into them changes no file."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted({entry.file for entry in stored.values()}):
        with _opened(folder / file) as opened:
            for name in (name for name, entry in stored.items() if entry.file == file):
                tensors[name] = opened.get_tensor(name)
    return tensors


def read_matching(
    path: Path, parameters: Mapping[str, torch.Tensor], device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """The tensors of a folder or of one file in float32, when they are exactly those that `parameters` names.

    Raises:
        CrocodilError: a tensor is missing, extra, of another shape, or not finite.
    """
    is_file = path.suffix == ".safetensors"
    folder = path.parent if is_file else path
    found = list_file(path) if is_file else list_tensors(path)
    missing, extra = sorted(parameters.keys() - found.keys()), sorted(found.keys() - parameters.keys())
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has a tensor that does not belong, {extra[0]}"
        raise CrocodilError(
            f"{path} {what} ({len(missing)} missing, {len(extra)} extra); copy the model again"
        )
    for name, tensor in parameters.items():
        if tensor.shape != found[name].shape:
            raise CrocodilError(
                f"{path}: {name} has shape {tuple(found[name].shape)}, the model wants {tuple(tensor.shape)}; "
                "the config belongs to other weights"
            )
    tensors = read_tensors(folder, found, torch.float32, device)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CrocodilError(f"{path}: {name} contains NaN or infinity; copy or train the model again")
    return tensors


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file; whatever is wrong with it is said in one line."""
    try:
        str(path).encode()
        with open(path, "rb") as raw:  # safetensors calls whatever it cannot open a missing file
            pointer = raw.read(40).startswith(b"version https://git-lfs")
    except UnicodeEncodeError:
        raise CrocodilError(f"{path}: safetensors reads no path that is not UTF-8: rename it") from None
    except OSError as error:
        raise CrocodilError(f"{path} cannot be read ({error.strerror}): copy or fetch it again") from None
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        remedy = "it is a Git LFS pointer, run `git lfs pull`" if pointer else "copy or fetch it again"
        raise CrocodilError(f"{path} is damaged or cut short ({error}): {remedy}") from None


def checkpoint_folder(path: Path) -> Path:
    """The folder, or a word about what was given instead."""
    if path.is_dir():
        return path
    if path.suffix in _PICKLES:
        raise CrocodilError(
            f"{path} is a pickle, which can run code and is never read: convert it to safetensors"
        )
    if path.exists():
        raise CrocodilError(f"{path} is a file: give the folder that holds config.json and the safetensors")
    raise CrocodilError(f"{path}: no such folder; download the checkpoint first and give its folder")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; every number in it is finite."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError:
        raise CrocodilError(f"{path} is missing: give the folder of a whole checkpoint") from None
    except OSError as error:
        raise CrocodilError(f"{path} cannot be read ({error.strerror}): copy or fetch it again") from None
    except (ValueError, RecursionError) as error:
        raise CrocodilError(f"{path} is not valid JSON ({error}): fetch it again") from None
    if not isinstance(values, dict):
        raise CrocodilError(
            f"{path} holds a {type(values).__name__} instead of a JSON object: fetch it again"
        )
    return values


def _finite(number: str) -> float:
    """A number of JSON; Python's reader also takes NaN, Infinity and 1e999."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no finite number")
    return value


def _shards(
    tensors: Mapping[str, torch.Tensor], shard_bytes: int, dtype: torch.dtype | None
) -> list[list[str]]:
    """Names per shard, in order, each shard as full as it may be."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, tensor in tensors.items():
        size = _bytes(tensor, dtype)
        if shards[-1] and held + size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _bytes(tensor: torch.Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def some(names: list[str]) -> str:
    """A few of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
