"""Ranks that die, stall, or are more or fewer than before."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.nursery import Fault, Job
from tests.faults.trials import (
    SHORT,
    Trials,
    assert_identical,
    checkpoint,
    losses,
    one_line,
    state,
    steps_saved,
)

FORWARD = "forward and backward"
TWO = {"launch": "cpu2.yaml"}
ENDLESS = (*SHORT, "steps=2000", "validate_every=2000")
"""SHORT with so many steps that it does not end by itself; its first steps are the same."""


def workers(job: Job) -> dict[int, int]:
    """Process of each rank that a launcher has started."""
    (launcher,) = job.pids
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(entry[5:]): int(pid) for entry in environment if entry.startswith(b"RANK=")}
    return found


def wait_for(file: Path) -> None:
    until = time.monotonic() + 90
    while not file.exists():
        assert time.monotonic() < until, f"no {file}"
        time.sleep(0.01)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_launcher_ends_when_a_rank_dies(victim: int, trials: Trials, tmp_path: Path) -> None:
    """F5, through accelerate's own launcher and with interpreters of their own."""
    run = tmp_path / "run"
    job = trials.launch("cpu2.yaml", run, *ENDLESS)
    wait_for(checkpoint(run, 3))
    ranks = workers(job)
    assert sorted(ranks) == [0, 1]
    began = time.monotonic()
    os.kill(ranks[victim], signal.SIGKILL)
    assert job.wait(60)[0] > 0
    assert time.monotonic() - began < 30
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert state(checkpoint(run, steps_saved(run)[-1]))


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_ends_when_the_other_dies(victim: int, trials: Trials, pair: Path, tmp_path: Path) -> None:
    """F5, where nobody watches over both."""
    run = tmp_path / "run"
    kill = Fault(("kill",), ("at", 7, FORWARD), rank=victim)
    job = trials.begin(run, *SHORT, faults=[kill], **TWO)
    while not (run / "metrics.jsonl").exists() or 7 not in losses(run):
        time.sleep(0.01)
    began = time.monotonic()
    codes = job.wait(60)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] > 0 and time.monotonic() - began < 30
    trials.train(run, *SHORT, "--resume", **TWO)
    assert_identical(run, pair)


def stalls(when: tuple[object, ...], rank: int | None = None) -> Fault:
    return Fault(("sleep", 60), when, rank)


STALLS = {
    "one rank of two, in a step": [stalls(("at", 5, FORWARD), 1)],
    "one rank of two, in a checkpoint": [stalls(("at", 6, "checkpoint"), 1)],
    "one rank of two, in its texts": [stalls(("before", "recipes.train_demasker:corrupt", 6), 1)],
    "the only rank": [stalls(("at", 5, FORWARD))],
    "the only rank, and stderr is full": [Fault(("fill_stderr",), ("at", 4, FORWARD)), stalls(("at", 5, FORWARD))],
}  # fmt: skip
TIMEOUT = 0.07  # minutes


def how(name: str) -> dict[str, str]:
    return TWO if "of two" in name else {}


@pytest.fixture(scope="module")
def stalled(tmp_path_factory: pytest.TempPathFactory, trials: Trials) -> dict[str, tuple[Path, Job]]:
    """Runs that hang, and what became of them; all at once, for they do nothing but wait."""
    jobs = {}
    for name, faults in STALLS.items():
        run = tmp_path_factory.mktemp("stalled") / "run"
        more = (*SHORT, f"timeout={TIMEOUT}", "row_tokens=256")  # one row, so that each step prepares one
        jobs[name] = run, trials.begin(run, *more, faults=faults, **how(name))
    for _, job in jobs.values():
        job.wait(60 * TIMEOUT + 40)
    return jobs


@pytest.mark.parametrize("name", STALLS)
def test_a_stalled_run_says_where_and_ends(name: str, stalled: dict[str, tuple[Path, Job]]) -> None:
    """F21: exit code 75 on every rank, and one line of each that names rank, step and operation."""
    _, job = stalled[name]
    ranks = [*range(2 if how(name) else 1)]
    assert job.wait() == [75 for _ in ranks], job.said
    if "stderr" in name:
        return
    lines = [one_line(job, rank) for rank in ranks]
    for rank, line in enumerate(lines):
        assert f"rank {rank}: nothing for " in line
        assert float(line.split("nothing for ")[1].split()[0]) < 60 * TIMEOUT + 3
        assert "--resume goes on from the last checkpoint, timeout= allows for more" in line
    if "texts" in name:
        assert f"in step 5, {FORWARD} (rank 1: step 5, texts of the next step)" in lines[0]
        assert f"in step 5, texts of the next step (rank 0: step 5, {FORWARD})" in lines[1]
    else:
        where = "step 6, checkpoint" if "checkpoint" in name else f"step 5, {FORWARD}"
        assert all(f" s in {where}" in line for line in lines)


