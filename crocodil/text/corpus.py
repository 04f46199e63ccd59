"""Documents from a folder, a jsonl or parquet file, the installed Python itself, or a public data set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from crocodil.errors import CrocodilError
from crocodil.text.files import FileRows, folder, installed_python, one_file
from crocodil.text.hub import PREFIX, HubRows
from crocodil.text.rows import (
    DAMAGED,
    EMPTY,
    LARGE,
    NOT_UTF8,
    Document,
    LeftOut,
    Listing,
    Place,
    Rows,
)

__all__ = ["Document", "Documents", "load_documents"]

TEXT_FIELDS = ("text", "content")  # StarCoder's column is `content`
MAX_BYTES = 400_000  # larger source files are tables and generated code
DAMAGED_SHARE = 0.01
JUDGED_FROM = 1000  # rows; fewer say little about a share of one in a hundred


class Documents(Iterator[Document]):
    """Documents of a source in a fixed order.

    Attributes:
        source: its name.
        position: documents handed out, those before the place where reading began included.
        left_out: how many rows gave no document, by reason.
    """

    def __init__(self, rows: Rows, source: str, max_bytes: int, strict: bool, after: Place) -> None:
        self.source = source
        self.position: int = after.get("position", 0)
        self.left_out: Counter[str] = Counter(after.get("left_out", {}))
        self._rows, self._iterator = rows, iter(rows)
        self._max_bytes, self._strict = max_bytes, strict
        self._damage: str = after.get("damage", "")  # the first

    def __next__(self) -> Document:
        for row in self._iterator:
            if isinstance(row, Document):
                left = _unusable(row.text, self._max_bytes)
                if left is None:
                    self.position += 1
                    return row
                row = left
            self._leave_out(row)
        if self.position == 0:
            what = self._damage or f"{self.source} holds no document; check path, extensions and field"
            raise CrocodilError(what)
        self._judge(least=0)
        raise StopIteration

    def place(self) -> Place:
        """Where the reading stands: `load_documents` goes on from there. It is plain JSON."""
        counted = {"position": self.position, "left_out": dict(self.left_out), "damage": self._damage}
        return {**self._rows.place(), **counted}

    def share(self) -> float | None:
        """How much of the source has been read, 0 to 1, where that is known; of files only after `listing`."""
        return self._rows.share()

    def listing(self, most: int | None = None) -> Listing | None:
        """The files of the source; None for a data set, or where there are more than `most`."""
        return self._rows.listing(most)

    def _leave_out(self, row: LeftOut) -> None:
        self.left_out[row.why] += 1
        if row.why != DAMAGED:
            return
        if self._strict:
            raise CrocodilError(row.damage)
        self._damage = self._damage or row.damage
        self._judge(JUDGED_FROM)

    def _judge(self, least: int) -> None:
        """Stop at a source that is damaged beyond a row here and there."""
        damaged, rows = self.left_out[DAMAGED], self.position + self.left_out.total()
        if damaged > DAMAGED_SHARE * max(rows, least):
            raise CrocodilError(
                f"{self.source}: {damaged:,} of {rows:,} rows are damaged; first: {self._damage}"
            )


def load_documents(
    source: str | os.PathLike[str],
    *,
    extensions: Sequence[str] = (".py",),
    fields: Sequence[str] = TEXT_FIELDS,
    max_bytes: int = MAX_BYTES,
    strict: bool = True,
    after: Place | None = None,
) -> Documents:
    """Read documents in a deterministic order; empty, invalid (no UTF-8) and giant ones are left out.

    Args:
        source: a folder (searched recursively, hidden folders left out), a .jsonl or .parquet file, any other
            single file, `stdlib` (the standard library and the installed packages of the running Python), or
            `datasets:NAME[@REVISION][:config[:split]]` (streamed by the datasets library).
        extensions: which files of a folder to read; .jsonl and .parquet files give one document per row.
        fields: names of the text column, the first one that a row has is taken.
        max_bytes: longer documents (in UTF-8) are left out.
        strict: a row that is damaged (no JSON, no text) is an error; else it is left out and counted, and more than one
            in a hundred are an error.
        after: `place()` of an earlier reading, to go on from.

    Raises:
        CrocodilError: the source does not exist, cannot be read, or holds no document.
    """
    name, after = os.fspath(source), after or {}
    rows: Rows
    if name.startswith(PREFIX):
        rows = HubRows(name, fields, after)
    elif name == "stdlib":
        rows = FileRows(installed_python, TEXT_FIELDS, max_bytes, after)
    elif os.path.isdir(name):
        rows = FileRows(partial(folder, Path(name), tuple(extensions)), fields, max_bytes, after)
    elif os.path.isfile(name):
        rows = FileRows(partial(one_file, Path(name)), fields, max_bytes, after)
    else:
        raise CrocodilError(
            f"no source {name!r}; give a folder, file, stdlib or datasets:NAME[@REVISION][:config[:split]]"
        )
    return Documents(rows, name, max_bytes, strict, after)


def _unusable(text: str, max_bytes: int) -> LeftOut | None:
    """Why a text is no document, if it is not."""
    if len(text) > max_bytes:
        return LeftOut(LARGE)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:  # a lone surrogate, possible in JSON
        return LeftOut(NOT_UTF8)
    if size > max_bytes:
        return LeftOut(LARGE)
    return LeftOut(EMPTY) if not text.strip() else None
