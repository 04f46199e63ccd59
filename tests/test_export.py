"""Models in and out: dtypes, LLaDA as it is released, checkpoints of a run, adapters merged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file

import crocodil.export
from crocodil.adapters import LoraSettings, base_of, inject, load_adapted, merge, save_adapters, trainable
from crocodil.autoencoder import Autoencoder
from crocodil.bundle import BUNDLED, load_autoencoder, open_demasker, save_autoencoder, save_unguided
from crocodil.cli import main
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.weights import load_llada, save_llada
from crocodil.errors import CrocodilError
from crocodil.export import export
from crocodil.joint import DemaskerRecipe, origin
from crocodil.model import load
from crocodil.shards import list_tensors, load_tensors
from crocodil.text.data import DataConfig
from crocodil.text.vocabulary import Vocabulary, train_bpe
from crocodil.training.checkpoints import checkpoint_name, damage, publishing
from crocodil.training.config import save_config
from crocodil.training.engine import Engine
from crocodil.training.optimisation import OptimiserConfig

Make = Callable[..., Autoencoder]
FIXTURES = Path(__file__).parent / "fixtures" / "llada"
LORA = LoraSettings(rank=2)


def raw(folder: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    """Dtype and bytes of every tensor of a checkpoint, whatever its files."""
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("model*.safetensors"):
        found |= load_file(file)
    return {name: (t.dtype, t.view(torch.uint8).numpy().tobytes()) for name, t in found.items()}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def half_bundle(
    tmp_path_factory: pytest.TempPathFactory, make_autoencoder: Make, tiny_vocabulary: Vocabulary
) -> Path:
    """The tiny model in bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "half"
    folder.mkdir()
    save_autoencoder(folder, make_autoencoder(), tiny_vocabulary, 32, torch.bfloat16, {"steps": 3})
    return folder


# --- released LLaDA ---


