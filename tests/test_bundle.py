"""A model as a folder: it comes back bit for bit, sentence-transformers opens its encoder, damage is named."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

import crocodil.bundle
from crocodil.attention import Segments
from crocodil.autoencoder import Autoencoder
from crocodil.bundle import (
    BUNDLED,
    SHAPE,
    load_autoencoder,
    open_augmented,
    open_demasker,
    pinned,
    read_index,
    resolve,
    save_autoencoder,
    save_unguided,
)
from crocodil.errors import CrocodilError
from crocodil.text.vocabulary import Vocabulary, train_bpe

Make = Callable[..., Autoencoder]
# sentence-transformers strips a text, the encoder does not: so none has white space at its ends
TEXTS = ("def area(side):\n    return side * side", "日本 x12", "print(number)", "")


def registers(autoencoder: Autoencoder, vocabulary: Vocabulary, k: int = 4) -> torch.Tensor:
    """(texts, k, D)"""
    ids = [vocabulary.encode(text) for text in TEXTS]
    with torch.no_grad():
        z = autoencoder.encoder(
            torch.tensor([i for text in ids for i in text]),
            Segments.of([len(text) for text in ids]),
            [k] * len(ids),
        )
    return z.unflatten(0, (len(ids), k))


def logits(autoencoder: Autoencoder, z_BKD: torch.Tensor) -> torch.Tensor:
    ids = torch.arange(40).view(4, 10)
    with torch.no_grad():
        return autoencoder.demasker.logits(ids, torch.ones_like(ids, dtype=torch.bool), z_BKD)


def save(folder: Path, autoencoder: Autoencoder, vocabulary: Vocabulary, **options: Any) -> Path:
    folder.mkdir()
    save_autoencoder(folder, autoencoder, vocabulary, 32, **options)
    return folder


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"layout": "contiguous"},
        {"scale": "layer_norm"},
        {"K": 1},
        {"weight_tying": True},
        {"suffix_from": 31},
    ],
    ids=["anchored", "contiguous", "layer norm", "one register", "tied", "suffix at a fixed place"],
)
def test_a_model_comes_back_bit_for_bit(
    made: dict[str, Any], make_autoencoder: Make, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    before = make_autoencoder(**made)
    after, vocabulary = load_autoencoder(save(tmp_path / "model", before, tiny_vocabulary))
    assert vocabulary.fingerprint == tiny_vocabulary.fingerprint
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    K = made.get("K", 4)
    z = registers(before, tiny_vocabulary, K)
    assert torch.equal(registers(after, vocabulary, K), z)
    assert torch.equal(logits(after, z), logits(before, z))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_are_close_and_computed_in_float32(
    dtype: torch.dtype, make_autoencoder: Make, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    before = make_autoencoder()
    folder = save(tmp_path / "model", before, tiny_vocabulary, dtype=dtype)
    after, vocabulary = load_autoencoder(folder)
    assert {parameter.dtype for parameter in after.parameters()} == {torch.float32}
    z = registers(before, tiny_vocabulary)
    assert torch.cosine_similarity(registers(after, vocabulary), z, dim=-1).min() > 0.999
    assert (logits(after, z) - logits(before, z)).norm() < 0.02 * logits(before, z).norm()
    weights = [load_file(file) for file in folder.rglob("*.safetensors")]
    assert len(weights) == 4 and {tensor.dtype for file in weights for tensor in file.values()} == {dtype}


@pytest.mark.parametrize("kind", ["tiny_bundle", "tiny_latents"])
def test_what_was_read_can_be_written_again(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle: Path = request.getfixturevalue(kind)
    found = open_augmented(bundle)
    assert found.autoencoder is not None and (found.demasker.latents is None) == (kind == "tiny_bundle")
    again = save(tmp_path / "model", found.autoencoder, found.vocabulary, latents=found.demasker.latents)
    for file in sorted(path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()):
        assert (again / file).read_bytes() == (bundle / file).read_bytes(), file


def test_the_record_of_training_goes_with_it(
    make_autoencoder: Make, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    made = {"recipe": "train_demasker", "steps": 7000, "run": Path("runs/x")}
    folder = save(tmp_path / "model", make_autoencoder(), tiny_vocabulary, trained=made)
    assert json.loads((folder / "training.json").read_text()) == made | {"run": "runs/x"}
    assert "`recipes/train_demasker.py`, 7,000 optimiser steps" in (folder / "README.md").read_text()
    load_autoencoder(folder)
    other = save(tmp_path / "other", make_autoencoder(), tiny_vocabulary, trained={"steps": 7})
    assert json.loads((other / "training.json").read_text()) == {"steps": 7}
    assert tiny_vocabulary.fingerprint in (other / "README.md").read_text()


@pytest.mark.parametrize("scale", ["sqrt_d", "layer_norm"])
def test_sentence_transformers_opens_the_encoder_and_gives_register_1(
    scale: str, make_autoencoder: Make, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    autoencoder = make_autoencoder(scale=scale)
    folder = save(tmp_path / "model", autoencoder, tiny_vocabulary) / "encoder"
    theirs = torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS)))
    ours = registers(make_autoencoder(), tiny_vocabulary)[
        :, 0
    ]  # the ablation's norm is no part of the embedding
    assert torch.cosine_similarity(ours, theirs).min() > 0.99999
    assert torch.allclose(theirs.norm(dim=-1), torch.tensor(1.0), atol=1e-5)


def test_an_index_from_before_suffix_from_still_loads(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "model"))
    edit("config.json", lambda c: c.pop("suffix_from"))(folder)
    assert load_autoencoder(folder)[0].encoder.suffix_from is None


def test_an_unguided_demasker_has_a_folder_too(
    make_autoencoder: Make, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    llada, folder = make_autoencoder().demasker.llada, tmp_path / "base"
    folder.mkdir()
    save_unguided(folder, llada, tiny_vocabulary)
    for place in (folder, folder / "demasker"):  # an export, or a LLaDA checkpoint with its tokenizer
        if place != folder:
            tiny_vocabulary.save(place)
        again, vocabulary = open_demasker(place)
        assert vocabulary.fingerprint == tiny_vocabulary.fingerprint
        assert all(torch.equal(a, b) for a, b in zip(llada.parameters(), again.parameters(), strict=True))
    with pytest.raises(CrocodilError, match="is a demasker without registers; train_demasker.py makes"):
        load_autoencoder(folder)


def test_a_guided_model_serves_as_an_unguided_one(tiny_bundle: Path, make_autoencoder: Make) -> None:
    llada, _ = open_demasker(tiny_bundle)
    assert torch.equal(llada.head_weight, make_autoencoder().demasker.llada.head_weight)


def test_names_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("bundled") == resolve("nano") == BUNDLED
    assert resolve(tmp_path) == tmp_path and resolve("~") == Path.home()
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        if name == "nobody/nothing":
            raise LocalEntryNotFoundError("no connection\nand several lines")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name in ("someone/a-model", "someone/a-model@v1.0", "someone/a-model@feature/x"):
        assert resolve(name) == tmp_path
    assert [(name, revision) for name, revision, _ in asked] == [
        ("someone/a-model", None),
        ("someone/a-model", "v1.0"),
        ("someone/a-model", "feature/x"),
    ]
    # neither code nor a pickle is ever fetched
    assert not any(pattern.endswith((".py", ".bin", ".pt", ".pkl", "*")) for pattern in asked[0][2])
    with pytest.raises(CrocodilError, match="no model 'nobody/nothing': not a folder here") as error:
        resolve("nobody/nothing")
    assert "\n" not in str(error.value)
    with pytest.raises(CrocodilError, match="no model 'a/b@': no revision behind the @"):
        resolve("a/b@")
    (tmp_path / "a@b").mkdir()
    assert resolve(tmp_path / "a@b") == tmp_path / "a@b"
    asked.clear()
    for name in ("./runs/export", "a/b/c", "a/b/c@d", "/nowhere/model", "nowhere", "x@y"):
        with pytest.raises(CrocodilError, match="holds no crocodil model"):
            read_index(resolve(name))
    with pytest.raises(CrocodilError, match="no model '~nosuchuser/m': there is no such home folder"):
        resolve("~nosuchuser/m")
    assert not asked


@pytest.fixture
def hub(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A hub cache that holds the tiny model as someone/tiny: one commit, that main and v1 lead to. No network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_bundle, place / "snapshots" / commit)
    (place / "refs").mkdir()
    for name in ("main", "v1"):
        (place / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return place / "snapshots" / commit, commit


def test_a_cached_model_of_the_hub_loads_offline(hub: tuple[Path, str], tiny_bundle: Path) -> None:
    folder, commit = hub
    for name in ("someone/tiny", "someone/tiny@main", "someone/tiny@v1", f"someone/tiny@{commit}"):
        assert resolve(name) == folder
        assert pinned(name) == f"someone/tiny@{commit}"
    ours, _ = load_autoencoder("someone/tiny@v1")
    theirs, _ = load_autoencoder(tiny_bundle)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert pinned(str(tiny_bundle)) == str(tiny_bundle) and pinned("bundled") == "bundled"
    assert pinned(str(folder)) == str(folder)
    for name in ("someone/tiny@v2", "someone/else", "someone/tiny@../..", "some one/tiny", "a--b/c..d"):
        with pytest.raises(CrocodilError, match=f"no model '{name}'") as error:
            resolve(name)
        assert "\n" not in str(error.value)


def test_a_demasker_comes_in_the_dtype_that_is_asked_for(
    tiny_bundle: Path, make_autoencoder: Make, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    half = save(tmp_path / "half", make_autoencoder(), tiny_vocabulary, dtype=torch.float16)
    for folder, dtype, expected in (
        (tiny_bundle, torch.bfloat16, torch.bfloat16),
        (half, None, torch.float16),
        (half, torch.float32, torch.float32),
    ):
        autoencoder, _ = load_autoencoder(folder, dtype=dtype)
        assert {parameter.dtype for parameter in autoencoder.demasker.parameters()} == {expected}
        assert {parameter.dtype for parameter in autoencoder.encoder.parameters()} == {torch.float32}
        assert {p.dtype for p in open_demasker(folder, dtype)[0].parameters()} == {expected}
    mapped, _ = open_demasker(half, mapped=True)
    assert {parameter.dtype for parameter in mapped.parameters()} == {torch.float16}


# --- what is refused ---


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return spoil


def retensor(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = {key: value.clone() for key, value in load_file(folder / name).items()}
        change(tensors)
        save_file(tensors, folder / name)

    return spoil


def cut(name: str, share: float = 0.7) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return spoil


def lose(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def folder_instead(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def fill(name: str, tensor: str, value: float) -> Callable[[Path], None]:
    return retensor(name, lambda t: t[tensor].view(-1)[:1].fill_(value))


def retype(name: str, tensor: str, dtype: torch.dtype) -> Callable[[Path], None]:
    return retensor(name, lambda t: t.update({tensor: t[tensor].to(dtype)}))


def foreign_tokenizer(folder: Path) -> None:
    train_bpe(["another language altogether " * 9], 320).save(folder / "tokenizer")


def foreign_encoder(folder: Path) -> None:
    """Of a model of the same shapes, but for the size of its vocabulary."""
    edit("encoder/config.json", lambda c: c.update(vocab_size=64))(folder)
    table = "embed_tokens.weight"
    retensor("encoder/model.safetensors", lambda t: t.update({table: t[table][:64].clone()}))(folder)


GUIDE, SUFFIX = "demasker/guide.safetensors", "encoder/registers.safetensors"
ENCODER, DEMASKER = "encoder/model.safetensors", "demasker/model.safetensors"
HEAD = "model.transformer.ff_out.weight"
BAD: dict[str, tuple[Callable[[Path], None], str, str]] = {
    # what is wrong: (how to make it, the file that the message names, what it says)
    "no index": (lose("config.json"), "", "config.json is missing"),
    "index is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json", "not valid JSON"),
    "index is no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json", "not valid JSON"),
    "index is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json", "holds a list"),
    "index is deep": (lambda f: (f / "config.json").write_text("[" * 10**5), "config.json", "not valid JSON"),
    "index with a huge number": (
        lambda f: (f / "config.json").write_text('{"K": ' + "9" * 5000 + "}"), "config.json", "not valid JSON"
    ),
    "index with an unknown key": (edit("config.json", lambda c: c.update(nfe=3)), "config.json", "unknown key 'nfe'"),
    "index lacks a key": (edit("config.json", lambda c: c.pop("window")), "config.json", "'window'"),
    "another format": (edit("config.json", lambda c: c.update(format=2)), "config.json", "format 2"),
    "another kind": (edit("config.json", lambda c: c.update(kind="car")), "config.json", "kind is 'car', not one of"),
    "another layout": (edit("config.json", lambda c: c.update(layout="x")), "config.json", "layout is 'x'"),
    "another scale": (edit("config.json", lambda c: c.update(scale=None)), "config.json", "scale is None"),
    "K is no number": (edit("config.json", lambda c: c.update(K="4")), "config.json", "must be whole numbers"),
    "another K": (edit("config.json", lambda c: c.update(K=8)), SUFFIX, r"suffix has shape \(3, 24\)"),
    "another D": (edit("config.json", lambda c: c.update(D=48)), GUIDE, r"projection.weight has shape \(32, 24\)"),
    "guide cut short": (cut(GUIDE), GUIDE, "damaged or cut short"),
    "guide missing": (lose(GUIDE), GUIDE, "cannot be read"),
    "guide lacks a tensor": (retensor(GUIDE, lambda t: t.pop("boundaries")), GUIDE, "lacks boundaries"),
    "guide has one more": (retensor(GUIDE, lambda t: t.update(x=torch.ones(1))), GUIDE, "does not belong, x"),
    "suffix cut short": (cut(SUFFIX, 0.2), SUFFIX, "damaged or cut short"),
    "suffix missing": (lose(SUFFIX), SUFFIX, "cannot be read"),
    "suffix has one more": (retensor(SUFFIX, lambda t: t.update(x=torch.ones(1))), SUFFIX, "does not belong, x"),
    "encoder cut short": (cut(ENCODER), ENCODER, "damaged or cut short"),
    "encoder missing": (lose(ENCODER), "encoder", "has neither model.safetensors"),
    "encoder lacks a tensor": (retensor(ENCODER, lambda t: t.pop("norm.weight")), "encoder", "lacks norm.weight"),
    "encoder has one more": (retensor(ENCODER, lambda t: t.update(x=torch.ones(1))), "encoder", "not belong, x"),
    "encoder of other shapes": (
        edit("encoder/config.json", lambda c: c.update(intermediate_size=44)), "encoder", "has shape"
    ),
    "encoder with fewer layers": (
        edit("encoder/config.json", lambda c: c.update(num_hidden_layers=1)), "encoder", "does not belong, layers.1"
    ),
    "encoder config with an unknown key": (
        edit("encoder/config.json", lambda c: c.update(hiden_size=24)), "encoder/config.json",
        "unknown key 'hiden_size' for a Qwen3; did you mean 'hidden_size'",
    ),
    "encoder config of another type": (
        edit("encoder/config.json", lambda c: c.update(hidden_size="24")), "encoder/config.json", "hidden_size",
    ),
    "encoder config missing": (lose("encoder/config.json"), "encoder/config.json", "is missing"),
    "encoder config is no JSON": (cut("encoder/config.json"), "encoder/config.json", "not valid JSON"),
    "encoder with sliding windows": (
        edit("encoder/config.json", lambda c: c.update(layer_types=["full_attention", "sliding_attention"])), "",
        "sliding windows",
    ),
    "encoder of another vocabulary": (foreign_encoder, "", "encoder and demasker do not belong together"),
    "demasker cut short": (cut(DEMASKER), DEMASKER, "damaged or cut short"),
    "demasker lacks a tensor": (retensor(DEMASKER, lambda t: t.pop(HEAD)), "demasker", "lacks model.transformer.ff_out"),
    "demasker has one more": (retensor(DEMASKER, lambda t: t.update(x=torch.ones(1))), "demasker", "has x"),
    "demasker config with an unknown key": (
        edit("demasker/config.json", lambda c: c.update(d_modell=4)), "demasker/config.json", "unknown key 'd_modell'"
    ),
    "demasker config of another mask": (
        edit("demasker/config.json", lambda c: c.update(mask_token_id=0)), "", "tokenizer and demasker do not belong",
    ),
    "foreign tokenizer": (foreign_tokenizer, "tokenizer", "is another vocabulary"),
    "tokenizer cut short": (cut("tokenizer/tokenizer.json"), "tokenizer/tokenizer.json", "cannot be read"),
    "tokenizer missing": (lose("tokenizer/tokenizer.json"), "tokenizer/tokenizer.json", "does not exist|missing"),
    **{
        f"index without {key}": (edit("config.json", lambda c, key=key: c.pop(key)), "config.json", f"lacks '{key}'")
        for key in ("K", "D", "layout", "local_pairs", "scale")
    },
    **{
        f"{name} is {value!r}": (edit("config.json", lambda c, n=name, v=value: c.update({n: v})), "config.json", message)
        for name, value, message in (
            ("K", 3, "power of two"), ("K", 0, "power of two"), ("K", 2**40, "whole numbers"),
            ("local_pairs", [9], "rotary pairs"), ("local_pairs", None, "whole numbers"),
            ("suffix_from", 1.5, "whole numbers"), ("suffix_from", False, "whole numbers"),
            ("window", 2, "window is 2, this"), ("window", 10**6, "3 to 64 tokens"),
        )
    },
    **{
        f"encoder config without {key}": (
            edit("encoder/config.json", lambda c, key=key: c.pop(key)), "encoder/config.json", f"lacks '{key}'"
        )
        for key in SHAPE
    },
    **{
        f"{key} of the encoder is {value!r}": (
            edit("encoder/config.json", lambda c, k=key, v=value: c.update({k: v})), "encoder/config.json", message
        )
        for key, value, message in (
            ("rope_parameters", None, "lacks"), ("rope_parameters", {}, "rope_theta is None"),
            ("rope_parameters", {"rope_type": "banana", "rope_theta": 9.0}, "no model can be built of it .*banana"),
            ("rope_parameters", {"rope_theta": math.inf}, "Infinity is no finite"), ("rms_norm_eps", math.nan, "NaN"),
            ("rms_norm_eps", -1.0, "not a positive number"), ("hidden_act", "banana", "banana"),
            ("num_attention_heads", 0, "ZeroDivisionError"), ("head_dim", 0, "ZeroDivisionError"),
            ("pad_token_id", 10**9, "AssertionError"), ("vocab_size", 10**30, "no model can be built"),
        )
    },
    "encoder config of a huge vocabulary": (
        edit("encoder/config.json", lambda c: c.update(vocab_size=10**15)), "encoder", "has shape"
    ),
    "demasker config of a huge width": (
        edit("demasker/config.json", lambda c: c.update(d_model=10**15)), "demasker/config.json", "too large"
    ),
    "NaN in the encoder": (fill(ENCODER, "embed_tokens.weight", math.nan), "encoder", "embed_tokens.weight contains NaN"),
    "infinity in the suffix": (fill(SUFFIX, "suffix", math.inf), SUFFIX, "suffix contains NaN or inf"),
    "whole numbers in the guide": (retype(GUIDE, "boundaries", torch.int8), GUIDE, "boundaries has dtype I8"),
    "complex numbers in the suffix": (retype(SUFFIX, "suffix", torch.complex64), SUFFIX, "suffix has dtype C64"),
    "a folder for the guide": (folder_instead(GUIDE), GUIDE, "cannot be read .Is a directory"),
    "a folder for the weights": (folder_instead(ENCODER), ENCODER, "cannot be read .Is a directory"),
    "a folder for a config": (folder_instead("encoder/config.json"), "encoder/config.json", "Is a directory"),
    "names of tokens cut short": (
        cut("tokenizer/tokenizer_config.json"), "tokenizer/tokenizer_config.json", "cannot be read"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_model_is_refused_in_one_line_that_names_the_file(
    fault: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "model"))
    spoil, file, message = BAD[fault]
    spoil(folder)
    with pytest.raises(CrocodilError, match=message) as error:
        load_autoencoder(folder)
    assert "\n" not in str(error.value)
    assert fault == "encoder with sliding windows" or str(folder / file) in str(error.value)


def test_a_path_that_is_not_utf8_is_called_that(tiny_bundle: Path, tmp_path: Path) -> None:
    try:
        folder = Path(shutil.copytree(tiny_bundle, os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(CrocodilError, match="not UTF-8: rename it"):
        load_autoencoder(folder)
    Vocabulary.load(folder / "tokenizer")


class Canary:
    def __reduce__(self) -> tuple:
        return (exec, ("raise AssertionError('a pickle was opened')",))


@pytest.mark.parametrize("file", [GUIDE, SUFFIX, ENCODER, DEMASKER])
def test_no_pickle_is_ever_opened(file: str, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "model"))
    (folder / file).write_bytes(pickle.dumps(Canary()))
    with pytest.raises(CrocodilError):
        load_autoencoder(folder)
    (folder / file).rename((folder / file).with_name("pytorch_model.bin"))
    with pytest.raises(CrocodilError):
        load_autoencoder(folder)


def test_the_module_has_no_reader_of_pickles() -> None:
    source = Path(crocodil.bundle.__file__).read_text()
    assert "torch.load(" not in source and "trust_remote_code=True" not in source


def test_weights_are_readable_as_far_as_the_umask_lets(tmp_path: Path) -> None:
    from crocodil.shards import write_file

    before = os.umask(0o027)
    try:
        write_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
