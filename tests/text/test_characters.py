"""Texts of 27 characters, a token each, and what is counted in them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crocodil.demasker.llada import LLaDA
from crocodil.errors import CrocodilError
from crocodil.text.characters import bits_per_character, character_vocabulary, letters
from crocodil.text.data import DataConfig, Texts
from crocodil.text.vocabulary import Vocabulary

TEXTS = {
    "Hello, World!": "hello world",
    "x_1 = 42": "x one four two",
    "0123456789": "zero one two three four five six seven eight nine",
    "in1998the": "in one nine nine eight the",
    "\n\t def\r\n\n  f()": "def f",
    "don't": "don t",
    "caf\u00e9 na\u00efve": "caf na ve",
    # lower() would make a k and an s of these, and \d takes the last one for a digit
    "a\u212ab\u017fc\u0663d": "a b c d",
    "!\u65e5\u672c": "",
}


@pytest.mark.parametrize(("text", "wanted"), TEXTS.items())
def test_letters_are_what_text8_leaves_of_a_text(text: str, wanted: str) -> None:
    assert letters(text) == wanted
    assert letters(wanted) == wanted


def test_every_character_is_one_token_and_there_is_no_row_to_spare() -> None:
    vocabulary = character_vocabulary()
    characters = " abcdefghijklmnopqrstuvwxyz"
    assert vocabulary.size == 30
    assert vocabulary.encode(characters) == list(range(27))
    assert [vocabulary.bos_id, vocabulary.eos_id, vocabulary.mask_id] == [27, 28, 29]
    assert vocabulary.encode(characters, 5) == [0, 1, 2, 3, 4]
    assert vocabulary.encode_batch(["ab", ""]) == [[1, 2], []]
    assert vocabulary.decode([27, *vocabulary.encode("a bc"), 29, 28, 3]) == "a bc"


@pytest.mark.parametrize("text", ["caf\u00e9", "A", "a\n", "<|mdm_mask|>"])
def test_other_characters_are_refused_in_one_line(text: str) -> None:
    vocabulary = character_vocabulary()
    for encode in (vocabulary.encode, lambda text: vocabulary.encode_batch(["a", text])):
        with pytest.raises(CrocodilError, match="none of the 27 characters .* `letters`") as error:
            encode(text)
        assert "\n" not in str(error.value)


def test_it_is_saved_and_loaded_and_opened_by_transformers(tmp_path: Path, python_source: str) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary, text = character_vocabulary(), letters(python_source)
    vocabulary.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert again.fingerprint == vocabulary.fingerprint == character_vocabulary().fingerprint
    assert again.size == 30 and again.encode(text) == vocabulary.encode(text)
    with pytest.raises(CrocodilError, match="none of the 27 characters"):
        again.encode("A")
    # the tokenizer itself and our short cut agree
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == vocabulary.encode(text)


def test_a_corpus_of_letters_holds_nothing_else_and_is_not_that_of_the_texts(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.py").write_text(
            f"def Function_{i}(x):\n    return {i * 7} * x  # caf\u00e9\n" * (1 + i)
        )
    (folder / "digit.py").write_text("1 + \u65e5\n")
    (folder / "empty.py").write_text("(\u65e5)\n")
    config = DataConfig(str(folder), 0.3, lengths=(16, 64), cache=str(tmp_path / "cache"), letters=True)
    vocabulary = character_vocabulary()
    assert all(re.fullmatch("[a-z]+( [a-z]+)*", text) for text in Texts(config).sample())
    train, held_out = Texts(config).windows(vocabulary, 0)
    assert len(train.tokens) + len(held_out.tokens) == 13  # all but the one without a letter
    texts = {
        vocabulary.decode(side.tokens.document(i))
        for side in (train, held_out)
        for i in range(len(side.tokens))
    }
    assert "one" in texts
    assert " ".join(["def function three x return two one x caf"] * 4) in texts
    assert {file.name for file in (tmp_path / "cache").iterdir()} == {
        train.tokens.digest,
        held_out.tokens.digest,
    }
    assert max(int(ids.max()) for ids in (train.tokens.ids_T, held_out.tokens.ids_T)) < 27


def test_streamed_letters_are_refused() -> None:
    with pytest.raises(CrocodilError, match="letters is not for streamed"):
        DataConfig(letters=True, streaming=True)


def test_who_knows_nothing_needs_the_bits_of_the_table(make_llada: Callable[..., LLaDA]) -> None:
    vocabulary = character_vocabulary()
    llada = make_llada(
        vocab_size=vocabulary.size,
        embedding_size=vocabulary.size,
        mask_token_id=vocabulary.mask_id,
        eos_token_id=vocabulary.eos_id,
    )
    ids = torch.tensor(vocabulary.encode(letters("The quick brown fox, 1 of 7")))
    torch.nn.init.zeros_(llada.head_weight)
    nats = torch.nn.functional.cross_entropy(llada(ids[None])[0], ids, reduction="sum")
    assert bits_per_character(nats.item(), len(ids)) == pytest.approx(math.log2(30))
