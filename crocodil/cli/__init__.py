"""The command line: thin verbs over the functions of the package.

Results go to stdout, with --json as exactly one document; progress and messages go to stderr. Exit codes: 0 done,
2 bad input or usage, 130 interrupted, 1 a fault of ours. torch is imported only when the input is known to be good.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from crocodil.cli.arguments import parse
from crocodil.errors import CrocodilError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` is the process's own if left out. Returns the exit code."""
    _open_streams()
    try:
        args = parse(list(sys.argv[1:] if argv is None else argv))
        # the verbs know the reports and the model, which `--help` does not wait for
        from crocodil.cli import verbs

        getattr(verbs, args.verb)(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output has left, as in `crocodil … | head`; what is buffered must not complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (CrocodilError, OSError) as error:
        print(f"crocodil: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("crocodil: interrupted", file=sys.stderr)
        return 130
    return 0


def _open_streams() -> None:
    """What was closed (`>&-`) swallows what it is given, and what the terminal's encoding lacks is a question mark."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
