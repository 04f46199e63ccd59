"""From a source to tokenised texts: held out by file, prepared once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crocodil.text.data
from crocodil.errors import CrocodilError
from crocodil.text.data import DataConfig, load_split, tokenised
from crocodil.text.vocabulary import Vocabulary


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        lines = [f"def function_{i}_{j}(x):\n    return x * {i * 7 + j} + {j}\n" for j in range(5 + i)]
        (folder / f"{i:02}.py").write_text("\n".join(lines))
    (folder / "notes.md").write_text("no program")
    return folder


def test_files_are_held_out_and_the_same_ones_every_time(source: Path) -> None:
    config = DataConfig(str(source), held_out=0.25)
    parts = load_split(config)
    train, held_out = {d.id for d in parts.train}, {d.id for d in parts.held_out}
    assert not train & held_out and len(train | held_out) == 20
    assert 1 <= len(held_out) <= 10
    again = load_split(config)
    assert {d.id for d in again.held_out} == held_out
    assert {d.id for d in load_split(DataConfig(str(source), 0.25, split_seed=1)).held_out} != held_out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"held_out": x}, f"data.held_out is {x}; give a share from 0 to") for x in (5.0, 1.0, -0.1, math.nan)),
        ({"held_out": 0.0, "streaming": True}, "data.held_out is 0.0; give a share above 0 and below 1"),
        *(({"short_fraction": x}, f"data.short_fraction is {x}; give a share") for x in (7.0, -0.1, math.nan)),
        *(({"limit": limit}, f"data.limit is {limit}; give 1 to 2,147,483,647") for limit in (0, -1, 10**31)),
    ],
)  # fmt: skip
def test_numbers_that_no_texts_have_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CrocodilError, match=message):
        DataConfig(**settings)


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CrocodilError, match="no source"):
        load_split(DataConfig(str(tmp_path / "nowhere")))


def test_texts_are_tokenised_once(
    source: Path, tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, cache = load_split(DataConfig(str(source), 0.25)).train, tmp_path / "cache"
    first = tokenised(documents, vocabulary, cache)
    assert len(first) == len(documents)
    for i, document in enumerate(documents):
        assert vocabulary.decode(first.document(i).tolist()) == document.text

    def again(*_: object) -> None:
        raise AssertionError("tokenised a second time")

    monkeypatch.setattr(crocodil.text.data, "tokenise", again)
    second = tokenised(documents, vocabulary, cache)
    assert np.array_equal(first.ids_T, second.ids_T) and first.digest == second.digest
    assert isinstance(second.ids_T, np.memmap)
    with pytest.raises(AssertionError, match="a second time"):  # other documents are another corpus
        tokenised(documents[1:], vocabulary, cache)


def test_another_vocabulary_is_another_corpus(
    source: Path, tmp_path: Path, vocabulary: Vocabulary, other_vocabulary: Vocabulary
) -> None:
    documents = load_split(DataConfig(str(source), 0.25)).held_out
    cache = tmp_path / "cache"
    ours, theirs = tokenised(documents, vocabulary, cache), tokenised(documents, other_vocabulary, cache)
    assert ours.fingerprint != theirs.fingerprint and len(list(cache.iterdir())) == 2
    assert vocabulary.decode(ours.document(0).tolist()) == other_vocabulary.decode(
        theirs.document(0).tolist()
    )
