"""The one kind of error a user can mend. It says what is wrong, where, and how to put it right, in one line."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class CrocodilError(ValueError):
    """Bad input. The command line prints the message and leaves with exit code 2; nothing has been written."""


def require_whole(name: str, value: object, least: int | None = None) -> None:
    """Refuse an argument that is no int, or below `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        raise CrocodilError(
            f"{name} must be a whole number{'' if least is None else f', {least} or more'}, not {value!r}"
        )


def require_number(name: str, value: object, least: float) -> None:
    """Refuse an argument that is no finite number of `least` or more."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < math.inf:
        raise CrocodilError(f"{name} must be a number, {least} or more, not {value!r}")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """For programs: bad input, or a file system that refuses, ends with one line on stderr and exit code 2."""
    try:
        yield
    except (CrocodilError, OSError) as error:
        print(f"crocodil: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
