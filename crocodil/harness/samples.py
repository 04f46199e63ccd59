"""Samples in a file, one JSON object a line, so that a run that was killed goes on where it was.

The first line holds what the samples were made with. A line is written by one call and never changed; of a machine that
went down in the middle of one, the half line is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from crocodil.errors import CrocodilError

KIND = "crocodil passk samples, version 1"


@dataclass(frozen=True)
class Sample:
    """One answer to one problem, and what became of it."""

    task_id: str
    number: int
    """From 0, among the samples of its problem."""
    seed: int
    """What the sampler was given."""
    completion: str | None
    """What the model wrote, before it was cut; None where it had no answer."""
    outcome: str
    """One of `sandbox.OUTCOMES`, or `unanswered`."""
    detail: str
    """See `sandbox.Result`."""
    seconds: float
    """Wall time of the program and its tests."""
    isolation: str
    """See `sandbox.Isolation`; empty where nothing was run."""


class SampleFile:
    """An open file of samples; no other run can open it meanwhile.

    Args:
        settings: what decides the samples, in JSON types.

    Raises:
        CrocodilError: the file is in use, damaged, no file of samples, or of other settings.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._lock()
            self.found = self._read(json.loads(json.dumps(dict(settings))))
        except BaseException:
            self.close()
            raise

    def append(self, sample: Sample) -> None:
        """Write a line at the end."""
        self._write(asdict(sample))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._descriptor)
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CrocodilError(f"{self.file} is being written by another run; name another file") from None
        except OSError:
            pass  # a file system without locks

    def _read(self, settings: dict[str, Any]) -> dict[tuple[str, int], Sample]:
        """Samples by task and number; what follows the last line break is dropped from the file."""
        content = self.file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if not whole and content and not _header(settings).startswith(content):
            raise CrocodilError(f"{self.file} is no file of samples, and is left as it is; name another")
        lines = content[:whole].splitlines()
        if lines:
            self._check(_object(lines[0]), settings)
        # only what is known to be ours is shortened
        if whole < len(content):
            os.ftruncate(self._descriptor, whole)
        if not lines:
            self._write_line(_header(settings))
        found: dict[tuple[str, int], Sample] = {}
        names = {field.name for field in fields(Sample)}
        for number, line in enumerate(lines[1:], start=2):
            record = _object(line)
            if record is None or record.keys() != names:
                raise CrocodilError(
                    f"{self.file}, line {number}: no sample; remove that line, or name another file"
                )
            sample = Sample(**record)
            found[sample.task_id, sample.number] = sample
        return found

    def _check(self, header: dict[str, Any] | None, settings: dict[str, Any]) -> None:
        if header is None or header.pop("kind", None) != KIND:
            raise CrocodilError(f"{self.file} is no file of samples, and is left as it is; name another")
        for name in sorted(settings.keys() | header.keys()):
            if header.get(name) != settings.get(name):
                raise CrocodilError(
                    f"{self.file} was begun with {name} = {header.get(name)!r:.60}, not {settings.get(name)!r:.60}: "
                    "go on with that, or name another file"
                )

    def _write(self, record: dict[str, Any]) -> None:
        self._write_line(json.dumps(record).encode() + b"\n")

    def _write_line(self, line: bytes) -> None:
        written = os.write(self._descriptor, line)
        if written < len(line):
            raise OSError(f"{self.file}: only {written} of {len(line)} bytes were written; is the disk full?")


def _header(settings: dict[str, Any]) -> bytes:
    return json.dumps({"kind": KIND} | settings).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
