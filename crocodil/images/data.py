"""Images as grids of levels: where they come from, which of them are held out, and what training may do to them.

Shape letters: n images, B of a batch, C channels, H rows, W columns, N = C·H·W pixels of an image, V levels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crocodil.errors import CrocodilError, require_number, require_whole
from crocodil.text.files import folder
from crocodil.text.hub import PREFIX
from crocodil.text.rows import optional
from crocodil.text.split import is_held_out

if TYPE_CHECKING:
    from PIL.Image import Image

DIGITS = "digits"
DIGIT_LEVELS, LEVELS = 17, 256
EXTENSIONS = tuple(f".{kind}" for one in ("png", "jpg", "jpeg") for kind in (one, one.upper(), one.title()))
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's names of pixels that have no more than 256 levels a channel."""


@dataclass(frozen=True)
class ImagesConfig:
    """Which images, and how they are made ready."""

    source: str = DIGITS
    """`digits` (8 x 8, with scikit-learn, offline), a folder of PNG and JPEG files, or
    `datasets:NAME[@REVISION][:config[:split]]`."""
    size: int | None = None
    """Side in pixels: images are cropped to a square in the centre and scaled to it, as EDM does (Karras et al. 2022).
    None takes images as they are, all of one size."""
    channels: int | None = None
    """1 for grey, 3 for RGB. None takes 1 for digits and 3 for everything else."""
    held_out: float = 0.1
    """Share of the images that is never trained on. Equal images stay on one side."""
    split_seed: int = 0
    """Which images are held out."""
    augmentation: float = 0.0
    """Probability of a flip, and of a rotation, of a training image (see `augment`). CADD App. B.2 has 0.15 for CIFAR-10
    and none for ImageNet."""

    def __post_init__(self) -> None:
        if self.size is not None:
            require_whole("images.size", self.size, 1)
        if self.channels not in (None, 1, 3):
            raise CrocodilError(f"images.channels is {self.channels!r}; give 1 for grey or 3 for RGB")
        require_number("images.held_out", self.held_out, 0, 0.99)
        require_number("images.augmentation", self.augmentation, 0, 1)


@dataclass(frozen=True)
class PixelSpace:
    """What every image of a model is: which pixels there are, and what each can be."""

    C: int
    H: int
    W: int
    V: int

    def __post_init__(self) -> None:
        for name in ("C", "H", "W"):
            require_whole(name, getattr(self, name), 1)
        require_whole("V", self.V, 2)

    @property
    def N(self) -> int:
        """Pixels of an image, each channel by itself. They are in the order C, H, W."""
        return self.C * self.H * self.W

    @property
    def mask_id(self) -> int:
        """The mask token, behind all levels."""
        return self.V

    def pixels(self, ids_BN: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] of levels, float32."""
        return ids_BN.reshape(-1, self.C, self.H, self.W).float() / (self.V - 1)


@dataclass(frozen=True, eq=False)
class Images:
    """Images in memory."""

    ids: Tensor
    """(n, C, H, W) uint8, levels 0…V−1."""
    V: int
    """Levels that there are."""
    name: str
    """Where they come from."""

    def __post_init__(self) -> None:
        if self.ids.ndim != 4 or self.ids.dtype != torch.uint8 or not self.ids.numel():
            raise CrocodilError(
                f"images are levels (n, C, H, W) in uint8, at least one, not {tuple(self.ids.shape)} {self.ids.dtype}"
            )
        if not 2 <= self.V <= LEVELS or int(self.ids.max()) >= self.V:
            raise CrocodilError(
                f"{self.name}: levels go up to {int(self.ids.max())}, so V = {self.V} does not fit"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def space(self) -> PixelSpace:
        _, C, H, W = self.ids.shape
        return PixelSpace(C, H, W, self.V)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name these images in this order."""
        found = hashlib.sha256(f"{tuple(self.ids.shape)}/{self.V}".encode())
        found.update(self.ids.contiguous().numpy().data)
        return found.hexdigest()[:16]

    def pixels(self) -> Tensor:
        """All of them as (n, C, H, W) in [0, 1], float32."""
        return self.space.pixels(self.ids)


@dataclass(frozen=True)
class Split:
    """Images in their given order, in two parts that share no image."""

    train: Images
    held_out: Images | None
    """None where none was to be held out."""


def load_split(config: ImagesConfig) -> Split:
    """Training and held-out images of a configuration.

    Raises:
        CrocodilError: the source cannot be read or does not fit the configuration, or one side has no image.
    """
    images = load_images(config)
    out_n = held_out_rows(images, config.held_out, config.split_seed)
    if out_n.all() or (config.held_out and not out_n.any()):
        raise CrocodilError(
            f"{images.name}: of {len(images)} images {int(out_n.sum())} are held out; change images.held_out or "
            "images.split_seed"
        )
    return Split(
        Images(images.ids[~out_n], images.V, images.name),
        Images(images.ids[out_n], images.V, images.name) if config.held_out else None,
    )


def held_out_rows(images: Images, held_out: float, seed: int) -> Tensor:
    """(n,) bool, True for an image that is never trained on.

    The side of an image is a hash of `seed` and its levels, so adding images moves no other, and equal ones share a side.
    """
    rows_nN = images.ids.flatten(1).contiguous().numpy()
    names = (hashlib.blake2b(row, digest_size=16).hexdigest() for row in rows_nN)
    return torch.tensor([is_held_out(name, held_out, seed) for name in names])


