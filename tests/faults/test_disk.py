"""A disk that is full, or a folder that cannot be written or is gone: training goes on, or ends with one line.

Full is a limit on the size of a file, which the kernel keeps: a write beyond it fails as on a full disk. It is lifted
again at a later step.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.faults.nursery import Fault
from tests.faults.trials import (
    SHORT,
    Trials,
    assert_identical,
    checkpoint,
    exported,
    losses,
    one_line,
    records,
    same,
    state,
    steps_saved,
)

FORWARD = "forward and backward"


def full(first: int, until: int | None = None, room: int = 4096) -> list[Fault]:
    """No file above so many bytes from one step to another (the first is 0)."""
    faults = [Fault(("fill_disk", room), ("at", first, FORWARD))]
    return faults if until is None else [*faults, Fault(("free_disk",), ("at", until, FORWARD))]


def numbers(run: Path) -> list[dict[str, object]]:
    """What was measured, told faults left out."""
    return [record for record in records(run) if "failed" not in record]


def test_full_at_the_metrics(trials: Trials, short: Path, tmp_path: Path) -> None:
    """F14, 1 of 4: records are lost, one warning is said, and nothing else is different."""
    run = tmp_path / "run"
    job = trials.begin(run, *SHORT, faults=full(6, 8, room=900)).done()
    assert job.err().count("metrics.jsonl: not written") == 1
    assert job.err().count("training goes on") == 1
    missing = set(losses(short)) - set(losses(run))
    assert missing and missing <= {7, 8}
    assert all(losses(run)[step] == losses(short)[step] for step in losses(run))
    assert same(state(checkpoint(run, 12)), state(checkpoint(short, 12)))


def test_full_at_what_is_said(trials: Trials, short: Path, tmp_path: Path) -> None:
    """F14: stderr in a file on the full disk, or into a pipe whose reader has gone, is no reason to end."""
    run = trials.train(tmp_path / "run", *SHORT, faults=[Fault(("fill_stderr",), ("at", 4, FORWARD))])
    assert_identical(run, short)


def test_full_at_a_checkpoint(trials: Trials, short: Path, tmp_path: Path) -> None:
    """F14, 2 of 4: the one before stays whole, training goes on, and the next try is soon after there is room."""
    run = tmp_path / "run"
    job = trials.begin(run, *SHORT, faults=full(7, 10)).done()
    assert "step 9: checkpoint not written" in job.err() and "tries again soon" in job.err()
    assert steps_saved(run) == [3, 6, 11, 12]  # 9 and 10 failed, and no later one was due before 12
    failed = [record for record in records(run) if record.get("failed") == "checkpoint"]
    assert [record["step"] for record in failed] == [9, 10]
    assert all("state-00000-000.safetensors" in record["reason"] for record in failed)
    assert numbers(run) == records(short) and exported(run) == exported(short)
    assert not list(run.glob(".step*"))


def test_full_at_a_checkpoint_of_one_rank_of_two(trials: Trials, pair: Path, tmp_path: Path) -> None:
    """F14: the others are told, publish nothing, and go on too."""
    run = tmp_path / "run"
    faults = [Fault(fault.do, fault.when, rank=1) for fault in full(7, 9)]
    job = trials.begin(run, *SHORT, launch="cpu2.yaml", faults=faults).done()
    assert "step 9: checkpoint not written (rank 1 could not write" in job.err()
    assert steps_saved(run) == [3, 6, 10, 12]
    assert numbers(run) == records(pair) and exported(run) == exported(pair)


def test_full_at_the_samples(trials: Trials, short: Path, tmp_path: Path) -> None:
    """F14, 3 of 4."""
    run = tmp_path / "run"
    faults = [Fault(("fill_disk", 0), ("at", 4, "samples")), Fault(("free_disk",), ("at", 4, FORWARD))]
    job = trials.begin(run, *SHORT, "sample_every=4", "samples=2", "sample_nfe=2", faults=faults).done()
    assert "step 4: samples failed" in job.err() and "training goes on" in job.err()
    assert numbers(run) == records(short) and exported(run) == exported(short)
    steps = [line.split(",")[0] for line in (run / "samples.jsonl").read_text().splitlines()]
    assert steps == ['{"step": 8'] * 2 + ['{"step": 12'] * 2


def test_full_at_the_export(trials: Trials, short: Path, tmp_path: Path) -> None:
    """F14, 4 of 4: nothing bears the final name, the last checkpoint is whole, the same command exports later."""
    run = tmp_path / "run"
    job = trials.begin(run, *SHORT, faults=[Fault(("fill_disk", 4096), ("at", 12, "export"))])
    assert job.wait() == [2]
    assert "large" in one_line(job) or "space" in one_line(job)
    assert not (run / "export").exists() and not list(run.glob(".export*"))
    assert same(state(checkpoint(run, 12)), state(checkpoint(short, 12)))
    trials.train(run, *SHORT, "--resume")
    assert_identical(run, short)


def test_full_at_the_boundary_of_the_stages(trials: Trials, short: Path, tmp_path: Path) -> None:
    """Without that checkpoint the run cannot go on: one line, and it goes on from the one before."""
    run = tmp_path / "run"
    job = trials.begin(run, *SHORT, faults=full(4))
    assert job.wait() == [2]
    assert "state-00000-000.safetensors" in one_line(job)
    assert steps_saved(run) == [3]
    trials.train(run, *SHORT, "--resume")
    assert_identical(run, short)


def test_too_little_room_is_seen_before_a_byte_is_written(
    trials: Trials, short: Path, tmp_path: Path
) -> None:
    """F14: at the start one line; at a checkpoint the run goes on, and tries again."""
    job = trials.begin(tmp_path / "run", *SHORT, faults=[Fault(("disk_says", 1000, 99))])
    assert job.wait() == [2]
    assert "checkpoints take" in one_line(job) and "make room, lower keep" in one_line(job)
    run = tmp_path / "other" / "run"
    fault = Fault(("disk_says", 1000, 1), ("at", 2, FORWARD))
    job = trials.begin(run, *SHORT, faults=[fault]).done()
    assert "step 3: checkpoint not written" in job.err() and "1.0 kB are free" in job.err()
    assert steps_saved(run) == [4, 6, 9, 12]
    assert numbers(run) == records(short) and exported(run) == exported(short)


STUCK = {
    "it cannot be removed": ("shutil:rmtree", ".step-00000003.*.removing"),
    "it cannot be moved": ("os:rename", "step-00000003"),
    "its folder cannot be read": ("crocodil.training.run:prune", "run"),
}
"""What fails, for what."""


@pytest.mark.parametrize("what", STUCK)
def test_an_old_checkpoint_that_cannot_be_removed_costs_nothing(
    what: str, trials: Trials, pair: Path, tmp_path: Path
) -> None:
    """On two ranks, of which one alone removes: it is told, nothing is called unwritten, and it goes when it can."""
    run, more = tmp_path / "run", (*SHORT, "keep=1")
    job = trials.begin(run, *more, launch="cpu2.yaml", faults=[Fault(("busy", *STUCK[what]))])
    assert job.wait(40) == [0, 0], job.said
    assert "not removed (" in job.err() and "Device or resource busy" in job.err()
    assert "not written" not in job.err()
    if "folder" not in what:
        assert job.err().count("remove it by hand") == 1
    assert records(run) == records(pair) and exported(run) == exported(pair)
    assert same(state(checkpoint(run, 12)), state(checkpoint(pair, 12)))
    assert [path for path in run.iterdir() if "step-00000003" in path.name]
    trials.train(run, *more, "steps=13", "--resume", launch="cpu2.yaml")
    assert steps_saved(run) == [13] and not list(run.glob(".step*"))


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(trials: Trials, tmp_path: Path) -> None:
    """F15: as root, whom no mode stops, where no folder can be made; and where a file is."""
    closed = Path("/proc/no/run") if os.getuid() == 0 else tmp_path / "closed" / "run"
    if os.getuid():
        closed.parent.mkdir(mode=0o555)
    (tmp_path / "file").write_text("")
    for run in (closed, tmp_path / "file"):
        job = trials.begin(run, *SHORT, f"data.cache={tmp_path / 'corpus'}")
        assert job.wait() == [2]
        assert f"{run}: the run directory cannot be written" in one_line(job)
        assert "give another run=" in one_line(job)


def test_a_folder_that_is_gone_comes_back(trials: Trials, short: Path, tmp_path: Path) -> None:
    """F15: as a file system that is away for two steps. What was not written meanwhile is all that is lost."""
    run, away = tmp_path / "run", tmp_path / "away"
    faults = [
        Fault(("move", str(run), str(away)), ("at", 7, FORWARD)),
        Fault(("move", str(away), str(run)), ("at", 9, FORWARD)),
    ]
    job = trials.begin(run, *SHORT, faults=faults).done()
    assert "step 9: checkpoint not written" in job.err()
    assert steps_saved(run) == [3, 6, 10, 12] and exported(run) == exported(short)


def test_a_folder_that_is_gone_for_good_ends_with_one_line(
    trials: Trials, short: Path, tmp_path: Path
) -> None:
    """F15: at the checkpoint that must be; what was moved is whole, and the run goes on with it."""
    run, away = tmp_path / "run", tmp_path / "away"
    job = trials.begin(run, *SHORT, faults=[Fault(("move", str(run), str(away)), ("at", 7, FORWARD))])
    assert job.wait() == [2]
    assert str(run) in one_line(job)
    shutil.rmtree(run, ignore_errors=True)
    shutil.move(away, run)
    trials.train(run, *SHORT, "--resume")
    assert_identical(run, short)
