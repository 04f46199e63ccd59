"""Stop when asked, at a step boundary."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from crocodil.training.ranks import rank_and_world

ECHO_SECONDS = 1.0


class StopRequest:
    """In a `with`, the first SIGINT or SIGTERM only sets `requested`; a second ends the process at once.

    The loop looks at `requested` after each step, agrees with the other ranks, saves a checkpoint, and says
    how to resume. A launcher passes a signal on that its workers have already had from the terminal or the
    scheduler, so a signal within a second of the first is taken as its echo. Main thread only.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.received is not None

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = signal.Signals(number), now
            if rank_and_world()[0] == 0:
                # print() may be in the middle of a line of its own here, and is not re-entrant.
                name = self.received.name
                with suppress(OSError):
                    os.write(2, f"\n{name}: stopping after this step; once more to stop at once\n".encode())
        elif now - self._at > ECHO_SECONDS:
            # Die of the signal: no clean-up that could wait for another rank, and an honest exit status.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
