"""The faults of sharded training: ZeRO-2, ZeRO-3 and FSDP2 on two CPU ranks. All are slow."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from crocodil.training.checkpoints import checkpoint_step, latest
from tests.faults.nursery import Fault
from tests.faults.test_ranks import ENDLESS, wait_for
from tests.faults.trials import (
    SHORT,
    Trials,
    assert_identical,
    checkpoint,
    draws,
    exported,
    losses,
    one_line,
    records,
    same,
    state,
    steps_saved,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deepspeed,
    pytest.mark.skipif(shutil.which("c++") is None, reason="DeepSpeed wants a C++ compiler"),
]
FORWARD = "forward and backward"
LAUNCH = {
    "plain": {},
    "ddp": {"launch": "cpu2.yaml"},
    "zero2": {"launch": "zero2.yaml", "ranks": 2},
    "zero3": {"launch": "zero3_cpu2.yaml"},
    "fsdp2": {"launch": "fsdp2.yaml", "ranks": 2},
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, trials: Trials) -> Path:
    """The run of 12 steps under ZeRO-3."""
    return trials.train(tmp_path_factory.mktemp("sharded") / "run", *SHORT, **LAUNCH["zero3"])


@pytest.mark.parametrize(
    ("before", "then"),
    [("zero3", "plain"), ("plain", "zero3"), ("zero2", "zero3"), ("zero3", "zero2"), ("fsdp2", "plain"),
     ("plain", "fsdp2"), ("ddp", "zero2"), ("fsdp2", "zero3")],
)  # fmt: skip
def test_a_run_goes_on_under_another_engine(
    before: str, then: str, trials: Trials, control: Path, tmp_path: Path
) -> None:
    """F10: the next 24 losses, through the stages' boundary, to 1e-5; the same texts in the same steps."""
    run, seen = tmp_path / "run", tmp_path / "seen"
    trials.train(run, faults=[Fault(("kill", signal.SIGTERM), ("at", 5, "update"))], **LAUNCH[before])
    assert steps_saved(run) == [6]
    faults = [
        Fault(("write_down_samples", str(seen)), rank=0),
        Fault(("kill", signal.SIGTERM), ("at", 29, "update")),
    ]
    trials.train(run, "--resume", faults=faults, **LAUNCH[then])
    wanted = losses(control)
    assert losses(run) == pytest.approx({step: wanted[step] for step in range(1, 31)}, abs=1e-5)
    assert seen.read_text().splitlines() == (control.parent / "seen").read_text().splitlines()[6:30]


@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_an_export_is_that_of_one_process(engine: str, trials: Trials, short: Path, tmp_path: Path) -> None:
    """F35: from one checkpoint, bit for bit, in float32 and in bfloat16."""
    for dtype in ("float32", "bfloat16"):
        ours, plain = tmp_path / "ours" / dtype, tmp_path / "plain" / dtype
        for run, launch in ((ours, engine), (plain, "plain")):
            shutil.copytree(short, run)
            trials.train(run, *SHORT, f"export_dtype={dtype}", "--resume", **LAUNCH[launch])
        assert exported(ours) == exported(plain)
    # and the masters are those that were loaded
    assert same(state(checkpoint(tmp_path / "ours" / "float32", 12)), state(checkpoint(short, 12)))


@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("step", [4, 8])
def test_a_loss_that_is_no_number_on_one_rank_is_dropped_on_all(
    engine: str, step: int, trials: Trials, tmp_path: Path
) -> None:
    """F17: masters, moments and average bit-equal across the step, after which the run is asked to stop."""
    run, often = tmp_path / "run", (*SHORT, "save_every=1", "keep=20")
    stop = Fault(("kill", signal.SIGTERM), ("at", step, "update"))
    trials.train(run, *often, faults=[Fault(("scale_loss", [step], "nan"), rank=1), stop], **LAUNCH[engine])
    trials.train(run, *often, "--resume", **LAUNCH[engine])
    before, after, then = (state(checkpoint(run, step + i)) for i in range(3))
    assert same(before, after) and not same(after, then)
    (told,) = [record for record in records(run) if "skipped" in record]
    assert told["step"] == step + 1 and len(told["samples"]) == 6
    assert losses(run).pop(step + 1) is None
    assert all(tensor.isfinite().all() for tensor in state(checkpoint(run, 12)).values())


def test_five_in_a_row_end_the_run(trials: Trials, tmp_path: Path) -> None:
    """F17, under ZeRO-3."""
    faults = [Fault(("scale_loss", [*range(6, 12)], "nan"), rank=1)]
    job = trials.begin(tmp_path / "run", *SHORT, faults=faults, **LAUNCH["zero3"])
    assert job.wait() == [2, 2]
    for rank in (0, 1):
        assert "step 11: the loss is nan, and 5 steps in a row did not count" in one_line(job, rank)


