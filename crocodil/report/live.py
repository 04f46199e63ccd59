"""A text in the terminal while it is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from crocodil.report.forming import Forming, at_step
from crocodil.report.palette import ink_on, step_colour
from crocodil.report.visible import visible
from crocodil.sampler.demask import Step

MASKED, DONE, REFRESHED, TO_COME = "·", "━", "◆", "─"


@contextmanager
def watch(
    console: Console, forming: Forming, texts: int, refreshes: Collection[int], wait: str = ""
) -> Iterator[Callable[[Step], None]]:
    """Show the first of some texts while they are written, and leave nothing behind.

    Args:
        refreshes: steps after which registers are drawn anew.
        wait: what happens before the first step.

    Gives:
        What is to be told of every step.
    """
    view = _View(console, forming, texts, refreshes, wait)
    with Live(view, console=console, transient=True, refresh_per_second=20):
        yield view.note


class _View:
    """One line of words, one of steps, and the text."""

    def __init__(
        self, console: Console, forming: Forming, texts: int, refreshes: Collection[int], wait: str
    ) -> None:
        self._console, self._forming, self._texts, self._refreshes = console, forming, texts, refreshes
        self._first, self._size, self._number = 1, 0, 0
        self._spinner = Spinner("dots", wait or "writing")
        self._waits = True
        self._words, self._steps = Text(), Text()
        self._picture = self._draw(1)

    def note(self, step: Step) -> None:
        if step.number <= self._number:
            self._first += self._size
        self._size, self._number = len(step.ids_BN), step.number
        self._forming.note(step)
        # drawn here and not when it is shown, which happens in another thread, perhaps in the middle of a step
        self._picture = self._draw(step.total)
        last = self._first + self._size - 1
        which = (
            f"text{'' if self._size == 1 else 's'} {self._first}{'' if self._size == 1 else f' to {last}'}"
        )
        said = f"step {step.number} of {step.total}" + ("" if self._texts == 1 else f", {which}")
        done = [number for number in sorted(self._refreshes) if number <= step.number]
        self._waits = step.number in self._refreshes and bool(step.is_masked_BN.any())
        if self._waits:
            self._spinner.update(text=f"{said}: drawing registers anew")
        self._words = Text(said)
        if done:
            self._words.append(f"   {REFRESHED} registers drawn anew", style="dim")
        self._steps = Text(no_wrap=True, overflow="ellipsis")
        for number in range(1, step.total + 1):
            colour = step_colour(number, step.total)
            if number > step.number:
                self._steps.append(TO_COME, style="dim")
            else:
                self._steps.append(REFRESHED if number in done else DONE, style=colour)

    def __rich__(self) -> Group:
        return Group(self._spinner if self._waits else self._words, self._steps, self._picture)

    def _draw(self, total: int) -> Text:
        picture = Text()
        for token in at_step(self._forming.tokens, self._forming.number):
            if token.kind == "masked":
                picture.append(MASKED, style="dim")
            elif token.step == 0:
                picture.append(visible(token.text))
            elif token.kind == "text":
                colour = step_colour(token.step, total)
                picture.append(
                    visible(token.text).replace("\n", "↵\n"), style=f"{ink_on(colour)} on {colour}"
                )
        return picture
