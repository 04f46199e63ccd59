"""The one kind of error a user can mend. It says what is wrong, where, and how to put it right, in one line."""

from __future__ import annotations


class CrocodilError(ValueError):
    """Bad input. The command line prints the message and leaves with exit code 2; nothing has been written."""
