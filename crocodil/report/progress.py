"""Progress on stderr, where somebody is looking at it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextmanager
def spinner(message: str) -> Iterator[None]:
    """While something takes its time that cannot say how much."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield
        return
    with console.status(message):
        yield


@contextmanager
def bar(message: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time that is left. Gives a function that takes what has been done since it was called last."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(message, total=total)
        yield lambda done: progress.advance(task, done)


@contextmanager
def spinner_then_bar(wait: str, message: str, total: int) -> Iterator[Callable[[int], None]]:
    """A spinner until there is a first thing to tell of, then a bar."""
    with ExitStack() as shown:
        shown.enter_context(spinner(wait))
        advance: Callable[[int], None] | None = None

        def tell(done: int) -> None:
            nonlocal advance
            if advance is None:
                shown.close()
                advance = shown.enter_context(bar(message, total))
            advance(done)

        yield tell
