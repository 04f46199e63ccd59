"""A model of images on disk, and images out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from crocodil.cadd.latents import LatentConfig
from crocodil.cadd.sampler import Guess
from crocodil.errors import CrocodilError
from crocodil.images.unet import PixelDemasker
from crocodil.images.weights import INDEX, WEIGHTS, generate_images, load_pixels, save_pixels
from tests.images.test_unet import KINDS, SPACE, TINY, knowing

LATENTS = asdict(LatentConfig(rho=2.0, gain=1.0))


def saved(
    folder: Path, latents: LatentConfig | None = None, dtype: torch.dtype | None = None
) -> PixelDemasker:
    """What was saved."""
    folder.mkdir(exist_ok=True)
    demasker = knowing(latents)
    save_pixels(folder, demasker, dtype)
    return demasker


@KINDS
def test_it_comes_back_to_the_last_bit(latents: LatentConfig | None, tmp_path: Path) -> None:
    before, after = saved(tmp_path / "model", latents), load_pixels(tmp_path / "model")
    assert (after.space, after.shape) == (before.space, before.shape)
    assert all(torch.equal(after.state_dict()[name], tensor) for name, tensor in before.state_dict().items())
    assert latents is None or (after.latents is not None and before.latents is not None)
    if after.latents is not None and before.latents is not None:
        assert after.latents.settled == before.latents.settled
    drawn = [generate_images(one, 3, nfe=4, seed=5).ids_BN for one in (before, after)]
    assert torch.equal(*drawn)


def test_sixteen_bits_are_the_nearest(tmp_path: Path) -> None:
    before, after = saved(tmp_path / "model", dtype=torch.bfloat16), load_pixels(tmp_path / "model")
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor.bfloat16().float()), name


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("estimate", ["hard", "soft", "drawn"])
def test_an_image_is_that_of_its_seed_in_any_batch(draws: int, estimate: Guess) -> None:
    demasker = knowing(LatentConfig())
    options: dict[str, Any] = {"nfe": 4, "draws": draws, "estimate": estimate}
    together = generate_images(demasker, 5, seed=7, **options).ids_BN
    apart = generate_images(demasker, 5, seed=7, batch_size=2, **options).ids_BN
    assert torch.equal(together, apart)
    assert torch.equal(generate_images(demasker, 1, seed=9, **options).ids_BN[0], together[2])
    assert together.unique(dim=0).shape[0] == 5 and together.max() < SPACE.V


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    demasker = knowing()
    with torch.no_grad():
        next(demasker.unet.parameters()).fill_(float("nan"))
    with pytest.raises(CrocodilError, match="no numbers"):
        save_pixels(tmp_path, demasker)
    with torch.no_grad():
        next(demasker.unet.parameters()).fill_(1e5)
    with pytest.raises(CrocodilError, match="float16 does not hold"):
        save_pixels(tmp_path, demasker, torch.float16)
    assert not list(tmp_path.iterdir())


def cut(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-10])


def lost(folder: Path) -> None:
    (folder / INDEX).unlink()


def said(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps(index | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, WEIGHTS),
        (lost, f"{INDEX} is missing"),
        (said(kind="autoencoder"), "kind 'autoencoder'"),
        (said(format=99), "format 99"),
        (said(latents={"fusion": "mean"}), "latents must say"),
        (said(latents=LATENTS | {"fusion": "mean"}), "fusion 'mean'"),
        (said(latents=LATENTS | {"rho": 0}), "rho is 0"),
        (said(latents=LATENTS | {"rho": float("nan")}), "no finite number"),
        (said(space={"C": 1}), "space"),
        (said(space=asdict(SPACE) | {"C": "3"}), "C must be a whole number"),
        (said(space=asdict(SPACE) | {"V": None}), "V must be a whole number"),
        (said(space=asdict(SPACE) | {"W": 0}), "W must be a whole number"),
        (said(unet=asdict(TINY) | {"attention": 4}), "unet.attention is 4"),
        (said(unet=asdict(TINY) | {"channels": [8.0, 8]}), "unet.channels is"),
        (said(unet=asdict(TINY) | {"width": 10**7}), "model.safetensors"),
        (said(latents=LATENTS | {"rho": None}), "must say rho and gain"),
        (said(unet=None), "unet"),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    saved(tmp_path / "model", LatentConfig())
    damage(tmp_path / "model")
    with pytest.raises(CrocodilError, match=message) as refusal:
        load_pixels(tmp_path / "model")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"nfe": 1.5},
        {"draws": 0},
        {"temperature": "1"},
        {"corrector": -1},
        {"seed": 0.5},
        {"temperature": lambda t: -1.0},
        {"temperature": lambda t: float("nan")},
    ],
)
def test_numbers_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(CrocodilError, match=name):
        generate_images(knowing(), 1, **{"nfe": 2, **options})
