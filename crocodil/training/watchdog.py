"""A run that hangs says where, and ends.

A rank that stalls leaves the others waiting in a collective, where no exception reaches them. So a thread watches, and
what it prints names the rank that is behind.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed

from crocodil.training.ranks import is_distributed, rank_and_world

EXIT_CODE = 75
"""EX_TEMPFAIL: the same command with --resume may well succeed."""
STORE_SECONDS = 5.0


class Watchdog:
    """In a `with`: ends the process when `beat` has not been called for `seconds`; 0 never does.

    Ranks tell one another through torch.distributed's store what they are doing, so that each can say who is behind.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()
        self._at = "start"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._speaks = False
        self._store: Any = None

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._last = time.monotonic()
            if is_distributed():
                self._store = torch.distributed.distributed_c10d._get_default_store()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._speaks:
            self._thread.join()  # it is ending the process; what the others' leaving has raised here is no news

    def beat(self, step: int, operation: str) -> None:
        """This rank begins `operation` of step `step`."""
        if not self._seconds:
            return
        self._at, self._last = f"step {step}, {operation}", time.monotonic()
        if self._store is not None:
            self._store.set(f"beat/{rank_and_world()[0]}", self._at)

    def _watch(self) -> None:
        interval = min(1.0, self._seconds / 4)
        asleep = time.monotonic()
        while not self._over.wait(interval):
            asleep, late = time.monotonic(), time.monotonic() - asleep - interval
            if late > interval:  # this process was suspended, and has not hung meanwhile
                self._last += late
            still = time.monotonic() - self._last
            if still > self._seconds:
                message = f"crocodil: rank {rank_and_world()[0]}: nothing for {still:.0f} s in {self._at}{self._others()}"
                message += "; stopped. --resume goes on from the last checkpoint, timeout= allows for more"
                self._speaks = True
                with suppress(OSError):  # a full disk or a closed terminal must not keep it alive
                    os.write(2, f"{message}\n".encode())
                    sys.stderr.flush()
                time.sleep(2 * interval)  # whoever leaves first takes the others' connections with it
                os._exit(EXIT_CODE)  # nothing in this process can be waited for

    def _others(self) -> str:
        """What the ranks do that are elsewhere."""
        if self._store is None:
            return ""
        rank, world = rank_and_world()
        told = []
        for other in range(world):
            if other == rank:
                continue
            try:
                self._store.wait([f"beat/{other}"], timedelta(seconds=STORE_SECONDS))
                at = self._store.get(f"beat/{other}").decode()
            except Exception:  # whatever the store says of a rank that has gone
                at = "not to be reached"
            if at != self._at:
                told.append(f"rank {other}: {at}")
        return f" ({'; '.join(told)})" if told else " (as all ranks)" if world > 1 else ""
