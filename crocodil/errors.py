"""The one kind of error a user can mend. It says what is wrong, where, and how to put it right, in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class CrocodilError(ValueError):
    """Bad input. The command line prints the message and leaves with exit code 2; nothing has been written."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """For programs: bad input ends with one line on stderr and exit code 2, instead of a traceback."""
    try:
        yield
    except CrocodilError as error:
        print(f"crocodil: {error}", file=sys.stderr)
        raise SystemExit(2) from None
