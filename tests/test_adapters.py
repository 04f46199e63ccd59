"""Adapters: they change nothing until they are trained, PEFT reads them, and a merge computes what they computed."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import crocodil.adapters
from crocodil.adapters import (
    Base,
    LoraSettings,
    base_of,
    inject,
    load_adapted,
    merge,
    save_adapters,
    trainable,
)
from crocodil.attention import Segments
from crocodil.autoencoder import Autoencoder
from crocodil.bundle import GUIDE, REGISTERS, load_autoencoder, save_autoencoder, save_unguided
from crocodil.demasker.guided import GuideConfig, GuidedDemasker
from crocodil.demasker.loss import VocabularyHead
from crocodil.demasker.weights import save_llada
from crocodil.errors import CrocodilError
from crocodil.export import export
from crocodil.joint import DemaskerRecipe
from crocodil.model import Model, load
from crocodil.registers.released import open_encoder
from crocodil.text.vocabulary import Vocabulary
from crocodil.training.config import load_config

Make = Callable[..., Autoencoder]
SETTINGS = LoraSettings(rank=2, alpha=3.0)
WHOLE = {"demasker.boundaries", "demasker.projection.weight", "encoder.suffix"}


def outputs(autoencoder: Autoencoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Registers of two texts, and logits with them."""
    ids = torch.arange(20)
    autoencoder.eval()
    with torch.no_grad():
        z = autoencoder.encoder(ids, Segments.of([12, 8]), [4, 4])
        rows = torch.ones(2, 10, dtype=torch.bool)
        return z, autoencoder.demasker.logits(ids.view(2, 10), rows, z.unflatten(0, (2, 4)))


