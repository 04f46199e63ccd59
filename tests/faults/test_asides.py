"""F37: validation or sampling that raises is told and counted, and training goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path

from tests.faults.nursery import Fault
from tests.faults.trials import SHORT, Trials, exported, losses, records

VALIDATE, RECONSTRUCT = "recipes.train_demasker:validate", "recipes.train_demasker:reconstruct"


def raises(point: str, call: int, rank: int | None) -> Fault:
    return Fault(("fail", "out of luck"), ("before", point, call), rank)


def test_what_fails_beside_training_costs_no_step(trials: Trials, pair: Path, tmp_path: Path) -> None:
    """On two ranks: validation fails on the first, then on the second, then on both; samples, which one rank writes."""
    run = tmp_path / "run"
    faults = [
        raises(VALIDATE, 1, 0),
        raises(VALIDATE, 2, 1),
        raises(VALIDATE, 3, None),
        raises(RECONSTRUCT, 1, 0),
    ]
    often = ("validate_every=3", "sample_every=4", "samples=2", "sample_nfe=2")
    job = trials.begin(run, *SHORT, *often, launch="cpu2.yaml", faults=faults)
    assert job.wait(40) == [0, 0], job.said
    failed = [(record["step"], record["failed"]) for record in records(run) if "failed" in record]
    assert failed == [(3, "validation"), (4, "samples"), (6, "validation"), (9, "validation")]
    for step, what, rank in (
        (3, "validation", 0),
        (4, "samples", 0),
        (6, "validation", 1),
        (9, "validation", 0),
    ):
        said = f"step {step}: {what} failed (rank {rank}: RuntimeError: out of luck"
        assert said in job.err() and job.err().count("; training goes on") == 4
    assert losses(run) == losses(pair) and exported(run) == exported(pair)
    assert [record["step"] for record in records(run) if "cross_entropy@t=0.5,k=4" in record] == [12]


def test_what_fails_in_the_middle_of_validation_costs_no_step(
    trials: Trials, pair: Path, tmp_path: Path
) -> None:
    """On one rank, between two of its forwards."""
    run = tmp_path / "run"
    fault = raises("recipes.train_demasker:at_level", 2, 1)
    job = trials.begin(run, *SHORT, launch="cpu2.yaml", faults=[fault])
    assert job.wait(40) == [0, 0], job.said
    assert "step 4: validation failed (rank 1: RuntimeError: out of luck)" in job.err()
    assert losses(run) == losses(pair) and exported(run) == exported(pair)
