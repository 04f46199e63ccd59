"""The other recipes survive what `train_demasker` does: they share its engine, its run and its checkpoints."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from crocodil.training.checkpoints import checkpoint_step, latest
from tests.faults.nursery import Fault
from tests.faults.trials import Trials, assert_identical, checkpoint, draws, one_line

STEPS, SAVE_EVERY = 12, 3
DATA = ("data.lengths=[32]", "data.held_out=0.2", "batch_size=6")
LOOP = ("optimiser.lr=0.003", f"steps={STEPS}", f"save_every={SAVE_EVERY}", "validate_every=4", "log_every=1",
        "validation_texts=8", "ema=0.5", "keep=9")  # fmt: skip
JUDGE = ("shape.hidden_size=32", "shape.num_hidden_layers=2", "shape.num_attention_heads=2",
         "shape.intermediate_size=64", "shape.vocabulary=300")  # fmt: skip
BASE = (
    "shape.d_model=32",
    "shape.n_layers=2",
    "shape.n_heads=2",
    "shape.mlp_hidden_size=64",
    "shape.vocabulary=300",
)
RECIPES = {
    "train_base": BASE,
    "train_judge": JUDGE,
    "train_denoiser": ("preset=nano", "k=4", "micro_batch=2", "export_dtype=float32"),
}


def arguments(recipe: str, trials: Trials, short: Path, run: Path) -> list[str]:
    about = [f"run={run}", f"data.source={trials.texts}", f"data.cache={run.parent / 'corpus'}"]
    model = [f"model={short / 'export'}"] if recipe == "train_denoiser" else ["row_tokens=96"]
    return [*about, *DATA, *LOOP, *RECIPES[recipe], *model]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_at_random_moments_and_bytes(recipe: str, trials: Trials, short: Path, tmp_path: Path) -> None:
    """F1 and F2: twice in a step, three times in a checkpoint; then it is the run that nobody touched."""
    random = draws(len(recipe))
    straight, run = tmp_path / "straight" / "run", tmp_path / "run"
    trials.nursery.run(recipe, *arguments(recipe, trials, short, straight))
    command = [*arguments(recipe, trials, short, run), "--resume"]
    for step in (2, 4):
        kill = Fault(("kill",), ("at", step, random.choice(["forward and backward", "update"])))
        assert trials.nursery.begin(recipe, *command, faults=[kill]).wait() == [-signal.SIGKILL]
    for step in (6, 9, 12):
        found = latest(run)
        before = checkpoint_step(found) if found else 0
        share = checkpoint(straight, step) / "state-00000-000.safetensors"
        byte = random.randrange(share.stat().st_size)
        when = ("before", "crocodil.training.engine:save_tensors", (step - before) // SAVE_EVERY)
        job = trials.nursery.begin(recipe, *command, faults=[Fault(("die_at_byte", byte), when)])
        assert job.wait() == [-signal.SIGXFSZ], (step, byte)
        found = latest(run)
        assert found is not None and checkpoint_step(found) == step - SAVE_EVERY
    trials.nursery.run(recipe, *command)
    assert_identical(run, straight)


DIVERGED = ("steps=2", "save_every=1", "encoder_steps=0", "optimiser.lr=1e300")
TOO_WIDE = ("steps=3", "encoder_steps=0", "optimiser.lr=1e6", "max_skipped=99", "export_dtype=float16")


@pytest.mark.parametrize("recipe", [*RECIPES, "train_demasker", "adapters"])
def test_weights_that_are_no_numbers_are_never_exported(
    recipe: str, trials: Trials, short: Path, tmp_path: Path
) -> None:
    """Nobody could load them."""
    run = tmp_path / "run"
    if recipe in RECIPES:
        about = [one for one in DIVERGED if "encoder_steps" not in one]
        job = trials.nursery.begin(recipe, *arguments(recipe, trials, short, run), *about)
    else:
        lora = (f"start={short / 'export'}", "lora.rank=3") if recipe == "adapters" else ()
        job = trials.begin(run, *DIVERGED, *lora)
    assert job.wait() == [2], job.said
    assert "has values that are no numbers: the training has diverged, and nothing is" in one_line(job)
    assert {path.name for path in run.iterdir()}.isdisjoint({"export", "adapters", ".export", ".adapters"})


def test_weights_beyond_what_the_export_s_dtype_holds_are_not_exported(
    trials: Trials, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = trials.begin(run, *TOO_WIDE)
    assert job.wait() == [2]
    assert "has values that float16 does not hold; take bfloat16 or float32" in one_line(job)
    trials.train(run, *TOO_WIDE, "export_dtype=bfloat16", "--resume")


SHARDS = ("data.lengths=[32]", "data.held_out=0.2", "shard_samples=20")


def caching(trials: Trials, short: Path, out: Path) -> list[str]:
    about = [f"data.source={trials.texts}", f"data.cache={out.parent / 'corpus'}", *SHARDS]
    return [f"out={out}", f"model={short / 'export'}", *about]


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "run.lock"}


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, trials: Trials, short: Path) -> Path:
    """Registers of all windows in seven shards."""
    out = tmp_path_factory.mktemp("cached") / "registers"
    trials.nursery.run("cache_registers", *caching(trials, short, out))
    return out


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_registers_killed_at_random_bytes_end_as_the_same_bytes(
    kills: int, trials: Trials, short: Path, cached: Path, tmp_path: Path
) -> None:
    """F2: first in the cache's own description, then by turns in a shard and in its manifest, each time further."""
    random, out = draws(kills), tmp_path / "registers"
    whole = files(cached)
    for kill in range(kills):
        if len(list(out.glob("shard-*.json"))) > 4:
            shutil.rmtree(out)
        file = "cache.json" if kill == 0 else ["shard-00000.safetensors", "shard-00000.json"][kill % 2]
        call = 1 if kill == 0 else 1 + kill % 2 + (not (out / "cache.json").exists())
        byte = random.randrange(len(whole[file]))
        fault = Fault(("die_at_byte", byte), ("before", "crocodil.registers.cache:write_atomically", call))
        job = trials.nursery.begin("cache_registers", *caching(trials, short, out), faults=[fault])
        assert job.wait() == [-signal.SIGXFSZ], (kill, call, byte)
        for name, content in files(out).items():
            assert name.startswith(".") or content == whole[name], name
    trials.nursery.run("cache_registers", *caching(trials, short, out))
    assert files(out) == whole


