"""A tracker tells others of a run; whatever becomes of it is no reason to lose the run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.faults.nursery import Fault
from tests.faults.trials import SHORT, Trials, assert_identical, exported, losses, one_line

TENSORBOARD = "accelerate.tracking:TensorBoardTracker"


@pytest.mark.parametrize(
    ("method", "call"), [("log", 3), ("finish", 1)], ids=["in a step", "in a validation or at the end"]
)
def test_a_tracker_that_fails_costs_nothing(
    method: str, call: int, trials: Trials, pair: Path, tmp_path: Path
) -> None:
    """On the one rank of two that has it; it is told no more."""
    run = tmp_path / "run"
    fault = Fault(("fail", "no server"), ("before", f"{TENSORBOARD}.{method}", call), 0)
    job = trials.begin(run, *SHORT, "tracker=tensorboard", launch="cpu2.yaml", faults=[fault])
    assert job.wait(40) == [0, 0], job.said
    assert job.err().count("tracker=tensorboard failed (RuntimeError: no server); it is told no more") == 1
    assert_identical(run, pair)


def test_a_tracker_on_a_full_disk_costs_nothing(trials: Trials, short: Path, tmp_path: Path) -> None:
    """It and metrics.jsonl lose records."""
    run = tmp_path / "run"
    full = [Fault(("fill_disk", 0), ("at", 7, "update")), Fault(("free_disk",), ("at", 8, "update"))]
    job = trials.begin(run, *SHORT, "tracker=tensorboard", faults=full).done()
    assert job.err().count("metrics.jsonl: not written") == 1
    assert set(losses(short)) - set(losses(run)) == {8} and exported(run) == exported(short)


def test_a_tracker_that_does_not_begin_is_one_line(trials: Trials, tmp_path: Path) -> None:
    fault = Fault(("fail", "no server"), ("before", f"{TENSORBOARD}.__init__"), 0)
    job = trials.begin(tmp_path / "run", *SHORT, "tracker=tensorboard", launch="cpu2.yaml", faults=[fault])
    assert job.wait(40) == [2, 2], job.said
    for rank in (0, 1):
        assert "tracker=tensorboard does not begin (RuntimeError: no server); mend that, or" in one_line(
            job, rank
        )


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_there_is_refused(trials: Trials, tmp_path: Path) -> None:
    job = trials.begin(tmp_path / "run", *SHORT, "tracker=wandb")
    assert job.wait() == [2]
    assert "tracker=wandb needs wandb; pip install wandb, or leave tracker out" in one_line(job)
