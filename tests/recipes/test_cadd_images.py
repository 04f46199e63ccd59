"""The recipe of CADD on images: scikit-learn's digits, a tiny U-Net."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from crocodil.augmented import CaddRecipe
from crocodil.errors import CrocodilError
from crocodil.export import export
from crocodil.images.weights import WEIGHTS, generate_images, load_pixels
from crocodil.training.config import load_config
from crocodil.training.log import read_metrics
from recipes.tasks.images import ImageTask
from tests.recipes.tiny import contents, launch, losses, weights_differ

GOLDEN = [2.124910036722819, 0.9188394149144491, 1.2990487416585286, 1.5804654757181804]
TINY = [
    "--config", "recipes/configs/cadd-digits.yaml", "unet.width=8", "unet.channels=[8,16]", "unet.attention=[]",
    "unet.head=8", "unet.groups=4", "steps=4", "batch_size=6", "row_tokens=192", "ema=0.5", "optimiser.lr=0.003",
    "optimiser.warmup_steps=0", "optimiser.eps=1e-4", "log_every=1", "save_every=2", "validate_every=4",
    "validation_texts=6", "sample_every=4", "samples=4", "sample_nfe=2", "export_dtype=float32",
]  # fmt: skip


def test_more_images_than_there_are_make_no_batch() -> None:
    changed = ("batch_size=5000", "row_tokens=2048")
    config = load_config(CaddRecipe, "recipes/configs/cadd-digits.yaml", changed)
    with pytest.raises(CrocodilError, match="training images, a batch wants 5,000; lower batch_size"):
        ImageTask(config, cast(Accelerator, None))  # refused before ranks are asked


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "run"
    launch("train_cadd.py", "cpu.yaml", *TINY, f"run={folder}")
    return folder


def test_golden_losses(run: Path) -> None:
    assert losses(run) == pytest.approx(GOLDEN, rel=2e-4)


def test_what_it_writes_while_it_trains(run: Path) -> None:
    with Image.open(run / "samples-00000004.png") as picture:
        assert picture.width >= 16 and len(set(picture.convert("L").tobytes())) > 2
    told = {name for record in read_metrics(run / "metrics.jsonl") for name in record}
    assert {"cross_entropy@t=0.1", "top1@t=0.9"} <= told


def test_the_export_draws_images(run: Path) -> None:
    made = generate_images(load_pixels(run / "export"), 2, nfe=4, draws=2)
    assert made.nfe == 8 and made.pixels.shape == (2, 1, 8, 8) and int(made.ids_BN.max()) < 17


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["cpu2.yaml", "zero2.yaml", "zero3_cpu2.yaml", "fsdp2.yaml"])
def test_two_ranks_are_the_training_of_one(engine: str, tmp_path: Path) -> None:
    """Under every engine."""
    runs = tmp_path / "one", tmp_path / "two"
    # the average of weights is not kept under engines that take weights apart
    for run, where, ranks in ((runs[0], "cpu.yaml", None), (runs[1], engine, 2)):
        launch("train_cadd.py", where, *TINY, f"run={run}", "ema=0", ranks=ranks)
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-5)
    assert weights_differ(*runs) < 1e-5


@pytest.mark.slow
def test_a_stopped_run_with_dropout_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    options = [*TINY, f"run={run}", "unet.dropout=0.3"]
    launch("train_cadd.py", "cpu.yaml", *options)
    shutil.copytree(run, whole)
    shutil.rmtree(run / "step-00000004")
    shutil.rmtree(run / "export")
    done = launch("train_cadd.py", "cpu.yaml", *options, "--resume")
    assert "from step 2" in done.stderr
    assert losses(run) == losses(whole) and weights_differ(run, whole) == 0


@pytest.mark.parametrize("source", ["", "step-00000004"])
def test_a_checkpoint_is_written_out_as_the_run_writes_its_end(
    source: str, run: Path, tmp_path: Path
) -> None:
    made = export(run / source, tmp_path / "out")
    assert (made.kind, made.step, made.averaged) == ("checkpoint", 4, True)
    assert contents(tmp_path / "out") == contents(run / "export")


def test_an_earlier_checkpoint_and_its_weights_as_they_were(run: Path, tmp_path: Path) -> None:
    for average in (True, False):
        made = export(run / "step-00000002", tmp_path / str(average), average=average)
        assert (made.step, made.averaged) == (2, average)
    folders = [run / "export", tmp_path / "True", tmp_path / "False"]
    assert len({load_pixels(folder).table.weight.sum().item() for folder in folders}) == 3


def test_a_model_of_images_is_written_in_another_dtype(run: Path, tmp_path: Path) -> None:
    made = export(run / "export", tmp_path / "half", dtype="float16")
    assert (
        made.kind == "images"
        and load_file(tmp_path / "half" / WEIGHTS)["table.weight"].dtype == torch.float16
    )
    wide = export(tmp_path / "half", tmp_path / "wide", dtype="float32")
    assert wide.bytes > made.bytes
    for name, value in load_pixels(run / "export").state_dict().items():
        assert torch.equal(load_pixels(tmp_path / "wide").state_dict()[name], value.half().float())
    with pytest.raises(CrocodilError, match="is of images: there is no LLaDA in it"):
        export(run, tmp_path / "llada", llada=True)
    assert not (tmp_path / "llada").exists()
