"""F34: an export that is interrupted anywhere is not there; the one before stays until the new one is whole."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.nursery import Fault
from tests.faults.trials import SHORT, Trials, assert_identical, draws, exported, half_written

slow = pytest.mark.slow
WRITERS = (
    "crocodil.bundle:save_llada",
    "crocodil.bundle:_save_encoder",
    "crocodil.bundle:save_registers",
    "crocodil.bundle:write_json",
    "crocodil.training.checkpoints:write_atomically",
)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=slow) for seed in range(1, 4))])
def test_an_export_killed_at_random_bytes(seed: int, trials: Trials, short: Path, tmp_path: Path) -> None:
    """Five kills a seed, in every other of them with an older export in its place."""
    random = draws(seed)
    for i in range(5):
        run = tmp_path / str(i) / "run"
        shutil.copytree(short, run)
        if i % 2:
            shutil.rmtree(run / "export")
        writer = WRITERS[i]
        byte = random.randrange(300) if "json" in writer or "atomic" in writer else random.randrange(3000)
        fault = Fault(("die_at_byte", byte), ("before", writer))
        job = trials.begin(run, *SHORT, "--resume", faults=[fault])
        assert job.wait() == [-signal.SIGXFSZ], (writer, byte)
        assert half_written(run, "export")
        if i % 2:
            assert not (run / "export").exists()
        else:
            assert exported(run) == exported(short)
    trials.train(run, *SHORT, "--resume")
    assert_identical(run, short)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


POINTS = {
    ("before", "crocodil.training.checkpoints:_retire"): True,
    ("after", "crocodil.training.checkpoints:_retire"): False,
    ("after", "crocodil.training.checkpoints:os.rename", 2): True,
}
"""Moments of publishing, and whether an export is there then: for an instant it is neither the old nor the new one."""


@pytest.mark.parametrize("when", POINTS)
def test_an_export_killed_while_it_takes_the_old_one_s_place(
    when: tuple[object, ...], trials: Trials, short: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(short, run)
    job = trials.begin(run, *SHORT, "--resume", faults=[Fault(("kill",), when)])
    assert job.wait() == [-signal.SIGKILL]
    assert (run / "export").exists() == POINTS[when]
    assert not POINTS[when] or exported(run) == exported(short)
    trials.train(run, *SHORT, "--resume")
    assert_identical(run, short)
