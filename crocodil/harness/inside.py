"""What runs inside the sandbox: a script of its own that imports nothing of ours. `crocodil.harness.sandbox` starts it.

Up to three processes, from the outside in. The *guard* builds the walls and keeps the time. *init* is the first process
behind the walls, whose end is the end of all others there. The *runner* runs the program, and then its tests.

Whatever the program may have put in place of what the runner needs, the runner holds the original: it takes everything
it will call into locals before the program runs.
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
import types

TYPE_CHECKING = False  # of typing, whose import would take longer than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

NOBODY = 65534
MESSAGE = 300
"""Characters of an exception that are told."""

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h; none of these is in Python 3.11
NEW_USER, NEW_NET, NEW_PID, NEW_MOUNTS, NEW_IPC = 0x10000000, 0x40000000, 0x20000000, 0x00020000, 0x08000000
NOSUID, NODEV, NOEXEC, BIND, RECURSIVE, PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
DIE_WITH_PARENT, DUMPABLE, ADOPT_ORPHANS, NO_NEW_PRIVILEGES = 1, 4, 36, 38
CAPABILITIES_V3 = 0x20080522

DEVICES = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    """`inside.py STATUS VERDICT NONCE`: numbers of three pipes; the job is JSON on stdin."""
    status, verdict, nonce = map(int, sys.argv[1:4])
    job = json.loads(sys.stdin.buffer.read())
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.environ.clear()
    try:
        _build_walls(job)
    except OSError as error:
        _tell(status, {"refused": f"{error.strerror or error}"})
        os._exit(1)
    _guard(job, status, verdict, nonce)


# --- walls ---


def _build_walls(job: dict[str, Any]) -> None:
    """What can be had at this level, for this process and all that come from it.

    Raises:
        OSError: the kernel does not give it. Then this process is of no use any more.
    """
    os.umask(0o077)
    _give_up_root()
    own, group, folder = os.getuid(), os.getgid(), os.getcwd()
    if job["level"] == "namespaces":
        _unshare(NEW_USER | NEW_NET | NEW_PID | NEW_MOUNTS | NEW_IPC, own, group)
        _read_only_but(folder, job["folder_bytes"])
    elif job["level"] == "network namespace":
        _unshare(NEW_USER | NEW_NET, own, group)
    _call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call("prctl", ADOPT_ORPHANS, 1, 0, 0, 0)
    _call("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def _give_up_root() -> None:
    """Root becomes nobody, unless nobody may not read Python's own files; then `_runner` gives up what it can."""
    if os.getuid() != 0:
        return
    scout = os.fork()
    if scout == 0:
        try:
            _become_nobody()
            os.listdir(os.getcwd())
            with open(os.__file__, "rb") as file:
                file.read(1)
            os._exit(0)
        except BaseException:
            os._exit(1)
    if os.waitpid(scout, 0)[1] == 0:
        _become_nobody()
    else:
        os.chown(".", 0, 0)


def _become_nobody() -> None:
    os.chown(".", NOBODY, NOBODY)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # a change of user hides /proc/self from its own process, which has maps to write there
    _call("prctl", DUMPABLE, 1, 0, 0, 0)


def _unshare(flags: int, own: int, group: int) -> None:
    """New namespaces, in which users keep their numbers. A helper outside writes the maps: more than one line of them
    takes rights that are gone inside."""
    maps = [f"{own} {own} 1\n"]
    if own == 0:
        # with nobody, whom the runner will be, if this root has the right to map another
        maps.insert(0, f"{maps[0]}{NOBODY} {NOBODY} 1\n")
    inside, go = os.pipe()
    guard, helper = os.getpid(), os.fork()
    if helper == 0:
        try:
            os.close(go)
            if not os.read(inside, 1):
                os._exit(1)
            _write(f"/proc/{guard}/setgroups", "deny")
            _write(f"/proc/{guard}/gid_map", f"{group} {group} 1\n")
            for text in maps:
                try:
                    _write(f"/proc/{guard}/uid_map", text)
                except OSError:
                    continue
                os._exit(0)
            os._exit(1)
        except BaseException:
            os._exit(1)
    os.close(inside)
    try:
        _call("unshare", flags)
        os.write(go, b"x")
    finally:
        os.close(go)
        failed = os.waitpid(helper, 0)[1]
    if failed:
        raise OSError(0, "users cannot be mapped into a new namespace")


def _read_only_but(folder: str, room: int) -> None:
    """Every file system read-only, five devices, and `room` bytes in memory at `folder`."""
    _mount("none", "/", None, RECURSIVE | PRIVATE)
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES}
    _mount("tmpfs", "/dev", "tmpfs", NOSUID | NOEXEC, "size=64k,mode=755")
    for name, device in devices.items():
        _write(f"/dev/{name}", "")
        _mount(f"/proc/self/fd/{device}", f"/dev/{name}", None, BIND)
        os.close(device)
    read_only = (ctypes.c_uint64 * 4)(READ_ONLY | NOSUID, 0, 0, 0)
    _call("syscall", MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, read_only, 32)
    _mount("tmpfs", folder, "tmpfs", NOSUID | NODEV, f"size={room},nr_inodes=4096,mode=700")
    os.chdir(folder)


