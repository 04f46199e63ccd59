"""Losses that are no number or out of all proportion, and texts at the edge of what a loss can be made of."""

from __future__ import annotations

import ast
import math
import signal
from pathlib import Path

import pytest
import torch

from crocodil.training.checkpoints import latest
from tests.faults.nursery import Fault
from tests.faults.trials import (
    SHORT,
    Trials,
    assert_identical,
    checkpoint,
    losses,
    one_line,
    records,
    same,
    state,
    steps_saved,
)

FORWARD = "forward and backward"
TWO = {"launch": "cpu2.yaml"}


def weights(saved: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state(saved).items() if name.startswith("model/")}


def skipped(run: Path) -> list[dict[str, object]]:
    return [record for record in records(run) if "skipped" in record]


@pytest.mark.parametrize(("bad", "step"), [("nan", 4), ("nan", 8), ("inf", 8)])
def test_a_loss_that_is_no_number_on_one_rank_is_dropped_on_all(
    bad: str, step: int, trials: Trials, tmp_path: Path
) -> None:
    """F17, in both stages: weights, moments and average are bit-equal across the step, its texts are written down.

    Right after such a step a checkpoint is made only for a run that is asked to stop, as this one is.
    """
    run, seen = tmp_path / "run", tmp_path / "seen"
    faults = [Fault(("scale_loss", [step], bad), rank=1), Fault(("write_down_samples", str(seen)), rank=0)]
    stop = Fault(("kill", signal.SIGTERM), ("at", step, FORWARD))
    trials.train(run, *SHORT, "save_every=1", "keep=20", faults=[*faults, stop], **TWO)
    assert steps_saved(run)[-1] == step + 1
    trials.train(run, *SHORT, "save_every=1", "keep=20", "--resume", **TWO)
    before, after, then = (state(checkpoint(run, step + i)) for i in range(3))
    assert same(before, after) and not same(after, then)
    (told,) = skipped(run)
    samples = dict(line.split(" ", 1) for line in seen.read_text().splitlines())
    assert told["step"] == step + 1 and str(told["skipped"]).startswith("the loss is ")
    assert sorted(told["samples"]) == ast.literal_eval(samples[str(step + 1)]) and len(told["samples"]) == 6  # type: ignore[arg-type]
    assert losses(run).pop(step + 1) is None and len(losses(run)) == 12
    assert all(tensor.isfinite().all() for tensor in state(checkpoint(run, 12)).values())


def test_five_in_a_row_end_the_run(trials: Trials, pair: Path, tmp_path: Path) -> None:
    """F17: with one line that says what to do, on every rank; the checkpoint has the weights from before."""
    run = tmp_path / "run"
    job = trials.begin(run, *SHORT, faults=[Fault(("scale_loss", [*range(6, 12)], "nan"), rank=1)], **TWO)
    assert job.wait(30) == [2, 2]
    for rank in (0, 1):
        line = one_line(job, rank)
        assert "step 11: the loss is nan, and 5 steps in a row did not count" in line
        assert (
            "the weights are those before step 7" in line
            and "saved in" in line
            and "--resume and a lower optimiser.lr" in line
        )
    assert job.err().count("did not count: the loss is nan") == 5
    assert [record["step"] for record in skipped(run)] == [7, 8, 9, 10, 11]
    assert steps_saved(run) == [3, 6, 11]  # none at 9: it would push out a good one
    found = latest(run)
    assert found is not None
    assert same(
        state(found), state(checkpoint(pair, 6)) | {k: v for k, v in state(found).items() if "llada" in k}
    )
    trials.train(run, *SHORT, "--resume", "optimiser.lr=1e-4", **TWO)
    assert losses(run)[12] is not None


def test_the_last_good_checkpoint_stays_while_steps_do_not_count(trials: Trials, tmp_path: Path) -> None:
    """Also when the run is over: what is saved then may be why they did not."""
    run = tmp_path / "run"
    fault = Fault(("scale_loss", [*range(6, 12)], "nan"))
    trials.train(run, *SHORT, "keep=1", "max_skipped=99", faults=[fault])
    assert steps_saved(run) == [6, 12]


