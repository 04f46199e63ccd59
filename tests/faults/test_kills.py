"""kill -9 at any moment: at most the steps since the last checkpoint are lost, and what comes out is the same.

A run is killed again and again, goes on each time with --resume, and at its end equals one that nobody touched, bit for
bit: losses, validation, weights, moments, average, export. Where a rank of two is killed, the other ends by itself.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from crocodil.training.checkpoints import checkpoint_name, checkpoint_step, damage, latest
from tests.faults.nursery import Fault, Job
from tests.faults.trials import (
    SAVE_EVERY,
    SHORT,
    STEPS,
    Trials,
    assert_identical,
    checkpoint,
    draws,
    half_written,
    losses,
    steps_saved,
)

slow = pytest.mark.slow
CHAINS = [0, *(pytest.param(seed, marks=slow) for seed in range(1, 6))]
"""Seeds of runs that are killed five times each: 5 kills by default, 25 more that take long."""


def newest(run: Path) -> int:
    """The step that --resume will go on from."""
    found = latest(run)
    return checkpoint_step(found) if found else 0


def steps_done(run: Path) -> int:
    """What the run has written down; -1 before the first."""
    return max(losses(run), default=-1) if (run / "metrics.jsonl").exists() else -1


def killed_at(job: Job, run: Path, step: int, later: float, rank: int) -> bool:
    """SIGKILL to a rank a while after that step; whether it came before the run's end."""
    while steps_done(run) < step and not job.is_over():
        time.sleep(0.002)
    time.sleep(later)
    job.send(signal.SIGKILL, rank)
    if "training windows" not in job.err():
        # ranks that do not know one another yet would look for one another for long; a launcher ends them
        job.send(signal.SIGKILL)
    return job.wait(30)[rank] == -signal.SIGKILL


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=slow)])
@pytest.mark.parametrize("seed", CHAINS)
def test_killed_at_random_moments(
    seed: int, ranks: int, trials: Trials, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """F1."""
    random, kills = draws(seed), 0
    launch = "cpu.yaml" if ranks == 1 else "cpu2.yaml"
    control = request.getfixturevalue("control" if ranks == 1 else "control_pair")
    for folder in map(
        str, range(5)
    ):  # a run may be over before the last of its kills; then another one is begun
        run = tmp_path / folder / "run"
        while kills < 5:
            before = newest(run)
            job = trials.begin(run, "--resume", launch=launch)
            step = random.randint(before - SAVE_EVERY, min(before + 3 * SAVE_EVERY, STEPS - 2))
            if not killed_at(job, run, step, random.uniform(0, 0.08), random.randrange(ranks)):
                assert not any(job.wait())
                break
            kills += 1
            done, kept = max(steps_done(run), before), newest(run)
            assert kept >= before and done - kept <= SAVE_EVERY
            assert all(damage(saved) is None for saved in run.glob("step-*"))
        trials.train(run, "--resume", launch=launch)
        assert_identical(run, control)
        if kills == 5:
            return
    raise AssertionError("kills came too late")


WRITERS = {
    "state-00000-000.safetensors": "crocodil.training.engine:save_tensors",
    "state-00000.json": "crocodil.training.engine:save_values",
    "manifest.json": "crocodil.training.checkpoints:write_atomically",
}
"""What writes the files of a checkpoint."""
XFSZ = -signal.SIGXFSZ
"""How a process ends that its kernel stops at a byte of a file: at once, with no more said than kill -9 has."""


@pytest.mark.parametrize("seed", CHAINS)
def test_killed_at_random_bytes_of_a_checkpoint(
    seed: int, trials: Trials, control: Path, tmp_path: Path
) -> None:
    """F2, in both stages."""
    random, run = draws(seed), tmp_path / "run"
    steps = sorted(random.sample([*range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)], 5))
    for step in steps:
        before = newest(run)
        # most bytes are tensors; the manifest is the last word
        file = random.choices([*WRITERS], [3, 1, 1])[0]
        byte = random.randrange((checkpoint(control, step) / file).stat().st_size)
        point = WRITERS[file], (step - before) // SAVE_EVERY
        fault = Fault(("die_at_byte", byte), ("before", *point))
        assert trials.begin(run, "--resume", faults=[fault]).wait() == [XFSZ], (step, file, byte)
        assert newest(run) == step - SAVE_EVERY
        (half,) = half_written(run, checkpoint_name(step))
        assert (half / file).exists() == (file != "manifest.json")
    trials.train(run, "--resume")
    assert_identical(run, control)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=slow), 1])
