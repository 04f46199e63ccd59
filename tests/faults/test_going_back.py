"""Going back to an earlier checkpoint: what came after it is set aside, and is neither lost nor in the way."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from crocodil.training.checkpoints import damage
from tests.faults.nursery import Fault
from tests.faults.trials import (
    SHORT,
    Trials,
    assert_identical,
    checkpoint,
    exported,
    losses,
    records,
    same,
    state,
    steps_saved,
)


def samples(run: Path) -> list[int]:
    """Steps of the texts that were written."""
    return [json.loads(line)["step"] for line in (run / "samples.jsonl").read_text().splitlines()]


@pytest.fixture
def run(short: Path, tmp_path: Path) -> Path:
    """A finished run."""
    shutil.copytree(short, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("launch", ["cpu.yaml", "cpu2.yaml"])
def test_a_run_goes_back_to_a_checkpoint_of_its_own(launch: str, trials: Trials, tmp_path: Path) -> None:
    """With another rate it becomes another run, whose newest checkpoint is then the newest."""
    run, kept = tmp_path / "run", tmp_path / "kept"
    how = (*SHORT, "keep=3", "sample_every=3", "samples=1", "sample_nfe=2")
    trials.train(run, *how, launch=launch)
    shutil.copytree(run, kept)
    back = ("--resume", str(checkpoint(run, 6)), "optimiser.lr=0.001")
    job = trials.begin(run, *how, *back, launch=launch).done()
    aside = run / "abandoned-1"
    assert f"going back to step 6: step-00000009, step-00000012, export are now in {aside}" in job.err()
    assert steps_saved(aside) == [9, 12] and records(aside) == records(kept)
    assert exported(aside) == exported(kept) and samples(aside) == samples(kept) == [3, 6, 9, 12]
    for step in (9, 12):
        assert same(state(checkpoint(aside, step)), state(checkpoint(kept, step)))
    assert steps_saved(run) == [6, 9, 12] and samples(run) == [3, 6, 9, 12]
    before, now = losses(kept), losses(run)
    assert [now[step] == before[step] for step in before] == 7 * [True] + 5 * [False]
    trials.train(run, *how, *back[2:], "steps=13", "--resume", launch=launch)
    assert losses(run) == now | {13: losses(run)[13]} and steps_saved(run) == [9, 12, 13]


def test_a_run_goes_back_to_one_that_was_kept_elsewhere(trials: Trials, run: Path, short: Path) -> None:
    """Its like in the folder is set aside as well, and none that is published afterwards is taken for an old one."""
    kept = shutil.copytree(checkpoint(run, 3), run.parent / "kept" / "step-00000003")
    how = (*SHORT, "keep=2", "save_every=1")
    trials.train(run, *how, "--resume", str(kept))
    assert steps_saved(run / "abandoned-1") == [3, 6, 9, 12]
    assert steps_saved(run) == [11, 12]
    assert_identical(run, short)


def test_one_of_the_same_name_is_not_taken_for_whole(trials: Trials, run: Path) -> None:
    """The run's own is cut short: it does not count among those that stay, and no good one goes for it."""
    kept = shutil.copytree(checkpoint(run, 6), run.parent / "kept" / "step-00000006")
    shutil.rmtree(checkpoint(run, 9))
    shutil.rmtree(checkpoint(run, 12))
    cut = checkpoint(run, 6) / "state-00000-000.safetensors"
    cut.write_bytes(cut.read_bytes()[:-9])
    trials.train(run, *SHORT, "steps=9", "keep=2", "--resume", str(kept))
    assert {step: damage(checkpoint(run, step)) for step in steps_saved(run)} == {3: None, 9: None}


def test_killed_while_it_sets_aside_it_goes_back_all_the_same(trials: Trials, run: Path, short: Path) -> None:
    texts = f"data.cache={short.parent / 'corpus'}"  # that are there: nothing else is moved
    how = (*SHORT, texts, "--resume", str(checkpoint(run, 3)))
    kill = Fault(("kill",), ("after", "crocodil.training.run:os.rename", 2))
    assert trials.begin(run, *how, faults=[kill]).wait() == [-signal.SIGKILL]
    assert steps_saved(run) == [3, 12] and steps_saved(run / "abandoned-1") == [6, 9]
    trials.train(run, *how)
    assert steps_saved(run) == [3, 6, 9, 12] and steps_saved(run / "abandoned-2") == [12]
    assert_identical(run, short)
