"""One run directory, one run."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from torch.distributed import ProcessGroup

from crocodil.errors import CrocodilError
from crocodil.training.ranks import broadcast, rank_and_world

LOCK = "run.lock"
HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
POLL_SECONDS = 1.0

_log = logging.getLogger(__name__)
_held: set[Path] = set()  # a POSIX lock does not exclude its own process


@contextmanager
def run_lock(run_dir: Path, group: ProcessGroup | None = None) -> Iterator[None]:
    """Hold `run_dir` for this run; collective, rank 0 holds and all ranks raise when it is taken.

    The kernel frees the lock of a dead process, so a killed run never blocks the next one on its machine.
    Some network file systems keep locks per machine: an owner elsewhere may be alive while its heartbeat, the time
    stamp of the lock file, is younger than five minutes. Then this waits until it beats again, or has not for so long.

    Raises:
        CrocodilError: another run holds the directory; the message has its host, process id and start. Or the
            directory cannot be written.
    """
    lock: _Lock | None = None
    refusal: str | None = None
    if rank_and_world(group)[0] == 0:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            lock = _Lock(run_dir.resolve() / LOCK)
        except CrocodilError as error:
            refusal = str(error)
        except OSError as error:
            refusal = f"{run_dir}: the run directory cannot be written ({error}); give another run="
    try:
        if refusal := broadcast(refusal, group):
            raise CrocodilError(refusal)
        yield
    finally:
        if lock is not None:
            lock.release()


class _Lock:
    """The lock file, held open, and a thread that keeps its time stamp fresh."""

    def __init__(self, path: Path) -> None:
        if path in _held:
            raise CrocodilError(f"{path.parent}: already in use by this process; end the other run first")
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire()
        except BaseException:
            os.close(self._descriptor)
            raise
        _held.add(path)
        self._released = threading.Event()
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def release(self) -> None:
        self._released.set()
        os.ftruncate(self._descriptor, 0)  # the file stays: deleting it would race with the next owner
        os.close(self._descriptor)
        _held.discard(self._path)

    def _acquire(self) -> None:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise self._taken(self._owner()) from None
        owner = self._owner()
        if owner and owner["host"] != socket.gethostname() and self._beats_on(owner):
            raise self._taken(owner)
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(mine).encode(), 0)
        os.fsync(self._descriptor)

    def _owner(self) -> dict[str, Any]:
        """Who wrote the file last; empty when released, or when the writing was cut short."""
        try:
            owner = json.loads(os.pread(self._descriptor, 4096, 0))
            return {key: owner[key] for key in ("host", "pid", "started")}
        except (ValueError, TypeError, KeyError, RecursionError):
            return {}

    def _beats_on(self, owner: dict[str, Any]) -> bool:
        """Whether an owner elsewhere is alive, which takes a few minutes to say of one that died just now."""
        beaten = os.fstat(self._descriptor).st_mtime
        left = min(STALE_SECONDS, STALE_SECONDS - self._age(beaten))
        if left > 0:
            _log.warning(
                "%s: process %s on %s held it just now; waiting up to %d s for a sign of its life",
                self._path.parent,
                owner["pid"],
                owner["host"],
                left,
            )
        until = time.monotonic() + left
        while time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            if os.fstat(self._descriptor).st_mtime != beaten:
                return True
        return False

    def _age(self, beaten: float) -> float:
        """Seconds since a heartbeat, on the clock of the file system that stamped it."""
        probe = self._path.with_name(f".{LOCK}.{os.getpid()}.writing")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - beaten

    def _taken(self, owner: dict[str, Any]) -> CrocodilError:
        who = "process {pid} on {host} since {started}".format(**owner) if owner else "another process"
        return CrocodilError(f"{self._path.parent}: in use by {who}; stop it, or give another run directory")

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self._path)  # by the clock of the file system, which may be another machine's
            except OSError:
                continue  # a vanished directory is for the checkpoint to report