@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_a_spike_is_dropped(engine: str, trials: Trials, tmp_path: Path) -> None:
    """F18: after twenty losses; weights, moments and average bit-equal across the step."""
    run = tmp_path / "run"
    faults = [Fault(("scale_loss", [25], 1e6)), Fault(("kill", signal.SIGTERM), ("at", 25, "update"))]
    trials.train(run, "save_every=1", "keep=4", faults=faults, **LAUNCH[engine])
    assert same(state(checkpoint(run, 25)), state(checkpoint(run, 26)))
    (told,) = [record for record in records(run) if "skipped" in record]
    assert told["step"] == 26 and "10 times the median" in told["skipped"]


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_bytes_and_resumed(seed: int, trials: Trials, sharded: Path, tmp_path: Path) -> None:
    """F1 and F2 under ZeRO-3: each rank in turn, in each stage; in the end it is the run that nobody touched."""
    random, run = draws(seed), tmp_path / "run"
    for i, step in enumerate((3, 9)):
        victim = (seed + i) % 2
        share = checkpoint(sharded, step) / f"state-{victim:05d}-000.safetensors"
        before = latest(run)
        call = (step - (checkpoint_step(before) if before else 0)) // 3
        byte = random.randrange(share.stat().st_size)
        fault = Fault(
            ("die_at_byte", byte), ("before", "crocodil.training.engine:save_tensors", call), rank=victim
        )
        codes = trials.begin(run, *SHORT, "--resume", faults=[fault], **LAUNCH["zero3"]).wait(60)
        assert codes[victim] == -signal.SIGXFSZ and codes[1 - victim] > 0
        found = latest(run)
        assert (checkpoint_step(found) if found else 0) == step - 3
    trials.train(run, *SHORT, "--resume", **LAUNCH["zero3"])
    assert_identical(run, sharded)


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
@pytest.mark.parametrize(
    ("point", "rank"),
    [("recipes.train_demasker:reconstruct", 0), ("recipes.train_demasker:validate", None)],
    ids=["samples on rank 0", "validation on all"],
)
def test_what_fails_beside_training_costs_no_step(
    engine: str, point: str, rank: int | None, trials: Trials, tmp_path: Path
) -> None:
    """F37: one rank alone may fail where weights are whole; hooks are back afterwards."""
    sampling = (*SHORT, "sample_every=4", "samples=2", "sample_nfe=2")
    straight = trials.train(tmp_path / "straight" / "run", *sampling, **LAUNCH[engine])
    run = tmp_path / "run"
    fault = Fault(("fail", "out of luck"), ("before", point), rank)
    job = trials.begin(run, *sampling, faults=[fault], **LAUNCH[engine])
    assert job.wait(60) == [0, 0], job.said
    assert f"failed (rank {rank or 0}: RuntimeError: out of luck)" in job.err()
    assert losses(run) == losses(straight) and exported(run) == exported(straight)


def test_a_stalled_run_says_where_and_ends(trials: Trials, tmp_path: Path) -> None:
    """F21, under ZeRO-3."""
    fault = Fault(("sleep", 60), ("at", 5, FORWARD), rank=1)
    job = trials.begin(tmp_path / "run", *SHORT, "timeout=0.1", faults=[fault], **LAUNCH["zero3"])
    assert job.wait(60) == [75, 75], job.said
    assert "step 5, forward and backward" in one_line(job, 0)


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_a_signal_to_the_launcher_stops_with_a_checkpoint(
    engine: str, trials: Trials, pair: Path, sharded: Path, tmp_path: Path
) -> None:
    """F4, through accelerate's own launcher, which passes it on; the same command goes on."""
    run, control = tmp_path / "run", {"ddp": pair, "zero3": sharded}[engine]
    job = trials.launch(LAUNCH[engine]["launch"], run, *ENDLESS)
    wait_for(checkpoint(run, 3))
    job.send(signal.SIGTERM)
    assert job.wait(60) == [1]  # the launcher's own, whatever its workers say
    last = steps_saved(run)[-1]
    assert f"stopped after step {last}" in job.err() and max(losses(run)) == last
    wanted = losses(control)
    first = {step: loss for step, loss in losses(run).items() if step <= 3}
    assert first == pytest.approx({step: wanted[step] for step in first}, abs=1e-5)
    again = trials.launch(LAUNCH[engine]["launch"], run, *ENDLESS, "--resume", f"steps={last + 2}")
    assert again.wait(120) == [0], again.said
    assert f"from step {last}" in again.err() and max(losses(run)) == last + 2
