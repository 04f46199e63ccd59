"""Documents from a folder, a jsonl or parquet file, the installed Python itself, or a public data set."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from crocodil.errors import CrocodilError

TEXT_FIELDS = ("text", "content")  # StarCoder's column is `content`
MAX_BYTES = 400_000  # larger source files are tables and generated code
ROWS_PER_READ = 1024


@dataclass(frozen=True)
class Document:
    """One program or text. `id` says where it came from and is unique within its source."""

    id: str
    text: str


class Documents(Iterator[Document]):
    """Documents in a fixed order. `position` counts those handed out; as `start` it goes on from there."""

    def __init__(self, documents: Iterable[Document], source: str, start: int = 0) -> None:
        self.source = source
        self.position = start
        self._documents = itertools.islice(documents, start, None)

    def __next__(self) -> Document:
        document = next(self._documents, None)
        if document is None:
            if self.position == 0:
                raise CrocodilError(f"{self.source} holds no document; check path, extensions and field")
            raise StopIteration
        self.position += 1
        return document


def load_documents(
    source: str | os.PathLike[str],
    *,
    extensions: Sequence[str] = (".py",),
    fields: Sequence[str] = TEXT_FIELDS,
    max_bytes: int = MAX_BYTES,
    start: int = 0,
) -> Documents:
    """Read documents in a deterministic order; empty, invalid (no UTF-8) and giant ones are left out.

    Args:
        source: a folder (searched recursively, hidden folders left out), a .jsonl or .parquet file, any other
            single file, `stdlib` (the standard library and the installed packages of the running Python), or
            `datasets:NAME[:config[:split]]` (streamed by the datasets library).
        extensions: which files of a folder to read; .jsonl and .parquet files give one document per row.
        fields: names of the text column, the first one that a row has is taken.
        max_bytes: longer documents (in UTF-8) are left out.
        start: documents to pass over, the `position` of an earlier reading.

    Raises:
        CrocodilError: the source does not exist, cannot be read, or holds no document.
    """
    name = os.fspath(source)
    if name == "stdlib":
        found = _installed_python(max_bytes)
    elif name.startswith("datasets:"):
        found = _dataset(name, fields)
    elif os.path.isdir(name):
        found = _folder(Path(name), tuple(extensions), fields, max_bytes)
    elif os.path.isfile(name):
        found = _file(Path(name), os.path.basename(name), fields, max_bytes)
    else:
        raise CrocodilError(
            f"no source {name!r}; give a folder, file, stdlib or datasets:NAME[:config[:split]]"
        )
    return Documents((document for document in found if _is_usable(document.text, max_bytes)), name, start)


def _is_usable(text: str, max_bytes: int) -> bool:
    try:
        return bool(text.strip()) and len(text.encode("utf-8")) <= max_bytes
    except UnicodeEncodeError:  # a lone surrogate, possible in JSON
        return False


def _installed_python(max_bytes: int) -> Iterator[Document]:
    paths = sysconfig.get_paths()
    seen: set[str] = set()
    for label, kind in (("stdlib", "stdlib"), ("site-packages", "purelib"), ("site-packages64", "platlib")):
        root = paths[kind]
        if os.path.isdir(root) and os.path.realpath(root) not in seen:
            seen.add(os.path.realpath(root))
            packages = {"site-packages", "dist-packages"} if label == "stdlib" else set()
            for path in _walk(Path(root), (".py",), skip=packages):
                yield from _file(path, f"{label}/{path.relative_to(root).as_posix()}", TEXT_FIELDS, max_bytes)


def _folder(
    root: Path, extensions: tuple[str, ...], fields: Sequence[str], max_bytes: int
) -> Iterator[Document]:
    for path in _walk(root, extensions):
        yield from _file(path, path.relative_to(root).as_posix(), fields, max_bytes)


def _walk(root: Path, extensions: tuple[str, ...], skip: Iterable[str] = ()) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skip)
        for name in sorted(files):
            if name.endswith(extensions):
                yield Path(folder, name)


def _file(path: Path, id: str, fields: Sequence[str], max_bytes: int) -> Iterator[Document]:
    try:
        if path.suffix == ".jsonl":
            yield from _jsonl(path, id, fields)
        elif path.suffix == ".parquet":
            yield from _parquet(path, id, fields)
        elif path.is_file() and path.stat().st_size <= max_bytes:  # never read a giant to throw it away
            # bytes, so that line ends and a byte order mark stay as they are
            yield Document(id, path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        return
    except OSError as error:
        raise CrocodilError(f"{path} cannot be read ({error.strerror}); mend it or leave it out") from error


def _jsonl(path: Path, id: str, fields: Sequence[str]) -> Iterator[Document]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                continue
            except (ValueError, RecursionError) as error:
                raise CrocodilError(f"{path} line {number} is no JSON ({error}); mend or drop it") from error
            yield Document(f"{id}:{number}", _text(row, fields, f"{path} line {number}"))


def _parquet(path: Path, id: str, fields: Sequence[str]) -> Iterator[Document]:
    parquet = _optional("pyarrow.parquet", "pyarrow")
    try:
        file = parquet.ParquetFile(path)
        field = next((name for name in fields if name in file.schema_arrow.names), None)
        if field is None:
            raise CrocodilError(f"{path} has no column {' or '.join(fields)}; name it with `fields`")
        number = 0
        for batch in file.iter_batches(ROWS_PER_READ, columns=[field]):
            for row in batch.to_pylist():
                number += 1
                yield Document(f"{id}:{number}", _text(row, fields, f"{path} row {number}"))
    except importlib.import_module("pyarrow").ArrowException as error:
        raise CrocodilError(f"{path} cannot be read as parquet ({error}); fetch it again") from error


def _dataset(source: str, fields: Sequence[str]) -> Iterator[Document]:
    datasets = _optional("datasets", "datasets")
    name, config, split = (source.removeprefix("datasets:").split(":") + ["", ""])[:3]
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
    except Exception as error:  # the library raises many kinds for a wrong name and for no network
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CrocodilError(f"{source} cannot be opened ({line}); check its name and the network") from error
    for number, row in enumerate(rows, start=1):
        yield Document(f"{name}:{number}", _text(row, fields, f"{source} row {number}"))


def _text(row: object, fields: Sequence[str], where: str) -> str:
    """The text of a row; null counts as empty."""
    if isinstance(row, dict):
        for field in fields:
            if field in row and isinstance(row[field] or "", str):
                return row[field] or ""
    raise CrocodilError(f"{where} has no text in {' or '.join(fields)}; name the column with `fields`")


def _optional(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CrocodilError(f"this source needs {package}; pip install {package}") from error
