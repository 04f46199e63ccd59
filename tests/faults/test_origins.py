"""What a run depends on beyond its texts and its checkpoint: the same again, or it is refused in one line."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from crocodil.cli import main
from tests.faults.nursery import Fault
from tests.faults.trials import SHORT, Trials, assert_identical, losses, one_line

DATA = ("data.lengths=[32]", "data.held_out=0.2")
LORA = ("encoder_steps=2", "steps=6", "save_every=2", "keep=5", "validate_every=3", "lora.rank=3")


def perturb(model: Path) -> None:
    """Another model of the same shapes in its place."""
    file = model / "demasker" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.transformer.ln_f.weight"][0] += 1
    save_file(tensors, file, metadata={"format": "pt"})


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_adapters_are_trained_on_and_merged_into_one_base_only(
    trials: Trials, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint holds nothing of what lies under them, so its fingerprint says whether that is still the same."""
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(short / "export", base)
    about = [f"start={base}", *LORA]
    trials.train(run, *about)
    straight = losses(run)
    for step in (4, 6):
        shutil.rmtree(run / f"step-{step:08d}")
    shutil.copytree(base, tmp_path / "kept")
    perturb(base)
    job = trials.begin(run, *about, "--resume")
    assert job.wait() == [2]
    said = one_line(job)
    assert "step-00000002 belongs to another model than the configuration names now: base was" in said
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "belongs to another model" in said and said.count("\n") == 1 and not (tmp_path / "out").exists()
    # wherever it lies now
    trials.train(run, *about, f"start={tmp_path / 'kept'}", "--resume")
    assert losses(run) == straight


