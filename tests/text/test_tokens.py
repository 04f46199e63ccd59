from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import crocodil.text.tokens
from crocodil.errors import CrocodilError
from crocodil.text.corpus import Document
from crocodil.text.tokens import TokenisedCorpus, corpus_digest, next_batch, tokenise
from crocodil.text.vocabulary import Vocabulary

DOCUMENTS = [Document("a", "a = 1\n"), Document("b", "<|endoftext|>"), Document("c", "日本語")] * 200


@pytest.fixture
def corpus(vocabulary):
    return tokenise(iter(DOCUMENTS), vocabulary)


def test_documents_are_encoded_in_order(corpus, vocabulary):
    assert len(corpus) == 600 and corpus.ids_T.dtype == np.uint16
    for index in (0, 1, 2, 257, 599):
        assert corpus.document(index).tolist() == vocabulary.encode(DOCUMENTS[index].text)


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
    assert again.digest == corpus.digest and len(again) == len(corpus)
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
    for name in ("ids.npy", "offsets.npy"):
        whole = (folder / name).read_bytes()
        for share in (0.0, 0.01, 0.3, 0.7, 0.99):
            (folder / name).write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(CrocodilError, match="damaged"):
                TokenisedCorpus.load(folder, vocabulary)
        (folder / name).write_bytes(whole)
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


@pytest.mark.parametrize("file", ["ids.npy", "offsets.npy", "corpus.json"])
def test_a_full_disk_is_one_line_and_the_next_attempt_works(corpus, vocabulary, tmp_path, file):
    writer = """
import resource, sys
from pathlib import Path
import numpy as np
from crocodil.text.tokens import TokenisedCorpus
from crocodil.errors import CrocodilError
folder, file, fault = Path(sys.argv[1]), sys.argv[2], CrocodilError
sizes = {"ids.npy": (100_000, 3), "offsets.npy": (3, 100_000), "corpus.json": (3, 3)}[file]
corpus = TokenisedCorpus(np.zeros(sizes[0], np.int32), np.arange(sizes[1]), "f" * (file == "corpus.json") * 9999, "")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    corpus.save(folder)
except fault as error:
    print(error)
"""
    folder = tmp_path / "train"
    told = subprocess.run(
        [sys.executable, "-c", writer, str(folder), file], capture_output=True, text=True, check=True
    ).stdout
    assert str(folder) in told and "make room, or give another data.cache" in told
    assert told.count("\n") == 1 and not list(tmp_path.iterdir())
    corpus.save(folder)
    assert len(TokenisedCorpus.load(folder, vocabulary)) == 600


def test_names_of_files_need_not_be_utf8(vocabulary):
    # what Python makes of the bytes of a file name that its locale cannot read
    assert corpus_digest([Document("\udce9.py", "a")], vocabulary) != corpus_digest(DOCUMENTS[:1], vocabulary)
    locale_c, utf8 = Document("\udcc3\udca9.py", "a"), Document("é.py", "a")
    assert corpus_digest([locale_c], vocabulary) == corpus_digest([utf8], vocabulary)


def test_batches_are_small_where_texts_are_long(monkeypatch):
    monkeypatch.setattr(crocodil.text.tokens, "CHARACTERS_PER_BATCH", 10)
    documents = iter([Document(str(size), "a" * size) for size in (3, 3, 3, 3, 30, 3, 10)])
    batches = []
    while batch := next_batch(documents):
        batches.append([int(document.id) for document in batch])
    assert batches == [[3, 3, 3, 3], [30], [3, 10]]


def test_nothing_to_tokenise_is_refused(vocabulary):
    with pytest.raises(CrocodilError, match="no document"):
        tokenise([], vocabulary)
