"""F37: validation or sampling that raises is told and counted, and training goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.nursery import Fault
from tests.faults.trials import SHORT, Trials, exported, losses, records

SAMPLING = ("sample_every=4", "samples=2", "sample_nfe=2")
VALIDATE, RECONSTRUCT = "recipes.train_demasker:validate", "recipes.train_demasker:reconstruct"


def raises(point: str, rank: int | None) -> Fault:
    """At its first call, in step 4."""
    return Fault(("fail", "out of luck"), ("before", point), rank)


@pytest.mark.parametrize(
    ("point", "rank"), [(VALIDATE, None), (VALIDATE, 0), (VALIDATE, 1), (RECONSTRUCT, 0)]
)
def test_what_fails_beside_training_costs_no_step(
    point: str, rank: int | None, trials: Trials, pair: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = trials.begin(run, *SHORT, *SAMPLING, launch="cpu2.yaml", faults=[raises(point, rank)])
    assert job.wait(40) == [0, 0], job.said
    what = "validation" if point == VALIDATE else "samples"
    assert (
        f"step 4: {what} failed (rank {rank or 0}: RuntimeError: out of luck); training goes on" in job.err()
    )
    (failed,) = [record for record in records(run) if "failed" in record]
    assert (failed["step"], failed["failed"]) == (4, what)
    assert losses(run) == losses(pair) and exported(run) == exported(pair)
    validated = [record["step"] for record in records(run) if "cross_entropy@t=0.5,k=4" in record]
    assert validated[-2:] == [8, 12]


def test_what_fails_in_the_middle_of_validation_costs_no_step(
    trials: Trials, pair: Path, tmp_path: Path
) -> None:
    """On one rank, between two of its forwards."""
    run = tmp_path / "run"
    fault = Fault(("fail", "out of luck"), ("before", "recipes.train_demasker:at_level", 2), rank=1)
    job = trials.begin(run, *SHORT, launch="cpu2.yaml", faults=[fault])
    assert job.wait(40) == [0, 0], job.said
    assert "step 4: validation failed (rank 1: RuntimeError: out of luck)" in job.err()
    assert losses(run) == losses(pair) and exported(run) == exported(pair)