def augment(ids_CHW: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """Flip and rotate an image; its levels only change their places.

    These are x-flip and 90° rotation of Karras et al. (2020), all of whose probabilities are `probability`: it decides
    whether an operation takes place, and then it is one of all there are, the identity among them. Always the same
    numbers are drawn.

    Raises:
        CrocodilError: the image is no square, which cannot be rotated.
    """
    check_augmentation(ids_CHW.shape[-2], ids_CHW.shape[-1], probability)
    coins = torch.rand(2, generator=generator)
    flips = int(torch.randint(2, (), generator=generator))
    turns = int(torch.randint(4, (), generator=generator))
    if flips and coins[0] < probability:
        ids_CHW = ids_CHW.flip(-1)
    return torch.rot90(ids_CHW, turns if coins[1] < probability else 0, (-2, -1))


def check_augmentation(H: int, W: int, probability: float) -> None:
    """Refuse to rotate what is no square."""
    if probability and H != W:
        raise CrocodilError(
            f"images of {H} x {W} pixels cannot be rotated: images.augmentation wants squares, give images.size"
        )


def load_images(config: ImagesConfig) -> Images:
    """All images of a source, held out or not. Those of `datasets` are downloaded and kept by that library.

    Raises:
        CrocodilError: the source cannot be read or does not fit the configuration.
    """
    if config.source == DIGITS:
        if config.size not in (None, 8) or config.channels not in (None, 1):
            raise CrocodilError(
                "digits have 8 x 8 pixels in one channel; leave out images.size and images.channels"
            )
        return digits()[0]
    if config.source.startswith(PREFIX):
        found = _of_datasets(config)
    elif os.path.isdir(config.source):
        found = _of_folder(config)
    else:
        raise CrocodilError(
            f"images.source: there is no folder {config.source}; give a folder of PNG or JPEG files, {DIGITS}, or "
            f"{PREFIX}NAME"
        )
    return Images(torch.from_numpy(found), LEVELS, config.source)


def digits() -> tuple[Images, Tensor]:
    """The 1,797 digits of scikit-learn, and which digit each is: (n,) int64."""
    found = optional("sklearn.datasets", "scikit-learn").load_digits()
    ids = torch.from_numpy(found.images).to(torch.uint8)[:, None]
    return Images(ids, DIGIT_LEVELS, DIGITS), torch.from_numpy(found.target).long()


def _of_folder(config: ImagesConfig) -> np.ndarray:
    from PIL import Image

    paths = [path for path, _ in folder(Path(config.source), EXTENSIONS)]
    if not paths:
        raise CrocodilError(f"{config.source} has no PNG or JPEG file")

    def pictures() -> Iterator[tuple[str, Image.Image]]:
        for path in paths:
            try:
                with Image.open(path, formats=("PNG", "JPEG")) as picture:
                    picture.load()
            except Exception as error:  # Pillow raises many kinds for a damaged file
                raise CrocodilError(f"{path} cannot be read as an image; mend it or leave it out") from error
            yield str(path), picture

    return _levels(len(paths), pictures(), config)


def _of_datasets(config: ImagesConfig) -> np.ndarray:
    """Images of a data set of the `datasets` library, which runs no code of a data set."""
    datasets = optional("datasets", "datasets")
    parts = config.source.removeprefix(PREFIX).split(":")
    if len(parts) > 3:
        raise CrocodilError(
            f"{config.source} has {len(parts)} parts; give {PREFIX}NAME[@REVISION][:config[:split]]"
        )
    name, subset, part = [*parts, "", ""][:3]
    name, _, revision = (name, "", "") if os.path.isdir(name) else name.partition("@")
    try:
        rows = datasets.load_dataset(name, subset or None, revision=revision or None, split=part or "train")
    except Exception as error:  # many kinds, for a wrong name and for no network
        said = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise CrocodilError(
            f"{config.source} cannot be opened ({said}); check its name and the network"
        ) from error
    column = next((name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise CrocodilError(
            f"{config.source} has columns {', '.join(rows.column_names)}, none of them of images"
        )
    rows = rows.select_columns([column])
    if not len(rows):
        raise CrocodilError(f"{config.source} has no rows")

    def pictures() -> Iterator[tuple[str, Any]]:
        for number in range(len(rows)):
            where = f"{config.source} row {number + 1}"
            try:
                picture = rows[number][column]
            except Exception as error:  # of Pillow, for a damaged picture
                raise CrocodilError(f"{where} cannot be read as an image") from error
            if picture is None:
                raise CrocodilError(f"{where} has no image")
            yield where, picture

    return _levels(len(rows), pictures(), config)


def _levels(n: int, pictures: Iterator[tuple[str, Image]], config: ImagesConfig) -> np.ndarray:
    """(n, C, H, W) uint8 of n pictures, each with where it is from."""
    images: np.ndarray | None = None
    for number, (where, picture) in enumerate(pictures):
        levels = _image(where, picture, config)
        if images is None:
            images = np.empty((n, *levels.shape), np.uint8)
        if levels.shape != images.shape[1:]:
            sizes = [f"{shape[2]} x {shape[1]}" for shape in (levels.shape, images.shape[1:])]
            raise CrocodilError(
                f"{where} has {sizes[0]} pixels, the first image {sizes[1]}; give images.size"
            )
        images[number] = levels
    assert images is not None
    return images


def _image(where: str, picture: Image, config: ImagesConfig) -> np.ndarray:
    """(C, H, W) uint8, cropped and scaled as EDM's dataset tool does (`--transform=center-crop`)."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    if picture.mode not in EIGHT_BIT:
        raise CrocodilError(f"{where} has pixels of kind {picture.mode}, not 8 bits a channel; convert it")
    picture = ImageOps.exif_transpose(picture)  # as it is looked at
    picture = picture.convert("L" if config.channels == 1 else "RGB")
    if config.size is not None:
        (width, height), side = picture.size, min(picture.size)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
        picture = picture.resize((config.size, config.size), Resampling.LANCZOS)
    levels = np.asarray(picture)
    return levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)
