"""Checkpoints in the released layout: what is read, what is refused, what is written."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crocodil import shards
from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.demasker.weights import load_llada, save_llada
from crocodil.errors import CrocodilError
from crocodil.shards import load_tensors, save_tensors

FIXTURES = Path(__file__).parents[1] / "fixtures" / "llada"
TABLE, HEAD = "model.transformer.wte.weight", "model.transformer.ff_out.weight"
CONFIG = LLaDAConfig(
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    mlp_hidden_size=48,
    vocab_size=64,
    embedding_size=64,
    max_sequence_length=64,
    mask_token_id=63,
    eos_token_id=62,
    rope_theta=500_000.0,
)
VARIANTS = {
    "plain": {},
    "tied": {"weight_tying": True},
    "grouped": {"n_kv_heads": 2},
    "padded": {"vocab_size": 59, "mask_token_id": 58},
}


def model(**changes: object) -> LLaDA:
    return LLaDA(dataclasses.replace(CONFIG, **changes)).initialise(torch.Generator().manual_seed(0))


def same(a: LLaDA, b: LLaDA) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[name], y[name]) for name in x)


# --- round trips --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_bytes", [10_000, 10**9])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_is_loaded(variant: str, shard_bytes: int, tmp_path: Path) -> None:
    saved = model(**VARIANTS[variant])
    save_llada(saved, tmp_path / "out", shard_bytes)
    loaded = load_llada(tmp_path / "out")
    assert same(saved, loaded) and loaded.config == saved.config
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(saved(ids), loaded(ids))


def test_shards_have_the_released_names_and_an_index(tmp_path: Path) -> None:
    saved = model()
    save_llada(saved, tmp_path / "out", 20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    tensors = saved.state_dict()
    assert index["metadata"] == {"total_size": sum(t.numel() * 4 for t in tensors.values())}
    assert index["weight_map"].keys() == tensors.keys()
    shards = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    count = len(shards)
    assert count > 2 and shards == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for shard in shards:
        held = load_file(tmp_path / "out" / shard)
        assert sum(t.numel() * 4 for t in held.values()) <= 20_000 or len(held) == 1
        assert all(index["weight_map"][name] == shard for name in held)


@pytest.mark.parametrize("folder", sorted(FIXTURES.iterdir()), ids=lambda folder: folder.name)
def test_a_released_checkpoint_comes_out_as_it_went_in(folder: Path, tmp_path: Path) -> None:
    loaded = load_llada(folder)
    save_llada(loaded, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    given = {}
    for file in folder.glob("model*.safetensors"):
        given |= load_file(file)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == given.keys() and all(torch.equal(written[name], given[name]) for name in given)


def test_dtypes_are_kept_unless_another_is_wanted(tmp_path: Path) -> None:
    saved = model()
    save_llada(saved, tmp_path / "half", dtype=torch.bfloat16)
    assert {p.dtype for p in load_llada(tmp_path / "half").parameters()} == {torch.bfloat16}
    wide = load_llada(tmp_path / "half", dtype=torch.float32)
    assert torch.equal(wide.head_weight, saved.head_weight.bfloat16().float())
    assert {p.dtype for p in saved.parameters()} == {torch.float32}


def test_a_loaded_model_does_not_hang_on_its_file(tmp_path: Path) -> None:
    saved = model()
    save_llada(saved, tmp_path / "out")
    loaded = load_llada(tmp_path / "out")
    with open(tmp_path / "out" / "model.safetensors", "r+b") as file:
        file.seek(2000)
        file.write(b"\xff" * 50_000)
    assert same(saved, loaded)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    save_llada(model(), tmp_path / "out")
    save_file({"projection.weight": torch.zeros(3)}, tmp_path / "out" / "guide.safetensors")
    (tmp_path / "out" / "optimizer.pt").write_bytes(b"not ours")
    assert same(load_llada(tmp_path / "out"), model())


def test_nothing_is_left_on_the_meta_device_and_nothing_is_a_buffer() -> None:
    loaded = load_llada(FIXTURES / "base-seed0")
    assert not list(loaded.buffers())
    assert not any(parameter.is_meta for parameter in loaded.parameters())


def test_tied_weights_are_one_parameter_and_no_head_key() -> None:
    loaded = load_llada(FIXTURES / "tied-seed0")
    assert HEAD not in loaded.state_dict()
    assert loaded.head_weight is loaded.model.transformer.wte.weight


def test_a_tied_checkpoint_may_repeat_its_table(tmp_path: Path) -> None:
    folder = copy("tied-seed0", tmp_path)
    edit_tensors(folder, lambda tensors: tensors.update({HEAD: tensors[TABLE].clone()}))
    assert same(load_llada(folder), load_llada(FIXTURES / "tied-seed0"))


def test_tensors_of_any_model_are_saved_and_loaded(tmp_path: Path) -> None:
    tensors = {name: torch.randn(5, i + 1) for i, name in enumerate("abcdef")}
    for shard_bytes in (60, 10**6):
        folder = tmp_path / str(shard_bytes)
        folder.mkdir()
        save_tensors(tensors, folder, shard_bytes)
        loaded = load_tensors(folder)
        assert loaded.keys() == tensors.keys() and all(
            torch.equal(loaded[name], tensors[name]) for name in tensors
        )


# --- appearing whole or not at all --------------------------------------------------------------------------


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full(tensors: dict, file: Path, metadata: dict) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(file)
        save_file(tensors, file, metadata=metadata)

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_llada(model(), tmp_path / "out", 20_000)
    assert written and not list(tmp_path.iterdir())


def test_the_final_name_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def watched(tensors: dict, file: Path, metadata: dict) -> None:
        assert not (tmp_path / "out").exists()
        save_file(tensors, file, metadata=metadata)

    monkeypatch.setattr(shards, "save_file", watched)
    save_llada(model(), tmp_path / "out", 20_000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    save_llada(model(), tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(CrocodilError, match="exists already"):
        save_llada(model(n_layers=1), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    with pytest.raises(CrocodilError, match="holds model.safetensors already"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "out")


def test_other_users_may_read_what_is_written(tmp_path: Path) -> None:
    save_llada(model(), tmp_path / "out")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask


def test_sharded_parameters_are_refused(tmp_path: Path) -> None:
    partitioned = model()
    partitioned.model.transformer.wte.weight = torch.nn.Parameter(torch.zeros(0))
    with pytest.raises(CrocodilError, match=r"wte.weight has shape \(0,\).*gather"):
        save_llada(partitioned, tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- what is refused ----------------------------------------------------------------------------------------


def copy(name: str, tmp_path: Path) -> Path:
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder, ignore=shutil.ignore_patterns("reference*"))
    return folder


def edit_tensors(folder: Path, change: Callable[[dict], None], file: str = "model.safetensors") -> None:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def edit_json(folder: Path, file: str, change: Callable[[dict], None]) -> None:
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))


def config(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder, "config.json", lambda d: d.update(values))


def tensors(change: Callable[[dict], None]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, change)


def index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder, "model.safetensors.index.json", change)


def renamed(rename: Callable[[str], str]) -> Callable[[Path], None]:
    def change(tensors: dict) -> None:
        for name in list(tensors):
            tensors[rename(name)] = tensors.pop(name)

    return lambda folder: edit_tensors(folder, change)


def cut(file: str, share: float) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / file, int((folder / file).stat().st_size * share))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


SHARD = "model-00002-of-00003.safetensors"
BAD = {
    "missing tensor": ("base-seed0", tensors(lambda t: t.pop(HEAD)), f"lacks {HEAD}"),
    "extra tensor": (
        "base-seed0",
        tensors(lambda t: t.update(extra=torch.zeros(2))),
        "has extra, which this LLaDA",
    ),
    "wrong shape": (
        "base-seed0",
        tensors(lambda t: t.update({HEAD: torch.zeros(255, 64)})),
        rf"{HEAD} has shape \(255, 64\), config.json asks for \(256, 64\)",
    ),
    "quantised": (
        "base-seed0",
        tensors(lambda t: t.update({HEAD: torch.zeros(256, 64, dtype=torch.int8)})),
        "dtype I8: quantised",
    ),
    "mixed dtypes": (
        "base-seed0",
        tensors(lambda t: t.update({HEAD: t[HEAD].bfloat16()})),
        "mixes BF16 and F32 tensors: say which",
    ),
    "leading prefix": (
        "base-seed0",
        renamed(lambda name: "module." + name),
        f"named like module.{TABLE}, the released layout says {TABLE}: rename",
    ),
    "prefix gone": (
        "base-seed0",
        renamed(lambda name: name.removeprefix("model.")),
        "named like transformer.wte.weight",
    ),
    "other head": (
        "tied-seed0",
        tensors(lambda t: t.update({HEAD: t[TABLE] + 1})),
        "differs from .*wte.weight: set weight_tying to false",
    ),
    "cut to nothing": (
        "base-seed0",
        cut("model.safetensors", 0),
        "model.safetensors is damaged or cut short",
    ),
    "cut in the header": (
        "base-seed0",
        cut("model.safetensors", 0.001),
        "model.safetensors is damaged or cut short",
    ),
    "cut in the values": (
        "base-seed0",
        cut("model.safetensors", 0.99),
        "model.safetensors is damaged or cut short",
    ),
    "cut shard": ("base-seed2", cut(SHARD, 0.7), f"{SHARD} is damaged or cut short"),
    "LFS pointer": (
        "base-seed0",
        lambda f: (f / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
        ),
        "git lfs pull",
    ),
    "shard missing": ("base-seed2", lambda f: (f / SHARD).unlink(), f"{SHARD} is missing, though"),
    "shard swapped": (
        "base-seed2",
        lambda f: shutil.copy(f / "model-00001-of-00003.safetensors", f / SHARD),
        "disagree on .* more: fetch",
    ),
    "index forgets a tensor": (
        "base-seed2",
        index(lambda d: d["weight_map"].pop(HEAD)),
        f"disagree on {HEAD}",
    ),
    "index leaves the folder": (
        "base-seed2",
        index(lambda d: d["weight_map"].update({HEAD: "../x.safetensors"})),
        "'../x.safetensors', which is not a file of this folder",
    ),
    **{
        f"index names {name!r} a shard": (
            "base-seed2",
            index(lambda d, name=name: d["weight_map"].update({HEAD: name})),
            f"names '{name}', which is not a file",
        )
        for name in ("", ".", "..")
    },
    "folder for a shard": (
        "base-seed2",
        lambda f: [(f / SHARD).unlink(), (f / SHARD).mkdir()],
        f"{SHARD} cannot be read .Is a directory",
    ),
    "folder for the config": (
        "base-seed0",
        lambda f: [(f / "config.json").unlink(), (f / "config.json").mkdir()],
        "config.json cannot be read .Is a directory",
    ),
    "config is deep": (
        "base-seed0",
        lambda f: (f / "config.json").write_text("[" * 10**5),
        "config.json is not valid JSON",
    ),
    **{
        f"{number} in the config": (
            "base-seed0",
            lambda f, number=number: (f / "config.json").write_text(f'{{"rope_theta": {number}}}'),
            "config.json is not valid JSON",
        )
        for number in ("NaN", "-Infinity", "1e999", "9" * 5000)
    },
    "index without a map": ("base-seed2", index(lambda d: d.pop("weight_map")), "has no weight_map"),
    "index of another size": (
        "base-seed2",
        index(lambda d: d["metadata"].update(total_size=1)),
        "announces 1 bytes of weights, its shards hold 698112",
    ),
    "index and one file": (
        "base-seed2",
        lambda f: shutil.copy(f / SHARD, f / "model.safetensors"),
        "holds both model.safetensors and",
    ),
    "pickle": ("base-seed0", pickled, "offers pytorch_model.bin, a pickle"),
    "no weights": (
        "base-seed0",
        lambda f: (f / "model.safetensors").unlink(),
        "has neither model.safetensors nor",
    ),
    "no config": ("base-seed0", lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config is no JSON": (
        "base-seed0",
        lambda f: (f / "config.json").write_text("{"),
        "config.json is not valid JSON",
    ),
    "config is a list": (
        "base-seed0",
        lambda f: (f / "config.json").write_text("[]"),
        "holds a list instead of",
    ),
    "unknown key": ("base-seed0", config(rope_thetta=1.0), "unknown key 'rope_thetta'.*rope_theta"),
    "missing key": (
        "base-seed0",
        lambda f: edit_json(f, "config.json", lambda d: d.pop("d_model")),
        "missing d_model",
    ),
    "ALiBi": ("base-seed0", config(alibi=True), "alibi = True"),
    "no rotary": ("base-seed0", config(rope=False), "rope = False"),
    "sequential blocks": ("base-seed0", config(block_type="sequential"), "block_type = 'sequential'"),
    "layer norm": ("base-seed0", config(layer_norm_type="default"), "layer_norm_type = 'default'"),
    "swiglu": ("base-seed0", config(activation_type="swiglu"), "activation_type = 'swiglu'"),
    "biases": ("base-seed0", config(include_bias=True), "include_bias = True"),
    "QKV biases": (
        "base-seed0",
        config(include_qkv_bias=True),
        "lacks model.transformer.blocks.0.k_proj.bias",
    ),
    "norm of queries": ("base-seed0", config(attention_layer_norm=True), "attention_layer_norm = True"),
    "norm of embeddings": ("base-seed0", config(input_emb_norm=True), "input_emb_norm = True"),
    "scaled logits": ("base-seed0", config(scale_logits=True), "scale_logits = True"),
    "block groups": ("base-seed0", config(block_group_size=2), "block_group_size = 2"),
    "another model": ("base-seed0", config(model_type="llama"), "model_type = 'llama'"),
    **{
        f"{key} {value!r}": ("base-seed0", config(**{"mlp_hidden_size": None, key: value}), message)
        for key, value, message in (
            ("mlp_ratio", "x", "mlp_ratio = 'x' is not a value"),
            ("mlp_ratio", 0, "mlp_ratio = 0 is not a value"),
            ("rope_theta", 10**400, "rope_theta = 10+ is not a value"),
            ("rms_norm_eps", 0, "rms_norm_eps = 0 is not a value"),
            ("d_model", 2**50, "sizes too large"),
            ("embedding_size", 10**30, "sizes too large"),
        )
    },
    "heads do not divide": ("base-seed0", config(n_heads=5), "d_model 64, n_heads 5"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_checkpoint_is_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    fixture, spoil, message = BAD[fault]
    folder = copy(fixture, tmp_path)
    spoil(folder)
    with pytest.raises(CrocodilError, match=message) as error:
        load_llada(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_mixed_dtypes_are_read_into_the_one_asked_for(tmp_path: Path) -> None:
    folder = copy("base-seed0", tmp_path)
    edit_tensors(folder, lambda t: t.update({HEAD: t[HEAD].bfloat16()}))
    assert {p.dtype for p in load_llada(folder, dtype=torch.float32).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pt", "model.pt is a pickle"),
        ("model.safetensors", "is a file: give the folder"),
        ("nowhere", "nowhere: no such folder"),
    ],
)
def test_what_is_not_a_folder_is_refused(name: str, message: str, tmp_path: Path) -> None:
    if name != "nowhere":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CrocodilError, match=message):
        load_llada(tmp_path / name)


def test_no_pickle_is_ever_opened(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "opened"),))

    folder = copy("base-seed0", tmp_path)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(CrocodilError, match="damaged"):
        load_llada(folder)
    assert not (tmp_path / "opened").exists()
