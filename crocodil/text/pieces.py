"""Tokenised texts that grow on disk, in pieces that appear atomically.

    train/ids.npy, offsets.npy   as `TokenisedCorpus` reads them; the header, which says how long they are, comes last
    held_out/…                   the same
    piece-00000.json …           what was on disk when it appeared, and where the source stood

What a killed process has written behind its last piece is written over by the next.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from crocodil.atomic import fsync, write_atomically
from crocodil.errors import CrocodilError
from crocodil.text.rows import Place
from crocodil.text.tokens import ABOUT, IDS, NO_DOCUMENT, OFFSETS, flat

SIDES = ("train", "held_out")
HEADER = 128  # bytes of an .npy header, whatever the length
OFFSET = np.dtype("<i8")


@dataclass(frozen=True)
class Written:
    """What is on disk of one side."""

    documents: int = 0
    tokens: int = 0
    digest: str = ""
    """A chain over the contents of its documents."""
    ids: str = ""
    """Digest of the bytes that the last piece has added to ids.npy."""
    offsets: str = ""


@dataclass(frozen=True)
class Piece:
    """What is on disk since it appeared, and how to go on."""

    train: Written
    held_out: Written
    place: Place
    """Before the last batch: the source must give that batch again."""
    batch: str
    """Its digest."""

    def __str__(self) -> str:
        tokens = self.train.tokens + self.held_out.tokens
        return f"{self.train.documents:,} documents to train on, {self.held_out.documents:,} held out, {tokens:,} tokens"

    @property
    def sides(self) -> tuple[Written, Written]:
        return self.train, self.held_out


class Side:
    """The files of the training or of the held-out texts. Close it."""

    def __init__(self, folder: Path, dtype: np.dtype, before: Written, fingerprint: str) -> None:
        """Open them to go on behind `before`.

        Raises:
            CrocodilError: as does everything here where the disk is full or refuses.
        """
        self._folder, self._dtype, self._fingerprint = folder, dtype, fingerprint
        self._ids = _Array(folder / IDS, dtype, before.tokens)
        # the first offset, 0, is never written: a place in a file that was passed over reads as zeros
        self._offsets = _Array(folder / OFFSETS, OFFSET, before.documents + 1)
        self._digest = bytes.fromhex(before.digest) or fingerprint.encode()
        self.written = before

    @property
    def tokens(self) -> int:
        return self._ids.length

    def add(self, encoded: list[list[int]], contents: list[str]) -> None:
        """Documents: their ids, and their content hashes."""
        self._offsets.append(self.tokens + np.cumsum([len(ids) for ids in encoded], dtype=OFFSET))
        self._ids.append(flat(encoded, self._dtype))
        for content in contents:
            self._digest = hashlib.blake2b(self._digest + content.encode(), digest_size=16).digest()

    def flush(self) -> Written:
        """Bring it to the disk, and say what is there."""
        documents, digest = self._offsets.length - 1, self._digest.hex()
        ids, offsets = self._ids.flush(), self._offsets.flush()
        self.written = Written(documents, self.tokens, digest if documents else "", ids, offsets)
        return self.written

    def finish(self) -> None:
        """Make it a folder that `TokenisedCorpus.load` opens."""
        if not self.written.documents:
            raise CrocodilError(NO_DOCUMENT)
        self._ids.finish()
        self._offsets.finish()
        about = {"fingerprint": self._fingerprint, "digest": self.written.digest[:16]}
        with writing(self._folder / ABOUT):
            write_atomically(self._folder / ABOUT, json.dumps(about))

    def close(self) -> None:
        self._ids.close()
        self._offsets.close()


class _Array:
    """A one-dimensional .npy that grows behind room for its header."""

    def __init__(self, path: Path, dtype: np.dtype, length: int) -> None:
        self._path, self._dtype, self.length = path, dtype, length
        self._hash = hashlib.blake2b(digest_size=16)
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def append(self, values: np.ndarray) -> None:
        data = values.astype(self._dtype, copy=False).tobytes()
        self._hash.update(data)
        self._write(data, HEADER + self.length * self._dtype.itemsize)
        self.length += len(values)

    def flush(self) -> str:
        """The digest of what has come since the last time."""
        with writing(self._path):
            os.fsync(self._descriptor)
        digest, self._hash = self._hash.hexdigest(), hashlib.blake2b(digest_size=16)
        return digest

    def finish(self) -> None:
        """Write the header, and cut off what is behind the end."""
        header = BytesIO()
        says = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(header, says)
        assert len(header.getvalue()) == HEADER
        self._write(header.getvalue(), 0)
        with writing(self._path):
            os.ftruncate(self._descriptor, HEADER + self.length * self._dtype.itemsize)
            os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, data: bytes, at: int) -> None:
        left = memoryview(data)
        with writing(self._path):
            while left:
                written = os.pwrite(self._descriptor, left, at)
                left, at = left[written:], at + written


def publish(folder: Path, number: int, sides: list[Side], place: Place, batch: str) -> None:
    """Make a piece of all that has been written: from here on it is not made again.

    Raises:
        CrocodilError: another process is preparing the folder (its file system keeps no locks), from other texts.
    """
    path = _path(folder, number)
    train, held_out = (side.flush() for side in sides)
    piece = Piece(train, held_out, place, batch)
    other = _read(path)
    if other is not None and other.sides != piece.sides:
        raise CrocodilError(
            f"{path}: another process is preparing other texts here; delete {folder}, begin anew"
        )
    with writing(path):
        for directory in (*(folder / side for side in SIDES), folder):
            fsync(directory)
        write_atomically(path, json.dumps(asdict(piece)) + "\n")


def whole_pieces(folder: Path, dtype: np.dtype, verify: bool = False) -> list[Piece]:
    """Pieces up to the first that is missing or damaged; those behind it are forgotten.

    Args:
        dtype: of the ids.
        verify: compare the digests of all; else sizes, and the digests of the last.
    """
    pieces: list[Piece] = []
    while piece := _read(_path(folder, len(pieces))):
        if not _is_held(folder, dtype, [*pieces[-1:], piece], digests=verify):
            break
        pieces.append(piece)
    while pieces and not _is_held(folder, dtype, pieces[-2:], digests=True):
        pieces.pop()
    number = len(pieces)
    while (stale := _path(folder, number)).exists():
        with writing(stale):
            stale.unlink()
        number += 1
    return pieces


def _is_held(folder: Path, dtype: np.dtype, pieces: list[Piece], digests: bool) -> bool:
    """Whether the files hold what a piece has added; it is the last of one or two, behind the one before it."""
    before = pieces[0].sides if len(pieces) == 2 else (Written(), Written())
    for side, start, end in zip(SIDES, before, pieces[-1].sides, strict=True):
        ids = (start.tokens * dtype.itemsize, end.tokens * dtype.itemsize)
        offsets = ((start.documents + 1) * OFFSET.itemsize, (end.documents + 1) * OFFSET.itemsize)
        for name, (begin, stop), digest in ((IDS, ids, end.ids), (OFFSETS, offsets, end.offsets)):
            path = folder / side / name
            if begin == stop:
                continue
            if not path.is_file() or path.stat().st_size < HEADER + stop:
                return False
            if digests and _digest(path, HEADER + begin, HEADER + stop) != digest:
                return False
    return True


def _digest(path: Path, begin: int, end: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        stream.seek(begin)
        while begin < end and (data := stream.read(min(2**20, end - begin))):
            digest.update(data)
            begin += len(data)
    return digest.hexdigest()


def _path(folder: Path, number: int) -> Path:
    return folder / f"piece-{number:05d}.json"


def _read(path: Path) -> Piece | None:
    try:
        about = read_object(path)
        train, held_out = (Written(**about[side]) for side in SIDES)
        return Piece(train, held_out, dict(about["place"]), about["batch"])
    except (CrocodilError, KeyError, TypeError, ValueError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of ours.

    Raises:
        CrocodilError: it is not there, or is no JSON object.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CrocodilError(f"{path} cannot be read ({error}); delete that file, and go on") from None
    if not isinstance(values, dict):
        raise CrocodilError(f"{path} is no JSON object; delete that file, and go on")
    return values


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """One line for a disk that is full or refuses."""
    try:
        yield
    except OSError as error:
        raise CrocodilError(
            f"{path} cannot be written ({error.strerror or error}); what was published before is kept: mend that, or "
            "give another data.cache, and the same command goes on"
        ) from None
