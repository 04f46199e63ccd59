"""The recipe that prepares texts, and the trainings that open what it wrote."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import crocodil.text.files
from crocodil.bundle import open_demasker, save_unguided
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.weights import save_llada
from crocodil.errors import CrocodilError, one_line_errors
from crocodil.text.data import DataConfig, Texts
from crocodil.text.vocabulary import Vocabulary
from crocodil.training.config import load_config
from recipes.prepare_texts import TextsRecipe, main, open_vocabulary

ROOT = Path(__file__).parents[2]
SMALL = ("data.held_out=0.2", "data.lengths=[32]")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.py").write_text(f"def function_{i}(x):\n    return x * {i}\n" * (i + 1))
    return folder


@pytest.fixture
def prepare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """`prepare(*overrides)`: the recipe; what it said on stdout and on stderr. Exit code 2 is SystemExit."""

    def run(*overrides: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["prepare_texts.py", *SMALL, *overrides])
        with one_line_errors():
            main()
        return tuple(capsys.readouterr())

    return run


def test_a_training_opens_what_the_recipe_wrote(
    texts: Path,
    tmp_path: Path,
    tiny_vocabulary: Vocabulary,
    make_llada: Callable[..., LLaDA],
    prepare: Callable[..., tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the demasker is a released checkpoint or an export of ours, whose vocabulary is read without weights."""
    released, ours = tmp_path / "released", tmp_path / "ours"
    save_llada(make_llada(), released)
    tiny_vocabulary.tokenizer.save(str(released / "tokenizer.json"))
    ours.mkdir()
    save_unguided(ours, make_llada(), tiny_vocabulary)
    for folder in (released, ours):
        vocabulary = open_demasker(folder)[1]
        for weights in folder.rglob("*.safetensors"):
            weights.unlink()
        assert open_vocabulary(str(folder)).fingerprint == vocabulary.fingerprint
        assert open_vocabulary(str(folder)).size == vocabulary.size
    where = [f"demasker={ours}", f"data.source={texts}", f"data.cache={tmp_path / 'cache'}"]
    out, err = prepare(*where)
    assert "is complete" in err and "to train on: " in out and vocabulary.fingerprint in out
    monkeypatch.setattr(crocodil.text.files, "_rows", lambda *_: pytest.fail("the source is read again"))
    config = DataConfig(
        str(texts),
        held_out=0.2,
        lengths=(64,),
        cache=str(tmp_path / "cache"),
        streaming=True,
        short_fraction=0.5,
    )
    train, held_out = Texts(config).windows(vocabulary, seed=1)
    assert len(train.tokens) + len(held_out.tokens) == 40
    assert f"{len(train.tokens):,} texts, {len(train.tokens.ids_T):,} tokens" in out


def test_verifying_finds_what_changed(
    texts: Path, tmp_path: Path, prepare: Callable[..., tuple[str, str]]
) -> None:
    where = [f"data.source={texts}", f"data.cache={tmp_path / 'cache'}"]
    prepare(*where)
    (ids,) = (tmp_path / "cache").glob("*/train/ids.npy")
    whole = ids.read_bytes()
    ids.write_bytes(whole[:-2] + bytes(2))
    assert "is damaged" in prepare(*where, "--verify")[1]
    assert ids.read_bytes() == whole
    assert "is whole" in prepare(*where, "--verify")[1]


def test_texts_in_memory_are_not_prepared() -> None:
    with pytest.raises(CrocodilError, match="data.streaming is false"):
        load_config(TextsRecipe, None, ["data.streaming=false"])


def test_the_shipped_configuration_prepares_what_the_trainings_open() -> None:
    configs = ROOT / "recipes" / "configs"
    file = configs / "llada-8b-texts.yaml"
    prepared = load_config(TextsRecipe, str(file))
    assert f"python recipes/prepare_texts.py --config recipes/configs/{file.name}" in file.read_text()
    for name in ("llada-8b-base", "llada-8b", "llada-8b-lora", "llada-8b-registers", "llada-8b-denoiser"):
        data = yaml.safe_load((configs / f"{name}.yaml").read_text())["data"]
        lengths = tuple(data.pop("lengths"))
        trained = DataConfig(**data, lengths=lengths)
        assert trained.streaming and trained.text_source == prepared.data.text_source, name
        assert trained.cache == prepared.data.cache, name


def test_a_mistake_is_one_line(
    tmp_path: Path, prepare: Callable[..., tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for override in (
        f"data.source={tmp_path / 'nowhere'}",
        f"demasker={tmp_path / 'nowhere'}",
        "data.limit=0",
    ):
        with pytest.raises(SystemExit) as caught:
            prepare(override, f"data.cache={tmp_path / 'cache'}")
        err = capsys.readouterr().err
        assert caught.value.code == 2 and err.count("\n") == 1 and err.startswith("crocodil: ")