@pytest.mark.parametrize("shard_bytes", [100_000, 10**9])
@pytest.mark.parametrize("folder", sorted(FIXTURES.iterdir()), ids=lambda folder: folder.name)
def test_released_llada_comes_out_as_it_went_in_byte_for_byte(
    folder: Path, shard_bytes: int, tmp_path: Path
) -> None:
    save_llada(load_llada(folder), tmp_path / "out", shard_bytes)
    assert raw(tmp_path / "out") == raw(folder)
    configs = [json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "out")]
    assert configs[0] == configs[1]
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert index.exists() == (shard_bytes == 100_000)
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        assert all(
            name in load_file(tmp_path / "out" / file, device="cpu") for name, file in weight_map.items()
        )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_llada_that_went_through_a_model_comes_out_byte_for_byte(
    kind: torch.dtype, tied: bool, make_autoencoder: Make, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    released, bundle = tmp_path / "released", tmp_path / "bundle"
    autoencoder = make_autoencoder(weight_tying=tied, carried={"mlp_ratio": 4, "init_std": 0.5})
    save_llada(autoencoder.demasker.llada, released, dtype=kind)
    autoencoder.demasker.llada = load_llada(released, torch.float32)
    bundle.mkdir()
    save_autoencoder(bundle, autoencoder, tiny_vocabulary, 32, kind)
    made = export(bundle, tmp_path / "out", llada=True, shard_bytes=9_000)
    assert (made.kind, made.dtype) == ("demasker", str(kind).removeprefix("torch."))
    assert raw(tmp_path / "out") == raw(released)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    configs = [json.loads((place / "config.json").read_text()) for place in (released, tmp_path / "out")]
    assert configs[0] == configs[1]
    llada, vocabulary = open_demasker(tmp_path / "out")
    assert vocabulary.fingerprint == tiny_vocabulary.fingerprint
    assert same(llada, autoencoder.demasker.llada)


def test_a_llada_folder_is_written_anew(
    make_llada: Callable[..., LLaDA], tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    folder = tmp_path / "llada"
    save_llada(make_llada(), folder)
    tiny_vocabulary.save(folder)
    with pytest.raises(CrocodilError, match="is a LLaDA by itself: with --llada"):
        export(folder, tmp_path / "out")
    assert export(folder, tmp_path / "out", "bfloat16", llada=True).dtype == "bfloat16"
    assert {tensor.dtype for tensor in list_tensors(tmp_path / "out").values()} == {"BF16"}


# --- models ---


@pytest.mark.parametrize("kept", [None, "bfloat16"])
def test_a_model_whose_dtype_is_kept_is_written_byte_for_byte(
    kept: str | None, half_bundle: Path, tmp_path: Path
) -> None:
    made = export(half_bundle, tmp_path / "out", kept)
    assert (made.kind, made.dtype) == ("model", "bfloat16")
    for file in sorted(path.relative_to(half_bundle) for path in half_bundle.rglob("*") if path.is_file()):
        assert (tmp_path / "out" / file).read_bytes() == (half_bundle / file).read_bytes(), file
    assert damage(tmp_path / "out") is None
    assert made.bytes == sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.safetensors"))


def test_weights_are_widened_exactly_and_narrowed_to_the_nearest(
    tiny_bundle: Path, half_bundle: Path, tmp_path: Path
) -> None:
    export(half_bundle, tmp_path / "wide", "float32")
    assert same(load_autoencoder(tmp_path / "wide")[0], load_autoencoder(half_bundle)[0])
    assert load(tmp_path / "wide", "cpu").fingerprint == load(half_bundle, "cpu").fingerprint
    export(tiny_bundle, tmp_path / "half", "bfloat16")
    for file in half_bundle.rglob("*.safetensors"):
        assert load_equal(file, tmp_path / "half" / file.relative_to(half_bundle))


def load_equal(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def test_denoisers_go_along_while_the_encoder_is_the_same(tmp_path: Path) -> None:
    made = export(BUNDLED, tmp_path / "wide", "float32")
    assert made.denoisers == ("conditional", "unconditional") and made.left == ()
    model = load(tmp_path / "wide", "cpu")
    assert model.fingerprint == load("bundled", "cpu").fingerprint
    assert model.denoisers.conditional is not None and model.denoisers.unconditional is not None
    made = export(BUNDLED, tmp_path / "narrow", "bfloat16")
    assert made.denoisers == () and made.left == ("conditional", "unconditional")
    assert not (tmp_path / "narrow" / "denoiser").exists()
    assert (tmp_path / "wide" / "README.md").read_text() == (BUNDLED / "README.md").read_text()
    assert (tmp_path / "wide" / "training.json").exists()


def test_a_demasker_without_registers_is_a_model_too(
    make_llada: Callable[..., LLaDA], tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    save_unguided(folder, make_llada(), tiny_vocabulary)
    assert export(folder, tmp_path / "out", "bfloat16").kind == "demasker"
    llada, _ = open_demasker(tmp_path / "out", None)
    assert {parameter.dtype for parameter in llada.parameters()} == {torch.bfloat16}


def test_what_float16_does_not_hold_is_refused(
    make_autoencoder: Make, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    autoencoder = make_autoencoder()
    with torch.no_grad():
        autoencoder.demasker.boundaries[0, 0] = 1e5
    folder = tmp_path / "model"
    folder.mkdir()
    save_autoencoder(folder, autoencoder, tiny_vocabulary, 32)
    with pytest.raises(CrocodilError, match="demasker.boundaries has values that float16 does not hold"):
        export(folder, tmp_path / "out", "float16")
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_a_model_of_one_register_fits_float16(
    make_autoencoder: Make, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """It has no suffix, a tensor of no numbers."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_autoencoder(folder, make_autoencoder(K=1), tiny_vocabulary, 32)
    export(folder, tmp_path / "out", "float16")
    assert load(tmp_path / "out", "cpu").K == 1


# --- checkpoints ---


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def shift(module: torch.nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += by


def checkpoint(
    run: Path,
    module: Autoencoder,
    accelerator: Accelerator,
    start: Path,
    ema: float = 0.0,
    began: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A checkpoint of step 7, as the engine writes it after one step of a "training" that adds 0.5."""
    config = DemaskerRecipe(
        run=str(run),
        start=str(start),
        data=DataConfig(lengths=(32,)),
        export_dtype="float32",
        ema=ema,
        **changes,
    )
    which = (lambda name: True) if config.lora is None else trainable
    fixed = lambda name: not which(name)  # noqa: E731
    engine = Engine(accelerator, module, OptimiserConfig(), 10, which, ema, fixed=fixed)
    shift(engine.module, 0.5)
    if engine.ema is not None:
        engine.ema.update(engine._pieces())
    run.mkdir(exist_ok=True)
    save_config(config, run / "config.yaml")
    with publishing(run, checkpoint_name(7)) as directory:
        values = {"step": 7, "stage": 0, "corpus": "c"} | ({} if began is None else {"origin": began})
        engine.save(directory, values)
    return run / checkpoint_name(7)


@pytest.fixture
def trained(tiny_bundle: Path) -> Autoencoder:
    return load_autoencoder(tiny_bundle)[0]


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_and_a_checkpoint_are_written_as_the_model_they_are(
    whole: bool, trained: Autoencoder, accelerator: Accelerator, tiny_bundle: Path, tmp_path: Path
) -> None:
    place = checkpoint(tmp_path / "run", trained, accelerator, tiny_bundle)
    made = export(tmp_path / "run" if whole else place, tmp_path / "out")
    assert (made.kind, made.step, made.averaged, made.dtype) == ("checkpoint", 7, False, "float32")
    again, _ = load_autoencoder(tmp_path / "out")
    assert same(again, trained) and not same(again, load_autoencoder(tiny_bundle)[0])
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (record["recipe"], record["steps"], record["config"]["K"]) == ("train_demasker", 7, 4)
    assert "7 optimiser steps" in (tmp_path / "out" / "README.md").read_text()
    assert load(tmp_path / "out", "cpu").window == 32


def test_files_of_many_ranks_are_one_checkpoint(
    trained: Autoencoder, accelerator: Accelerator, tiny_bundle: Path, tmp_path: Path
) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    place = checkpoint(one, trained, accelerator, tiny_bundle)
    tensors: dict[str, torch.Tensor] = {}
    for file in place.glob("state-*.safetensors"):
        tensors |= load_file(file)
    with publishing(many, checkpoint_name(7)) as directory:
        for rank in range(3):
            share = {name: tensor for i, (name, tensor) in enumerate(tensors.items()) if i % 3 == rank}
            save_file(share, directory / f"state-{rank:05d}-000.safetensors")
        shutil.copy(place / "state-00000.json", directory)
    shutil.copy(one / "config.yaml", many)
    for run in (one, many):
        export(run, tmp_path / f"{run.name}-out")
    for file in (tmp_path / "one-out").rglob("*.safetensors"):
        assert (
            file.read_bytes() == (tmp_path / "many-out" / file.relative_to(tmp_path / "one-out")).read_bytes()
        )


@pytest.mark.parametrize(("average", "moved"), [(None, 0.45), (True, 0.45), (False, 0.5)])
def test_the_average_is_taken_where_there_is_one(
    average: bool | None,
    moved: float,
    trained: Autoencoder,
    accelerator: Accelerator,
    tiny_bundle: Path,
    tmp_path: Path,
) -> None:
    before = trained.demasker.boundaries.detach().clone()
    checkpoint(tmp_path / "run", trained, accelerator, tiny_bundle, ema=0.9)  # whose first decay is 0.1
    made = export(tmp_path / "run", tmp_path / "out", average=average)
    assert made.averaged is (average is not False)
    after = load_autoencoder(tmp_path / "out")[0].demasker.boundaries
    assert torch.allclose(after - before, torch.tensor(moved), atol=1e-6)


def test_a_checkpoint_with_adapters_is_merged(
    trained: Autoencoder,
    accelerator: Accelerator,
    tiny_bundle: Path,
    tiny_vocabulary: Vocabulary,
    tmp_path: Path,
) -> None:
    base = base_of(trained, model=str(tiny_bundle))
    inject(trained, LORA, 0)
    checkpoint(tmp_path / "run", trained, accelerator, tiny_bundle, lora=LORA)
    export(tmp_path / "run", tmp_path / "out")
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    save_adapters(adapters, trained, tiny_vocabulary, 32, base, {"recipe": "train_demasker", "steps": 7})
    merge(trained)
    assert same(load_autoencoder(tmp_path / "out")[0], trained)
    made = export(adapters, tmp_path / "merged")
    assert (made.kind, made.dtype) == ("adapters", "float32")
    assert same(load_autoencoder(tmp_path / "merged")[0], trained)
    record = json.loads((tmp_path / "merged" / "training.json").read_text())
    assert record["adapters"]["model"] == str(tiny_bundle) and record["steps"] == 7
    ours, theirs = load(tmp_path / "merged", "cpu"), load(tiny_bundle, "cpu", adapters=adapters)
    assert ours.fingerprint == theirs.fingerprint


def test_adapters_on_a_base_that_has_moved(
    trained: Autoencoder, half_bundle: Path, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    trained, _ = load_autoencoder(half_bundle)
    base = base_of(trained, model=str(tmp_path / "was-here"))
    inject(trained, LORA, 0)
    shift(trained, 0.5)
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    save_adapters(adapters, trained, tiny_vocabulary, 32, base)
    with pytest.raises(CrocodilError, match="was-here is not here; say where it is: --base"):
        export(adapters, tmp_path / "out")
    made = export(adapters, tmp_path / "out", base=half_bundle, llada=True)
    assert made.dtype == "bfloat16"  # of the base
    merged, _, _ = load_adapted(adapters, half_bundle)
    assert same(load_llada(tmp_path / "out"), merged.demasker.llada.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("lora", "other", "said"),
    [
        (None, "weights", None),
        (LORA, "weights", "base was [0-9a-f]{16}, is [0-9a-f]{16}"),
        (None, "suffix", "suffix_from was None, is 31"),
        (None, "layout", "layout was anchored, is contiguous"),
        (None, "vocabulary", "vocabulary was [0-9a-f]+, is [0-9a-f]+"),
    ],
)
def test_a_checkpoint_is_written_out_around_the_model_it_began_with_or_not_at_all(
    lora: LoraSettings | None,
    other: str,
    said: str | None,
    accelerator: Accelerator,
    make_autoencoder: Make,
    tiny_vocabulary: Vocabulary,
    programs: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """A folder that was replaced in the meantime, by a model of the same shapes. Of weights only those under adapters
    matter, because all others are in the checkpoint."""
    start, moved = tmp_path / "start", tmp_path / "moved"
    start.mkdir()
    save_autoencoder(start, make_autoencoder(), tiny_vocabulary, 32)
    module, vocabulary = load_autoencoder(start)
    base = None if lora is None else base_of(module, model=str(start))
    began = origin(module, vocabulary, base)
    if lora is not None:
        inject(module, lora, 0)
    checkpoint(tmp_path / "run", module, accelerator, start, began=began, lora=lora)
    export(tmp_path / "run", tmp_path / "good")

    start.rename(moved)
    start.mkdir()
    choices: dict[str, dict[str, Any]] = {
        "weights": {"seed": 3}, "suffix": {"suffix_from": 31}, "layout": {"layout": "contiguous"}, "vocabulary": {},
    }  # fmt: skip
    of = train_bpe([one.upper() for one in programs] * 3, 320) if other == "vocabulary" else tiny_vocabulary
    assert of.size == tiny_vocabulary.size
    save_autoencoder(start, make_autoencoder(**choices[other]), of, 32)
    if said is None:
        export(tmp_path / "run", tmp_path / "again")
        assert same(
            load_autoencoder(tmp_path / "again")[0].encoder, load_autoencoder(tmp_path / "good")[0].encoder
        )
        return
    with pytest.raises(CrocodilError, match=f"belongs to another model than .*: {said}; put back") as error:
        export(tmp_path / "run", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_never_written_out(
    trained: Autoencoder, accelerator: Accelerator, tiny_bundle: Path, tmp_path: Path
) -> None:
    place = checkpoint(tmp_path / "run", trained, accelerator, tiny_bundle)
    file = next(place.glob("state-*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CrocodilError, match=f"not loaded: {file.name} was altered"):
        export(place, tmp_path / "out")
    with pytest.raises(CrocodilError, match="no checkpoint is whole .*was altered"):
        export(tmp_path / "run", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["run"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": 99}, "step-00000007 holds step 99; give it back its name"),
        ({"step": "7"}, "step is not as a run writes it"),
        ({"origin": [1]}, "origin is not as a run writes it"),
        (None, "it holds a list"),
    ],
)
def test_a_checkpoint_that_says_what_none_says_is_refused(
    change: dict[str, Any] | None,
    said: str,
    trained: Autoencoder,
    accelerator: Accelerator,
    tiny_bundle: Path,
    tmp_path: Path,
) -> None:
    """Sealed by its manifest all the same."""
    place = checkpoint(tmp_path / "run", trained, accelerator, tiny_bundle)
    whole = tmp_path / "whole"
    place.rename(whole)
    with publishing(tmp_path / "run", place.name) as folder:
        for file in whole.glob("state-*"):
            (folder / file.name).write_bytes(file.read_bytes())
        values = json.loads((folder / "state-00000.json").read_text())
        (folder / "state-00000.json").write_text(json.dumps([1] if change is None else values | change))
    for source in (place, place.parent):
        with pytest.raises(CrocodilError, match=said):
            export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_whose_base_nobody_has_named_are_merged_and_that_is_told(
    trained: Autoencoder,
    accelerator: Accelerator,
    tiny_bundle: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As an earlier version wrote them."""
    lora = LoraSettings(rank=2)
    inject(trained, lora, 0)
    checkpoint(tmp_path / "run", trained, accelerator, tiny_bundle, lora=lora)
    export(tmp_path / "run", tmp_path / "out")
    assert "does not say which model it belongs to, as an earlier version wrote it" in caplog.text


def test_a_checkpoint_of_another_model_is_refused(
    trained: Autoencoder, accelerator: Accelerator, tiny_bundle: Path, make_autoencoder: Make, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    checkpoint(run, trained, accelerator, tiny_bundle, lora=None)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("grow_to: null", "grow_to: 8"))
    with pytest.raises(
        CrocodilError, match=r"encoder.suffix has shape \(3, 24\), .*config.yaml asks for \(7, 24\)"
    ):
        export(run, tmp_path / "out")
    (run / "config.yaml").write_text(config.replace("lora: null", "lora: {rank: 2}"))
    with pytest.raises(CrocodilError, match="is on one side only"):
        export(run, tmp_path / "out")
    (run / "config.yaml").write_text("judge: 3\n")
    with pytest.raises(CrocodilError, match="is no run of train_demasker.py .*unknown key 'judge'"):
        export(run, tmp_path / "out")


# --- what is refused, and the verb ---


def test_what_cannot_be_is_refused_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "taken").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    calls: list[tuple[dict[str, Any], str]] = [
        ({"out": tmp_path / "taken"}, "taken exists already: name a folder that does not"),
        ({"out": tmp_path / "link"}, "link exists already"),
        ({"out": tiny_bundle}, "exists already"),
        ({"out": "/"}, "exists already"),
        ({"dtype": "int8"}, "dtype = 'int8': it is one of bfloat16, float16, float32"),
        ({"source": tmp_path / "none"}, "holds no crocodil model"),
        ({"source": tmp_path}, "holds no crocodil model"),
        ({"average": True}, "is no checkpoint: it has no average"),
        ({"base": "bundled"}, "holds no adapters: it has no base"),
    ]
    for options, message in calls:
        with pytest.raises(CrocodilError, match=message) as error:
            export(**({"source": tiny_bundle, "out": out} | options))
        assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["link", "taken"]


def test_nothing_is_made_for_the_sake_of_two_dots(tiny_bundle: Path, tmp_path: Path) -> None:
    export(tiny_bundle, tmp_path / "never" / ".." / "out")
    assert sorted(os.listdir(tmp_path)) == ["out"]
    (tmp_path / "far" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "folder")
    export(tiny_bundle, tmp_path / "link" / ".." / "out")  # behind a link `..` is where the link leads
    assert sorted(os.listdir(tmp_path / "far")) == ["folder", "out"]


def test_parts_of_different_dtypes_ask_which(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "model"))
    file = folder / "encoder" / "model.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(file).items()}, file)
    with pytest.raises(CrocodilError, match="mixes bfloat16 and float32: say which --dtype you want"):
        export(folder, tmp_path / "out")
    export(folder, tmp_path / "out", "bfloat16")
    assert {
        t.dtype for part in ("demasker", "encoder") for t in list_tensors(tmp_path / "out" / part).values()
    } == {"BF16"}


def test_what_fails_half_way_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crocodil.export, "save_autoencoder", full)
    with pytest.raises(OSError, match="No space left"):
        export(tiny_bundle, tmp_path / "out")
    assert not os.listdir(tmp_path)


def test_an_export_may_take_the_place_of_the_one_before(
    tiny_bundle: Path, half_bundle: Path, tmp_path: Path
) -> None:
    export(tiny_bundle, tmp_path / "out")
    export(half_bundle, tmp_path / "out", replace=True)
    assert {tensor.dtype for tensor in list_tensors(tmp_path / "out" / "demasker").values()} == {"BF16"}


def test_the_verb(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(tiny_bundle), "--out", str(out), "--dtype", "float16", "--json"]) == 0
    said, told = capsys.readouterr()
    document = json.loads(said)
    assert document["out"] == str(out) and document["dtype"] == "float16" and document["step"] is None
    assert told.startswith(f"{out}: model in float16, ") and told.count("\n") == 1
    assert (
        main(["autoencode", "--held-out", "1", "--model", str(out), "--truncate", "--dtype", "bfloat16"]) == 0
    )
    capsys.readouterr()
    for words, message in (
        ([str(tiny_bundle), "--out", str(out)], "exists already"),
        ([str(tiny_bundle)], "--out"),
        ([str(tiny_bundle), "--out", str(tmp_path / "x"), "--no-average"], "is no checkpoint"),
        ([str(tiny_bundle), "--out", str(tmp_path / "x"), "--dtype", "int8"], "int8"),
    ):
        assert main(["export", *words]) == 2
        said, told = capsys.readouterr()
        assert message in told and told.count("\n") == 1 and not said


def test_llada_alone_from_the_command_line(tiny_bundle: Path, tmp_path: Path) -> None:
    assert main(["export", str(tiny_bundle), "--llada", "--out", str(tmp_path / "out")]) == 0
    ours, theirs = load_tensors(tmp_path / "out"), load_tensors(tiny_bundle / "demasker")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
