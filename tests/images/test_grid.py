"""The picture of many images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crocodil.errors import CrocodilError
from crocodil.images.grid import LINE, MARGIN, grid, save_grid


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_every_pixel_becomes_a_square_in_its_place() -> None:
    images = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    picture = opened(grid(images, columns=3, scale=2))
    assert picture.shape == (2 * (8 + MARGIN) + MARGIN, 3 * (12 + MARGIN) + MARGIN, 3)
    for number, image in enumerate(images):
        y, x = (number // 3) * (8 + MARGIN) + MARGIN, (number % 3) * (12 + MARGIN) + MARGIN
        part = picture[y : y + 8, x : x + 12].transpose(2, 0, 1)
        expected = (image * 255).round().to(torch.uint8).numpy()
        assert np.array_equal(part, np.kron(expected, np.ones((1, 2, 2), np.uint8)))


def test_images_end_visibly_and_empty_places_are_white() -> None:
    picture = opened(grid(torch.ones(3, 1, 4, 4), columns=2, scale=1))
    step = 4 + MARGIN
    assert (picture[:MARGIN] == LINE).all() and (picture[:, :MARGIN] == LINE).all()
    assert (picture[step : step + MARGIN] == LINE).all()
    assert (picture[step + MARGIN :, step + MARGIN :] == 255).all()  # the fourth place


def test_small_images_are_enlarged_and_dealt_out_into_a_square() -> None:
    picture = opened(grid(torch.zeros(9, 1, 8, 8)))
    assert picture.shape == (3 * (64 + MARGIN) + MARGIN,) * 2
    assert opened(grid(torch.zeros(1, 1, 100, 100))).shape == (100 + 2 * MARGIN,) * 2


def test_what_lies_beyond_black_and_white_is_black_and_white() -> None:
    picture = opened(grid(torch.tensor([-1.0, 2.0]).reshape(1, 1, 1, 2), scale=1))
    assert picture[MARGIN, MARGIN : MARGIN + 2].tolist() == [0, 255]


def test_a_file_appears_whole(tmp_path: Path) -> None:
    images = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    save_grid(tmp_path / "grid.png", images)
    assert (tmp_path / "grid.png").read_bytes() == grid(images)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 2, 4, 4), (1, 4, 4)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CrocodilError, match="of 1 or 3 channels"):
        grid(torch.zeros(shape))
