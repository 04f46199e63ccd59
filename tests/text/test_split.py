from __future__ import annotations

import random
import time

import pytest

from crocodil.errors import CrocodilError
from crocodil.text.corpus import Document
from crocodil.text.split import content_hash, near_duplicates, signature, split, token_hashes

WORDS = [f"name_{number}" for number in range(2000)]


def program(seed: int, lines: int = 40) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=6)) + " = (" + draw.choice(WORDS) + ")\n" for _ in range(lines)]


def documents(count: int) -> list[Document]:
    return [Document(str(seed), "".join(program(seed))) for seed in range(count)]


def test_words_and_marks_are_hashed_wherever_they_stand():
    one = token_hashes("foo_1 = foo_1+(é)")
    assert len(one) == 7
    assert one[0] == one[2] and len(set(one.tolist())) == 6
    assert token_hashes("x\n\t =foo_1")[2] == one[0]
    assert len(token_hashes(" \n")) == 0
    assert token_hashes("a")[0] != token_hashes("aa")[0]


def test_signature_estimates_jaccard_similarity():
    lines = program(0, 400)
    for kept in (400, 300, 200):
        other = lines[:kept] + program(1, 400)[kept:]
        estimate = (signature(token_hashes("".join(lines))) == signature(token_hashes("".join(other)))).mean()
        assert estimate == pytest.approx(kept / (800 - kept), abs=0.13)


def test_near_duplicates_share_a_cluster():
    lines = program(0)
    texts = [
        "".join(lines),
        "".join(program(1)),
        "".join(lines).replace("\n", "\r\n\n").replace(" ", "    "),  # white space only
        "".join([*lines[:20], "extra = 1\n", *lines[21:]]),  # one line changed
        "# licence\n" + "".join(lines),
        "",
        " \n",
        "pass",
    ]
    assert near_duplicates(texts) == [0, 1, 0, 0, 0, 5, 5, 7]


def test_split_keeps_clusters_whole_and_the_order():
    given = documents(300)
    given += [Document(f"{document.id}-copy", document.text + "\nlast = 1\n") for document in given]
    given += [Document(f"{document.id}-same", document.text) for document in given[:50]]
    parts = split(given, held_out=0.2, seed=3)
    out = {document.id.split("-")[0] for document in parts.held_out}
    assert not out & {document.id.split("-")[0] for document in parts.train}
    assert len(parts.train) + len(parts.held_out) == len(given)
    assert 0.1 < len(parts.held_out) / len(given) < 0.3
    places = {document: place for place, document in enumerate(given)}
    for part in (parts.train, parts.held_out):
        assert list(part) == sorted(part, key=places.__getitem__)
    hashes = {content_hash(document.text) for document in parts.train}
    assert not hashes & {content_hash(document.text) for document in parts.held_out}


def test_split_depends_on_content_alone():
    given = documents(200)
    held_out = set(split(given, 0.2, seed=1).held_out)
    assert held_out != set(split(given, 0.2, seed=2).held_out)
    assert held_out == set(split(given[::-1], 0.2, seed=1).held_out)
    assert held_out == set(split(given + [Document("new", "".join(program(999)))], 0.2, seed=1).held_out) - {
        Document("new", "".join(program(999)))
    }
    assert held_out & set(given[:100]) == set(split(given[:100], 0.2, seed=1).held_out)


def test_share_is_checked_and_may_be_nothing():
    assert split(documents(5), 0.0).held_out == ()
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(CrocodilError, match="held_out"):
            split(documents(2), share)


def test_thousands_of_files_in_seconds():
    texts = ["".join(program(seed, 60)) for seed in range(1500)]
    start = time.process_time()
    near_duplicates(texts)
    assert time.process_time() - start < 10
