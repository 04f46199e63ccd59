"""A demasker of images as a folder, and new images out of it.

    config.json         what its images are, the sizes of its U-Net, its latents
    model.safetensors   its weights

Shape letters: B images, C channels, H rows, W columns, N pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crocodil.bundle import blaming, check_values, latents_of, resolve, section_of
from crocodil.cadd.latents import TokenLatents
from crocodil.cadd.sampler import Guess, LatentSpace, Reveal, sample
from crocodil.errors import CrocodilError, require_number, require_whole
from crocodil.images.data import PixelSpace
from crocodil.images.unet import PixelDemasker, UNetShape
from crocodil.shards import read_json, read_matching, write_file

FORMAT = 1
INDEX, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Drawn:
    """New images."""

    ids_BN: Tensor
    """Levels."""
    pixels: Tensor
    """(B, C, H, W) in [0, 1]."""
    nfe: int
    """Evaluations of the network for each image."""


def save_pixels(
    folder: Path,
    demasker: PixelDemasker,
    dtype: torch.dtype | None = None,
    trained: Mapping[str, Any] | None = None,
) -> None:
    """Write into an empty folder (a temporary one that is published as a whole).

    Args:
        dtype: of the weights on disk; None keeps the model's.
        trained: how it was made, for the record: written to training.json.

    Raises:
        CrocodilError: see `check_values`.
    """
    check_values(demasker, dtype)
    tensors = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in demasker.state_dict().items()
    }
    write_file(tensors, folder / WEIGHTS)
    if trained is not None:
        (folder / "training.json").write_text(
            json.dumps(trained, indent=2, default=str) + "\n", encoding="utf-8"
        )
    index = {
        "kind": "images",
        "space": asdict(demasker.space),
        "unet": asdict(demasker.shape),
        "latents": None if demasker.latents is None else asdict(demasker.latents.settled),
        "format": FORMAT,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def load_pixels(name: str | Path, device: torch.device | str = "cpu") -> PixelDemasker:
    """A demasker of images in float32, every tensor accounted for.

    Args:
        name: a folder, `bundled/NAME`, or a hub id.

    Raises:
        CrocodilError: the folder is missing, damaged, or of another kind.
    """
    folder = resolve(name)
    file = folder / INDEX
    if not file.is_file():
        raise CrocodilError(f"{folder} holds no model of images ({INDEX} is missing)")
    values = read_json(file)
    if values.get("kind") != "images" or values.get("format") != FORMAT:
        raise CrocodilError(
            f"{file}: kind {values.get('kind')!r}, format {values.get('format')!r}: this is no model of images that this "
            "version of crocodil reads"
        )
    space = section_of(PixelSpace, values.get("space"), file, "space")
    shape = section_of(UNetShape, values.get("unet"), file, "unet")
    config = latents_of(values.get("latents"), file)
    with blaming(file), torch.device("meta"):  # what cannot be is found before memory is asked for
        latents = None if config is None else TokenLatents(config, space.V, shape.width)
        demasker = PixelDemasker(space, shape, latents)
    tensors = read_matching(folder / WEIGHTS, demasker.state_dict())
    demasker.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return demasker.to(device).eval().requires_grad_(False)


@torch.no_grad()
def generate_images(
    demasker: PixelDemasker,
    n: int,
    *,
    nfe: int = 64,
    draws: int = 1,
    estimate: Guess = "hard",
    reveal: Reveal = "ancestral",
    temperature: float | Callable[[float], float] = 1.0,
    corrector: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
) -> Drawn:
    """New images out of noise (CADD Alg. 2); of a demasker without latents, plain masked diffusion.

    Args:
        nfe: steps; with latents each costs `draws` evaluations.
        draws, estimate, reveal, temperature, corrector: see `cadd.sampler`.
        seed: image i of the n is that of seed + i, whatever else is in its batch.

    Raises:
        CrocodilError: numbers that do not fit.
    """
    for name, value in {"n": n, "nfe": nfe, "draws": draws, "batch_size": batch_size}.items():
        require_whole(name, value, 1)
    require_whole("seed", seed)
    require_number("corrector", corrector, 0)
    if not callable(temperature):
        require_number("temperature", temperature, 0)
    space, device = demasker.space, demasker.table.weight.device
    latents = None
    if demasker.latents is not None:
        latents = LatentSpace(demasker.clean_table(), demasker.latents.config.schedule, draws, estimate)
    parts, calls = [], 0
    for start in range(0, n, batch_size):
        seeds = range(seed + start, seed + min(start + batch_size, n))
        done = sample(
            demasker.logits,
            torch.full((len(seeds), space.N), space.mask_id, device=device),
            space.mask_id,
            steps=nfe,
            generators=[torch.Generator().manual_seed(one) for one in seeds],
            latents=latents,
            reveal=reveal,
            temperature=temperature,
            corrector=corrector,
        )
        parts.append(done.ids.cpu())
        calls = max(calls, done.nfe)
    ids_BN = torch.cat(parts)
    return Drawn(ids_BN, space.pixels(ids_BN), calls)