def test_dropped_steps_that_are_not_in_a_row_do_not_end_it(trials: Trials, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = trials.begin(run, *SHORT, faults=[Fault(("scale_loss", [1, 2, 3, 4, 6, 7, 8, 9], "nan"))]).done()
    assert [record["step"] for record in skipped(run)] == [2, 3, 4, 5, 7, 8, 9, 10]
    assert "(8 so far)" in job.err()


def last_validation(run: Path) -> dict[str, float]:
    return [record for record in records(run) if "cross_entropy@t=0.5,k=4" in record][-1]


@pytest.fixture(scope="module")
def spiked(tmp_path_factory: pytest.TempPathFactory, trials: Trials) -> Path:
    """`control` with the loss of step 40 a million times what it is."""
    run = tmp_path_factory.mktemp("spiked") / "run"
    return trials.train(run, faults=[Fault(("scale_loss", [40], 1e6))])


def test_a_spike_is_dropped(spiked: Path, control: Path) -> None:
    """F18: and told; in the end the loss is that of a run without it, to 1 %."""
    (told,) = skipped(spiked)
    assert told["step"] == 41 and "10 times the median" in str(told["skipped"])
    assert losses(spiked)[41] > 1e5
    for name, value in last_validation(control).items():
        if name.startswith("cross_entropy"):
            assert last_validation(spiked)[name] == pytest.approx(value, rel=0.01), name


def test_a_spike_before_a_median_is_known_is_clipped(trials: Trials, control: Path, tmp_path: Path) -> None:
    """F18: of fewer than 20 losses nothing is called a spike. Its gradient's norm is told, and clipped; the end is then
    that of another run of as many steps, here to 3 %."""
    run = trials.train(tmp_path / "run", faults=[Fault(("scale_loss", [10], 1e6))])
    assert not skipped(run)
    assert next(record["grad_norm"] for record in records(run) if record["step"] == 11) > 1e4
    for name, value in last_validation(control).items():
        if name.startswith("cross_entropy"):
            assert last_validation(run)[name] == pytest.approx(value, rel=0.03), name


def test_what_is_a_spike_is_the_same_after_a_resume(trials: Trials, spiked: Path, tmp_path: Path) -> None:
    """The losses that the median is taken of are in the checkpoint: killed two steps before the spike."""
    run = tmp_path / "run"
    kill = Fault(("kill",), ("at", 38, FORWARD))
    assert trials.begin(run, faults=[kill]).wait() == [-signal.SIGKILL]
    trials.train(run, "--resume", faults=[Fault(("scale_loss", [40], 1e6))])
    assert_identical(run, spiked)


EDGES = {
    "one rank has no masked token": ({}, {"unmasked": True}),
    "no rank has a masked token": ({"unmasked": True}, {"unmasked": True}),
    "texts of no token on one rank": ({"tokens": 0}, {}),
    "texts of no token": ({"tokens": 0}, {"tokens": 0}),
    "texts of one token on one rank": ({}, {"tokens": 1}),
    "texts of one token": ({"tokens": 1}, {"tokens": 1}),
    "t = 1": ({"level": 1.0}, {"level": 1.0}),
    "t at its least": ({"level": 0.001}, {"level": 0.001}),
    "t at both ends": ({"level": 0.001}, {"level": 1.0}),
    "t = 1, texts of no token": ({"level": 1.0, "tokens": 0}, {"level": 1.0, "tokens": 0}),
}
"""Micro-batches of two ranks."""


def test_texts_at_the_edge_give_a_finite_loss(trials: Trials, tmp_path: Path) -> None:
    """F19: on two ranks, one edge a step, all of them in each stage."""
    steps = 2 * len(EDGES)
    faults = [Fault(("edges", 2 * [kinds[rank] for kinds in EDGES.values()]), rank=rank) for rank in (0, 1)]
    run = trials.train(
        tmp_path / "run", f"encoder_steps={len(EDGES)}", f"steps={steps}", "save_every=100", "validate_every=100",
        "row_tokens=256", faults=faults, **TWO,
    )  # fmt: skip
    found = dict(zip(2 * [*EDGES], losses(run).values(), strict=True))
    assert all(math.isfinite(loss) for loss in losses(run).values()), found
    assert not skipped(run) and len(losses(run)) == steps
    assert found["no rank has a masked token"] == 0.0 < found["one rank has no masked token"]
    assert all(tensor.isfinite().all() for tensor in state(checkpoint(run, steps)).values())