def train(autoencoder: Autoencoder) -> None:
    """Stands for training: whatever is trained has moved."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=draws)


def close(one: Autoencoder, other: Autoencoder) -> bool:
    """To what float32 rounds of products that are merged or apart; values are of order 1."""
    return all(torch.allclose(a, b, atol=5e-5) for a, b in zip(outputs(one), outputs(other), strict=True))


@pytest.fixture
def adapted(tiny_bundle: Path) -> Autoencoder:
    """The tiny model with adapters that have been trained."""
    autoencoder, _ = load_autoencoder(tiny_bundle)
    inject(autoencoder, SETTINGS, seed=0)
    train(autoencoder)
    return autoencoder


@pytest.fixture
def folder(adapted: Autoencoder, tiny_bundle: Path, tiny_vocabulary: Vocabulary, tmp_path: Path) -> Path:
    """Its adapters on disk."""
    made = tmp_path / "adapters"
    made.mkdir()
    base = base_of(adapted, model=str(tiny_bundle))
    save_adapters(made, adapted, tiny_vocabulary, 32, base, {"recipe": "train_demasker", "steps": 7})
    return made


# --- training ---


def test_fresh_adapters_change_nothing_and_are_the_same_on_every_rank(make_autoencoder: Make) -> None:
    plain, one, two = make_autoencoder(), make_autoencoder(), make_autoencoder()
    before = torch.random.get_rng_state()
    inject(one, SETTINGS, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    inject(two, SETTINGS, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(outputs(plain), outputs(one), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_every_map_inside_the_blocks_is_adapted_and_the_head_is_not(make_autoencoder: Make) -> None:
    autoencoder = make_autoencoder()
    maps = {
        name
        for name, module in autoencoder.named_modules()
        if type(module) is torch.nn.Linear and "projection" not in name
    }
    assert len(maps) == 2 * 7 + 2 * 7
    inject(autoencoder, SETTINGS, seed=0)
    layers = {name for name, module in autoencoder.named_modules() if hasattr(module, "lora_A")}
    assert layers == maps
    assert type(autoencoder.demasker.llada.model.transformer.ff_out) is VocabularyHead


@pytest.mark.parametrize("scale", ["sqrt_d", "layer_norm"])
def test_adapters_and_what_no_release_has_are_trained_and_nothing_else(
    scale: str, make_autoencoder: Make
) -> None:
    autoencoder = make_autoencoder(scale=scale)
    inject(autoencoder, SETTINGS, seed=0)
    trained = {name for name, parameter in autoencoder.named_parameters() if parameter.requires_grad}
    norm = {"encoder.norm.weight", "encoder.norm.bias"} if scale == "layer_norm" else set()
    assert {name for name in trained if ".lora_" not in name} == WHOLE | norm
    assert trained == {name for name, _ in autoencoder.named_parameters() if trainable(name)}
    assert not trainable("encoder.backbone.norm.weight") and not trainable("demasker.llada.model.lora")
    z, logits = (
        autoencoder.encoder(torch.arange(5), Segments.of([5]), [4]),
        autoencoder.demasker.logits(torch.arange(6)[None], torch.ones(1, 6, dtype=torch.bool), None),
    )
    guided = autoencoder.demasker.logits(torch.arange(6)[None], torch.ones(1, 6, dtype=torch.bool), z[None])
    (guided.square().sum() + logits.sum()).backward()
    with_gradient = {name for name, p in autoencoder.named_parameters() if p.grad is not None}
    assert with_gradient == trained


def test_a_part_may_be_left_without_adapters(
    tiny_bundle: Path, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    autoencoder, _ = load_autoencoder(tiny_bundle)
    base = base_of(autoencoder, model=str(tiny_bundle))
    inject(autoencoder, LoraSettings(demasker=("q_proj", "ff_out"), encoder=()), seed=0)
    assert sum(hasattr(module, "lora_A") for module in autoencoder.modules()) == 4
    train(autoencoder)
    save_adapters(tmp_path, autoencoder, tiny_vocabulary, 32, base)
    assert not (tmp_path / "encoder" / "adapter_config.json").exists()
    assert close(load_adapted(tmp_path)[0], autoencoder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank must be a whole number from 1"),
        ({"alpha": 0.0}, "alpha 0.0 must be above 0"),
        ({"alpha": 1e39}, "lora.alpha must be a number, from 0 to 3.4"),
        ({"dropout": 1.0}, "dropout 1.0 must be below 1"),
        ({"demasker": ("q_prj",)}, "lora.demasker: no linear map 'q_prj' inside a block; there are q_proj, "),
        ({"encoder": ("ff_out",)}, "lora.encoder: no linear map 'ff_out'"),
        ({"demasker": (), "encoder": ()}, "neither demasker nor encoder"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CrocodilError, match=message):
        LoraSettings(**settings)


def test_settings_come_out_of_a_configuration() -> None:
    config = load_config(DemaskerRecipe, None, ["start=bundled", "lora.rank=4", "lora.encoder=q_proj,v_proj"])
    assert config.lora == LoraSettings(rank=4, encoder=("q_proj", "v_proj"))
    assert load_config(DemaskerRecipe, None, ["start=bundled", "lora={}"]).lora == LoraSettings()
    assert load_config(DemaskerRecipe, None).lora is None


@pytest.mark.parametrize("rank", [13, 2**31 - 1])
def test_a_product_that_is_larger_than_its_map_is_refused(rank: int, make_autoencoder: Make) -> None:
    autoencoder = make_autoencoder()
    before = dict(autoencoder.named_parameters()).keys()
    with pytest.raises(
        CrocodilError,
        match=rf"lora.rank is {rank}, .*encoder\.layers\.0\.self_attn\.k_proj maps 24 numbers to 12; .* most 12",
    ):
        inject(autoencoder, LoraSettings(rank=rank, demasker=()), seed=0)
    assert dict(autoencoder.named_parameters()).keys() == before


def test_adapters_are_put_in_once(adapted: Autoencoder) -> None:
    with pytest.raises(CrocodilError, match="the demasker has adapters already"):
        inject(adapted, SETTINGS, seed=0)


def test_peft_is_fetched_without_a_word() -> None:
    """bitsandbytes, which comes with it, warns of what nobody has asked for."""
    command = [sys.executable, "-c", "from crocodil import adapters; adapters._peft()"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "kernels" not in done.stderr + done.stdout


@pytest.mark.parametrize("name", ["demasker.boundaries", "encoder.suffix"])
def test_adapters_that_are_no_numbers_are_not_written(
    name: str, adapted: Autoencoder, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    with torch.no_grad():
        adapted.get_parameter(name)[0] = math.nan
    with pytest.raises(CrocodilError, match=f"{name} has values that are no numbers"):
        save_adapters(tmp_path, adapted, tiny_vocabulary, 32, Base("f", "bundled"))
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_is_in_no_file_is_no_base(make_autoencoder: Make) -> None:
    with pytest.raises(CrocodilError, match="an encoder from scratch is in no file; give encoder= or start="):
        base_of(make_autoencoder(), demasker="a/llada")


def test_the_base_is_known_by_its_weights_whatever_their_dtype_and_adapters(make_autoencoder: Make) -> None:
    autoencoder = make_autoencoder()
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter.copy_(parameter.bfloat16())
    base = base_of(autoencoder, model="m")
    narrow = make_autoencoder()
    narrow.load_state_dict(autoencoder.state_dict())
    assert base_of(narrow.to(torch.bfloat16), model="m") == base
    inject(autoencoder, SETTINGS, seed=0)
    train(autoencoder)
    assert base_of(autoencoder, model="m") == base
    with torch.no_grad():
        autoencoder.encoder.backbone.norm.weight[0] += 1
    assert base_of(autoencoder, model="m") != base


# --- the folder ---


def test_a_merge_computes_what_the_adapters_computed(
    adapted: Autoencoder, folder: Path, tiny_bundle: Path
) -> None:
    plain, _ = load_autoencoder(tiny_bundle)
    assert not close(plain, adapted)
    merged, _, _ = load_adapted(folder)
    assert dict(merged.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    assert close(merged, adapted)
    merge(adapted)
    assert dict(adapted.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    assert close(merged, adapted)


def test_peft_reads_both_parts(adapted: Autoencoder, folder: Path, tiny_bundle: Path) -> None:
    theirs, _ = load_autoencoder(tiny_bundle)
    for part, module, name in (
        ("demasker", theirs.demasker, "llada"),
        ("encoder", theirs.encoder, "backbone"),
    ):
        read = peft.PeftModel.from_pretrained(getattr(module, name), str(folder / part))
        setattr(module, name, read.base_model.model)
    assert not close(theirs, adapted)  # PEFT knows nothing of what lies beside the adapters
    with torch.no_grad():
        for name in ("boundaries", "projection.weight"):
            theirs.demasker.get_parameter(name).copy_(adapted.demasker.get_parameter(name))
        theirs.encoder.suffix.copy_(adapted.encoder.suffix)
    assert all(torch.equal(a, b) for a, b in zip(outputs(theirs), outputs(adapted), strict=True))


def test_the_folder_says_what_it_belongs_to(folder: Path, tiny_bundle: Path) -> None:
    index = json.loads((folder / "config.json").read_text())
    assert (index["kind"], index["base"]["model"], index["K"]) == ("adapters", str(tiny_bundle), 4)
    assert json.loads((folder / "training.json").read_text())["steps"] == 7
    card = (folder / "README.md").read_text()
    assert index["base"]["fingerprint"] in card and f'crocodil.load("{tiny_bundle}", adapters="PATH")' in card
    assert {file.suffix for file in folder.rglob("*") if file.is_file()} == {".json", ".safetensors", ".md"}


def test_a_loaded_model_has_them_merged_and_a_fingerprint_of_its_own(
    adapted: Autoencoder, folder: Path, tiny_bundle: Path, tiny_vocabulary: Vocabulary
) -> None:
    plain, model = load(tiny_bundle, "cpu"), load(tiny_bundle, "cpu", adapters=folder)
    merged, _, _ = load_adapted(folder)
    assert model.fingerprint == Model(merged, tiny_vocabulary, 32).fingerprint != plain.fingerprint
    assert close(model.autoencoder, adapted) and model.window == 32
    registers = model.encode("x = {'side': 3}")
    assert len(model.decode(registers, nfe=4)) == 1
    with pytest.raises(CrocodilError, match="written by another encoder"):
        plain.decode(registers)


def test_dtype_of_memory_is_no_matter_of_whose_registers(folder: Path, tiny_bundle: Path) -> None:
    whole = load(tiny_bundle, "cpu", adapters=folder)
    half = load(tiny_bundle, "cpu", adapters=folder, dtype="bfloat16")
    assert {p.dtype for p in half.autoencoder.parameters()} == {torch.bfloat16}
    assert half.fingerprint == whole.fingerprint
    ours, theirs = (model.encode("x = 1").values_WKD for model in (half, whole))
    assert torch.cosine_similarity(ours, theirs, dim=-1).min() > 0.999


def test_loading_does_without_peft(
    folder: Path, make_autoencoder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    load_adapted(folder)
    with pytest.raises(CrocodilError, match="lora needs PEFT; pip install peft"):
        inject(make_autoencoder(), SETTINGS, seed=0)


def test_a_longer_window_and_more_registers_than_the_base_s_come_along(
    tiny_bundle: Path, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    autoencoder, _ = load_autoencoder(tiny_bundle)
    base = base_of(autoencoder, model=str(tiny_bundle))
    autoencoder.grow(8)
    autoencoder.demasker.llada.allow(128)
    inject(autoencoder, SETTINGS, seed=0)
    train(autoencoder)
    save_adapters(tmp_path, autoencoder, tiny_vocabulary, 128, base)
    model = load(tiny_bundle, "cpu", adapters=tmp_path)
    assert (model.K, model.window, model.resolve_length(None)) == (8, 128, 128)
    assert close(model.autoencoder, autoencoder)


# --- a demasker and an encoder that had not met ---


@pytest.fixture
def raw(
    make_autoencoder: Make, tiny_bundle: Path, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> tuple[Path, Autoencoder]:
    """Adapters on a LLaDA checkpoint and an encoder of another width of nothing but a sentence-transformers folder."""
    source = make_autoencoder(seed=3)
    llada, released = tmp_path / "llada", tmp_path / "qwen"
    save_llada(source.demasker.llada, llada)
    tiny_vocabulary.save(llada)
    shutil.copytree(tiny_bundle / "encoder", released)
    encoder = open_encoder(released, tiny_vocabulary, 4)
    autoencoder = Autoencoder(
        encoder, GuidedDemasker(source.demasker.llada, GuideConfig(4, encoder.D)).initialise()
    )
    base = base_of(autoencoder, demasker=str(llada), encoder=str(released))
    inject(autoencoder, SETTINGS, seed=0)
    train(autoencoder)
    made = tmp_path / "adapters"
    made.mkdir()
    save_adapters(made, autoencoder, tiny_vocabulary, 32, base)
    return made, autoencoder


def test_adapters_on_released_weights_find_both_again(raw: tuple[Path, Autoencoder], tmp_path: Path) -> None:
    made, autoencoder = raw
    merged, _, found = load_adapted(made)
    assert close(merged, autoencoder)
    assert found.base.model is None and str(found.base).endswith("qwen")
    with pytest.raises(
        CrocodilError, match="which no model folder holds: write the whole model with crocodil export"
    ):
        load("bundled", "cpu", adapters=made)
    export(made, tmp_path / "whole")
    assert close(load(tmp_path / "whole", "cpu").autoencoder, autoencoder)
    assert (
        f"adapters on `{tmp_path / 'llada'}` with `{tmp_path / 'qwen'}`"
        in (tmp_path / "whole" / "README.md").read_text()
    )


def test_released_weights_that_have_changed_are_refused(
    raw: tuple[Path, Autoencoder], tmp_path: Path
) -> None:
    made, _ = raw
    file = tmp_path / "llada" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.transformer.ln_f.weight"][0] += 1
    save_file(tensors, file)
    with pytest.raises(CrocodilError, match="has other weights than those that"):
        load_adapted(made)


# --- what is refused ---


def test_another_base_is_refused_in_one_line(
    folder: Path, make_autoencoder: Make, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    other, bare = tmp_path / "other", tmp_path / "bare"
    for made in (other, bare):
        made.mkdir()
    save_autoencoder(other, make_autoencoder(seed=1), tiny_vocabulary, 32)
    save_unguided(bare, make_autoencoder().demasker.llada, tiny_vocabulary)
    for base, message in (
        (other, f"{other} has other weights than those that {folder} was trained on"),
        (bare, "is a demasker without registers"),
        (tmp_path / "nothing", "nothing is not here; say where it is"),
        (folder, f"holds adapters, not a whole model: .* with adapters={folder}"),
    ):
        with pytest.raises(CrocodilError, match=message) as error:
            load(base, "cpu", adapters=folder)
        assert "\n" not in str(error.value)
    with pytest.raises(CrocodilError, match="holds no adapters .config.json says 'autoencoder'"):
        load(other, "cpu", adapters=other)
    with pytest.raises(CrocodilError, match="holds no adapters .config.json is missing"):
        load(other, "cpu", adapters=tmp_path / "nothing")
    with pytest.raises(CrocodilError, match="adapters are one name or folder"):
        load(other, "cpu", adapters=[folder])  # type: ignore[arg-type]


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))

    return spoil


def retensor(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return spoil


def gone(name: str | Path) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


WEIGHTS, CONFIG = "demasker/adapter_model.safetensors", "demasker/adapter_config.json"
A = "base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight"
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no base": (edit("config.json", base=None), "base or adapted is not as it was written"),
    "a base without origin": (
        edit("config.json", base={"fingerprint": "f", "model": None, "demasker": "x", "encoder": None}),
        "does not say what the adapters were trained on",
    ),
    "a base of the wrong kind": (edit("config.json", base={"fingerprint": 3}), "base or adapted is not"),
    "nothing adapted": (edit("config.json", adapted=[]), "adapted is .., not some of"),
    "a part left out": (edit("config.json", adapted=["demasker"]), "but there is .*encoder/adapter_config.json too"),
    "no window": (edit("config.json", window=2), "window is 2, not 3 to 1,048,576 tokens"),
    "an endless window": (edit("config.json", window=99_999_999), "window is 99999999, not 3 to"),
    "another part": (edit("config.json", adapted=["denoiser"]), "adapted is .'denoiser'., not some of"),
    "an unknown key": (edit("config.json", x=1), "unknown key 'x'"),
    "another K": (edit("config.json", K=8), "suffix has shape"),
    "another vocabulary": (edit("config.json", vocabulary="f"), "has other weights than those"),
    "another fingerprint": (
        lambda folder: edit(
            "config.json", base=json.loads((folder / "config.json").read_text())["base"] | {"fingerprint": "f"}
        )(folder),
        "has other weights than those",
    ),
    "no config": (gone(CONFIG), "adapter_config.json is missing"),
    "no weights": (gone(WEIGHTS), "cannot be read"),
    "no guide": (gone(GUIDE), "cannot be read"),
    "no registers": (gone(REGISTERS), "cannot be read"),
    "another rank": (edit(CONFIG, r=3), "has shape"),
    "rank is no number": (edit(CONFIG, r="2"), "r, lora_alpha or target_modules is not"),
    "a huge rank": (edit(CONFIG, r=10**30), "r, lora_alpha or target_modules is not"),
    **{
        f"alpha {alpha:g}": (edit(CONFIG, lora_alpha=alpha), "r, lora_alpha or target_modules is not")
        for alpha in (0, -3, 1e39)
    },
    "an alpha of 400 digits": (edit(CONFIG, lora_alpha=10**400), "r, lora_alpha or target_modules is not"),
    "an alpha beyond all weights": (
        lambda folder: (
            edit(CONFIG, lora_alpha=3e38)(folder), retensor(WEIGHTS, lambda t: [m.fill_(9.0) for m in t.values()])(folder)
        ),
        "lora_alpha is 3e.38, with which .* is no number",
    ),
    "targets of another's making": (edit(CONFIG, target_modules=["q_proj"]), "target_modules is not"),
    "targets that are not in a block": (edit(CONFIG, target_modules="model.transformer.ff_out"), "is not as crocodil"),
    "fewer targets": (
        edit(CONFIG, target_modules=r"model\.transformer\.blocks\.\d+\.(q_proj)"), "a tensor that does not belong"
    ),
    "DoRA": (edit(CONFIG, use_dora=True), "use_dora is True, a LoRA that crocodil does not merge"),
    "ranks of their own": (edit(CONFIG, rank_pattern={"q_proj": 4}), "rank_pattern is"),
    "a method of tomorrow": (edit(CONFIG, use_magic=True), "use_magic is True"),
    "another method": (edit(CONFIG, peft_type="LOHA"), "peft_type is 'LOHA'"),
    "another beginning": (edit(CONFIG, init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    "a tensor missing": (retensor(WEIGHTS, lambda t: t.pop(A)), "lacks base_model.model"),
    "one tensor more": (retensor(WEIGHTS, lambda t: t.update(x=torch.ones(1))), "does not belong, x"),
    "NaN": (retensor(WEIGHTS, lambda t: t[A].fill_(float("nan"))), "contains NaN"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_bad_adapters_are_refused_in_one_line(fault: str, folder: Path, tiny_bundle: Path) -> None:
    spoil, message = BAD[fault]
    spoil(folder)
    with pytest.raises(CrocodilError, match=message) as error:
        load(tiny_bundle, "cpu", adapters=folder)
    assert "\n" not in str(error.value)


class Canary:
    def __reduce__(self) -> tuple:
        return (exec, ("raise AssertionError('a pickle was opened')",))


@pytest.mark.parametrize("file", [WEIGHTS, str(GUIDE), str(REGISTERS)])
def test_no_pickle_is_ever_opened(file: str, folder: Path, tiny_bundle: Path) -> None:
    (folder / file).write_bytes(pickle.dumps(Canary()))
    with pytest.raises(CrocodilError):
        load(tiny_bundle, "cpu", adapters=folder)
    (folder / file).rename((folder / file).with_name("adapter_model.bin"))
    with pytest.raises(CrocodilError):
        load(tiny_bundle, "cpu", adapters=folder)
    assert "torch.load(" not in Path(crocodil.adapters.__file__).read_text()


def test_a_base_that_is_not_there_is_asked_for(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "config.json").read_text())
    edit("config.json", base=index["base"] | {"model": str(tmp_path / "moved")})(folder)
    with pytest.raises(CrocodilError, match="moved is not here; say where it is: --base"):
        load_adapted(folder)
    load_adapted(folder, tiny_bundle)
