"""The recipe of CADD: from scratch, from demaskers of every kind, with and without latents and registers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import crocodil
from crocodil.augmented import CaddRecipe, build
from crocodil.bundle import open_augmented
from crocodil.cadd.latents import LatentConfig
from crocodil.errors import CrocodilError
from crocodil.export import export
from crocodil.text.data import DataConfig, Texts
from crocodil.training.config import load_config
from tests.recipes.tiny import TINY_CADD, common, contents, launch, losses, weights_differ

GOLDEN = [6.764406204223633, 4.803107102711995, 4.8186750411987305]


@pytest.fixture(scope="module")
def cadd(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    run = tmp_path_factory.mktemp("cadd") / "run"
    launch(
        "train_cadd.py",
        "cpu.yaml",
        f"run={run}",
        *common(texts, run),
        *TINY_CADD,
        "sample_every=3",
        "sample_nfe=4",
    )
    return run


def test_golden_losses(cadd: Path) -> None:
    assert losses(cadd) == pytest.approx(GOLDEN, rel=2e-4)


def test_texts_are_written_while_it_trains(cadd: Path) -> None:
    lines = [json.loads(line) for line in (cadd / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3] * 4 and all(
        isinstance(line["text"], str) for line in lines
    )


def test_the_export_generates_with_latents_and_without(cadd: Path) -> None:
    model = crocodil.load(str(cadd / "export"))
    assert (model.K, model.window) == (0, 32) and model.augmented is not None
    made = model.generate(3, method="cadd", nfe=4, draws=2, estimate="soft", seed=1)
    assert [one.nfe for one in made] == [8, 8, 8] and len({one.text for one in made}) > 1
    assert made[1].text == model.generate(1, method="cadd", nfe=4, draws=2, estimate="soft", seed=2)[0].text
    assert model.generate(1, method="mdm", draws=0, nfe=4)[0].nfe <= 4
    with pytest.raises(CrocodilError, match="train_demasker.py"):
        model.encode("x = 1\n")


def test_a_checkpoint_is_written_out_as_the_run_writes_its_end(cadd: Path, tmp_path: Path) -> None:
    made = export(cadd, tmp_path / "out")
    assert (made.kind, made.step) == ("checkpoint", 3)
    assert contents(tmp_path / "out") == contents(cadd / "export")


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(cadd: Path, texts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [f"run={run}", *common(texts, run), *TINY_CADD, "save_every=2"]
    launch("train_cadd.py", "cpu.yaml", *options)
    shutil.rmtree(run / "step-00000003")
    shutil.rmtree(run / "export")
    done = launch("train_cadd.py", "cpu.yaml", *options, "--resume")
    assert "from step 2" in done.stderr
    assert losses(run) == losses(cadd) and weights_differ(run, cadd) == 0


def test_two_ranks_are_the_training_of_one(cadd: Path, texts: Path, tmp_path: Path) -> None:
    """Noise is drawn from each text's seed, wherever it is."""
    run = tmp_path / "run"
    launch("train_cadd.py", "cpu2.yaml", f"run={run}", *common(texts, run), *TINY_CADD)
    assert losses(run) == pytest.approx(losses(cadd), rel=1e-6)
    assert weights_differ(run, cadd) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2.yaml", "zero3_cpu2.yaml", "fsdp2.yaml"])
@pytest.mark.parametrize("option", ["latents.fusion=add", "latents.fusion=concat", "objective.squared=soft"])
def test_every_engine_trains_the_same(engine: str, option: str, texts: Path, tmp_path: Path) -> None:
    runs = tmp_path / "one", tmp_path / "two"
    # the average of weights is not kept under engines that take weights apart
    options = [*TINY_CADD, "ema=0", option]
    for run, where, ranks in ((runs[0], "cpu.yaml", None), (runs[1], engine, 2)):
        launch("train_cadd.py", where, f"run={run}", *common(texts, run), *options, ranks=ranks)
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-5)
    assert weights_differ(*runs) < 1e-5


def test_latents_are_put_on_a_trained_demasker(base: Path, texts: Path, tmp_path: Path) -> None:
    """They begin with its weights, and another run begins with theirs: the same latents, whatever is asked for."""
    first, second = tmp_path / "first", tmp_path / "second"
    options = [*TINY_CADD, "optimiser.lr=0", "steps=1", "ema=0"]
    asked = ["latents.fusion=concat", "latents.schedule=vp", "latents.rho=2.5", "objective.squared=soft"]
    launch(
        "train_cadd.py",
        "cpu.yaml",
        f"run={first}",
        f"init={base / 'export'}",
        *common(texts, first),
        *options,
        *asked,
    )
    launch(
        "train_cadd.py",
        "cpu.yaml",
        f"run={second}",
        f"init={first / 'export'}",
        *common(texts, second),
        *options,
    )
    start, made, again = (open_augmented(run / "export").demasker for run in (base, first, second))
    assert start.latents is None and made.latents is not None and again.latents is not None
    assert made.latents.settled.rho == 2.5 and made.latents.settled.fusion == "concat"
    assert made.latents.settled == again.latents.settled
    for name, weight in start.llada.state_dict().items():
        assert torch.equal(weight, made.llada.state_dict()[name]), name
    assert made.latents.merge is not None and again.latents.merge is not None
    assert torch.equal(made.latents.merge.weight, again.latents.merge.weight)


