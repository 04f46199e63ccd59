"""Programs of every bad habit: none passes that should not, none leaves anything behind."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from crocodil.errors import CrocodilError
from crocodil.harness import sandbox
from crocodil.harness.sandbox import ISOLATIONS, OUTCOMES, Isolation, Limits, Result, find_isolation, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox runs on Linux")

RIGHT = "def answer():\n    return 42\n"
WRONG = "def answer():\n    return 41\n"
TESTS = "import math\n\nassert all([math.isclose(abs(answer()), 42)])\n"
BRIEF = Limits(seconds=0.7)
SMALL = Limits(memory_bytes=128 << 20)

PASSING = {
    "right": RIGHT,
    "prints a lot": RIGHT + "print('x' * 3_000_000)\n",
    "deletes its folder": RIGHT + "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)\n",
    "a thread goes on": RIGHT
    + "import threading, time\nthreading.Thread(target=time.sleep, args=(900,)).start()\n",
    "writes in its folder": RIGHT
    + "with open('a.txt', 'w') as f:\n    f.write('42')\nassert open('a.txt').read() == '42'\n",
    "a main block": RIGHT + "if __name__ == '__main__':\n    raise SystemExit\n",
    "a dataclass": "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n@dataclass\nclass A:\n"
    "    x: int = 42\n\n\ndef answer():\n    return A().x\n",
    "what it must not see": RIGHT
    + "import os\nassert not os.environ, os.environ\nassert os.listdir() == []\n"
    + "assert not any('crocodil' in part for part in __import__('sys').path[1:])\n",
}

PATCH = "import builtins, os, sys, math\n"
FAILING: dict[str, tuple[str, set[str]]] = {
    "wrong": (WRONG, {"failed"}),
    "says passed": (WRONG + "print('passed')\n", {"failed"}),
    "raises": ("def answer():\n    raise KeyError('x')\n", {"error"}),
    "no such function": ("x = 1\n", {"error"}),
    "no Python": ("def answer(:\n", {"syntax error"}),
    "a null byte": ("x = '\0'\n", {"syntax error"}),
    "a lone surrogate": ("x = '\ud800'\n", {"syntax error"}),
    "brackets without end": ("(" * 100_000, {"syntax error", "memory", "killed"}),
    "recursion without end": ("def answer():\n    return answer()\n", {"error"}),
    "much memory": ("x = bytearray(10**11)\n", {"memory"}),
    "more and more memory": ("x = []\nwhile True:\n    x.append(bytearray(10**7))\n", {"memory"}),
    "exits in the program": ("import sys\nsys.exit(0)\n", {"exited"}),
    "exits in the tests": ("def answer():\n    raise SystemExit\n", {"exited"}),
    "exits at once": ("import os\nos._exit(0)\n", {"exited"}),
    "exits from a thread": (
        "import os, threading, time\nthreading.Timer(0.1, os._exit, [0]).start()\n\n\ndef answer():\n"
        "    time.sleep(60)\n",
        {"exited"},
    ),
    "reads stdin": ("def answer():\n    return int(input())\n", {"error"}),
    "fills the disk": ("with open('big', 'wb') as f:\n    f.write(bytes(10**8))\n", {"error"}),
    "many files": ("files = [open(str(i), 'w') for i in range(1000)]\n", {"error"}),
    "closes everything": ("import os\nos.closerange(0, 100)\n" + WRONG, {"exited"}),
    "writes everywhere": (
        "import os\nfor pipe in range(3, 60):\n    try:\n        os.write(pipe, b'passed')\n"
        "    except OSError:\n        pass\n" + WRONG,
        {"exited", "failed"},
    ),
    "claims to have passed": (
        "import os\nfor pipe in range(3, 60):\n    try:\n"
        "        os.write(pipe, b'{\"outcome\": \"passed\"}')\n    except OSError:\n        pass\nos._exit(0)\n",
        {"exited"},
    ),
    "catches everything": (
        "def answer():\n    try:\n        assert False\n    except BaseException:\n        return 41\n",
        {"failed"},
    ),
    "no exec": (PATCH + "builtins.exec = lambda *a: None\n" + WRONG, {"failed"}),
    "no compile": (PATCH + "builtins.compile = lambda *a, **k: 'pass'\n" + WRONG, {"failed"}),
    "all is true": (PATCH + "builtins.all = lambda x: True\n" + WRONG, {"failed"}),
    "abs is 42": (PATCH + "builtins.abs = lambda x: 42\n" + WRONG, {"failed"}),
    "all is its own": (WRONG + "def all(x):\n    return True\n", {"failed"}),
    "patches through __builtins__": (
        "b = __builtins__ if isinstance(__builtins__, dict) else vars(__builtins__)\n"
        "b['all'] = b['any'] = lambda x: True\n" + WRONG,
        {"failed"},
    ),
    "everything is close": (PATCH + "math.isclose = lambda *a, **k: True\n" + WRONG, {"failed"}),
    "no assertions": (PATCH + "builtins.AssertionError = SystemExit\n" + WRONG, {"failed", "exited"}),
    "other imports": (
        PATCH + "class M:\n    isclose = lambda *a: True\nbuiltins.__import__ = lambda *a, **k: M\n" + WRONG,
        {"failed"},
    ),
    "cannot be left": (PATCH + "os._exit = os.write = os.read = lambda *a: b'passed'\n" + WRONG, {"failed"}),
    "jumps over the tests": (
        "import sys\n\n\ndef trace(frame, event, arg):\n    if frame.f_code.co_filename == '<tests>':\n"
        "        frame.f_lineno = 3 if frame.f_lineno < 3 else frame.f_lineno\n        return trace\n\n\n"
        "sys.settrace(trace)\n" + WRONG,
        {"failed"},
    ),
    "its fork is right": (
        "import os\nvalue = 42 if os.fork() == 0 else 41\nif value == 41:\n    os.wait()\n\n\n"
        "def answer():\n    return value\n",
        {"failed", "exited"},
    ),
    "kills itself": ("import os\nos.kill(os.getpid(), 9)\n", {"killed", "error"}),
    "crashes": ("import ctypes\nctypes.string_at(0)\n", {"killed", "error"}),
    "its message never ends": (
        "class E(Exception):\n    def __str__(self):\n        raise SystemExit\n\n\ndef answer():\n    raise E\n",
        {"error"},
    ),
}  # fmt: skip

TIMING_OUT = {
    "loops": "while True:\n    pass\n",
    "sleeps": "import time\ntime.sleep(900)\n",
    "writes without end": "while True:\n    print('x' * 1000)\n",
    "holds on": "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass\n",
    "deaf to signals": "import signal, time\nfor s in range(1, 32):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError):\n        pass\ntime.sleep(900)\n",
}

WHERE = "import os\nprint(os.readlink('/proc/self/ns/pid'), os.getcwd(), flush=True)\n"
FORKS = (
    WHERE
    + RIGHT
    + "import time\nmade = 0\ntry:\n    for _ in range(60):\n        if os.fork() == 0:\n            time.sleep(900)\n"
    "            os._exit(0)\n        made += 1\nexcept OSError:\n    pass\nprint('made', made)\n"
)
BEHIND_WALLS = {
    "daemon": WHERE
    + RIGHT
    + "import time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.closerange(0, 60)\n"
    "        time.sleep(900)\n    os._exit(0)\nos.wait()\n",
    "daemon, and waits": WHERE
    + "import time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.closerange(0, 60)\n"
    "        time.sleep(900)\n    os._exit(0)\nos.wait()\ntime.sleep(900)\n",
    "kills what it sees": WHERE
    + "for process in (os.getppid(), 1, -1):\n    try:\n        os.kill(process, 9)\n    except OSError:\n        pass\n"
    + RIGHT,
}


def works(level: Isolation) -> bool:
    try:
        return run("", "pass", isolation=level).passed
    except CrocodilError:
        return False


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(6) as made:
        yield made


@pytest.fixture(scope="module")
def levels(pool: ThreadPoolExecutor) -> list[Isolation]:
    """What this kernel gives."""
    found = [level for level, good in zip(ISOLATIONS, pool.map(works, ISOLATIONS), strict=True) if good]
    assert found and found[0] == find_isolation()
    return found


@pytest.fixture(scope="module")
def played(pool: ThreadPoolExecutor) -> dict[str, Future[Result]]:
    """All programs that want nothing from their test, side by side, with the strongest isolation."""
    find_isolation()
    programs = PASSING | {name: program for name, (program, _) in FAILING.items()}
    del programs["more and more memory"]
    jobs = {name: pool.submit(run, program, TESTS) for name, program in programs.items()}
    jobs["more and more memory"] = pool.submit(run, FAILING["more and more memory"][0], TESTS, "", SMALL)
    return jobs | {name: pool.submit(run, p, TESTS, "", BRIEF) for name, p in TIMING_OUT.items()}


@pytest.mark.parametrize("name", PASSING)
def test_what_is_right_passes(name: str, played: dict[str, Future[Result]]) -> None:
    result = played[name].result()
    assert (result.outcome, result.detail) == ("passed", ""), result
    assert len(result.output) <= Limits().output_bytes


@pytest.mark.parametrize("name", FAILING)
def test_what_is_wrong_fails_whatever_it_does(name: str, played: dict[str, Future[Result]]) -> None:
    result = played[name].result()
    assert result.outcome in FAILING[name][1], result
    assert result.outcome in OUTCOMES


@pytest.mark.parametrize("name", TIMING_OUT)
def test_what_does_not_end_is_ended(name: str, played: dict[str, Future[Result]]) -> None:
    result = played[name].result()
    assert result.outcome == "timeout", result
    assert BRIEF.seconds <= result.seconds < BRIEF.seconds + 5


def test_details_tell_the_exception_and_the_line_of_the_tests(played: dict[str, Future[Result]]) -> None:
    assert played["wrong"].result().detail == (
        "AssertionError at assert all([math.isclose(abs(answer()), 42)])"
    )
    assert played["raises"].result().detail.startswith("KeyError: 'x' at assert all(")
    assert played["no Python"].result().detail.startswith("SyntaxError: ")
    assert played["exits at once"].result().detail == "before its tests were over"
    assert played["loops"].result().detail == "wall time"


def test_no_folder_stays(played: dict[str, Future[Result]]) -> None:
    for job in played.values():
        job.result()
    before = set(Path(tempfile.gettempdir()).glob("crocodil-*"))
    result = run(WHERE + "open('left', 'w').close()\n", "pass")
    folder = Path(result.output.split()[1])
    assert result.passed and folder.parent == Path(tempfile.gettempdir())
    assert folder not in before and not folder.exists()


@pytest.mark.slow  # a second of CPU time, which may take many on a busy machine
def test_cpu_time_is_limited_where_wall_time_is_not() -> None:
    result = run("while True:\n    pass\n", "pass", limits=Limits(seconds=60, cpu_seconds=1))
    assert (result.outcome, result.detail) == ("timeout", "CPU time")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"code": 0, "cpu": 0.1}, ("exited", "before its tests were over")),
        ({"code": 3, "cpu": 0.1}, ("exited", "with code 3 before its tests were over")),
        ({"code": -signal.SIGXCPU, "cpu": 2.0}, ("timeout", "CPU time")),
        ({"code": -signal.SIGKILL, "cpu": 2.0}, ("timeout", "CPU time")),
        ({"code": -signal.SIGKILL, "cpu": 0.1}, ("killed", "SIGKILL")),
        ({"code": -signal.SIGSEGV, "cpu": 0.1}, ("killed", "SIGSEGV")),
        ({"timeout": True}, ("timeout", "wall time")),
        ({}, ("killed", "by its own hand, with the process that watched it")),
    ],
)
def test_how_a_program_ended_is_told_from_outside(facts: dict[str, float], expected: tuple[str, str]) -> None:
    for said in (
        b"",
        b"not the nonce",
        b'{"outcome": "passed"}',
        b"[" * 9000,
        b'{"outcome": []}',
        b"nonce nonce",
    ):
        assert sandbox._judge(facts, said, b"nonce", 2) == expected
    assert sandbox._judge(facts, b"nonce", b"nonce", 2) == ("passed", "")


def test_strings_have_the_same_hash_in_every_run() -> None:
    one, other = (run("print(hash('crocodil'))", "pass").output for _ in range(2))
    assert one == other != ""


def test_a_function_with_a_builtins_name_can_be_the_entry_point() -> None:
    program, tests = "def sum(a, b):\n    return a + b\n", "assert sum(1, 2) == 3\n"
    assert run(program, tests, "sum").passed
    assert run(program, tests).outcome == "error"


@pytest.mark.parametrize("level", ISOLATIONS)
def test_at_every_level_nobody_survives_gets_out_or_calls_home(
    level: Isolation, levels: list[Isolation], pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    if level not in levels:
        pytest.skip(f"no {level} here")
    # open to everybody, so that only the sandbox stands in between
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o777)
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    kept.chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        reach = {
            "connects": f"import socket\nsocket.create_connection({server.getsockname()!r}, 5)\n{RIGHT}",
            "asks for an address": f"import socket\nsocket.getaddrinfo('example.org', 80)\n{RIGHT}",
            "writes": f"open({str(tmp_path / 'new')!r}, 'w').close()\n{RIGHT}",
            "appends": f"open({str(kept)!r}, 'a').write('!')\n{RIGHT}",
            "removes": f"import os\nos.remove({str(kept)!r})\n{RIGHT}",
            "renames": f"import os\nos.rename({str(kept)!r}, {str(kept) + '2'!r})\n{RIGHT}",
        }
        if level != "namespaces":
            reach["starts a program"] = f"import subprocess\nsubprocess.run(['true'])\n{RIGHT}"
        lasting = {name: Limits(processes=40) for name in BEHIND_WALLS} | {"daemon, and waits": BRIEF}
        play = lambda program, limits=None: run(program, TESTS, "", limits, isolation=level)  # noqa: E731
        outward = {name: pool.submit(play, program) for name, program in reach.items()}
        inward = {name: pool.submit(play, BEHIND_WALLS[name], limits) for name, limits in lasting.items()}
        for name, job in outward.items():
            assert job.result().outcome == "error", (name, job.result())
        with pytest.raises(BlockingIOError):
            server.accept()
    assert kept.read_text() == "as it was" and [file.name for file in tmp_path.iterdir()] == ["kept"]

    results = {name: job.result() for name, job in inward.items()}
    # by itself, because without a user namespace the count is shared by all that run at the time
    results["forks"] = play(FORKS, Limits(processes=6))
    for result in results.values():
        assert result.isolation == level
        process_space, folder = result.output.split()[:2]
        assert survivors(process_space if level == "namespaces" else folder) == []
    assert results["forks"].passed and results["daemon"].passed and results["kills what it sees"].passed
    assert results["daemon, and waits"].outcome == "timeout"
    made = int(results["forks"].output.split()[-1])
    assert 0 < made < 60 if level == "audit hook" else made == 5


def survivors(where: str) -> list[str]:
    """Processes of a namespace, or in a folder."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        for link in ("ns/pid", "cwd"):
            try:
                if os.readlink(f"/proc/{process}/{link}").startswith(where):
                    found.append(process)
            except OSError:
                pass
    return found


