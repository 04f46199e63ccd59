"""Registers on disk: what is read is what was written, and what is damaged is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crocodil.errors import CrocodilError
from crocodil.registers.cache import CacheSpec, CacheWriter, RegisterCache
from crocodil.registers.geometry import normalise

SPEC = CacheSpec("encoder-a", "corpus-a", samples=11, K=4, D=6, window=9, shard_samples=4)


def values(spec: CacheSpec = SPEC) -> torch.Tensor:
    return normalise(torch.randn(spec.samples, spec.K, spec.D, generator=torch.Generator().manual_seed(0)))


def windows(spec: CacheSpec = SPEC) -> list[list[int]]:
    return [list(range(i, i + 3 + i % 6)) for i in range(spec.samples)]


def write(folder: Path, spec: CacheSpec = SPEC, shards: list[int] | None = None) -> CacheWriter:
    writer = CacheWriter(folder, spec)
    for shard in writer.missing() if shards is None else shards:
        rows = spec.samples_of(shard)
        writer.write(shard, values(spec)[rows.start : rows.stop], windows(spec)[rows.start : rows.stop])
    return writer


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2e-3), ("bfloat16", 1e-2), ("int8", 2e-2)])
@pytest.mark.parametrize("k", [None, 1, 3, 4])
def test_what_was_written_is_read_in_any_order_at_any_k(
    dtype: str, error: float, k: int | None, tmp_path: Path
) -> None:
    spec = replace(SPEC, dtype=dtype)
    write(tmp_path, spec)
    cache = RegisterCache(tmp_path, "encoder-a")
    order = [10, 0, 7, 3, 4, 4]
    read = cache.read(order, k)
    assert read.dtype == torch.float32 and read.shape == (6, k or 4, 6) and len(cache) == 11
    assert (read - values()[order, : k or 4]).abs().max() < error
    assert [cache.window(i) for i in order] == [windows()[i] for i in order]


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    writer = write(tmp_path, shards=[1])
    assert writer.missing() == [0, 2]
    with pytest.raises(CrocodilError, match="shard-00000.safetensors is not finished"):
        RegisterCache(tmp_path)
    before = (tmp_path / "shard-00001.safetensors").stat().st_mtime_ns
    write(tmp_path)
    assert (tmp_path / "shard-00001.safetensors").stat().st_mtime_ns == before
    assert torch.equal(RegisterCache(tmp_path).read(range(11)), values().half().float())
    # a kill between the shard and its manifest leaves the shard to be written again
    (tmp_path / "shard-00002.json").unlink()
    assert CacheWriter(tmp_path, SPEC).missing() == [2]


def flip(folder: Path) -> None:
    file = folder / "shard-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)


def cut(folder: Path) -> None:
    file = folder / "shard-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lose(folder: Path) -> None:
    (folder / "shard-00001.safetensors").unlink()


def swap(folder: Path) -> None:
    manifest = folder / "shard-00001.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"encoder": "encoder-b"}))


def forget(folder: Path) -> None:
    (folder / "cache.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flip, "shard-00001.safetensors has changed since it was written"),
        (cut, r"shard-00001.safetensors has \d+ bytes, it was written with \d+"),
        (lose, "shard-00001.safetensors has 0 bytes"),
        (swap, "shard-00001.safetensors is of encoder encoder-b"),
        (forget, "holds no register cache"),
    ],
)
def test_what_is_damaged_is_refused_by_name(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(CrocodilError, match=message):
        RegisterCache(tmp_path).read(range(11))


def test_a_flipped_bit_harms_only_who_reads_it(tmp_path: Path) -> None:
    write(tmp_path)
    flip(tmp_path)
    assert RegisterCache(tmp_path).read([0, 10]).shape == (2, 4, 6)


def test_another_s_cache_is_neither_read_nor_continued(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(CrocodilError, match="of encoder encoder-a, not of encoder-b"):
        RegisterCache(tmp_path, "encoder-b")
    for other in ({"encoder": "encoder-b"}, {"corpus": "other"}, {"dtype": "int8"}, {"samples": 12}):
        with pytest.raises(CrocodilError, match=f"cache with {next(iter(other))} = "):
            CacheWriter(tmp_path, replace(SPEC, **other))


def test_a_shard_of_another_shape_is_not_written(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, SPEC)
    with pytest.raises(CrocodilError, match="shard 2 wants registers"):
        writer.write(2, values()[:4], windows()[:4])
    assert writer.missing() == [0, 1, 2]


def test_its_size_is_known_before(tmp_path: Path) -> None:
    for dtype in ("float16", "int8"):
        spec = replace(SPEC, dtype=dtype, samples=64, shard_samples=32, K=64, D=32)
        folder = tmp_path / dtype
        writer = CacheWriter(folder, spec)
        for shard in (0, 1):
            writer.write(shard, values(spec)[:32], [[1] * 9] * 32)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert size == pytest.approx(spec.bytes, rel=0.02)
    paper = CacheSpec("", "", samples=2_000_000, K=128, D=1024, window=1)
    assert paper.bytes == pytest.approx(524e9, rel=0.01) and replace(paper, K=8).bytes < 34e9


def test_indices_out_of_range(tmp_path: Path) -> None:
    write(tmp_path)
    cache = RegisterCache(tmp_path)
    for sample in (-1, 11):
        with pytest.raises(IndexError):
            cache.read([sample])
    for k in (0, 5):
        with pytest.raises(CrocodilError, match="between 1 and the 4 registers"):
            cache.read([0], k)


@pytest.mark.parametrize("change", [{"corpus": "corpus-b"}, {"encoder": "encoder-b"}, {"dtype": "int8"}])
def test_shards_that_another_cache_left_behind_are_written_anew(tmp_path: Path, change: dict) -> None:
    """As after deleting cache.json alone; and never read under another name."""
    write(tmp_path)
    spec = replace(SPEC, **change)
    about = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps(about | change))
    with pytest.raises(CrocodilError, match="shard-00000.safetensors is of (another cache|encoder)"):
        RegisterCache(tmp_path)
    (tmp_path / "cache.json").unlink()
    assert CacheWriter(tmp_path, spec).missing() == [0, 1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"samples": "11"}, {"samples": -5}, {"samples": 0}, {"shard_samples": 0}, {"shard_samples": 2.5}, {"K": "4"},
        {"D": None}, {"dtype": "float8"}, {"window": "x"}, {"format": "other"}, {"colour": "red"}, {"samples": 8},
    ],
)  # fmt: skip
def test_a_damaged_description_is_refused_in_one_line(tmp_path: Path, change: dict) -> None:
    write(tmp_path)
    about = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps(about | change))
    with pytest.raises(CrocodilError) as refused:
        RegisterCache(tmp_path)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_damaged_manifest_is_refused_in_one_line(tmp_path: Path) -> None:
    write(tmp_path)
    manifest = tmp_path / "shard-00001.json"
    about = json.loads(manifest.read_text())
    for change in ({"bytes": "x"}, {"blake2b": None}):
        manifest.write_text(json.dumps(about | change))
        with pytest.raises(CrocodilError, match="shard-00001.json is damaged"):
            RegisterCache(tmp_path)


def test_registers_that_the_dtype_cannot_hold_are_not_written(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, SPEC)
    for bad in (float("nan"), 1e6):
        with pytest.raises(CrocodilError, match="check the encoder"):
            writer.write(0, torch.full((4, 4, 6), bad), windows()[:4])
    assert writer.missing() == [0, 1, 2]


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    writer = write(tmp_path)
    left = tmp_path / ".shard-00001.safetensors.1-2.writing"
    left.touch()
    writer.sweep()
    assert not left.exists() and not writer.missing()
