"""What the tests of the recipes share: a tiny run, how it is launched, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from crocodil.training.log import read_metrics

ROOT = Path(__file__).parents[2]
TINY_DATA = [
    "data.lengths=[32]",
    "data.held_out=0.2",
    "data.short_fraction=0.2",
    "batch_size=6",
    "row_tokens=96",
]
TINY_BASE = [
    "shape.d_model=32", "shape.n_layers=2", "shape.n_heads=2", "shape.mlp_hidden_size=64", "shape.vocabulary=300",
    "steps=3", "optimiser.lr=0.003", *TINY_DATA,
]  # fmt: skip
# Adam's first step is the sign of the gradient; with the usual eps, rounding alone would turn some signs.
TINY_DENOISER = [
    "preset=nano", "k=4", "steps=3", "batch_size=6", "micro_batch=2", "ema=0.5", "optimiser.lr=0.003",
    "optimiser.eps=1e-4", "export_dtype=float32", "data.lengths=[32]", "data.held_out=0.2",
]  # fmt: skip
TINY_DEMASKER = [
    "encoder_shape.hidden_size=24", "encoder_shape.num_hidden_layers=1", "encoder_shape.num_attention_heads=2",
    "encoder_shape.num_key_value_heads=2", "encoder_shape.intermediate_size=48", "K=4", "encoder_steps=2", "steps=4",
    "optimiser.lr=0.003", "optimiser.eps=1e-4", "ema=0.5", "suffix_from=31", "save_every=100", "export_dtype=float32",
    *TINY_DATA,
]  # fmt: skip
# A few masked positions only, so that the weight 1/t of none is beyond what float32 agrees on.
TINY_CADD = [*TINY_BASE, "objective.weighting=inverse_t", "corruption.masking.t_min=0.1", "ema=0.5", "save_every=100",
             "optimiser.eps=1e-4", "export_dtype=float32"]  # fmt: skip


def launch(
    recipe: str, where: str, *overrides: str, ranks: int | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` as the README says it, one thread a rank; `ranks` in place of those in the launch file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CI": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        f"launch/{where}",
        *([] if ranks is None else ["--num_processes", str(ranks)]),
    ]
    done = subprocess.run(
        [*command, f"recipes/{recipe}", *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check and done.returncode:
        raise AssertionError(f"{recipe} on {where} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return done


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record]


def validation(run: Path) -> list[float]:
    """Every cross-entropy on held-out texts."""
    records = read_metrics(run / "metrics.jsonl")
    return [
        value for record in records for name, value in record.items() if name.startswith("cross_entropy@")
    ]


def common(texts: Path, run: Path) -> list[str]:
    return [
        f"data.source={texts}", f"data.cache={run.parent / 'corpus'}", "log_every=1", "validate_every=3",
        "validation_texts=8",
    ]  # fmt: skip


def demasker(texts: Path, base: Path, run: Path) -> list[str]:
    return [f"run={run}", f"demasker={base / 'export'}", *common(texts, run), *TINY_DEMASKER]


def weights_differ(one: Path, other: Path) -> float:
    """The largest difference of any weight of two exported models."""
    worst = 0.0
    for file in sorted((one / "export").rglob("*.safetensors")):
        ours, theirs = load_file(file), load_file(other / "export" / file.relative_to(one / "export"))
        assert ours.keys() == theirs.keys()
        worst = max(worst, *(float((ours[name] - theirs[name]).abs().max()) for name in ours))
    return worst


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a model, but for the manifest, which has another's digests only if they differ."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
