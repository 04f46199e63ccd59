"""Registers of a corpus on disk, to train a denoiser on: written once, read in any order at any k.

    cache.json                    whose registers these are, and how many
    shard-00000.safetensors       values (n, K, D), the windows' token ids, and which samples they are
    shard-00000.json              its size and digest; it appears last, so what has one is whole

Every process writes whole shards, so a run that was stopped goes on with those that are missing. A sample's first k
registers lie end to end, and files are memory-mapped: reading k of K touches only those.

Shape letters: n samples of a shard, N samples asked for, K registers, D register width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from crocodil.atomic import write_atomically
from crocodil.errors import CrocodilError
from crocodil.shards import read_json

FORMAT = "crocodil-register-cache-1"
ABOUT = "cache.json"
Dtype = Literal["float16", "bfloat16", "int8"]
_BYTES = {"float16": 2, "bfloat16": 2, "int8": 1}
_ID_BYTES = 4


@dataclass(frozen=True)
class CacheSpec:
    """What a cache holds; two caches of one spec are one cache."""

    encoder: str
    """Fingerprint of the encoder."""
    corpus: str
    """Digest of the texts and of how they were cut."""
    samples: int
    """Windows in all."""
    K: int
    D: int
    window: int
    """Longest window in tokens."""
    dtype: Dtype = "float16"
    """`int8` keeps one scale for each register, and half the bytes."""
    shard_samples: int = 8192

    def __post_init__(self) -> None:
        for name in ("samples", "K", "D", "window", "shard_samples"):
            if type(getattr(self, name)) is not int or not 1 <= getattr(self, name) < 2**48:
                raise CrocodilError(f"a register cache with {name} = {getattr(self, name)!r} cannot be")
        if self.dtype not in _BYTES or not isinstance(self.encoder, str) or not isinstance(self.corpus, str):
            raise CrocodilError(f"a register cache of dtype {self.dtype!r} by {self.encoder!r} cannot be")

    @property
    def digest(self) -> str:
        """16 hex digits over all of it: shards of two specs are never mixed."""
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=8).hexdigest()

    @property
    def shards(self) -> int:
        return -(-self.samples // self.shard_samples)

    @property
    def bytes(self) -> int:
        """Size on disk when every window is full; headers and manifests apart."""
        scales = 4 * self.K if self.dtype == "int8" else 0
        return self.samples * (self.K * self.D * _BYTES[self.dtype] + scales + self.window * _ID_BYTES)

    def samples_of(self, shard: int) -> range:
        """The samples that a shard holds, in order."""
        start = shard * self.shard_samples
        return range(start, min(start + self.shard_samples, self.samples))


class CacheWriter:
    """Writes the shards of a cache. Several processes may, each its own shards."""

    def __init__(self, folder: str | Path, spec: CacheSpec) -> None:
        """Begin a cache, or go on with one.

        Raises:
            CrocodilError: the folder holds a cache of another encoder, of other texts, or of another shape.
        """
        self.folder, self.spec = Path(folder), spec
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / ABOUT).exists():
            found = _read_spec(self.folder)
            for name, wanted in asdict(spec).items():
                if (here := getattr(found, name)) != wanted:
                    raise CrocodilError(
                        f"{self.folder} is a cache with {name} = {here}, not {wanted}; give another folder, or delete it"
                    )
        else:
            write_atomically(
                self.folder / ABOUT, json.dumps({"format": FORMAT} | asdict(spec), indent=1) + "\n"
            )

    def sweep(self) -> None:
        """Remove what writers that were killed have left half written; nobody else may be writing."""
        for left in self.folder.glob(".*.writing"):
            left.unlink(missing_ok=True)

    def missing(self) -> list[int]:
        """Shards that are not there yet, or not as long as they were."""
        return [shard for shard in range(self.spec.shards) if not self._is_whole(shard)]

    def write(self, shard: int, values_nKD: Tensor, windows: Sequence[Sequence[int]]) -> None:
        """Write one shard, whole or not at all.

        Args:
            values_nKD: registers of its samples, in order.
            windows: token ids of each of them, BOS, EOS and tail included.

        Raises:
            CrocodilError: other samples or another shape than the shard has.
            OSError: the disk is full.
        """
        spec = self.spec
        wanted = (len(spec.samples_of(shard)), spec.K, spec.D)
        if tuple(values_nKD.shape) != wanted or len(windows) != wanted[0]:
            raise CrocodilError(
                f"shard {shard} wants registers {wanted} and as many windows, not {tuple(values_nKD.shape)} "
                f"and {len(windows)}"
            )
        tensors = _pack(values_nKD, spec.dtype) | {
            "ids": torch.from_numpy(np.fromiter(chain.from_iterable(windows), np.int32)),
            "offsets": torch.tensor([0, *map(len, windows)]).cumsum(0),
        }
        data = save(tensors)
        with ThreadPoolExecutor(1) as beside:  # the digest is taken while the disk is busy
            digest = beside.submit(lambda: hashlib.blake2b(data, digest_size=16).hexdigest())
            write_atomically(self.folder / _file(shard), data)
        about = {"bytes": len(data), "blake2b": digest.result(), "encoder": spec.encoder, "spec": spec.digest}
        write_atomically(self.folder / _manifest(shard), json.dumps(about) + "\n")

    def _is_whole(self, shard: int) -> bool:
        try:
            about = read_json(self.folder / _manifest(shard))
            whole = (self.folder / _file(shard)).stat().st_size == about.get("bytes")
            return whole and about.get("spec") == self.spec.digest
        except (OSError, CrocodilError):
            return False


class RegisterCache:
    """A finished cache, memory-mapped."""

    def __init__(self, folder: str | Path, encoder: str | None = None, verify: bool = True) -> None:
        """Open a cache.

        Args:
            encoder: fingerprint of the encoder whose registers are wanted.
            verify: compare each shard with its digest when it is first read.

        Raises:
            CrocodilError: no cache, another encoder's, or a shard that is missing, cut short or altered.
        """
        self.folder, self.verify = Path(folder), verify
        self.spec = _read_spec(self.folder)
        if encoder is not None and encoder != self.spec.encoder:
            raise CrocodilError(
                f"{folder} holds registers of encoder {self.spec.encoder}, not of {encoder}; cache them again"
            )
        self._about = [self._check(shard) for shard in range(self.spec.shards)]
        self._opened: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.spec.samples

    def read(self, samples: Sequence[int], k: int | None = None) -> Tensor:
        """Registers (N, k, D) in float32 of these samples, in this order; all K if k is left out.

        Raises:
            CrocodilError: k out of range, or a shard that is damaged.
            IndexError: no such sample.
        """
        spec = self.spec
        k = spec.K if k is None else k
        if not 1 <= k <= spec.K:
            raise CrocodilError(f"k must be between 1 and the {spec.K} registers of this cache, not {k}")
        out = torch.empty(len(samples), k, spec.D)
        at = 0
        while at < len(samples):
            tensors, row = self._find(samples[at])
            most = min(len(samples) - at, len(tensors["values"]) - row)
            # neighbours of one shard are read at once
            n = next((n for n in range(1, most) if samples[at + n] != samples[at] + n), most)
            place = out[at : at + n]
            place.copy_(tensors["values"][row : row + n, :k])
            if spec.dtype == "int8":
                place.mul_(tensors["scales"][row : row + n, :k, None])
            at += n
        return out

    def window(self, sample: int) -> list[int]:
        """Token ids of a sample's window, BOS, EOS and tail included."""
        tensors, row = self._find(sample)
        start, end = tensors["offsets"][row : row + 2].tolist()
        return tensors["ids"][start:end].tolist()

    def _find(self, sample: int) -> tuple[dict[str, Tensor], int]:
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        shard, row = divmod(sample, self.spec.shard_samples)
        if shard not in self._opened:
            self._opened[shard] = self._open(shard)
        return self._opened[shard], row

    def _check(self, shard: int) -> dict[str, Any]:
        """A shard's manifest, once its size agrees."""
        file, again = self.folder / _file(shard), "run cache_registers.py again to write it"
        try:
            about = read_json(self.folder / _manifest(shard))
        except CrocodilError:
            raise CrocodilError(f"{file} is not finished; {again}") from None
        wanted, encoder = about.get("bytes"), about.get("encoder")
        if type(wanted) is not int or not isinstance(about.get("blake2b"), str):
            raise CrocodilError(f"{self.folder / _manifest(shard)} is damaged; {again}")
        if encoder != self.spec.encoder:
            raise CrocodilError(f"{file} is of encoder {encoder}, not {self.spec.encoder}; {again}")
        if about.get("spec") != self.spec.digest:
            raise CrocodilError(f"{file} is of another cache than {ABOUT} tells of; {again}")
        if not file.is_file() or (size := file.stat().st_size) != wanted:
            size = size if file.is_file() else 0
            raise CrocodilError(f"{file} has {size:,} bytes, it was written with {wanted:,}; {again}")
        return about

    def _open(self, shard: int) -> dict[str, Tensor]:
        file = self.folder / _file(shard)
        try:
            if self.verify:
                with open(file, "rb") as stream:
                    digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
                if digest != self._about[shard]["blake2b"]:
                    raise CrocodilError(
                        f"{file} has changed since it was written; delete it and cache it again"
                    )
            with safe_open(file, framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CrocodilError(f"{file} cannot be read ({error}); delete it and cache it again") from None
        wanted = (len(self.spec.samples_of(shard)), self.spec.K, self.spec.D)
        if tuple(tensors["values"].shape) != wanted:
            raise CrocodilError(f"{file} holds registers {tuple(tensors['values'].shape)}, not {wanted}")
        return tensors


def _pack(values_nKD: Tensor, dtype: Dtype) -> dict[str, Tensor]:
    values = values_nKD.detach().cpu().float()
    largest = torch.finfo(torch.float16).max if dtype == "float16" else torch.finfo(torch.float32).max
    if not bool((values.abs() <= largest).all()):
        raise CrocodilError(
            f"registers contain NaN, infinity or more than {dtype} holds; check the encoder's weights"
        )
    if dtype != "int8":
        return {"values": values.to(getattr(torch, dtype)).contiguous()}
    scales = values.abs().amax(dim=-1).clamp_min(1e-12) / 127
    return {"values": (values / scales[..., None]).round().to(torch.int8), "scales": scales}


def _read_spec(folder: Path) -> CacheSpec:
    file = folder / ABOUT
    if not file.exists():
        raise CrocodilError(f"{folder} holds no register cache; cache_registers.py makes one")
    values = read_json(file)
    if values.pop("format", None) != FORMAT:
        raise CrocodilError(f"{file} is of another format than {FORMAT}; cache the registers again")
    try:
        return CacheSpec(**values)
    except (TypeError, CrocodilError) as error:
        raise CrocodilError(f"{file} is damaged ({error}); cache the registers again") from None


def _file(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"


def _manifest(shard: int) -> str:
    return f"shard-{shard:05d}.json"
