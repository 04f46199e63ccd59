"""F16: one folder, one run, however many are started at once; and a dead run's lock holds nobody up."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from tests.faults.nursery import Fault, Job, Nursery
from tests.faults.trials import SHORT, Trials, assert_identical, one_line

TIMES = 20


def first_to_end(one: Job, other: Job) -> tuple[Job, Job]:
    """The one that is refused, and the one that holds."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        for job, rest in ((one, other), (other, one)):
            if job.is_over():
                return job, rest
        time.sleep(0.002)
    raise AssertionError("both hold the folder")


def test_of_two_at_once_exactly_one_runs(nursery: Nursery, tmp_path: Path) -> None:
    """Every other time the one that holds is killed, and its lock stays behind."""
    run = tmp_path / "run"
    for i in range(TIMES):
        over = tmp_path / f"over-{i}"
        jobs = [nursery.begin("tests.faults.scenes:hold_the_lock", str(run), str(over)) for _ in range(2)]
        refused, holding = first_to_end(*jobs)
        assert refused.wait() == [2]
        assert "in use by " in one_line(refused)
        assert over.with_suffix(".held").exists() and not holding.is_over()
        if i % 2:
            holding.send(signal.SIGKILL)
            assert holding.wait() == [-signal.SIGKILL]
            assert json.loads((run / "run.lock").read_text())["pid"] == holding.pids[0]
        else:
            over.touch()
            assert holding.wait() == [0]


def test_a_second_training_leaves_the_first_alone(trials: Trials, short: Path, tmp_path: Path) -> None:
    """Of two commands with --resume, as a scheduler that starts a job twice gives them."""
    run = tmp_path / "run"
    pause = Fault(("sleep", 1.0), ("at", 4, "update"))
    jobs = [trials.begin(run, *SHORT, "--resume", faults=[pause]) for _ in range(2)]
    refused, training = first_to_end(*jobs)
    assert refused.wait() == [2] and "give another run directory" in one_line(refused)
    training.done()
    assert_identical(run, short)
