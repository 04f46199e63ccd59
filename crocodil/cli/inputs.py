"""Texts from files, from stdin, or from the programs that come with the bundled model; all of them or none."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from crocodil.errors import CrocodilError
from crocodil.report.records import Source

EXAMPLES = Path(__file__).parent.parent / "models" / "nano" / "examples"
"""Programs from the held-out split of the corpus that the bundled model was trained on."""


def read_sources(files: Sequence[str], held_out: int | None = None) -> list[Source]:
    """The files named, or else bundled programs, all or the first `held_out` of them.

    Raises:
        CrocodilError: a file that is missing, a folder, not UTF-8, or named twice; too few bundled programs.
    """
    if not files:
        return _examples(held_out)
    if held_out is not None:
        raise CrocodilError("--held-out takes the bundled programs, so name no files beside it")
    twice = sorted({file for file in files if files.count(file) > 1})
    if twice:
        raise CrocodilError(f"{twice[0]} is named twice; name it once")
    return [read_source(file) for file in files]


def held_out_sources(source: str) -> list[Source]:
    """Held-out texts: those that come with the package (`bundled`), or the held-out files of a corpus.

    Raises:
        CrocodilError: the corpus cannot be read, or is so small that none of it is held out.
    """
    from crocodil.reproduce.texts import held_out_documents

    return [Source(document.id, document.text) for document in held_out_documents(source)]


def read_source(file: str) -> Source:
    """One text; `-` is stdin."""
    if file == "-" and sys.stdin is None:
        raise CrocodilError("- is stdin, which is closed; name a file")
    return Source(file, _decode(sys.stdin.buffer.read() if file == "-" else read_file(file), file))


def read_file(file: str) -> bytes:
    """The bytes of a file, or a line that says why not."""
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        raise CrocodilError(f"{file} does not exist; name a file that does") from None
    except IsADirectoryError:
        raise CrocodilError(
            f"{file} is a folder; name the files in it, as in {os.path.join(file, '*.py')}"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CrocodilError(f"{file} cannot be read: {reason}") from None


def _decode(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        name = "stdin" if file == "-" else file
        raise CrocodilError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; convert it to UTF-8 first"
        ) from None


def _examples(count: int | None) -> list[Source]:
    files = sorted(EXAMPLES.glob("*.py"))
    if not files:
        raise CrocodilError("no held-out programs come with this installation; name files instead")
    if count is not None and count > len(files):
        raise CrocodilError(f"--held-out {count}: only {len(files)} programs come with this installation")
    return [Source(file.name, _decode(read_file(str(file)), file.name)) for file in files[:count]]
