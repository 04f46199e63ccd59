"""Runs of recipes at a second each: a process that has imported everything once forks a child for every rank.

It has one thread when it forks, so the children are as good as fresh interpreters; what accelerate's launcher would put
into their environment is asked of the launcher itself. `Nursery` is the end that tests hold; run as a program, this file
is the other end: it reads jobs, as lines of JSON, from stdin.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

ROOT = Path(__file__).parents[2]
PIDS, CODES = "pids.json", "codes.json"
PATIENCE = 120.0


@dataclass(frozen=True)
class Fault:
    """What is done to a child: a function of `injections.py`, and when.

    Attributes:
        do: its name and arguments.
        when: likewise of a moment there; None for before the recipe begins.
        rank: of the child; None for every one.
    """

    do: tuple[Any, ...]
    when: tuple[Any, ...] | None = None
    rank: int | None = None


class Job:
    """The processes of one launch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began = time.monotonic()

    @property
    def pids(self) -> list[int]:
        """Process of every rank."""
        while not (self.folder / PIDS).exists():
            self._rest("began")
        return json.loads((self.folder / PIDS).read_text())

    def send(self, number: signal.Signals, rank: int | None = None) -> None:
        """A signal to one rank or to all; one that has gone does not mind."""
        for pid in self.pids if rank is None else self.pids[rank : rank + 1]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def is_over(self) -> bool:
        return (self.folder / CODES).exists()

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """Exit code of every rank, -9 for a killed one."""
        while not self.is_over():
            if time.monotonic() - self.began > seconds:
                self.send(signal.SIGKILL)
                raise AssertionError(f"not over after {seconds:.0f} s:\n{self.said}")
            self._rest("ended")
        return json.loads((self.folder / CODES).read_text())

    def done(self) -> Job:
        """Wait for a launch that ought to succeed."""
        codes = self.wait()
        assert not any(codes), f"exit codes {codes}:\n{self.said}"
        return self

    def err(self, rank: int = 0) -> str:
        """What a rank has written to stderr by now."""
        return (self.folder / f"{rank}.err").read_text(errors="replace")

    @property
    def said(self) -> str:
        return "\n".join(
            f"rank {path.stem}: {path.read_text()[-4000:]}" for path in self.folder.glob("*.err")
        )

    def _rest(self, what: str) -> None:
        if time.monotonic() - self.began > 2 * PATIENCE:
            raise AssertionError(f"the launch has not {what}")
        time.sleep(0.002)


