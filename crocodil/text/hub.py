"""Rows of a data set of the `datasets` library, streamed. No code of a data set is run: the library has no way to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from crocodil.errors import CrocodilError
from crocodil.text.rows import Document, LeftOut, Listing, Place, document, optional

PREFIX = "datasets:"


class HubRows:
    """Rows of `datasets:NAME[@REVISION][:config[:split]]`.

    NAME is a hub id, with a folder of it behind where only that is wanted (`bigcode/starcoderdata/python`), or a local
    folder. REVISION is a commit, tag or branch.
    """

    def __init__(self, source: str, fields: Sequence[str], after: Place) -> None:
        """Begin at place `after` (empty: at the beginning). Nothing is opened before the first row is wanted.

        Raises:
            CrocodilError: too many parts in the name.
        """
        self._source, self._fields = source, fields
        parts = source.removeprefix(PREFIX).split(":")
        if len(parts) > 3:
            raise CrocodilError(
                f"{source} has {len(parts)} parts; give {PREFIX}NAME[@REVISION][:config[:split]]"
            )
        self._path, self._config, self._split = [*parts, "", ""][:3]
        self._revision = ""
        self._is_local = os.path.isdir(self._path)
        if not self._is_local:
            self._path, _, self._revision = self._path.partition("@")
        self._number: int = after.get("row", 0)
        self._state: Any = after.get("state")
        self._rows: Any = None

    @property
    def is_pinned(self) -> bool:
        """Whether a later reading gives the same rows: a revision is named, or the files are here."""
        return self._is_local or bool(self._revision)

    def __iter__(self) -> Iterator[Document | LeftOut]:
        self._rows = self._open()
        if self._state is not None:
            self._rows.load_state_dict(self._state)
        elif self._number:
            self._rows = self._rows.skip(self._number)  # reads them all
        rows = iter(self._rows)
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # the library raises many kinds, and has tried again by itself
                raise CrocodilError(
                    f"{self._source}: reading stopped after row {self._number:,} ({_first_line(error)}); "
                    "the same command goes on from there"
                ) from error
            if row is None:
                return
            self._number += 1
            where = f"{self._source} row {self._number}"
            yield document(f"{self._path}:{self._number}", row, self._fields, where)

    def place(self) -> Place:
        if self._rows is None:
            return {"row": self._number, "state": self._state}
        return {"row": self._number, "state": self._rows.state_dict()}

    def share(self) -> float | None:
        """By rows where the data set says how many it has, else by its files."""
        if self._rows is None:
            return None
        split = (self._rows.info.splits or {}).get(self._split or "train")
        if split is not None and split.num_examples:
            return min(1.0, self._number / split.num_examples)
        return _largest(self._rows.state_dict(), "shard_idx") / max(1, self._rows.num_shards)

    def listing(self, most: int | None = None) -> Listing | None:
        return None

    def _open(self) -> Any:
        datasets = optional("datasets", "datasets")
        name, folder = self._path, None
        if not self._is_local and name.count("/") > 1:
            owner, name, folder = name.split("/", 2)
            name = f"{owner}/{name}"
        try:
            rows = datasets.load_dataset(
                name,
                self._config or None,
                data_dir=folder,
                revision=self._revision or None,
                split=self._split or "train",
                streaming=True,
            )
        except Exception as error:  # many kinds, for a wrong name and for no network
            raise CrocodilError(
                f"{self._source} cannot be opened ({_first_line(error)}); check its name and the network"
            ) from error
        if columns := rows.column_names:
            field = next((name for name in self._fields if name in columns), None)
            if field is None:
                raise CrocodilError(
                    f"{self._source} has columns {', '.join(columns)}, none of them {' or '.join(self._fields)}; "
                    "name the column with `fields`"
                )
            rows = rows.select_columns([field])
        return rows


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _largest(state: Any, key: str) -> int:
    """The largest number under `key`, however deep: the library nests its states."""
    if not isinstance(state, dict):
        return 0
    own = state.get(key)
    return max([own if isinstance(own, int) else 0, *(_largest(value, key) for value in state.values())])