def test_the_weakest_isolation_is_refused_where_the_kernel_shall_keep_the_network_away() -> None:
    with pytest.raises(CrocodilError, match="network isolation is required"):
        run(RIGHT, TESTS, isolation="audit hook", require_network_isolation=True)


def test_the_strongest_isolation_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sandbox._run

    def refuse(program: str, tests: str, entry: str, limits: Limits, level: Isolation) -> Result:
        if level in refused:
            raise CrocodilError(f"no {level}")
        return Result("passed", "", 0.0, "", level)

    try:
        for refused in ((), ("namespaces",), ("namespaces", "network namespace"), ISOLATIONS):
            find_isolation.cache_clear()
            monkeypatch.setattr(sandbox, "_run", refuse)
            if refused == ISOLATIONS:
                with pytest.raises(CrocodilError, match="no namespaces; no network namespace; no audit hook"):
                    find_isolation()
            else:
                assert find_isolation() == ISOLATIONS[len(refused)]
    finally:
        monkeypatch.setattr(sandbox, "_run", real)
        find_isolation.cache_clear()


def test_what_the_kernel_refuses_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "inside.py"
    broken.write_text('import os, sys\nos.write(int(sys.argv[1]), b\'{"refused": "unshare: no"}\\n\')\n')
    monkeypatch.setattr(sandbox, "INSIDE", broken)
    with pytest.raises(CrocodilError, match="cannot be built with isolation by namespaces: unshare: no"):
        run(RIGHT, TESTS, isolation="namespaces")
    broken.write_text("raise OSError('gone')\n")
    with pytest.raises(CrocodilError, match="OSError: gone"):
        run(RIGHT, TESTS, isolation="namespaces")


def test_tests_that_do_not_parse_are_the_problems_fault() -> None:
    with pytest.raises(CrocodilError, match="the tests are no Python"):
        run(RIGHT, "assert (", isolation="namespaces")


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"memory_bytes": 1}, {"processes": 0}, {"open_files": 1}, {"cpu_seconds": 0}]
)
def test_limits_that_let_nothing_run_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(CrocodilError, match=next(iter(wrong))):
        Limits(**wrong)


def test_an_interrupt_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        time.sleep(0.3)
        raise KeyboardInterrupt

    monkeypatch.setattr(sandbox, "_read_all", interrupt)
    before = set(Path(tempfile.gettempdir()).glob("crocodil-*"))
    with pytest.raises(KeyboardInterrupt):
        run("import time\ntime.sleep(900)\n", "pass", isolation="audit hook")
    assert set(Path(tempfile.gettempdir()).glob("crocodil-*")) <= before
