"""Images: where they come from, that the split is fixed, and that augmentation only moves pixels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crocodil.errors import CrocodilError
from crocodil.images.data import (
    Images,
    ImagesConfig,
    PixelSpace,
    augment,
    digits,
    held_out_rows,
    load_images,
    load_split,
)


def some(n: int = 200, side: int = 4) -> Images:
    ids = torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0))
    return Images(ids.to(torch.uint8), 256, "some")


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    levels = np.random.RandomState(seed).randint(0, 256, (height, width, channels)).astype(np.uint8)
    return levels[..., 0] if channels == 1 else levels


def refused(config: ImagesConfig, match: str) -> None:
    with pytest.raises(CrocodilError, match=match) as caught:
        load_split(config)
    assert "\n" not in str(caught.value)


def test_digits_are_there_without_a_network() -> None:
    images, classes = digits()
    assert images.space == PixelSpace(1, 8, 8, 17) and len(images) == len(classes) == 1797
    assert images.ids.min() == 0 and images.ids.max() == 16
    assert images.pixels().min() == 0 and images.pixels().max() == 1
    assert load_images(ImagesConfig()).digest == images.digest


def test_the_split_parts_all_images_and_is_fixed_by_share_and_seed() -> None:
    images = digits()[0]
    split = load_split(ImagesConfig(held_out=0.2))
    assert split.held_out is not None
    assert len(split.train) + len(split.held_out) == len(images)
    assert abs(len(split.held_out) / len(images) - 0.2) < 4 * (0.2 * 0.8 / len(images)) ** 0.5
    again = load_split(ImagesConfig(held_out=0.2))
    other = load_split(ImagesConfig(held_out=0.2, split_seed=1))
    assert split.train.digest == again.train.digest != other.train.digest
    assert not set(map(bytes, split.train.ids.numpy())) & set(map(bytes, split.held_out.ids.numpy()))


def test_a_larger_share_and_more_images_only_add_to_what_is_held_out() -> None:
    images = some()
    small, large = held_out_rows(images, 0.1, 0), held_out_rows(images, 0.5, 0)
    assert small.any() and (large | ~small).all() and large.sum() > small.sum()
    half = Images(images.ids[100:], 256, "half")
    assert torch.equal(held_out_rows(half, 0.5, 0), large[100:])


def test_equal_images_are_on_one_side() -> None:
    images = some()
    twice = Images(torch.cat([images.ids, images.ids]), 256, "twice")
    first, second = held_out_rows(twice, 0.5, 3).chunk(2)
    assert torch.equal(first, second)


def test_the_last_pixel_is_a_difference() -> None:
    ids = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    ids[:, 0, 7, 7] = torch.arange(200)
    share = held_out_rows(Images(ids, 256, "nearly equal"), 0.5, 0).float().mean()
    assert 0.3 < share < 0.7


def test_nothing_is_held_out_where_nothing_shall_be() -> None:
    split = load_split(ImagesConfig(held_out=0.0))
    assert split.held_out is None and len(split.train) == 1797


def test_the_digest_is_of_levels_shape_order_and_their_number() -> None:
    images = some()
    assert images.digest == Images(images.ids.clone(), 256, "other name").digest
    changed = images.ids.clone()
    changed[0, 0, 0, 0] ^= 1
    reordered = images.ids.flip(0)
    reshaped = images.ids.reshape(200, 3, 2, 8)
    others = [Images(ids, 256, "").digest for ids in (changed, reordered, reshaped)]
    dark = Images(images.ids // 2, 256, "")
    assert len({images.digest, *others}) == 4 and dark.digest != Images(dark.ids, 128, "").digest


def test_pixels_are_levels_between_0_and_1() -> None:
    space = PixelSpace(1, 2, 2, 5)
    assert space.N == 4 and space.mask_id == 5
    assert torch.equal(
        space.pixels(torch.tensor([[0, 1, 2, 4]])), torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
    )


def test_augmentation_only_moves_pixels() -> None:
    image = some(1).ids[0]
    for seed in range(40):
        moved = augment(image, torch.Generator().manual_seed(seed), 1.0)
        assert moved.shape == image.shape and moved.dtype == image.dtype
        for channel, before in zip(moved, image, strict=True):
            assert torch.equal(channel.flatten().sort().values, before.flatten().sort().values)
        # all channels of a pixel go together
        pixels = lambda x: Counter(map(tuple, x.flatten(1).T.tolist()))  # noqa: E731
        assert pixels(moved) == pixels(image)


def test_augmentation_is_as_probable_as_it_is_said_to_be() -> None:
    """With probability p a flip is drawn, and half of those flip; of rotations, three quarters turn."""
    image, p, n = torch.arange(4, dtype=torch.uint8).reshape(1, 2, 2), 0.6, 6000
    generator = torch.Generator().manual_seed(0)
    seen = Counter(tuple(augment(image, generator, p).flatten().tolist()) for _ in range(n))
    assert len(seen) == 8  # the symmetries of a square
    flipped, turned = p / 2, 3 * p / 4
    for flip in (False, True):
        for turns in range(4):
            what = torch.rot90(image.flip(-1) if flip else image, turns, (-2, -1))
            share = (flipped if flip else 1 - flipped) * (turned / 3 if turns else 1 - turned)
            error = 4.5 * (share * (1 - share) / n) ** 0.5
            assert abs(seen[tuple(what.flatten().tolist())] / n - share) < error


def test_without_augmentation_nothing_moves_and_the_stream_is_the_same() -> None:
    image = some(1).ids[0]
    streams = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(augment(image, streams[0], 0.0), image)
    augment(image, streams[1], 1.0)
    assert torch.equal(torch.rand(3, generator=streams[0]), torch.rand(3, generator=streams[1]))


def test_what_is_no_square_is_not_rotated() -> None:
    wide = torch.zeros(1, 4, 6, dtype=torch.uint8)
    assert torch.equal(augment(wide, torch.Generator(), 0.0), wide)
    with pytest.raises(CrocodilError, match="cannot be rotated"):
        augment(wide, torch.Generator(), 0.1)


def test_a_folder_gives_the_levels_of_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    pictures = [picture(5, 7, seed) for seed in range(3)]
    (tmp_path / "b").mkdir()
    for name, levels in zip(("a.png", "b/c.PNG", "d.png"), pictures, strict=True):
        Image.fromarray(levels).save(tmp_path / name, "PNG")
    (tmp_path / "notes.txt").write_text("no image")
    images = load_images(ImagesConfig(source=str(tmp_path)))
    assert images.space == PixelSpace(3, 5, 7, 256)
    in_order = {tuple(image.flatten()) for image in images.ids.numpy()}
    assert in_order == {tuple(levels.transpose(2, 0, 1).flatten()) for levels in pictures}
    assert load_images(ImagesConfig(source=str(tmp_path))).digest == images.digest


def test_grey_files_are_grey_or_become_rgb(tmp_path: Path) -> None:
    levels = picture(6, 6, channels=1)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    Image.fromarray(picture(6, 6)).save(tmp_path / "photo.jpg")
    grey = load_images(ImagesConfig(source=str(tmp_path), channels=1))
    assert grey.ids.shape == (2, 1, 6, 6) and np.array_equal(grey.ids[0, 0].numpy(), levels)
    rgb = load_images(ImagesConfig(source=str(tmp_path)))
    assert rgb.ids.shape == (2, 3, 6, 6)
    assert all(np.array_equal(channel.numpy(), levels) for channel in rgb.ids[0])


def test_cropping_takes_the_centre_and_scaling_comes_after_it(tmp_path: Path) -> None:
    """A wide picture whose middle square has a left half of 200 and a right half of 40, black outside."""
    levels = np.zeros((16, 40, 3), np.uint8)
    levels[:, 12:20], levels[:, 20:28] = 200, 40
    Image.fromarray(levels).save(tmp_path / "wide.png")
    images = load_images(ImagesConfig(source=str(tmp_path), size=8))
    assert images.ids.shape == (1, 3, 8, 8)
    assert (images.ids[..., 0] == 200).all() and (images.ids[..., 7] == 40).all()
    same = load_images(ImagesConfig(source=str(tmp_path), size=16))
    assert torch.equal(same.ids[0, :, :, 0], torch.full((3, 16), 200, dtype=torch.uint8))
    assert np.array_equal(same.ids[0].numpy(), levels[:, 12:28].transpose(2, 0, 1))


def test_scaling_is_edm_s(tmp_path: Path) -> None:
    """Its dataset tool: `center-crop`, Lanczos (Karras et al. 2022)."""
    levels = picture(37, 23)
    Image.fromarray(levels).save(tmp_path / "tall.png")
    top = (37 - 23) // 2
    expected = Image.fromarray(levels[top : top + 23]).resize((10, 10), Image.Resampling.LANCZOS)
    images = load_images(ImagesConfig(source=str(tmp_path), size=10))
    assert np.array_equal(images.ids[0].numpy(), np.asarray(expected).transpose(2, 0, 1))


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` can load: a label and an image in every row."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    rows = {"label": [0, 1, 2], "img": [Image.fromarray(picture(4, 4, seed)) for seed in range(3)]}
    features = datasets.Features({"label": datasets.Value("int64"), "img": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


def test_the_column_of_images_is_found_by_its_kind(data_set: Path) -> None:
    images = load_images(ImagesConfig(source=f"datasets:{data_set}"))
    assert images.space == PixelSpace(3, 4, 4, 256)
    for seed, image in enumerate(images.ids.numpy()):
        assert np.array_equal(image, picture(4, 4, seed).transpose(2, 0, 1))
    part = load_images(ImagesConfig(source=f"datasets:{data_set}:default:train"))
    assert part.digest == images.digest


def test_a_data_set_without_images_is_refused(data_set: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["a"], "n": [1]}).to_parquet(data_set / "train.parquet")
    refused(ImagesConfig(source=f"datasets:{data_set}"), "columns text, n, none of them of images")


def test_bad_sources_are_refused_in_one_line(tmp_path: Path, data_set: Path) -> None:
    refused(ImagesConfig(source=str(tmp_path / "nowhere")), "there is no folder")
    refused(ImagesConfig(source=f"datasets:{data_set}:default:nothing"), "cannot be opened")
    refused(ImagesConfig(source="datasets:a:b:c:d"), "has 4 parts")
    refused(ImagesConfig(size=16), "8 x 8 pixels in one channel")
    refused(ImagesConfig(channels=3), "8 x 8 pixels in one channel")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(ImagesConfig(source=str(empty)), "no PNG or JPEG")
    Image.fromarray(picture(4, 4)).save(empty / "a.png")
    refused(ImagesConfig(source=str(empty), held_out=0.0001), "of 1 images 0 are held out")
    Image.fromarray(picture(4, 6)).save(empty / "b.png")
    refused(
        ImagesConfig(source=str(empty)), "b.png has 6 x 4 pixels, the first image 4 x 4; give images.size"
    )
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(empty / "c.png")
    refused(ImagesConfig(source=str(empty), size=4), "c.png has pixels of kind I;16")
    (empty / "c.png").write_bytes((empty / "a.png").read_bytes()[:60])
    refused(ImagesConfig(source=str(empty), size=4), "c.png cannot be read as an image")


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"size": 0}, "images.size"),
        ({"size": 8.5}, "images.size"),
        ({"channels": 2}, "images.channels is 2"),
        ({"held_out": 1.0}, "images.held_out"),
        ({"augmentation": 1.5}, "images.augmentation"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(wrong: dict, match: str) -> None:
    with pytest.raises(CrocodilError, match=match):
        ImagesConfig(**wrong)


def test_levels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CrocodilError, match="V = 4 does not fit"):
        Images(torch.full((1, 1, 2, 2), 4, dtype=torch.uint8), 4, "five")
    with pytest.raises(CrocodilError, match="uint8"):
        Images(torch.zeros(1, 1, 2, 2), 4, "floats")
    with pytest.raises(CrocodilError, match="at least one"):
        Images(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), 4, "none")