def test_registers_and_latents_in_one_demasker(one_rank: Path, texts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch(
        "train_cadd.py", "cpu.yaml", f"run={run}", f"init={one_rank / 'export'}", "registers=true",
        *common(texts, run), *TINY_CADD,
    )  # fmt: skip
    before, after = crocodil.load(str(one_rank / "export")), crocodil.load(str(run / "export"))
    assert after.fingerprint == before.fingerprint and after.augmented is not None
    registers = after.encode("def f(x):\n")
    assert torch.equal(registers.values_WKD, before.encode("def f(x):\n").values_WKD)
    assert after.decode(registers, nfe=4) and after.generate(1, method="cadd", nfe=4)
    export(run / "step-00000003", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(run / "export")


def test_a_frozen_encoder_is_the_same_to_the_last_bit(one_rank: Path, texts: Path, tmp_path: Path) -> None:
    """In whatever the rest is exported, so that denoisers of its registers go on fitting."""
    run = tmp_path / "run"
    options = ["registers=true", *common(texts, run), *TINY_CADD, "steps=1", "export_dtype=bfloat16"]
    launch("train_cadd.py", "cpu.yaml", f"run={run}", f"init={one_rank / 'export'}", *options)
    export(run, tmp_path / "out")
    fingerprint = crocodil.load(str(one_rank / "export")).fingerprint
    for folder in (run / "export", tmp_path / "out"):
        assert crocodil.load(str(folder)).fingerprint == fingerprint
        (shard,) = (folder / "demasker").glob("model*.safetensors")
        assert {tensor.dtype for tensor in load_file(shard).values()} == {torch.bfloat16}


def test_latents_that_a_model_brings_along_are_not_asked_to_be_others(cadd: Path, texts: Path) -> None:
    config = CaddRecipe(init=str(cadd / "export"), data=DataConfig(lengths=(32,)))
    for asked in (LatentConfig(), LatentConfig(schedule="flow", fusion="add")):
        assert build(replace(config, latents=asked), Texts(config.data))[0].demasker.latents is not None
    for asked in (LatentConfig(rho=9.0), LatentConfig(fusion="concat"), LatentConfig(schedule="vp")):
        with pytest.raises(CrocodilError, match="has latents of its own"):
            build(replace(config, latents=asked), Texts(config.data))


def test_a_run_goes_on_with_the_encoder_that_it_began_with(
    one_rank: Path, texts: Path, tmp_path: Path
) -> None:
    """A frozen encoder is in no checkpoint. The model may have moved."""
    run, moved, other = tmp_path / "run", tmp_path / "moved", tmp_path / "other"
    shutil.copytree(one_rank / "export", moved)
    shutil.copytree(one_rank / "export", other)
    weights = other / "encoder" / "model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).add_(1)
    save_file(tensors, weights, {"format": "pt"})
    options = ["registers=true", *common(texts, run), *TINY_CADD, "save_every=2"]
    launch("train_cadd.py", "cpu.yaml", f"run={run}", f"init={one_rank / 'export'}", *options)
    shutil.rmtree(run / "step-00000003")
    shutil.rmtree(run / "export")
    refused = launch(
        "train_cadd.py", "cpu.yaml", f"run={run}", f"init={other}", *options, "--resume", check=False
    )
    assert refused.returncode != 0 and "belongs to another model" in refused.stderr
    done = launch("train_cadd.py", "cpu.yaml", f"run={run}", f"init={moved}", *options, "--resume")
    assert "from step 2" in done.stderr


def test_without_latents_it_is_masked_diffusion(base: Path, texts: Path, tmp_path: Path) -> None:
    """The very losses and weights of train_base.py."""
    run = tmp_path / "run"
    options = [*TINY_CADD, "latents=null", "ema=0", "optimiser.eps=1e-8"]
    options += ["corruption.masking.t_min=0.001", "corruption.masking.all_mask=0.25"]
    launch("train_cadd.py", "cpu.yaml", f"run={run}", *common(texts, run), *options)
    assert losses(run) == losses(base)
    assert open_augmented(run / "export").demasker.latents is None
    for file in (run / "export" / "demasker").glob("*.safetensors"):
        assert file.read_bytes() == (base / "export" / "demasker" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["registers=true"], "init"),
        (["train_encoder=true"], "registers=true"),
        (["latents=null", "objective.squared=soft"], "latents"),
        (["latents.fusion=mean"], "add.*reweight.*concat"),
        (["latents.schedule=cosine"], "flow.*vp"),
        (["latents.rho=0"], "positive"),
        (["objective.weighting=t"], "inverse_t"),
        (["objective.squared=both"], "soft"),
        (["objective.share=-1"], "negative"),
    ],
)
def test_settings_that_mean_nothing_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(CrocodilError, match=message):
        load_config(CaddRecipe, None, overrides)
