"""A tiny run with two stages and an average, and what is compared of two runs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crocodil.training.checkpoints import checkpoint_name, damage
from crocodil.training.log import METRICS, read_metrics
from crocodil.training.state import open_tensors
from tests.faults.nursery import Job, Nursery

TINY_BASE = (
    "shape.d_model=32", "shape.n_layers=2", "shape.n_heads=2", "shape.mlp_hidden_size=64", "shape.vocabulary=300",
    "steps=3", "optimiser.lr=0.003", "data.lengths=[32]", "data.held_out=0.2", "batch_size=6", "row_tokens=96",
)  # fmt: skip
STEPS, BOUNDARY, SAVE_EVERY = 60, 24, 6
# Adam's first step is the sign of the gradient; with the usual eps, rounding alone would turn some signs.
TINY = (
    "encoder_shape.hidden_size=24", "encoder_shape.num_hidden_layers=1", "encoder_shape.num_attention_heads=2",
    "encoder_shape.num_key_value_heads=2", "encoder_shape.intermediate_size=48", "K=4", "optimiser.lr=0.003",
    "optimiser.eps=1e-4", "ema=0.5", "suffix_from=31", "export_dtype=float32", "data.lengths=[32]",
    "data.held_out=0.2", "data.short_fraction=0.2", "batch_size=6", "row_tokens=96", "log_every=1",
    "validation_texts=8", f"encoder_steps={BOUNDARY}", f"steps={STEPS}", f"save_every={SAVE_EVERY}", "keep=20",
    "validate_every=20",
)  # fmt: skip
SHORT = ("encoder_steps=6", "steps=12", "save_every=3", "validate_every=4")
SPEED = ("tokens_per_second", "registers_per_second", "mfu")


@dataclass(frozen=True)
class Trials:
    """Starts runs of `recipes/train_demasker.py` on a few texts."""

    nursery: Nursery
    texts: Path
    base: Path
    """The demasker that they begin with."""

    def begin(self, run: Path, *arguments: str, **options: Any) -> Job:
        """Start a run in this folder; later arguments win."""
        return self.nursery.begin("train_demasker", *self.arguments(run), *arguments, **options)

    def launch(self, file: str, run: Path, *arguments: str) -> Job:
        """The same by accelerate's own launcher, which starts an interpreter for each rank."""
        recipe = ["launch", "--config_file", f"launch/{file}", "recipes/train_demasker.py"]
        command = [*recipe, *self.arguments(run), *arguments]
        return self.nursery.begin("accelerate.commands.accelerate_cli:main", *command, launch=None)

    def train(self, run: Path, *arguments: str, **options: Any) -> Path:
        """See a run succeed; returns its folder."""
        self.begin(run, *arguments, **options).done()
        return run

    def arguments(self, run: Path) -> list[str]:
        about = [f"run={run}", f"demasker={self.base}", f"data.source={self.texts}"]
        return [*about, f"data.cache={run.parent / 'corpus'}", *TINY]


def write_texts(folder: Path) -> None:
    """Twenty small programs that no interpreter's version changes."""
    for i in range(20):
        lines = [f"def function_{i}(x, y):", f'    """Return {i} of x and y."""']
        lines += [f"    value_{j} = x * {i * j} + y // {j + 1}" for j in range(4 + i)]
        (folder / f"{i}.py").write_text("\n".join([*lines, f"    return value_{i}"]) + "\n")


def draws(seed: int) -> random.Random:
    """A generator whose seed is printed, so that what a failed test drew can be drawn again."""
    print(f"seed {seed}")
    return random.Random(seed)


def checkpoint(run: Path, step: int) -> Path:
    return run / checkpoint_name(step)


def steps_saved(run: Path) -> list[int]:
    """Steps whose checkpoints are there, whole or not."""
    return sorted(int(path.name.removeprefix("step-")) for path in run.glob("step-*"))


def half_written(run: Path, name: str) -> list[Path]:
    """What killed writers of `run/name` have left."""
    return list(run.glob(f".{name}.*.writing"))


def records(run: Path) -> list[dict[str, Any]]:
    """All that a run measured, how fast it was left out."""
    everything = read_metrics(run / METRICS)
    return [{name: value for name, value in one.items() if name not in SPEED} for one in everything]


def losses(run: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in records(run) if "loss" in record}


def state(saved: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, which verifies."""
    assert damage(saved) is None
    return dict(open_tensors(saved))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def exported(run: Path, name: str = "export") -> dict[str, bytes]:
    """Files of an export, which verifies; what tells of its run is left out."""
    assert damage(run / name) is None
    files = [path for path in sorted((run / name).rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(run / name)): path.read_bytes()
        for path in files
        if path.name not in ("training.json", "manifest.json")
    }


def assert_identical(run: Path, control: Path) -> None:
    """Every number of every step, the last state (weights, moments, average), and the export: bit for bit."""
    assert records(run) == records(control)
    last = steps_saved(control)[-1]
    assert same(state(checkpoint(run, last)), state(checkpoint(control, last)))
    assert exported(run) == exported(control)


def one_line(job: Job, rank: int = 0) -> str:
    """The last line that a rank said, which is the error's; nothing of a dependency's is among what it said."""
    said = job.err(rank)
    assert "Traceback" not in said, said
    line = said.strip().splitlines()[-1]
    assert line.startswith("crocodil: "), said
    return line
