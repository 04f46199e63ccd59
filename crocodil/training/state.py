"""The tensors and numbers of a resume state on disk: safetensors and JSON, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crocodil.errors import CrocodilError
from crocodil.training.optimisation import MOMENTS, carry_moments


def save_state(
    directory: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], name: str = "state"
) -> None:
    """Write `NAME.safetensors` and `NAME.json` into `directory` (inside `publishing`, which flushes them).

    Tensors that share memory are written once each. `values` must be JSON; floats come back bit for bit.

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
    try:
        save_file(whole, directory / f"{name}.safetensors")
    except SafetensorError as error:
        raise OSError(f"{directory / name}.safetensors: {error}") from error
    (directory / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def load_values(directory: Path, name: str = "state") -> dict[str, Any]:
    """The values that `save_state` wrote (tuples come back as lists).

    Raises:
        CrocodilError: the file is missing or unreadable.
    """
    try:
        return json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CrocodilError(f"{directory}: no readable state {name!r}: {error}") from None


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
        return StoredTensors(files)
    except (OSError, SafetensorError) as error:
        raise CrocodilError(f"{directory}: unreadable: {error}") from None


def optimiser_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """AdamW's state, flat and by parameter name: `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`.

    Parameters that have not been stepped yet are absent. Rates and decays are configuration, not state.
    """
    return {
        f"{moment}/{name}": optimizer.state[parameter][moment]
        for name, parameter in named_parameters
        if optimizer.state.get(parameter)
        for moment in MOMENTS
    }


def load_optimiser(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    named_parameters: Iterable[tuple[str, nn.Parameter]],
) -> None:
    """Resume an optimiser from `optimiser_tensors` of an equal one; the next step is then bit-equal.

    Raises:
        CrocodilError: a saved parameter is not in this optimiser, or has another shape.
    """
    saved = {key.partition("/")[2] for key in tensors}
    left = saved - set(carry_moments(tensors, optimizer, named_parameters))
    if left:
        name = sorted(left)[0]
        raise CrocodilError(
            f"optimiser state of {name!r}: no such trainable parameter here; resume its stage"
        )
