"""SIGTERM and SIGINT end a run at the next step's end, with a checkpoint; what goes on is the same run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from crocodil.joint import family
from tests.faults.nursery import Fault
from tests.faults.trials import (
    SHORT,
    Trials,
    assert_identical,
    checkpoint,
    state,
    steps_saved,
)

BOUNDARY = 6  # of SHORT


def test_a_second_signal_ends_at_once(trials: Trials, tmp_path: Path) -> None:
    """F4: even in a step that does not end; the checkpoint before is whole."""
    run = tmp_path / "run"
    asleep = tmp_path / "asleep"
    job = trials.begin(run, *SHORT, faults=[Fault(("sleep", 60, str(asleep)), ("at", 4, "update"))])
    while not asleep.exists():
        time.sleep(0.01)
    job.send(signal.SIGTERM)
    time.sleep(1.2)  # what comes within a second is an echo of the first
    assert not job.is_over()
    began = time.monotonic()
    job.send(signal.SIGTERM)
    assert job.wait(20) == [-signal.SIGTERM] and time.monotonic() - began < 5
    assert steps_saved(run) == [3] and state(checkpoint(run, 3))


def test_a_signal_to_one_rank_stops_all_at_the_same_step(trials: Trials, pair: Path, tmp_path: Path) -> None:
    """F4, on two ranks of which only the second one hears of it."""
    run = tmp_path / "run"
    fault = Fault(("kill", signal.SIGTERM), ("at", 4, "forward and backward"), rank=1)
    assert trials.begin(run, *SHORT, launch="cpu2.yaml", faults=[fault]).wait(30) == [0, 0]
    assert steps_saved(run) == [3, 5]
    trials.train(run, *SHORT, "--resume", launch="cpu2.yaml")
    assert_identical(run, pair)


@pytest.mark.parametrize(
    ("stop", "number"),
    [(BOUNDARY - 1, signal.SIGTERM), (BOUNDARY, signal.SIGINT), (BOUNDARY + 1, signal.SIGTERM)],
)
def test_one_signal_saves_at_the_step_s_end(
    stop: int, number: signal.Signals, trials: Trials, short: Path, tmp_path: Path
) -> None:
    """F4 and F11, around the boundary of the stages: the step is finished, its checkpoint is the last thing, the exit
    code is 0. What goes on is the same run; LLaDA's own weights are bit-equal before the boundary and move after it."""
    run = tmp_path / "run"
    fault = Fault(("kill", number), ("at", stop - 1, "forward and backward"))
    job = trials.begin(run, *SHORT, "save_every=100", faults=[fault])
    assert job.wait(20) == [0]
    assert f"stopped after step {stop}; the same command with --resume goes on" in job.err()
    assert steps_saved(run)[-1] == stop and not (run / "export").exists()
    trials.train(run, *SHORT, "--resume")
    assert_identical(run, short)
    first, here, last = (state(checkpoint(one, step)) for one, step in ((short, 3), (run, stop), (short, 12)))
    frozen = [name for name in first if name.startswith("model/") and family(name[6:]) == "llada"]
    assert len(frozen) > 10
    for name in frozen:
        assert torch.equal(first[name], here[name]) == (stop <= BOUNDARY), name
        assert not torch.equal(here[name], last[name]), name
        # no moment before it trains
        assert any(f"/{name[6:]}" in key for key in here if key.startswith("optimiser/")) == (stop > BOUNDARY)
