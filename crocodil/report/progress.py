"""Progress on stderr, where somebody is looking at it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_SECONDS = 20


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


@contextmanager
def pieces_of_work(shown: bool = True) -> Iterator[Callable[[str, float, float], None]]:
    """A bar for hours of work of several kinds, and a line now and then where nobody looks at a terminal.

    Gives:
        A function that takes what is being done, how much is done, and how much there is in all.
    """
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    began = told = time.monotonic()
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bars:
        task = bars.add_task("", total=None)

        def tell(what: str, done: float, total: float) -> None:
            nonlocal told
            bars.update(task, description=what, completed=done, total=max(total, 1e-9))
            now = time.monotonic()
            if not shown or console.is_terminal or now - told < LINE_SECONDS:
                return
            told = now
            left = f", {_clock((now - began) * (total / done - 1))} left" if done else ""
            print(
                f"{done / max(total, 1e-9):4.0%} after {_clock(now - began)}{left}: {what}",
                file=sys.stderr,
                flush=True,
            )

        yield tell


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