class Nursery:
    """Starts launches. Use it in a `with`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs: list[Job] = []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CI": "true"}
        environment["CUDA_VISIBLE_DEVICES"] = ""  # a GPU would not survive the fork
        # DeepSpeed looks for ninja on the PATH
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        with open(folder / "nursery.err", "wb") as errors:
            command = [sys.executable, "-m", "tests.faults.nursery"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=errors, stderr=errors, cwd=ROOT, env=environment
            )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._jobs:  # of tests that failed
            if not job.is_over():
                job.send(signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def begin(
        self,
        recipe: str,
        *arguments: str,
        launch: str | None = "cpu.yaml",
        ranks: int | None = None,
        faults: Sequence[Fault] = (),
    ) -> Job:
        """Start a recipe, or `module:function` of no arguments.

        Args:
            launch: a file of launch/; None for a program that is to know of no launch, such as a launcher.
            ranks: other than the file says.
        """
        folder = self._folder / f"job-{len(self._jobs):03d}"
        folder.mkdir()
        job = {
            "folder": str(folder),
            "function": recipe if ":" in recipe else f"recipes.{recipe}:main",
            "arguments": [f"{recipe}.py", *arguments],
            "launch": launch,
            "ranks": ranks,
            "faults": [asdict(fault) for fault in faults],
        }
        assert self._process.stdin is not None and self._process.poll() is None, "the nursery has gone"
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        self._jobs.append(Job(folder))
        return self._jobs[-1]

    def run(self, recipe: str, *arguments: str, **options: Any) -> Job:
        """Start a recipe and see it succeed."""
        return self.begin(recipe, *arguments, **options).done()


@dataclass(frozen=True)
class Running:
    """A launch, seen from its parent."""

    folder: Path
    codes: dict[int, int | None]
    """By process; None while it runs."""
    ends: dict[int, int]
    """Processes by the descriptor that tells of their end."""
    errors: dict[int, BinaryIO]
    """By descriptor, where what comes from it goes."""


def serve() -> None:
    """Fork the ranks of each job, keep what they say, and write down how they ended, until stdin ends."""
    import gc

    import accelerate.commands.launch  # noqa: F401
    import deepspeed  # noqa: F401  (a quarter of a second, and what ZeRO wants)

    import crocodil.training.throughput
    import recipes.cache_registers
    import recipes.train_base
    import recipes.train_demasker
    import recipes.train_denoiser
    import recipes.train_judge  # noqa: F401
    import tests.faults.injections  # noqa: F401

    with suppress(ImportError):
        import deepspeed  # noqa: F401
    # what is measured of the machine is no part of these tests, and what is here is no garbage of theirs
    crocodil.training.throughput._measured_flops = lambda device, dtype: 1e11
    gc.collect()
    gc.freeze()
    ears, read = selectors.DefaultSelector(), b""
    ears.register(0, selectors.EVENT_READ)
    while ears.get_map():
        for key, _ in ears.select():
            if ears.get_map().get(key.fd) is not key:
                continue  # its launch ended a moment ago
            if key.data is None:
                if not (said := os.read(0, 1 << 16)):
                    ears.unregister(0)
                *lines, read = (read + said).split(b"\n")
                for line in lines:
                    begin(json.loads(line), ears)
            elif key.fd in key.data.errors:
                if said := os.read(key.fd, 1 << 16):
                    key.data.errors[key.fd].write(said)
                else:
                    ears.unregister(key.fd)
            else:
                ears.unregister(key.fd)
                os.close(key.fd)
                ended(key.data, key.data.ends[key.fd], ears)


def begin(job: dict[str, Any], ears: selectors.BaseSelector) -> None:
    """Fork the ranks of a job."""
    told, world = launcher_environment(job["launch"], job["ranks"])
    environment = dict(told)
    if world > 1:  # what torch's launcher, which is left out here, would add
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        environment |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = Running(Path(job["folder"]), {}, {}, {})
    for rank in range(world):
        reading, writing = os.pipe()  # no file: what is said does not share the faults of the disk
        if (pid := os.fork()) == 0:
            os.dup2(writing, 2)
            os.environ.update(environment)
            if world > 1:
                os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
            child(job, rank)
        os.close(writing)
        os.set_blocking(reading, False)
        running.codes[pid] = None
        running.errors[reading] = open(running.folder / f"{rank}.err", "wb", buffering=0)
        ears.register(reading, selectors.EVENT_READ, running)
        end = os.pidfd_open(pid)
        running.ends[end] = pid
        ears.register(end, selectors.EVENT_READ, running)
    publish(running.folder / PIDS, [*running.codes])


def ended(running: Running, pid: int, ears: selectors.BaseSelector) -> None:
    """A rank has ended; with the last one write down how."""
    running.codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if None in running.codes.values():
        return
    for reading, file in running.errors.items():
        with suppress(BlockingIOError):
            while said := os.read(reading, 1 << 16):
                file.write(said)
        if reading in ears.get_map():
            ears.unregister(reading)
        os.close(reading)
        file.close()
    publish(running.folder / CODES, [*running.codes.values()])


@cache
def launcher_environment(launch: str | None, ranks: int | None) -> tuple[dict[str, str], int]:
    """What `accelerate launch` tells its workers but for their ranks, and how many they are."""
    if launch is None:
        return {}, 1
    from unittest.mock import patch

    from accelerate.commands import launch as launcher

    found: dict[str, str] = {}
    command = ["--config_file", f"launch/{launch}", "recipe.py"]
    if ranks is not None:
        command[2:2] = ["--num_processes", str(ranks)]
    arguments = launcher.launch_command_parser().parse_args(command)

    def simple(given: Any) -> None:
        found.update(launcher.prepare_simple_launcher_cmd_env(given)[1])

    with (
        patch("torch.distributed.run.run", lambda given: found.update(os.environ)),
        patch.object(launcher, "simple_launcher", simple),
    ):
        launcher.launch_command(arguments)
    return found, arguments.num_processes


def child(job: dict[str, Any], rank: int) -> NoReturn:
    """Be one rank of a launch, as `python recipes/RECIPE.py ARGUMENTS` is, but for the interpreter's end."""
    import importlib

    from crocodil.errors import one_line_errors
    from tests.faults import injections

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(Path(job["folder"]) / f"{rank}.out", os.O_WRONLY | os.O_CREAT), 1)
    sys.argv = job["arguments"]
    module, _, function = job["function"].partition(":")
    for fault in job["faults"]:
        if fault["rank"] in (None, rank):
            injections.inject(fault["do"], fault["when"])
    code: Any = 0
    try:
        with one_line_errors():
            getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # taking the interpreter down would take as long as a run


def publish(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


if __name__ == "__main__":
    serve()