def test_a_rank_killed_at_random_bytes_of_its_share(
    victim: int, trials: Trials, pair: Path, tmp_path: Path
) -> None:
    """F2, one rank of two; the other publishes nothing, and ends."""
    random, run = draws(victim), tmp_path / "run"
    for step in (3, 9):  # in each stage
        share = checkpoint(pair, step) / f"state-{victim:05d}-000.safetensors"
        byte = random.randrange(share.stat().st_size)
        point = WRITERS["state-00000-000.safetensors"], (step - newest(run)) // 3
        fault = Fault(("die_at_byte", byte), ("before", *point), rank=victim)
        job = trials.begin(run, *SHORT, "--resume", launch="cpu2.yaml", faults=[fault])
        codes = job.wait(30)
        assert codes[victim] == XFSZ and codes[1 - victim] > 0, (step, byte)
        assert newest(run) == step - 3
    trials.train(run, *SHORT, "--resume", launch="cpu2.yaml")
    assert_identical(run, pair)


CHECKPOINTS = "crocodil.training.checkpoints"
POINTS = [
    (("before", "crocodil.training.engine:save_tensors"), "old"),
    (("after", "crocodil.training.engine:save_tensors"), "old"),
    (("after", "crocodil.training.engine:save_values"), "old"),
    (("before", f"{CHECKPOINTS}:_describe_files"), "old"),
    (("after", f"{CHECKPOINTS}:_describe_files"), "old"),  # all flushed, no manifest
    (("before", f"{CHECKPOINTS}:write_atomically"), "old"),
    (("after", f"{CHECKPOINTS}:write_atomically"), "old"),  # the manifest is there, the name is not
    (("before", f"{CHECKPOINTS}:_put"), "old"),  # just before the rename
    (("after", f"{CHECKPOINTS}:os.rename"), "new"),
    (("before", "crocodil.training.run:prune"), "new"),
    (("after", f"{CHECKPOINTS}:os.rename", 2), "new"),  # the old one has its name no more
    (("before", f"{CHECKPOINTS}:shutil.rmtree"), "new"),  # and is about to go
    (("after", f"{CHECKPOINTS}:shutil.rmtree"), "new"),
    (("after", "crocodil.training.run:prune"), "new"),
]


def test_killed_between_any_two_acts_of_a_checkpoint(trials: Trials, tmp_path: Path) -> None:
    """F3: what --resume finds is the old one or the new one, never neither; here only one is kept."""
    often = (
        *SHORT,
        "save_every=1",
        "keep=1",
        f"steps={len(POINTS) + 2}",
        "encoder_steps=6",
        "validate_every=100",
    )
    straight = trials.train(tmp_path / "straight" / "run", *often)
    run = tmp_path / "run"
    first = Fault(("kill",), ("before", "crocodil.training.run:Run.did", 2))
    assert trials.begin(run, *often, faults=[first]).wait() == [-signal.SIGKILL]
    for when, left in POINTS:
        before = newest(run)
        assert trials.begin(run, *often, "--resume", faults=[Fault(("kill",), when)]).wait() == [-9], when
        assert newest(run) == before + (left == "new"), when
        assert all(damage(saved) is None for saved in run.glob("step-*"))
    trials.train(run, *often, "--resume")
    assert_identical(run, straight)
    assert steps_saved(run) == [len(POINTS) + 2]
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
