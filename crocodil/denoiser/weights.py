"""A trained denoiser as a folder: config.json and safetensors.

Only safetensors and JSON are read; nothing is unpickled and no code of the folder is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from crocodil.denoiser.dit import Denoiser, DenoiserConfig
from crocodil.denoiser.schedule import offsets
from crocodil.errors import CrocodilError
from crocodil.shards import list_tensors, read_json, read_matching, save_tensors

FORMAT = "crocodil-denoiser-1"
CONFIG = "config.json"


@dataclass(frozen=True, eq=False)
class TrainedDenoiser:
    """A denoiser, and what has to be known to use it."""

    denoiser: Denoiser
    encoder: str
    """Fingerprint of the encoder whose registers it makes."""
    largest_offset: float
    """Δ_max of the block offsets that it was trained with."""
    any_k: bool = False
    """Whether it was trained with nested dropout, and so makes any number of registers; else always all K."""

    @property
    def config(self) -> DenoiserConfig:
        return self.denoiser.config

    @property
    def parameters(self) -> int:
        return self.denoiser.parameters_in_all

    @property
    def offsets_K(self) -> torch.Tensor:
        return offsets(self.config.K, self.largest_offset)


@dataclass(frozen=True, eq=False)
class Denoisers:
    """The denoisers of one model, what there is of them."""

    unconditional: TrainedDenoiser | None = None
    conditional: TrainedDenoiser | None = None


def open_denoisers(folders: Iterable[Path], encoder: str, device: torch.device | str = "cpu") -> Denoisers:
    """Load denoisers of one encoder; each folder says by itself whether it is conditional.

    Raises:
        CrocodilError: a folder that cannot be loaded, is of another encoder, or is a second one of its kind.
    """
    found: dict[str, TrainedDenoiser] = {}
    for folder in folders:
        trained = load_denoiser(folder, device)
        if trained.encoder != encoder:
            raise CrocodilError(
                f"{folder} makes registers of encoder {trained.encoder}, this model's is {encoder}; train it for "
                "this model with train_denoiser.py"
            )
        kind = "conditional" if trained.config.conditional else "unconditional"
        if kind in found:
            raise CrocodilError(f"{folder} is a second {kind} denoiser; name one of each kind")
        found[kind] = trained
    return Denoisers(**found)


def save_denoiser(
    folder: Path,
    trained: TrainedDenoiser,
    dtype: torch.dtype | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a denoiser into an empty folder (a temporary one that is published as a whole).

    Args:
        dtype: of the weights on disk; None keeps the denoiser's.
        record: how it was made; written to training.json.
    """
    save_tensors(trained.denoiser.state_dict(), folder, dtype=dtype)
    values = {"format": FORMAT} | asdict(trained.config)
    values |= {"encoder": trained.encoder, "largest_offset": trained.largest_offset, "any_k": trained.any_k}
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if record is not None:
        text = json.dumps(record, indent=2, default=str)
        (folder / "training.json").write_text(text + "\n", encoding="utf-8")


def load_denoiser(folder: str | Path, device: torch.device | str = "cpu") -> TrainedDenoiser:
    """Read what `save_denoiser` wrote, in float32; every tensor is accounted for.

    Raises:
        CrocodilError: the folder is missing, damaged, or not a denoiser.
    """
    folder = Path(folder)
    file = folder / CONFIG
    values = read_json(file)
    if values.pop("format", None) != FORMAT:
        raise CrocodilError(f"{file} is not of format {FORMAT}; give the export of train_denoiser.py")
    wanted = {field.name for field in fields(DenoiserConfig)}
    if odd := sorted(values.keys() ^ (wanted | {"encoder", "largest_offset", "any_k"})):
        raise CrocodilError(f"{file}: {odd[0]!r} is missing or unknown; copy the denoiser again")
    encoder, largest, any_k = (values.pop(name) for name in ("encoder", "largest_offset", "any_k"))
    good = all(
        type(value) is (bool if name == "conditional" else int) and value < 2**31
        for name, value in values.items()
    )
    if not (
        good and isinstance(encoder, str) and isinstance(largest, int | float) and isinstance(any_k, bool)
    ):
        raise CrocodilError(f"{file}: a value is of the wrong kind; copy the denoiser again")
    # a config that asks for more than is stored is refused before anything of that size is built
    stored = list_tensors(folder)
    layers = {name.split(".")[1] for name in stored if name.startswith("blocks.")}
    place = stored["place"].shape if "place" in stored else None
    if len(layers) != values["layers"] or place != (values["K"], values["width"]):
        raise CrocodilError(
            f"{file} asks for {values['layers']} layers and places {values['K']} × {values['width']}, the weights have "
            f"{len(layers)} layers and places {place}; copy the denoiser again"
        )
    try:
        with torch.device("meta"):
            denoiser = Denoiser(DenoiserConfig(**values))
        offsets(denoiser.config.K, largest)
    except (CrocodilError, RuntimeError) as error:
        raise CrocodilError(f"{file}: {error}") from None
    denoiser.load_state_dict(read_matching(folder, denoiser.state_dict(), device), assign=True)
    return TrainedDenoiser(denoiser.eval().requires_grad_(False), encoder, float(largest), any_k)
