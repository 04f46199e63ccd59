"""Every recipe runs a few steps: golden losses, the same on one rank, two ranks and under ZeRO-3, through a resume.

Each launch is a process of its own and costs seconds before its first step, so the runs are made once for the module.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crocodil.augmented import CaddRecipe
from crocodil.errors import CrocodilError
from crocodil.training.config import load_config
from crocodil.training.log import read_metrics
from recipes.cache_registers import CacheRecipe
from recipes.prepare_texts import TextsRecipe
from recipes.train_base import BaseRecipe
from recipes.train_demasker import DemaskerRecipe
from recipes.train_denoiser import DenoiserRecipe
from recipes.train_judge import JudgeRecipe
from tests.recipes.tiny import (
    ROOT,
    TINY_DEMASKER,
    TINY_DENOISER,
    common,
    demasker,
    launch,
    losses,
)


def test_golden_losses_of_the_base_recipe(base: Path) -> None:
    assert losses(base) == pytest.approx(GOLDEN_BASE, rel=2e-4)


def test_golden_losses_of_the_demasker_recipe(one_rank: Path) -> None:
    assert losses(one_rank) == pytest.approx(GOLDEN_DEMASKER, rel=2e-4)


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    texts: Path, base: Path, one_rank: Path, tmp_path: Path
) -> None:
    """Stop at step 3, inside the second stage; the resumed run repeats no step and changes no digit."""
    run = tmp_path / "run"
    launch("train_demasker.py", "cpu.yaml", *demasker(texts, base, run), "save_every=3")
    # a kill after the checkpoint of step 3 leaves exactly this behind
    shutil.rmtree(run / "step-00000004")
    shutil.rmtree(run / "export")
    done = launch("train_demasker.py", "cpu.yaml", *demasker(texts, base, run), "--resume")
    assert "from step 3" in done.stderr
    assert losses(run) == losses(one_rank)


def test_the_export_opens_and_writes(one_rank: Path) -> None:
    import crocodil

    model = crocodil.load(str(one_rank / "export"))
    assert model.K == 4
    registers = model.encode("x = 1\n")
    assert isinstance(model.decode(registers, nfe=2)[0], str)


def test_registers_are_cached_as_they_are_encoded(texts: Path, one_rank: Path, tmp_path: Path) -> None:
    """Two processes write the shards; a second run finds nothing to do."""
    import crocodil
    from crocodil.registers.cache import RegisterCache

    model = crocodil.load(str(one_rank / "export"))
    out = tmp_path / "registers"
    about = [f"out={out}", f"model={one_rank / 'export'}", *common(texts, tmp_path / "run")[:2],
             "data.lengths=[32]", "data.held_out=0.2", "shard_samples=20"]  # fmt: skip
    assert "nothing was written" in launch("cache_registers.py", "cpu.yaml", *about, "--dry-run").stdout
    assert not out.exists()
    launch("cache_registers.py", "cpu2.yaml", *about)
    cache = RegisterCache(out, model.fingerprint)
    assert len(cache) > 40 and cache.spec.shards > 2
    ids = [[i for i in cache.window(n)[1:] if i != model.vocabulary.eos_id] for n in (0, 25, len(cache) - 1)]
    expected = model.encode_ids(ids, 4)
    assert (cache.read([0, 25, len(cache) - 1]) - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory, texts: Path, one_rank: Path) -> Path:
    run = tmp_path_factory.mktemp("denoiser") / "run"
    launch("train_denoiser.py", "cpu.yaml", *denoising(texts, one_rank, run))
    return run


def denoising(texts: Path, one_rank: Path, run: Path) -> list[str]:
    return [f"run={run}", f"model={one_rank / 'export'}", *common(texts, run), *TINY_DENOISER]


def test_golden_losses_of_the_denoiser_recipe(denoiser: Path) -> None:
    """Registers have unit variance, and a new denoiser predicts 0."""
    assert losses(denoiser)[0] == pytest.approx(1.0, abs=1e-3)
    assert losses(denoiser) == pytest.approx(GOLDEN_DENOISER, rel=2e-4)


@pytest.mark.deepspeed
def test_zero3_trains_the_denoiser_of_one_rank(
    texts: Path, one_rank: Path, denoiser: Path, tmp_path: Path
) -> None:
    """Its places and modulations are parameters of their own, not of a layer that an engine knows."""
    pytest.importorskip("deepspeed")
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("DeepSpeed wants a C++ compiler")
    launch("train_denoiser.py", "zero3_cpu2.yaml", *denoising(texts, one_rank, tmp_path / "run"))
    assert losses(tmp_path / "run") == pytest.approx(losses(denoiser), abs=1e-5)
    from safetensors.torch import load_file

    ours, plain = (load_file(run / "export" / "model.safetensors") for run in (tmp_path / "run", denoiser))
    assert all((ours[name] - tensor).abs().max() < 1e-5 for name, tensor in plain.items())


def test_a_conditional_denoiser_starts_as_the_unconditional_one(
    texts: Path, one_rank: Path, denoiser: Path, tmp_path: Path
) -> None:
    """On two ranks; what closed doors of cross-attention predict on held-out texts is what the first one predicted."""
    run = tmp_path / "run"
    launch("train_denoiser.py", "cpu2.yaml", *denoising(texts, one_rank, run), "conditional=true",
           f"start={denoiser / 'export'}", "steps=1", "optimiser.lr=0", "export_dtype=float16")  # fmt: skip
    before, after = (read_metrics(folder / "metrics.jsonl")[-1] for folder in (denoiser, run))
    psnr = [name for name in before if name.startswith("psnr")]
    assert len(psnr) == 4
    assert [after[name] for name in psnr] == pytest.approx([before[name] for name in psnr], abs=1e-3)
    from crocodil.denoiser.weights import load_denoiser

    assert load_denoiser(run / "export").config.conditional
    assert not load_denoiser(denoiser / "export").config.conditional


def test_a_denoiser_learns_from_a_cache_and_refuses_a_stranger(
    texts: Path, one_rank: Path, tmp_path: Path
) -> None:
    """Two ranks read what two ranks wrote; registers of another encoder are refused in one line."""
    cache, data = tmp_path / "registers", [*common(texts, tmp_path / "run")[:2], *TINY_DENOISER[-2:]]
    launch("cache_registers.py", "cpu2.yaml", f"out={cache}", f"model={one_rank / 'export'}", *data)
    about = [*denoising(texts, one_rank, tmp_path / "run"), f"cache={cache}", "steps=2"]
    launch("train_denoiser.py", "cpu2.yaml", *about)
    straight = losses(tmp_path / "run")
    launch("train_denoiser.py", "cpu.yaml", *about, f"run={tmp_path / 'one'}")
    assert losses(tmp_path / "one") == pytest.approx(straight, abs=1e-5)
    done = launch(
        "train_denoiser.py", "cpu.yaml", *about, f"run={tmp_path / 'two'}", "model=bundled", check=False
    )
    assert done.returncode and "not of c0508f3075277357" in done.stderr


def test_the_recipe_goes_on_from_a_finished_model(texts: Path, one_rank: Path, tmp_path: Path) -> None:
    launch("train_demasker.py", "cpu.yaml", f"run={tmp_path / 'run'}", f"start={one_rank / 'export'}",
           *common(texts, tmp_path / "run"), *TINY_DEMASKER[5:], "encoder_steps=0", "steps=1", "grow_to=8")  # fmt: skip
    assert losses(tmp_path / "run")[0] < losses(one_rank)[0]
    import crocodil

    model = crocodil.load(str(tmp_path / "run" / "export"))
    assert model.K == 8 and model.encode("x = 1\n").k == 8
    made = json.loads((tmp_path / "run" / "export" / "training.json").read_text())["config"]
    assert (made["K"], made["encoder_shape"]["hidden_size"], made["demasker"]) == (8, 24, None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("K=5", "power of two"),
        ("grow_to=8", "as many registers as K says"),
        ("corruption.register_noise.cosin=0.5", "cosine"),
        ("optimiser.lr=fast", "optimiser.lr"),
        ("demasker=/nowhere", "/nowhere"),
    ],
)
def test_a_bad_configuration_is_one_line(
    texts: Path, base: Path, tmp_path: Path, override: str, message: str
) -> None:
    done = subprocess.run(
        [sys.executable, "recipes/train_demasker.py", *demasker(texts, base, tmp_path / "run"), override],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("crocodil: ")
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *((f"{name}=0", name) for name in ("batch_size", "steps", "log_every", "validate_every", "save_every", "keep")),
        ("batch_size=-2", "batch_size"),
        ("validation_texts=0", "validation_texts"),
        ("row_tokens=100", "row_tokens"),
        ("data.lengths=[]", "data.lengths"),
        ("data.lengths=2", "data.lengths"),
        ("seed=99999999999999999999", "seed"),
        ("seed=-1", "seed"),
        ("ema=1", "ema"),
        ("tracker=banana", "tensorboard"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("recipe", [BaseRecipe, DemaskerRecipe])
def test_numbers_that_no_run_can_use_are_refused(recipe: type, override: str, message: str) -> None:
    with pytest.raises(CrocodilError, match=message):
        load_config(recipe, None, [override])


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (BaseRecipe, ["shape.n_heads=0"], "shape.n_heads"),
        (BaseRecipe, ["shape.n_layers=0"], "shape.n_layers"),
        (BaseRecipe, ["shape.rope_theta=0"], "shape.rope_theta"),
        (BaseRecipe, ["shape.d_model=32", "shape.n_heads=5"], "multiple"),
        (BaseRecipe, ["shape.d_model=32", "shape.n_heads=32"], "multiple"),
        (DemaskerRecipe, ["encoder_shape.hidden_size=0"], "encoder_shape.hidden_size"),
        (DemaskerRecipe, ["encoder_shape.num_attention_heads=5"], "multiple"),
        (DemaskerRecipe, ["encoder_shape.num_key_value_heads=3"], "multiple"),
        *((DemaskerRecipe, [f"export_dtype={name}"], "bfloat16") for name in ("banana", "load", "int8", "")),
        *((DemaskerRecipe, [f"suffix_from={place}"], "suffix_from") for place in (-1, 0)),
        (DemaskerRecipe, ["corruption.register_noise.cosine=0", "noise_from=9"], "cosine"),
        (DemaskerRecipe, ["encoder_steps=-1"], "encoder_steps"),
        (DemaskerRecipe, ["K=5"], "power of two"),
    ],
)
def test_settings_whose_export_could_not_be_loaded_are_refused(
    recipe: type, overrides: list[str], message: str
) -> None:
    with pytest.raises(CrocodilError, match=message):
        load_config(recipe, None, overrides)


@pytest.mark.parametrize("out", ["", "a\0b"])
def test_registers_go_into_a_folder_that_has_a_name(out: str) -> None:
    with pytest.raises(CrocodilError, match="^out is "):
        CacheRecipe(out=out)


def test_every_shipped_configuration_is_valid() -> None:
    recipes = {
        "cadd": CaddRecipe,
        "base": BaseRecipe,
        "denoiser": DenoiserRecipe,
        "judge": JudgeRecipe,
        "registers": CacheRecipe,
        "texts": TextsRecipe,
    }
    for file in sorted((ROOT / "recipes" / "configs").glob("*.yaml")):
        recipe = next((recipes[word] for word in recipes if word in file.stem), DemaskerRecipe)
        load_config(recipe, file, [])
        command = next(line for line in file.read_text().splitlines() if "--config recipes/configs/" in line)
        assert f"--config recipes/configs/{file.name}" in command, "a configuration states its command"
        assert "accelerate launch" in command or "python recipes/" in command


GOLDEN_BASE = [6.970846176147461, 5.009307384490967, 4.769279479980469]
GOLDEN_DENOISER = [1.0000000794728596, 0.834147572517395, 0.7130848169326782]
GOLDEN_DEMASKER = [5.228050867716472, 3.8561830520629883, 4.497930844624837, 4.821462949117024]
