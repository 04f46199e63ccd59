from __future__ import annotations

import json

import numpy as np
import pytest

from crocodil.errors import CrocodilError
from crocodil.text.corpus import Document
from crocodil.text.tokens import TokenisedCorpus, corpus_digest, tokenise
from crocodil.text.vocabulary import Vocabulary

DOCUMENTS = [Document("a", "a = 1\n"), Document("b", "<|endoftext|>"), Document("c", "日本語")] * 200


@pytest.fixture
def corpus(vocabulary):
    return tokenise(iter(DOCUMENTS), vocabulary)


def test_documents_are_encoded_in_order(corpus, vocabulary):
    assert len(corpus) == 600 and corpus.ids_T.dtype == np.uint16
    for index in (0, 1, 2, 257, 599):
        assert corpus.document(index).tolist() == vocabulary.encode(DOCUMENTS[index].text)
        assert corpus.names[index] == DOCUMENTS[index].id


def test_large_tables_take_wider_ids(vocabulary):
    assert tokenise(DOCUMENTS[:1], Vocabulary(vocabulary.tokenizer, size=126_464)).ids_T.dtype == np.int32


def test_saved_corpus_is_mapped_and_the_same(corpus, vocabulary, tmp_path):
    corpus.save(tmp_path / "train")
    first = (tmp_path / "train").stat().st_ino
    corpus.save(tmp_path / "train")  # as another process would that began at the same time
    assert (tmp_path / "train").stat().st_ino == first, "somebody may be reading it"
    (tmp_path / "train" / "ids.npy").unlink()
    corpus.save(tmp_path / "train")  # replaces what is damaged
    again = TokenisedCorpus.load(tmp_path / "train", vocabulary, DOCUMENTS)
    assert isinstance(again.ids_T, np.memmap)
    assert np.array_equal(again.ids_T, corpus.ids_T) and np.array_equal(again.offsets, corpus.offsets)
    assert (again.names, again.digest) == (corpus.names, corpus.digest)
    assert [file.name for file in tmp_path.iterdir()] == ["train"]


def test_digest_is_of_vocabulary_and_documents(corpus, vocabulary, other_vocabulary):
    assert corpus_digest(DOCUMENTS, vocabulary) == corpus.digest
    others = [
        corpus_digest(DOCUMENTS, other_vocabulary),
        corpus_digest(DOCUMENTS[1:], vocabulary),
        corpus_digest([Document("a", "b = 1\n"), *DOCUMENTS[1:]], vocabulary),
        corpus_digest([Document("ab", "a = 1\n"), *DOCUMENTS[1:]], vocabulary),
    ]
    assert len({corpus.digest, *others}) == 5


def test_stale_and_damaged_folders_are_refused(corpus, vocabulary, other_vocabulary, tmp_path):
    folder = tmp_path / "train"
    with pytest.raises(CrocodilError, match="no tokenised corpus"):
        TokenisedCorpus.load(folder, vocabulary)
    corpus.save(folder)
    with pytest.raises(CrocodilError, match="other documents"):
        TokenisedCorpus.load(folder, vocabulary, DOCUMENTS[1:])
    with pytest.raises(CrocodilError, match="of vocabulary"):
        TokenisedCorpus.load(folder, other_vocabulary)
    np.save(folder / "ids.npy", corpus.ids_T[:-1])
    with pytest.raises(CrocodilError, match="differ in length"):
        TokenisedCorpus.load(folder, vocabulary)
    (folder / "corpus.json").write_text(json.dumps({}))
    with pytest.raises(CrocodilError, match="damaged"):
        TokenisedCorpus.load(folder, vocabulary)


def test_a_file_in_place_of_the_cache_is_named(corpus, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CrocodilError, match=r"file: tokenised texts cannot be kept there .*data\.cache"):
        corpus.save(tmp_path / "file" / "train")


def test_nothing_to_tokenise_is_refused(vocabulary):
    with pytest.raises(CrocodilError, match="no document"):
        tokenise([], vocabulary)
