"""What a source is made of: rows, each a document or a reason why it gives none."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from crocodil.errors import CrocodilError

Place = Mapping[str, Any]
"""Where a reading stands, as JSON can say it. Another reading of the same source goes on from there."""

EMPTY, LARGE, NOT_UTF8, DAMAGED = "empty", "too large", "not UTF-8", "damaged"


@dataclass(frozen=True)
class Document:
    """One program or text. `id` says where it came from and is unique within its source."""

    id: str
    text: str


@dataclass(frozen=True)
class LeftOut:
    """A row that gives no document."""

    why: str
    """EMPTY, LARGE, NOT_UTF8 or DAMAGED."""
    damage: str = ""
    """Of a damaged one: what is wrong, where, and how to mend it."""


@dataclass(frozen=True)
class Listing:
    """The files of a source by name and size: two listings that differ are of two sources."""

    files: int
    bytes: int
    digest: str


class Rows(Protocol):
    """Rows of a source in a fixed order."""

    def __iter__(self) -> Iterator[Document | LeftOut]: ...

    def place(self) -> Place:
        """Behind the row that was handed out last."""

    def share(self) -> float | None:
        """How much of the source has been read, 0 to 1; None where that is not known."""

    def listing(self, most: int | None = None) -> Listing | None:
        """The files it reads; None where there are none, or more than `most`."""


def document(id: str, row: object, fields: Sequence[str], where: str) -> Document | LeftOut:
    """The document of a table's row: its text stands in the first of `fields` that it has; null counts as empty."""
    if isinstance(row, Mapping):
        for field in fields:
            if field in row and isinstance(row[field] or "", str):
                return Document(id, row[field] or "")
    names = " or ".join(fields)
    return LeftOut(DAMAGED, f"{where} has no text in {names}; name the column with `fields`")


def optional(module: str, package: str) -> ModuleType:
    """A module that not every source needs.

    Raises:
        CrocodilError: it is not installed.
    """
    # where bitsandbytes is installed, some import it, and it warns of kernels that nobody has asked for
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CrocodilError(f"this source needs {package}; pip install {package}") from error
