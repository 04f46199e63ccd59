"""One program in a process of its own, behind what walls the kernel gives, and whether it passed its tests.

**What it is for.** Programs that a language model wrote: wrong, endless, greedy, now and then harmful by accident, and
ready to make a test pass by any shortcut that was in the training data. **What it is not.** No defence against somebody
who attacks this harness: use a container or a virtual machine for that. The program and its tests share an interpreter,
as in every harness of this kind, so a program that looks for the nonce finds it; an object that calls itself equal to
everything passes what compares with `==`; and the kernel is the one that everybody uses. Whatever the user may read,
the program may read (for root that is every file, unless nobody may read Python's own: then root becomes nobody).

Isolation is one of three, the strongest that the kernel gives, and each result says which:

- `namespaces`: user, network, process, mount and IPC namespaces. No network at all, not even loopback; every file system
  read-only but the program's folder, which is in memory and of limited size; five devices; no capabilities. The kernel
  ends all processes with the first one, daemons included.
- `network namespace`: no network. Files and other programs are left to an audit hook.
- `audit hook`: all of it is left to an audit hook: Python's own events for sockets, programs, signals and changes outside
  the folder are refused. C code, as an extension module's, does not ask it. Sockets by path are out of reach too.

With the last two, processes that outlive the program are found as adopted children and killed, for up to five seconds.
Limits on memory, CPU time, file size and open files hold for each process, that on processes for all of them (at the
level `audit hook` for all of the user's, counted when the program starts, so side by side they share what is left).
"""

from __future__ import annotations

import ast
import json
import math
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from crocodil.errors import CrocodilError, require_number, require_whole

Isolation = Literal["namespaces", "network namespace", "audit hook"]
ISOLATIONS: tuple[Isolation, ...] = get_args(Isolation)
"""From the strongest to the weakest."""
NO_NETWORK: tuple[Isolation, ...] = ("namespaces", "network namespace")
"""In which the kernel itself gives no network."""

OUTCOMES = ("passed", "failed", "error", "syntax error", "timeout", "memory", "exited", "killed")
"""`failed`: an assertion. `error`: another exception. `exited`: it left before the tests ended. `killed`: a signal."""

INSIDE = Path(__file__).with_name("inside.py")
GRACE = 10
"""Seconds beyond the program's own after which the guard itself is given up."""
REPORT_BYTES = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What a program may use. Sizes in bytes."""

    seconds: float = 10.0
    """Wall time, from before the program is compiled to the end of its tests."""
    cpu_seconds: int | None = None
    """CPU time of each process; as long as the wall time if left out."""
    memory_bytes: int = 512 << 20
    """Address space of each process."""
    file_bytes: int = 8 << 20
    """Length of a file."""
    folder_bytes: int = 32 << 20
    """All files together; `namespaces` only."""
    processes: int = 8
    """Processes and threads at a time, the program's first one included."""
    open_files: int = 64
    output_bytes: int = 16 << 10
    """Of stdout and stderr together; what comes beyond is thrown away."""

    def __post_init__(self) -> None:
        require_number("seconds", self.seconds, 0.1, 86400)
        for name, least in (("memory_bytes", 64 << 20), ("processes", 1), ("open_files", 16)):
            require_whole(name, getattr(self, name), least)
        for name in ("file_bytes", "folder_bytes", "output_bytes"):
            require_whole(name, getattr(self, name), 0)
        if self.cpu_seconds is not None:
            require_whole("cpu_seconds", self.cpu_seconds, 1)


@dataclass(frozen=True)
class Result:
    """What became of a program."""

    outcome: str
    """One of `OUTCOMES`."""
    detail: str
    """The exception and the line of the tests it came through, or how the program ended; empty if it passed."""
    seconds: float
    """Wall time of the program and its tests."""
    output: str
    """The beginning of stdout and stderr; undecodable bytes are U+FFFD."""
    isolation: Isolation

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def run(
    program: str,
    tests: str,
    entry_point: str = "",
    limits: Limits | None = None,
    *,
    isolation: Isolation | None = None,
    require_network_isolation: bool = False,
) -> Result:
    """Run a program, then its tests, and tell whether the tests ran to their end.

    The program is a module called `solution`, so `if __name__ == "__main__"` is not run. The tests see its globals, have
    builtins and imported modules as they were before the program, and pass if they end without an exception. Then, and
    only then, a nonce is handed over; an exit code of 0, or anything printed, counts for nothing.

    The interpreter is the running one, without site-packages, in an empty environment, in a folder of its own that is
    removed afterwards, with nothing on stdin. Hashes of strings are the same in every run.

    Args:
        entry_point: the function that is tested; it may have a builtin's name, which is otherwise kept from the tests.
        isolation: `find_isolation()` if left out.
        require_network_isolation: refuse where only an audit hook stands between the program and the network.

    Raises:
        CrocodilError: no Linux, no such isolation here, or tests that are no Python.
    """
    limits = limits or Limits()
    level = find_isolation() if isolation is None else isolation
    if require_network_isolation:
        require_network_namespace(level)
    return _run(program, tests, entry_point, limits, level)


def require_network_namespace(level: Isolation | None = None) -> None:
    """Refuse an isolation, the strongest one here if left out, in which the kernel gives a program its network.

    Raises:
        CrocodilError: only an audit hook would keep programs from it.
    """
    if (level or find_isolation()) not in NO_NETWORK:
        raise CrocodilError(
            "network isolation is required, and here only an audit hook would keep programs from the network: allow user "
            "namespaces (sysctl user.max_user_namespaces), run in a container without network, or do not require it"
        )