def test_a_run_that_goes_on_keeps_what_its_model_brought(trials: Trials, short: Path, tmp_path: Path) -> None:
    """Weights are in the checkpoint; layout, place of the suffix and heads are not."""
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(short / "export", base)
    about = [f"start={base}", *LORA[:-1]]
    trials.train(run, *about, "steps=2")
    change(base / "config.json", layout="contiguous", suffix_from=None)
    change(base / "encoder" / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    job = trials.begin(run, *about, "--resume")
    assert job.wait() == [2]
    said = one_line(job)
    for field in (
        "layout was anchored, is contiguous",
        "suffix_from was 31, is None",
        "rope_theta was 1000.0, is 77.0",
    ):
        assert field in said
    other = tmp_path / "other"
    shutil.copytree(short / "export", other)
    perturb(other)  # of weights that are all in the checkpoint it does not matter where they came from
    trials.train(run, *about, f"start={other}", "--resume")


def test_a_base_that_goes_on_keeps_what_its_model_brought(trials: Trials, tmp_path: Path) -> None:
    start, run = tmp_path / "start", tmp_path / "run"
    shutil.copytree(trials.base, start)
    about = [
        f"run={run}",
        f"data.source={trials.texts}",
        f"data.cache={tmp_path / 'corpus'}",
        f"start={start}",
    ]
    about += [*DATA, "batch_size=6", "row_tokens=96"]
    trials.nursery.run("train_base", *about, "steps=1")
    change(start / "demasker" / "config.json", rope_theta=77.0)
    job = trials.nursery.begin("train_base", *about, "steps=2", "--resume")
    assert job.wait() == [2] and "demasker.rope_theta was 1000.0, is 77.0" in one_line(job)


@pytest.mark.parametrize("launch", ["cpu.yaml", "cpu2.yaml"])
def test_dropout_in_adapters_is_the_same_after_a_resume(
    launch: str, trials: Trials, short: Path, tmp_path: Path
) -> None:
    """Digit by digit, on as many ranks."""
    straight, run = tmp_path / "straight" / "run", tmp_path / "run"
    about = [f"start={short / 'export'}", *LORA, "lora.dropout=0.3"]
    trials.train(straight, *about, launch=launch)
    job = trials.begin(run, *about, faults=[Fault(("kill",), ("at", 3, "update"))], launch=launch)
    assert set(job.wait()) == {-signal.SIGKILL}
    trials.train(run, *about, "--resume", launch=launch)
    assert_identical(run, straight)
    without = trials.train(tmp_path / "without" / "run", f"start={short / 'export'}", *LORA, launch=launch)
    assert losses(without) != losses(straight)


def test_every_rank_drops_its_own(trials: Trials, short: Path, tmp_path: Path) -> None:
    about = [f"start={short / 'export'}", *LORA, "lora.dropout=0.3"]
    seeds = [tmp_path / "0", tmp_path / "1"]
    faults = [
        Fault(("write_down_seed", str(seed)), ("at", 3, "update"), rank) for rank, seed in enumerate(seeds)
    ]
    trials.train(tmp_path / "run", *about, faults=faults, launch="cpu2.yaml")
    assert seeds[0].read_text() != seeds[1].read_text()


def caching(trials: Trials, short: Path, out: Path) -> list[str]:
    about = [f"data.source={trials.texts}", f"data.cache={out.parent / 'corpus'}", *DATA, "shard_samples=20"]
    return [f"out={out}", f"model={short / 'export'}", *about]


def test_a_rank_that_comes_late_leaves_no_shard_out(trials: Trials, short: Path, tmp_path: Path) -> None:
    out = tmp_path / "registers"
    about = caching(trials, short, out)
    trials.nursery.run("tests.faults.latecomers:cache_with_a_late_rank", *about, launch="cpu2.yaml")
    assert len(list(out.glob("shard-*.safetensors"))) == len(list(out.glob("shard-*.json"))) > 2


def test_what_one_rank_begins_to_write_another_does_not_sweep_away(
    trials: Trials, short: Path, tmp_path: Path
) -> None:
    out = tmp_path / "registers"
    about = caching(trials, short, out)
    trials.nursery.run("tests.faults.latecomers:cache_with_a_slow_rank", *about, launch="cpu2.yaml")
    assert (out / "cache.json").exists() and not list(out.glob(".*"))


@pytest.fixture(scope="module")
def denoising(trials: Trials, short: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a denoiser of 2 steps, without a cache."""
    folder = tmp_path_factory.mktemp("denoising")
    about = [f"run={folder / 'run'}", f"data.source={trials.texts}", f"data.cache={folder / 'corpus'}", *DATA]
    about += [f"model={short / 'export'}", "preset=nano", "k=4", "batch_size=6", "micro_batch=2", "steps=2"]
    trials.nursery.run("train_denoiser", *about)
    return about


@pytest.mark.parametrize("change", ["data.lengths=[16]", "data.short_fraction=0.9"])
def test_a_denoiser_without_a_cache_goes_on_with_the_windows_it_began_with(
    change: str, trials: Trials, denoising: list[str]
) -> None:
    job = trials.nursery.begin("train_denoiser", *denoising, change, "--resume")
    assert job.wait() == [2]
    assert f"{change.partition('=')[0]} was " in one_line(job)


def test_beside_a_cache_windows_are_of_validation_alone(trials: Trials, short: Path, tmp_path: Path) -> None:
    out = tmp_path / "registers"
    trials.nursery.run("cache_registers", *caching(trials, short, out))
    about = [f"run={tmp_path / 'run'}", f"cache={out}", *caching(trials, short, out)[1:-1], "k=4"]
    about += ["preset=nano", "batch_size=6", "micro_batch=2", "steps=1"]
    trials.nursery.run("train_denoiser", *about)
    trials.nursery.run("train_denoiser", *about, "steps=2", "data.lengths=[16]", "--resume")


def steps_of(export: Path) -> int:
    return json.loads((export / "training.json").read_text())["steps"]


def test_an_export_tells_the_steps_that_were_done(
    trials: Trials, short: Path, denoising: list[str], tmp_path: Path
) -> None:
    """Whatever a later command asks for."""
    run = tmp_path / "run"
    shutil.copytree(short, run)
    trials.train(run, *SHORT, "steps=7", "--resume")
    assert steps_of(run / "export") == 12
    trials.nursery.run("train_denoiser", *denoising, "steps=1", "--resume")
    assert steps_of(Path(denoising[0].removeprefix("run=")) / "export") == 2
    judge = ["shape.hidden_size=32", "shape.num_hidden_layers=1", "shape.num_attention_heads=2"]
    judge += ["shape.intermediate_size=64", "shape.vocabulary=300", "batch_size=6", *DATA, "row_tokens=96"]
    judge += [f"run={tmp_path / 'judge'}", f"data.source={trials.texts}", f"data.cache={tmp_path / 'corpus'}"]
    trials.nursery.run("train_judge", *judge, "steps=2")
    trials.nursery.run("train_judge", *judge, "steps=1", "--resume")
    assert steps_of(tmp_path / "judge" / "export") == 2
