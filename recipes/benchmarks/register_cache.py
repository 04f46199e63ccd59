"""P9: the register cache. Appending to it, and reading it in order and shuffled, against plain files.

The plain way knows nothing of manifests and digests: float16 values and int32 tokens, written and flushed; and as many
bytes from where they lie in the same shards, made float32. A second row of each takes the bytes alone.

N samples, K registers, D register width.
"""

from __future__ import annotations

import contextlib
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from crocodil.registers.cache import CacheSpec, CacheWriter, RegisterCache
from recipes.benchmarks.harness import Bench, Benchmark, Row, assert_equal, compare
from recipes.benchmarks.sizes import CacheSizes


@dataclass(frozen=True)
class Case:
    """Registers and windows at hand, and a folder to keep them in."""

    folder: Path
    spec: CacheSpec
    values_NKD: Tensor
    windows: list[list[int]]

    def append(self) -> None:
        """All shards with our writer, those that are there once more."""
        writer = CacheWriter(self.folder, self.spec)
        for shard in range(self.spec.shards):
            rows = self.rows(shard)
            writer.write(shard, self.values_NKD[rows], self.windows[rows])

    def append_plainly(self) -> None:
        """The same to files of values and tokens."""
        self._write([self._content(shard) for shard in range(self.spec.shards)])

    def append_bytes(self) -> None:
        """The same when the bytes are at hand."""
        self._write(self._contents)

    @cached_property
    def _contents(self) -> list[bytes]:
        return [self._content(shard) for shard in range(self.spec.shards)]

    def _content(self, shard: int) -> bytes:
        rows = self.rows(shard)
        ids = array("i", chain.from_iterable(self.windows[rows]))
        return self.values_NKD[rows].half().numpy().tobytes() + ids.tobytes()

    def _write(self, contents: Sequence[bytes]) -> None:
        for shard, content in enumerate(contents):
            with open(self.plain_file(shard), "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())

    def plain_file(self, shard: int) -> Path:
        return self.folder / f"plain-{shard}"

    def rows(self, shard: int) -> slice:
        samples = self.spec.samples_of(shard)
        return slice(samples.start, samples.stop)


class Pread:
    """Reads registers out of the shards of a cache with `pread` alone."""

    def __init__(self, folder: Path, spec: CacheSpec) -> None:
        self.spec = spec
        self.size = spec.K * spec.D * 2
        self.files: list[tuple[int, int]] = []
        """Of each shard: its descriptor, and where its values begin."""
        for file in sorted(folder.glob("*.safetensors")):
            descriptor = os.open(file, os.O_RDONLY)
            length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
            values = json.loads(os.pread(descriptor, length, 8))["values"]
            self.files.append((descriptor, 8 + length + values["data_offsets"][0]))

    def close(self) -> None:
        for descriptor, _ in self.files:
            os.close(descriptor)

    def read(self, samples: Sequence[int], together: int) -> Tensor:
        """Float16 (N, K, D), by one call for so many samples, which are neighbours."""
        out_NKD = torch.empty(len(samples), self.spec.K, self.spec.D, dtype=torch.float16)
        room = memoryview(out_NKD.numpy()).cast("B")
        for at in range(0, len(samples), together):
            shard, row = divmod(samples[at], self.spec.shard_samples)
            descriptor, start = self.files[shard]
            part = room[at * self.size : (at + together) * self.size]
            os.preadv(descriptor, [part], start + row * self.size)
        return out_NKD

    def registers(self, samples: Sequence[int], together: int) -> Tensor:
        """The same in float32, as our cache gives them."""
        return self.read(samples, together).float()


def case_of(sizes: CacheSizes, folder: Path) -> Case:
    """Registers of unit variance, and full windows."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(sizes.samples, sizes.K, sizes.D, generator=generator)
    windows = torch.randint(0, 2**15, (sizes.samples, sizes.window), generator=generator).tolist()
    spec = CacheSpec(
        encoder="benchmark",
        corpus="benchmark",
        samples=sizes.samples,
        K=sizes.K,
        D=sizes.D,
        window=sizes.window,
        shard_samples=sizes.shard_samples,
    )
    return Case(folder, spec, values, windows)


@dataclass(frozen=True)
class Read:
    """An order of reading, and its targets."""

    name: str
    order: Sequence[int]
    batch: int
    together: int
    """Samples that lie side by side, so that one `pread` reads them."""
    floor: float
    aim: float

    @property
    def batches(self) -> list[Sequence[int]]:
        return [self.order[at : at + self.batch] for at in range(0, len(self.order), self.batch)]


def check(case: Case, cache: RegisterCache, pread: Pread, reads: Sequence[Read]) -> None:
    """What was appended is what is read, by all ways and in every order."""
    half_NKD = case.values_NKD.half()
    for shard in range(case.spec.shards):
        values = bytearray(half_NKD[case.rows(shard)].numpy().tobytes())
        plain = bytearray(case.plain_file(shard).read_bytes()[: len(values)])
        assert_equal(
            f"values of plain file {shard}",
            *(torch.frombuffer(data, dtype=torch.uint8) for data in (plain, values)),
        )
    for read in reads:
        for samples in read.batches:
            wanted = half_NKD[samples].float()
            assert_equal(f"registers {read.name}", wanted, cache.read(samples))
            assert_equal(f"registers {read.name}, pread", wanted, pread.registers(samples, read.together))
    for sample in (0, case.spec.samples - 1):
        assert_equal("tokens", torch.tensor(case.windows[sample]), torch.tensor(cache.window(sample)))


def _read_all(read: Callable[[Sequence[int]], Tensor], batches: Sequence[Sequence[int]]) -> None:
    for samples in batches:
        read(samples)


def measure(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes.cache
    shuffled = torch.randperm(sizes.samples, generator=torch.Generator().manual_seed(0)).tolist()
    reads = (
        Read("in order", range(sizes.samples), sizes.batch, sizes.batch, 0.8, 0.95),
        Read("shuffled", shuffled, sizes.batch, 1, 0.5, 0.8),
    )
    with TemporaryDirectory() as folder:
        case = case_of(sizes, Path(folder))
        case.append()
        case.append_plainly()
        cache = RegisterCache(folder)
        with contextlib.closing(Pread(Path(folder), case.spec)) as pread:
            check(case, cache, pread, reads)
            shape = f"{sizes.samples:,} samples, K = {sizes.K}, D = {sizes.D:,}"
            yield compare(case.append_plainly, case.append, bench).row(f"append, {shape}", 0.85, 0.95)
            yield compare(case.append_bytes, case.append, bench).row("append, against the bytes alone")
            for read in reads:
                ours, registers, alone = (
                    partial(_read_all, way, read.batches)
                    for way in (
                        cache.read,
                        partial(pread.registers, together=read.together),
                        partial(pread.read, together=read.together),
                    )
                )
                yield compare(registers, ours, bench).row(
                    f"read {read.name}, {sizes.batch} at a time", read.floor, read.aim
                )
                yield compare(alone, ours, bench).row(f"read {read.name}, against the bytes alone")


BENCHMARK = Benchmark(
    "P9",
    "registers on disk",
    "plain files, written and flushed, and pread from the same shards",
    "registers exactly those that were written, as float16; tokens",
    measure,
)
