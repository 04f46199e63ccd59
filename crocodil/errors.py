"""The one kind of error a user can mend. It says what is wrong, where, and how to put it right, in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class CrocodilError(ValueError):
    """Bad input. The command line prints the message and leaves with exit code 2; nothing has been written."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """For programs: bad input, or a file system that refuses, ends with one line on stderr and exit code 2."""
    try:
        yield
    except (CrocodilError, OSError) as error:
        print(f"crocodil: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
