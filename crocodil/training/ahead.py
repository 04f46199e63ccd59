"""The next thing is prepared while this one is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def ahead(make: Callable[[K], T], keys: Iterable[K], threaded: bool = True) -> Iterator[tuple[K, T]]:
    """`(key, make(key))` for all keys in order, each made by a thread while the one before is in use.

    What `make` or `keys` raises is raised here, where its value would have come. `make` must be a function of its key
    alone, for it runs one key ahead of a loop that may stop.
    """
    if not threaded:
        for key in keys:
            yield key, make(key)
        return
    made: queue.Queue[tuple[K, T] | BaseException | None] = queue.Queue(maxsize=1)
    over = threading.Event()

    def put(item: tuple[K, T] | BaseException | None) -> None:
        while not over.is_set():
            try:
                made.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for key in keys:
                if over.is_set():
                    return
                put((key, make(key)))
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        over.set()
        thread.join()
