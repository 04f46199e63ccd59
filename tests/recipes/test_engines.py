"""Every engine that launch/ knows is the same training: losses, validation of the average, and the weights at the end.

The files are those that a cluster would take; only the number of processes is another, and a CPU has no 16 bits here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from crocodil.training.checkpoints import checkpoint_name
from crocodil.training.log import read_metrics
from tests.recipes.tiny import demasker, launch, losses, validation, weights_differ

deepspeed = pytest.mark.deepspeed
slow = pytest.mark.slow


@pytest.fixture
def needs_deepspeed() -> None:
    pytest.importorskip("deepspeed")
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("DeepSpeed wants a C++ compiler")


@pytest.mark.parametrize(
    "where",
    [
        "cpu2.yaml",
        "fsdp2.yaml",
        pytest.param("ddp8.yaml", marks=slow),
        pytest.param("zero3_cpu2.yaml", marks=deepspeed),
        pytest.param("zero2.yaml", marks=deepspeed),
        pytest.param("zero3.yaml", marks=[deepspeed, slow]),
        pytest.param("zero3_offload.yaml", marks=[deepspeed, slow]),
    ],
)
def test_two_ranks_are_the_training_of_one(
    where: str, texts: Path, base: Path, one_rank: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Through the stage boundary, with an average, and with texts reconstructed in between."""
    if "zero" in where:
        request.getfixturevalue("needs_deepspeed")
    run = tmp_path / "run"
    about = [*demasker(texts, base, run), "sample_every=2", "samples=2", "sample_nfe=2"]
    launch("train_demasker.py", where, *about, ranks=2)
    assert losses(run) == pytest.approx(losses(one_rank), abs=1e-5)
    assert validation(run) == pytest.approx(validation(one_rank), abs=1e-5)
    assert weights_differ(run, one_rank) < 1e-5
    written = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [one["step"] for one in written] == [2, 2, 4, 4]
    assert all(one["text"] and isinstance(one["reconstruction"], str) for one in written)


@slow
@pytest.mark.parametrize("where", ["fsdp2.yaml", pytest.param("zero3.yaml", marks=deepspeed)])
def test_more_ranks_than_rows(
    where: str, texts: Path, base: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """START and END are two rows and the suffix is three: of four ranks some have nothing of either."""
    if "zero" in where:
        request.getfixturevalue("needs_deepspeed")
    runs = {ranks: tmp_path / f"run{ranks}" for ranks in (1, 4)}
    launch("train_demasker.py", "cpu.yaml", *demasker(texts, base, runs[1]), "batch_size=8")
    launch("train_demasker.py", where, *demasker(texts, base, runs[4]), "batch_size=8", ranks=4)
    assert losses(runs[4]) == pytest.approx(losses(runs[1]), abs=1e-5)
    assert weights_differ(*runs.values()) < 1e-5


@pytest.mark.parametrize(
    "where",
    [
        "cpu.yaml",
        pytest.param("fsdp2.yaml", marks=slow),
        pytest.param("zero3.yaml", marks=[deepspeed, slow]),
    ],
)
def test_adapters_train_the_same_everywhere_and_are_merged(
    where: str, texts: Path, base: Path, one_rank: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "zero" in where:
        request.getfixturevalue("needs_deepspeed")
    import crocodil

    run = tmp_path / "run"
    about = [*demasker(texts, base, run), f"start={one_rank / 'export'}", "lora.rank=2", "recompute=true"]
    launch("train_demasker.py", where, *about, ranks=None if where == "cpu.yaml" else 2)
    assert losses(run) == pytest.approx(GOLDEN_LORA, rel=2e-4)
    stored = sum(file.stat().st_size for file in (run / checkpoint_name(4)).glob("*.safetensors"))
    assert stored < 0.7 * sum(f.stat().st_size for f in (one_rank / checkpoint_name(4)).glob("*.safetensors"))
    merged = crocodil.load(str(run / "export"))
    adapted = crocodil.load(str(one_rank / "export"), adapters=str(run / "adapters"))
    assert merged.fingerprint == adapted.fingerprint != crocodil.load(str(one_rank / "export")).fingerprint


@slow
@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapters"])
@pytest.mark.parametrize(
    "where",
    ["cpu.yaml", "ddp8.yaml", "fsdp2.yaml", *(pytest.param(f"zero{n}.yaml", marks=deepspeed) for n in "23")],
)
def test_sixteen_bits_work_everywhere(
    where: str, adapted: bool, texts: Path, base: Path, one_rank: Path, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """Both stages, samples, the export: what a GPU would run, rounded as it would round."""
    if "zero" in where:
        request.getfixturevalue("needs_deepspeed")
    run = tmp_path / "run"
    about = [
        *demasker(texts, base, run),
        "precision=bf16",
        "recompute=true",
        "sample_every=2",
        "sample_nfe=2",
    ]
    if adapted:
        about += [f"start={one_rank / 'export'}", "lora.rank=2"]
    launch("train_demasker.py", where, *about, ranks=None if where == "cpu.yaml" else 2)
    expected = GOLDEN_LORA if adapted else losses(one_rank)
    assert losses(run) == pytest.approx(expected, rel=2e-3) and losses(run) != expected
    assert len((run / "samples.jsonl").read_text().splitlines()) == 8
    assert not [record for record in read_metrics(run / "metrics.jsonl") if "failed" in record]


@slow
def test_compiled_blocks_compute_the_same(texts: Path, base: Path, one_rank: Path, tmp_path: Path) -> None:
    launch("train_demasker.py", "cpu.yaml", *demasker(texts, base, tmp_path / "run"), "compile=true")
    assert losses(tmp_path / "run") == pytest.approx(losses(one_rank), rel=1e-5)


GOLDEN_LORA = [4.755730311075847, 3.472846825917562, 3.97509765625, 4.7719340324401855]
