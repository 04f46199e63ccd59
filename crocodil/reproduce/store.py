"""Results on disk, named by their content: a piece of work is done once, whoever asks for it and however often.

A result is a JSON file, with a safetensors file beside it where it holds tensors. Both appear whole or not at all, so
a killed sweep goes on where it stopped, and several processes may share one folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from crocodil.atomic import write_atomically
from crocodil.errors import CrocodilError


@dataclass(frozen=True)
class Measured:
    """What a piece of work gave."""

    values: Mapping[str, Any]
    """Numbers and texts, as JSON has them; of a number for each text, a list."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    """Wall time of the work."""


class Store:
    """A folder of results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, key: str) -> bool:
        return self._file(key).is_file()

    def save(self, key: str, measured: Measured) -> None:
        """Keep a result. The tensors go first: where there is a JSON file, everything is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if measured.tensors:
            tensors = {name: tensor.contiguous() for name, tensor in measured.tensors.items()}
            write_atomically(self._file(key, "safetensors"), save(tensors))
        document: dict[str, Any] = {
            "values": measured.values,
            "seconds": measured.seconds,
            "tensors": sorted(measured.tensors),
        }
        document["digest"] = _digest(document, measured.tensors)
        write_atomically(self._file(key), json.dumps(document))

    def load(self, key: str) -> Measured:
        """A result that was kept.

        Raises:
            CrocodilError: its files are damaged.
        """
        try:
            document = json.loads(self._file(key).read_text("utf-8"))
            tensors = load_file(self._file(key, "safetensors")) if document["tensors"] else {}
            if document.pop("digest") != _digest(document, tensors):
                raise ValueError("digest")
            return Measured(document["values"], tensors, document["seconds"])
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            SafetensorError,
        ) as error:
            raise CrocodilError(
                f"{self._file(key)} is damaged ({type(error).__name__}); delete it, and it will be measured again"
            ) from None

    def _file(self, key: str, kind: str = "json") -> Path:
        return self.folder / f"{key}.{kind}"


def _digest(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Of the document as it is read back, and of the tensors' shapes and bytes."""
    digest = hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=16)
    add_tensors(digest, tensors)
    return digest.hexdigest()


def add_tensors(digest: hashlib.blake2b, tensors: Mapping[str, Tensor]) -> None:
    """Add names, types, shapes and bytes, in the order of the names."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