def _write(file: str, text: str) -> None:
    with open(file, "w") as stream:
        stream.write(text)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = (None if text is None else os.fsencode(text) for text in (source, target, kind))
    _call("mount", *encoded, ctypes.c_ulong(flags), None if data is None else data.encode())


def _call(name: str, *arguments: Any) -> int:
    """A function of the C library.

    Raises:
        OSError: it says no, or this system does not have it.
    """
    function = getattr(_libc, name, None)
    if function is None:
        raise OSError(0, f"no {name} here")
    result: int = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


# --- guard and init ---


def _guard(job: dict[str, Any], status: int, verdict: int, nonce: int) -> NoReturn:
    """Start the runner, wait for its end or for the time, end everything that came of it, tell how it ended."""
    _tell(status, {"ready": True})
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    began, walled = time.monotonic(), job["level"] == "namespaces"
    child = os.fork()
    if child == 0:
        (_init if walled else _runner)(job, status, verdict, nonce)
    os.close(verdict)
    os.close(nonce)
    ended: dict[str, Any] = {}
    while not ended:
        left = began + job["seconds"] - time.monotonic()
        if left <= 0:
            ended = {"timeout": True}
        else:
            signal.sigtimedwait({signal.SIGCHLD}, left)
        # one signal may stand for several children
        while (found := _reap()) is not None:
            if found[0] == child and not ended:
                ended = {} if walled else _how(found)
                ended["over"] = True
    if walled and "over" not in ended:
        _kill(child)
        os.waitpid(child, 0)
    elif not walled:
        _end_descendants()
    _tell(status, ended | {"seconds": time.monotonic() - began})
    os._exit(0)


def _init(job: dict[str, Any], status: int, verdict: int, nonce: int) -> NoReturn:
    """The first process of its namespace: when it leaves, the kernel ends all others there."""
    _call("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    try:
        _mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC | READ_ONLY)
    except OSError:
        pass  # some containers forbid it; the outer one stays, read-only
    runner = os.fork()
    if runner == 0:
        _runner(job, status, verdict, nonce)
    os.close(verdict)
    os.close(nonce)
    while (found := os.wait4(-1, 0))[0] != runner:
        pass
    _tell(status, _how(found))
    os._exit(0)