def test_a_stalled_run_goes_on(
    stalled: dict[str, tuple[Path, Job]], trials: Trials, pair: Path, tmp_path: Path
) -> None:
    """F21: the same command with --resume."""
    run, _ = stalled["one rank of two, in a checkpoint"]
    assert steps_saved(run) == [3]
    trials.train(run, *SHORT, "row_tokens=256", "--resume", **TWO)
    assert losses(run) == pytest.approx(losses(pair), abs=1e-5)


def test_a_run_that_was_suspended_goes_on(trials: Trials, tmp_path: Path) -> None:
    """As by Ctrl-Z, or with the machine it is on: for longer than it may do nothing, which it has not."""
    run = tmp_path / "run"
    job = trials.begin(run, *ENDLESS, "timeout=0.05", **TWO)
    wait_for(checkpoint(run, 3))
    job.send(signal.SIGSTOP)
    time.sleep(4.5)
    done = len(losses(run))
    job.send(signal.SIGCONT)
    until = time.monotonic() + 30
    while len(losses(run)) < done + 20:
        assert not job.is_over() and time.monotonic() < until, job.said
        time.sleep(0.05)
    job.send(signal.SIGTERM)
    assert job.wait(40) == [0, 0], job.said


def test_a_micro_batch_that_does_not_fit_is_one_line(trials: Trials, short: Path, tmp_path: Path) -> None:
    """F20: the allocator fails under a limit of the address space; micro-batches are not halved by themselves."""
    run = tmp_path / "run"
    # the module is called twice a step, once for each row
    fault = Fault(("run_out_of_memory", 1 << 30), ("before", "crocodil.autoencoder:Autoencoder.forward", 8))
    job = trials.begin(run, *SHORT, faults=[fault])
    assert job.wait() == [2]
    assert "step 3: a micro-batch does not fit into memory" in one_line(job)
    assert "lower row_tokens or micro_batch, set recompute=true" in one_line(job)
    trials.train(run, *SHORT, "--resume", "row_tokens=32")
    assert losses(run) == pytest.approx(losses(short), abs=1e-5)


def test_one_rank_out_of_memory_ends_all(trials: Trials, tmp_path: Path) -> None:
    """F20: that rank says its line, the other ends within half a minute."""
    fault = Fault(
        ("run_out_of_memory", 1 << 30), ("before", "crocodil.autoencoder:Autoencoder.forward", 3), rank=1
    )
    job = trials.begin(tmp_path / "run", *SHORT, faults=[fault], **TWO)
    codes = job.wait(30)
    assert codes[1] == 2 and codes[0] > 0
    assert "a micro-batch does not fit into memory" in one_line(job, 1)


WORLDS = {1: {}, 2: TWO, 3: TWO | {"ranks": 3}}


@pytest.mark.parametrize(("before", "then"), [(2, 1), (1, 2), (2, 3)])
def test_a_run_goes_on_with_other_ranks(
    before: int, then: int, trials: Trials, control: Path, tmp_path: Path
) -> None:
    """F10: the next 24 losses, through the stages' boundary, to 1e-5; the same texts in the same steps."""
    run, seen = tmp_path / "run", tmp_path / "seen"
    stop = Fault(("kill", signal.SIGTERM), ("at", 5, "update"))
    trials.train(run, faults=[stop], **WORLDS[before])
    assert steps_saved(run) == [6]
    faults = [
        Fault(("write_down_samples", str(seen)), rank=0),
        Fault(("kill", signal.SIGTERM), ("at", 29, "update")),
    ]
    trials.train(run, "--resume", faults=faults, **WORLDS[then])
    wanted = losses(control)
    assert losses(run) == pytest.approx({step: wanted[step] for step in range(1, 31)}, abs=1e-5)
    assert seen.read_text().splitlines() == (control.parent / "seen").read_text().splitlines()[6:30]