@lru_cache(maxsize=1)
def find_isolation() -> Isolation:
    """The strongest isolation that works here, found out by trying.

    Raises:
        CrocodilError: not even the weakest does.
    """
    if sys.platform != "linux":
        raise CrocodilError(f"the sandbox runs on Linux, not on {sys.platform}: use a container")
    reasons = []
    for level in ISOLATIONS:
        try:
            if _run("", "pass", "", Limits(seconds=30), level).passed:
                return level
            reasons.append(f"{level}: an empty program does not pass")
        except CrocodilError as error:
            reasons.append(str(error))
    raise CrocodilError(f"the sandbox does not work here: {'; '.join(reasons)}")


def _run(program: str, tests: str, entry_point: str, limits: Limits, level: Isolation) -> Result:
    job = asdict(limits) | {
        "program": program,
        "tests": tests,
        "imports": _imports(tests),
        "entry_point": entry_point,
        "cpu_seconds": limits.cpu_seconds or math.ceil(limits.seconds),
        "level": level,
    }
    nonce = secrets.token_hex(16).encode()
    folder = tempfile.mkdtemp(prefix="crocodil-")
    try:
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(job).encode())
            file.seek(0)
            output, status, verdict = _play(file.fileno(), folder, nonce, limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts: dict[str, Any] = {}
    for line in status.splitlines():
        facts |= json.loads(line)
    if "ready" not in facts:
        reason = facts.get("refused") or output.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise CrocodilError(f"the sandbox cannot be built with isolation by {level}: {reason or 'no reason'}")
    outcome, detail = _judge(facts, verdict, nonce, job["cpu_seconds"])
    seconds = float(facts.get("seconds", limits.seconds))
    return Result(outcome, detail, seconds, output.decode("utf-8", "replace"), level)


def _play(job: int, folder: str, nonce: bytes, limits: Limits) -> tuple[bytes, bytes, bytes]:
    """Start the guard, and read what is written to output, status and verdict until nobody is left who could write."""
    pipes = [os.pipe() for _ in range(4)]
    (output, output_w), (status, status_w), (verdict, verdict_w), (secret, secret_w) = pipes
    ends = {end for pipe in pipes for end in pipe}
    try:
        os.write(secret_w, nonce)
        os.close(secret_w)
        ends.remove(secret_w)
        passed_on = (status_w, verdict_w, secret)
        # -P and -s as in -I; -E would lose the hash seed, and the environment is ours
        guard = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", str(INSIDE), *map(str, passed_on)],
            stdin=job,
            stdout=output_w,
            stderr=output_w,
            cwd=folder,
            env={"PYTHONHASHSEED": "0"},
            pass_fds=passed_on,
            start_new_session=True,
        )
        try:
            for end in (output_w, *passed_on):
                os.close(end)
                ends.remove(end)
            capped = {output: limits.output_bytes, status: REPORT_BYTES, verdict: REPORT_BYTES}
            texts = _read_all(capped, time.monotonic() + limits.seconds + GRACE)
        finally:
            # it has ended itself, unless somebody made that impossible, or we are interrupted
            if guard.poll() is None:
                _wait_or_kill(guard)
    finally:
        for end in ends:
            os.close(end)
    return texts[output], texts[status], texts[verdict]


def _wait_or_kill(guard: subprocess.Popen[bytes]) -> None:
    try:
        guard.wait(0.2)
    except subprocess.TimeoutExpired:
        os.killpg(guard.pid, signal.SIGKILL)
        guard.wait()


def _read_all(capped: dict[int, int], deadline: float) -> dict[int, bytes]:
    """What comes through pipes until all are closed at the other end, each cut to its size."""
    texts = dict.fromkeys(capped, b"")
    with selectors.DefaultSelector() as waiting:
        for pipe in capped:
            waiting.register(pipe, selectors.EVENT_READ)
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    waiting.unregister(key.fd)
                texts[key.fd] += piece[: capped[key.fd] - len(texts[key.fd])]
    return texts


def _judge(facts: dict[str, Any], verdict: bytes, nonce: bytes, cpu_seconds: int) -> tuple[str, str]:
    """Outcome and detail. Only the nonce says passed; anything else that came is believed as a reason at most."""
    if secrets.compare_digest(verdict, nonce):
        return "passed", ""
    if facts.get("timeout"):
        return "timeout", "wall time"
    code = facts.get("code", 0)
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and facts["cpu"] >= cpu_seconds):
        return "timeout", "CPU time"
    if code < 0:
        return "killed", signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if "code" not in facts:
        return "killed", "by its own hand, with the process that watched it"
    try:
        said = json.loads(verdict)
        outcome, detail = str(said["outcome"]), str(said.get("detail", ""))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        outcome, detail = "exited", ""
    if outcome not in OUTCOMES or outcome == "passed":
        outcome, detail = "exited", ""
    if outcome == "exited":
        detail = f"with code {code} before its tests were over" if code else "before its tests were over"
    return outcome, detail


def _imports(tests: str) -> Sequence[str]:
    """Modules that the tests import.

    Raises:
        CrocodilError: they do not parse.
    """
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CrocodilError(f"the tests are no Python: {error}") from None
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return sorted(names)