def _reap() -> tuple[int, int, Any] | None:
    """(process, status, usage) of a child that has ended, if there is one."""
    try:
        found = os.wait4(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return found if found[0] else None


def _how(found: tuple[int, int, Any]) -> dict[str, Any]:
    """How the runner ended: an exit code, or a signal as a negative number; its CPU time in seconds."""
    _, status, usage = found
    return {"code": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime}


def _end_descendants() -> None:
    """Kill what the runner left. Whoever loses its parent becomes a child of the guard, also behind a `setsid`."""
    me, give_up = os.getpid(), time.monotonic() + 5
    while time.monotonic() < give_up:
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it has just ended
            if parent == me:
                _kill(int(name))
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _tell(pipe: int, message: dict[str, Any]) -> None:
    try:
        os.write(pipe, json.dumps(message).encode() + b"\n")
    except OSError:
        pass  # whoever listened has gone


# --- runner ---


def _runner(job: dict[str, Any], status: int, verdict: int, nonce: int) -> NoReturn:
    """Run the program, then its tests. Only what ran to the end of the tests hands over the nonce, which nothing in this
    process holds before: it waits in a pipe."""
    os.close(status)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    tests = compile(job["tests"], "<tests>", "exec", dont_inherit=True)
    shared = [module for name in job["imports"] if (module := _import(name)) is not None]
    _set_limits(job)
    if job["level"] != "namespaces":
        sys.addaudithook(_barrier(os.getcwd(), job["level"] == "audit hook"))

    # what the program may patch: held here, put back before the tests
    run, write, read, leave, getpid = exec, os.write, os.read, os._exit, os.getpid
    kept = [(vars(module), dict(vars(module))) for module in (builtins, *shared)]
    clean, me, out = dict(vars(builtins)), getpid(), (sys.stdout, sys.stderr)
    untrace, unprofile, describe, flush = sys.settrace, sys.setprofile, _describe, _flush
    memory, gone = json.dumps({"outcome": "memory"}).encode(), json.dumps({"outcome": "exited"}).encode()

    solution = types.ModuleType("solution")
    sys.modules["solution"] = solution  # where dataclasses and pickle look for the module of a class
    space = vars(solution)
    try:
        try:
            program = compile(job["program"], "<program>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError) as error:
            write(verdict, describe("syntax error", error, ""))
        else:
            run(program, space)
            untrace(None)
            unprofile(None)
            for names, originals in kept:
                names.update(originals)
            # a program that calls its own function `len` shall not lend it to the tests
            theirs = {k: v for k, v in space.items() if k not in clean or k == job["entry_point"]}
            run(tests, theirs | {"__builtins__": clean, "__name__": "tests"})
            # a process that the program forked comes by here too
            if getpid() == me:
                write(verdict, read(nonce, 64))
    except MemoryError:
        write(verdict, memory)
    except SystemExit:
        write(verdict, gone)
    except AssertionError as error:
        write(verdict, describe("failed", error, job["tests"]))
    except BaseException as error:
        write(verdict, describe("error", error, job["tests"]))
    finally:
        flush(out)
        leave(0)


def _import(name: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None  # the tests will say so


def _set_limits(job: dict[str, Any]) -> None:
    """Of the runner and of each process that comes from it; no way back up."""
    counted = _processes_before(job["level"])
    if os.getuid() == 0:
        try:
            # the number of root's processes is never limited; as its *real* user the runner is nobody, and counts.
            # What root may read stays readable, or Python would lose its library
            os.setresuid(NOBODY, 0, 0)
            counted = 0 if job["level"] != "audit hook" else _tasks_of(NOBODY)
        except OSError:
            pass  # a root that is none outside its container, and is counted
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)()
    _call("capset", header, none)
    _call("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    cpu = job["cpu_seconds"]
    for what, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, job["memory_bytes"], job["memory_bytes"]),
        (resource.RLIMIT_FSIZE, job["file_bytes"], job["file_bytes"]),
        (resource.RLIMIT_NOFILE, job["open_files"], job["open_files"]),
        (resource.RLIMIT_NPROC, counted + job["processes"], counted + job["processes"]),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        most = resource.getrlimit(what)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(what, (soft, hard))


def _processes_before(level: str) -> int:
    """Processes that count towards the limit and are not the program's: a user namespace begins its own count."""
    if level == "namespaces":
        return 2  # guard and init
    if level == "network namespace":
        return 1
    return _tasks_of(os.getuid()) - 1


def _tasks_of(user: int) -> int:
    """Processes and threads of a real user, as many as they are now."""
    count = 0
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/status", "rb") as file:
                facts = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
            if int(facts[b"Uid"].split()[0]) == user:
                count += int(facts[b"Threads"])
        except (OSError, KeyError):
            pass  # it has just ended
    return count


def _describe(outcome: str, error: BaseException, tests: str) -> bytes:
    """A verdict other than passed: the exception's type and message, and the line of the tests that it came through."""
    try:
        text = f"{type(error).__name__}: {str(error)[:MESSAGE]}".rstrip(": ")
        at, line = error.__traceback__, 0
        while at is not None:
            if at.tb_frame.f_code.co_filename == "<tests>":
                line = at.tb_lineno
            at = at.tb_next
        if line:
            text += f" at {tests.splitlines()[line - 1].strip()[:MESSAGE]}"
        return json.dumps({"outcome": outcome, "detail": text}).encode()
    except BaseException:
        # its own __str__ may raise, and the program may have broken what is used here
        return b'{"outcome": "' + outcome.encode() + b'"}'


def _flush(streams: tuple[Any, ...]) -> None:
    for stream in streams:
        try:
            stream.flush()
        except BaseException:
            pass


# --- what stands in for a wall where the kernel gives none ---

NETWORK = {
    "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.gethostbyaddr", "socket.getnameinfo",
}  # fmt: skip
PROGRAMS = {
    "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "ctypes.dlopen",
    "ctypes.dlsym", "ctypes.dlsym/handle", "sqlite3.connect", "_winapi.CreateProcess",
}  # fmt: skip
SIGNALS = {"os.kill", "os.killpg", "signal.pthread_kill"}
CHANGES = {
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "os.setxattr", "os.removexattr",
}  # fmt: skip


def _barrier(folder: str, no_network: bool) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that refuses, inside this interpreter, the network, other programs, and changes outside `folder`."""
    home, realpath, fsdecode = os.path.realpath(folder), os.path.realpath, os.fsdecode
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        there = realpath(fsdecode(path))
        return there != home and not there.startswith(home + "/") and there != "/dev/null"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in NETWORK and no_network:
            raise PermissionError("the sandbox has no network")
        if event in PROGRAMS:
            raise PermissionError("the sandbox starts no other programs")
        if event in SIGNALS:
            raise PermissionError("the sandbox sends no signals")
        if event == "open" and arguments[2] & writing and outside(arguments[0]):
            raise PermissionError("the sandbox writes in its own folder only")
        if event in CHANGES and any(map(outside, arguments)):
            raise PermissionError("the sandbox changes its own folder only")

    return hook


if __name__ == "__main__":
    main()
