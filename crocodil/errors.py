"""The one kind of error a user can mend. It says what is wrong, where, and how to put it right, in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class CrocodilError(ValueError):
    """Bad input. The command line prints the message and leaves with exit code 2; nothing has been written."""


MOST = 2**31 - 1
"""The largest count that anybody may ask for."""


def require_whole(name: str, value: object, least: int | None = None) -> None:
    """Refuse an argument that is no int, or below `least`, or with a `least` beyond any use."""
    good = isinstance(value, int) and not isinstance(value, bool)
    if not good or (least is not None and not least <= value <= MOST):  # type: ignore[operator]
        range_ = "" if least is None else f" from {least} to {MOST:,}"
        raise CrocodilError(f"{name} must be a whole number{range_}, not {value!r:.40}")


def require_number(name: str, value: object, least: float, most: float = sys.float_info.max) -> None:
    """Refuse an argument that is no number from `least` to `most`."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not least <= value <= most:  # type: ignore[operator]
        range_ = f"{least} or more" if most == sys.float_info.max else f"from {least} to {most}"
        raise CrocodilError(f"{name} must be a number, {range_}, not {value!r:.40}")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """For programs: bad input, or a file system that refuses, ends with one line on stderr and exit code 2; Ctrl-C with
    one line and 130."""
    try:
        yield
    except (CrocodilError, OSError) as error:
        print(f"crocodil: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("crocodil: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
