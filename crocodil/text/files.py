"""Rows of files: of a folder, of one file, of the installed Python. Memory stays small whatever their size."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from crocodil.errors import CrocodilError
from crocodil.text.rows import (
    DAMAGED,
    LARGE,
    NOT_UTF8,
    Document,
    LeftOut,
    Listing,
    Place,
    document,
    optional,
)

ROWS_PER_READ = 64
LONGEST_LINE = (
    10  # times the longest document: escapes take up to six; longer lines are passed over in pieces
)

# Number of a row in its file, bytes of the file that have been read, and the row.
_Numbered = tuple[int, int, Document | LeftOut]


class FileRows:
    """Rows of files, one file after another in a fixed order."""

    def __init__(
        self,
        found: Callable[[], Iterator[tuple[Path, str]]],
        fields: Sequence[str],
        max_bytes: int,
        after: Place,
    ) -> None:
        """Take the files that `found` gives, each with its name, from place `after` on (empty: from the beginning)."""
        self._found, self._fields, self._max_bytes = found, fields, max_bytes
        self._file: str | None = after.get("file")
        self._row: int = after.get("row", 0)
        self._read = 0  # bytes of files that are done
        self._inside = 0  # bytes of the one that is being read
        self._listing: Listing | None = None

    def __iter__(self) -> Iterator[Document | LeftOut]:
        last, passed = self._file, self._row
        for path, id in self._found():
            if last is not None and id != last:
                self._read += path.stat().st_size
                continue
            last, passed, skip = None, 0, passed
            for number, inside, row in _rows(path, id, self._fields, self._max_bytes, skip):
                self._file, self._row, self._inside = id, number, inside
                yield row
            self._read, self._inside = self._read + self._inside, 0
        if last is not None:
            raise CrocodilError(f"{last}, where reading stopped, is gone; put it back, or begin anew")

    def place(self) -> Place:
        return {} if self._file is None else {"file": self._file, "row": self._row}

    def share(self) -> float | None:
        if self._listing is None or self._listing.bytes == 0:
            return None
        return min(1.0, (self._read + self._inside) / self._listing.bytes)

    def listing(self, most: int | None = None) -> Listing | None:
        files = total = 0
        digest = hashlib.sha256()
        for path, id in self._found():
            files += 1
            if most is not None and files > most:
                return None
            size = path.stat().st_size if path.is_file() else 0
            total += size
            digest.update(f"{size}:{id}\0".encode("utf-8", "surrogateescape"))
        self._listing = Listing(files, total, digest.hexdigest()[:16])
        return self._listing


def one_file(path: Path) -> Iterator[tuple[Path, str]]:
    yield path, path.name


def folder(root: Path, extensions: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """Files of a folder, recursively, hidden folders left out."""
    for path in _walk(root, extensions):
        yield path, path.relative_to(root).as_posix()


def installed_python() -> Iterator[tuple[Path, str]]:
    """The standard library and the installed packages of the running Python."""
    paths = sysconfig.get_paths()
    seen: set[str] = set()
    for label, kind in (("stdlib", "stdlib"), ("site-packages", "purelib"), ("site-packages64", "platlib")):
        root = paths[kind]
        if os.path.isdir(root) and os.path.realpath(root) not in seen:
            seen.add(os.path.realpath(root))
            packages = {"site-packages", "dist-packages"} if label == "stdlib" else set()
            for path in _walk(Path(root), (".py",), skip=packages):
                yield path, f"{label}/{path.relative_to(root).as_posix()}"


def _walk(root: Path, extensions: tuple[str, ...], skip: Iterable[str] = ()) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skip)
        for name in sorted(files):
            if name.endswith(extensions):
                yield Path(folder, name)


def _rows(path: Path, id: str, fields: Sequence[str], max_bytes: int, skip: int) -> Iterator[_Numbered]:
    """Rows of one file behind the first `skip`."""
    try:
        if path.suffix == ".jsonl":
            yield from _jsonl(path, id, fields, max_bytes, skip)
        elif path.suffix == ".parquet":
            yield from _parquet(path, id, fields, skip)
        elif not skip and path.is_file():
            yield _plain(path, id, max_bytes)
    except OSError as error:
        raise CrocodilError(_unreadable(path, error)) from error


def _plain(path: Path, id: str, max_bytes: int) -> _Numbered:
    """The whole file."""
    try:
        size = path.stat().st_size
        if size > max_bytes:  # never read a giant to throw it away
            return 1, size, LeftOut(LARGE)
        # bytes, so that line ends and a byte order mark stay as they are
        return 1, size, Document(id, path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        return 1, size, LeftOut(NOT_UTF8)
    except OSError as error:
        return 1, 0, LeftOut(DAMAGED, _unreadable(path, error))


def _jsonl(path: Path, id: str, fields: Sequence[str], max_bytes: int, skip: int) -> Iterator[_Numbered]:
    number, most = 0, LONGEST_LINE * max_bytes
    with path.open("rb") as lines:
        while line := lines.readline(most):
            number += 1
            is_cut = len(line) == most and not line.endswith(b"\n")
            while is_cut and (rest := lines.readline(most)):
                is_cut = not rest.endswith(b"\n")
                line = b""
            if number <= skip:
                continue
            if not line:
                yield number, lines.tell(), LeftOut(LARGE)
            elif line.strip():
                yield number, lines.tell(), _json(line, f"{id}:{number}", fields, f"{path} line {number}")


def _json(line: bytes, id: str, fields: Sequence[str], where: str) -> Document | LeftOut:
    if b"\0" in line:  # the reader would guess an encoding line by line, and lose every other one
        return LeftOut(DAMAGED, f"{where} holds zero bytes, as UTF-16 does; write the file anew in UTF-8")
    try:
        return document(id, json.loads(line), fields, where)
    except UnicodeDecodeError:
        return LeftOut(NOT_UTF8)
    except (ValueError, RecursionError) as error:
        return LeftOut(DAMAGED, f"{where} is no JSON ({error}); mend or drop it")


def _parquet(path: Path, id: str, fields: Sequence[str], skip: int) -> Iterator[_Numbered]:
    parquet = optional("pyarrow.parquet", "pyarrow")
    size, number, group = path.stat().st_size, 0, 0
    try:
        # without pre_buffer, and with a buffer of its own, a row group is not held in memory as a whole
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            field = next((name for name in fields if name in file.schema_arrow.names), None)
            if field is None:
                raise CrocodilError(f"{path} has no column {' or '.join(fields)}; name it with `fields`")
            rows = max(1, file.metadata.num_rows)
            while group < file.num_row_groups and number + file.metadata.row_group(group).num_rows <= skip:
                number += file.metadata.row_group(group).num_rows
                group += 1
            groups = range(group, file.num_row_groups)
            for batch in (
                file.iter_batches(ROWS_PER_READ, row_groups=groups, columns=[field]) if groups else ()
            ):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if number > skip:
                        where = f"{path} row {number}"
                        row = document(f"{id}:{number}", {field: text}, fields, where)
                        yield number, size * number // rows, row
    except importlib.import_module("pyarrow").ArrowException as error:
        raise CrocodilError(f"{path} cannot be read as parquet ({error}); fetch it again") from error


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read ({error.strerror or error}); mend it or leave it out"