def test_a_full_disk_at_the_registers_is_one_line(
    trials: Trials, short: Path, cached: Path, tmp_path: Path
) -> None:
    """F14: what is whole stays, and the same command makes the rest when there is room."""
    out = tmp_path / "registers"
    fault = Fault(("fill_disk", 1000), ("before", "crocodil.registers.cache:write_atomically", 6))
    job = trials.nursery.begin("cache_registers", *caching(trials, short, out), faults=[fault])
    assert job.wait() == [2]
    assert "File too large" in one_line(job)
    assert not list(out.glob(".*"))
    trials.nursery.run("cache_registers", *caching(trials, short, out))
    assert files(out) == files(cached)


@pytest.mark.slow
def test_a_cache_killed_at_random_moments_ends_as_the_same_bytes(
    trials: Trials, short: Path, cached: Path, tmp_path: Path
) -> None:
    """F1: by SIGKILL from outside."""
    random, out, kills = draws(1), tmp_path / "registers", 0
    for _ in range(100):
        job = trials.nursery.begin("cache_registers", *caching(trials, short, out))
        assert job.pids
        time.sleep(random.uniform(0, 0.3))
        job.send(signal.SIGKILL)
        if job.wait() == [0]:  # it was over
            assert files(out) == files(cached)
            shutil.rmtree(out)
            continue
        kills += 1
        if kills == 10:
            break
    assert kills == 10
    trials.nursery.run("cache_registers", *caching(trials, short, out))
    assert files(out) == files(cached)
