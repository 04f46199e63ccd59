"""Texts by the million: the same ids as in memory, whenever it is stopped."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import crocodil.text.data
import crocodil.text.files
import crocodil.text.pieces
import crocodil.text.prepare
from crocodil.errors import CrocodilError
from crocodil.text.data import DataConfig, Texts, load_split
from crocodil.text.prepare import prepared
from crocodil.text.tokens import tokenise
from crocodil.text.vocabulary import Vocabulary, train_bpe
from tests.text.sources import (
    HELD_OUT,
    KINDS,
    MEASURED,
    contents,
    ids,
    launch,
    linux,
    only,
    programs,
    refuse,
    write,
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_the_ids_of_the_way_through_memory(
    kind: str, tmp_path: Path, vocabulary: Vocabulary, small_pieces: None
) -> None:
    texts = programs(150)
    texts[20] = texts[90] = texts[3]  # copies stay on one side in both ways
    texts[40], texts[41], texts[42] = "", " \n\t", "x" * 400_001  # left out in both
    config = write(tmp_path / "texts", texts, kind)
    parts = load_split(replace(config, streaming=False))
    assert len(parts.train) + len(parts.held_out) == 147 and len(parts.held_out) > 20
    streamed = prepared(config.text_source, vocabulary, tmp_path / "cache")
    for corpus, part in zip(streamed, (parts.train, parts.held_out), strict=True):
        plain = tokenise(part, vocabulary)
        assert np.array_equal(corpus.ids_T, plain.ids_T) and np.array_equal(corpus.offsets, plain.offsets)
        assert corpus.ids_T.dtype == plain.ids_T.dtype and corpus.offsets.dtype == plain.offsets.dtype
        assert isinstance(corpus.ids_T, np.memmap) and isinstance(corpus.offsets, np.memmap)
    assert len(list((tmp_path / "cache").glob("*/piece-*.json"))) > 10


def test_windows_of_a_stream_are_those_of_memory(
    tmp_path: Path, vocabulary: Vocabulary, small_pieces: None
) -> None:
    config = replace(write(tmp_path / "texts", programs(60), "folder"), cache=str(tmp_path / "cache"))
    streamed = Texts(config).windows(vocabulary, seed=3)
    plain = Texts(replace(config, streaming=False)).windows(vocabulary, seed=3)
    for one, other in zip(streamed, plain, strict=True):
        assert len(one) == len(other) and np.array_equal(one.order(1), other.order(1))
        assert all(one.sample(i, 1) == other.sample(i, 1) for i in range(len(one)))


@pytest.mark.parametrize("streaming", [False, True])
def test_limit_takes_the_first_documents(
    tmp_path: Path, vocabulary: Vocabulary, small_pieces: None, streaming: bool
) -> None:
    config = write(tmp_path / "texts", programs(60), "jsonl")
    config = replace(config, cache=str(tmp_path / "cache"), streaming=streaming)
    whole, part = (
        [len(side.tokens) for side in Texts(replace(config, limit=limit)).windows(vocabulary, 0)]
        for limit in (None, 41)
    )
    assert sum(whole) == 60 and sum(part) == 41
    assert len(set(Path(config.cache).iterdir())) == (2 if streaming else 4)
    with pytest.raises(CrocodilError, match="limit is 0"):
        replace(config, limit=0)


def test_a_vocabulary_is_trained_on_training_texts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path / "texts", programs(60), "jsonl")
    parts = load_split(replace(config, streaming=False))
    train = [document.text for document in parts.train]
    assert list(Texts(replace(config, streaming=False)).sample()) == train[::4]
    assert list(Texts(config).sample()) == train
    assert list(Texts(replace(config, limit=20)).sample()) == train[: len(set(programs(20)) & set(train))]
    monkeypatch.setattr(crocodil.text.data, "SAMPLE", 5)
    assert list(Texts(config).sample()) == train[:5]


def test_a_second_launch_reads_nothing(
    tmp_path: Path, vocabulary: Vocabulary, other_vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path / "texts", programs(60), "jsonl")
    first = prepared(config.text_source, vocabulary, tmp_path / "cache")
    monkeypatch.setattr(Vocabulary, "encode_batch", refuse)
    monkeypatch.setattr(crocodil.text.files, "_rows", refuse)
    monkeypatch.setattr(crocodil.text.prepare, "writing", refuse)  # the folder may be read-only
    before = contents(only(tmp_path / "cache"))
    began = time.process_time()
    second = prepared(config.text_source, vocabulary, tmp_path / "cache", say=refuse)
    assert time.process_time() - began < 0.1
    assert [corpus.digest for corpus in second] == [corpus.digest for corpus in first]
    assert contents(only(tmp_path / "cache")) == before
    others = [
        (config, other_vocabulary),
        (config, Vocabulary(vocabulary.tokenizer, size=2**17)),
        (replace(config, held_out=0.2), vocabulary),
        (replace(config, split_seed=1), vocabulary),
        (replace(config, fields=("content",)), vocabulary),
        (replace(config, limit=7), vocabulary),
    ]
    names = {texts.text_source.name(vocabulary) for texts, vocabulary in others}
    assert len(names) == 6 and only(tmp_path / "cache").name not in names


def test_what_is_prepared_is_opened_where_the_source_is_not(tmp_path: Path, vocabulary: Vocabulary) -> None:
    config = write(tmp_path / "texts", programs(60), "jsonl")
    first = prepared(config.text_source, vocabulary, tmp_path / "cache")
    (tmp_path / "texts").rename(tmp_path / "elsewhere")
    again = prepared(config.text_source, vocabulary, tmp_path / "cache", say=refuse)
    assert [ids(corpus) for corpus in again] == [ids(corpus) for corpus in first]


def test_digest_is_of_contents_and_order(tmp_path: Path, vocabulary: Vocabulary, small_pieces: None) -> None:
    texts = programs(40)
    sources = [texts, texts, texts[::-1], [*texts[:-1], "other = 1\n"], texts[:-1]]
    digests = []
    for number, some in enumerate(sources):
        config = write(tmp_path / str(number), some, "parquet" if number else "jsonl")
        digests.append(prepared(config.text_source, vocabulary, tmp_path / "cache")[0].digest)
    assert digests[0] == digests[1] and len(set(digests)) >= 3
    assert digests[2] != digests[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_preparation_goes_on_from_every_piece(
    kind: str, tmp_path: Path, vocabulary: Vocabulary, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after each piece in turn, it reads on and ends with the same bytes."""
    config = write(tmp_path / "texts", programs(60), kind)
    prepared(config.text_source, vocabulary, tmp_path / "whole")
    whole = contents(only(tmp_path / "whole"))
    publish, published = crocodil.text.prepare.publish, 0

    def once(*arguments: object) -> None:
        nonlocal published
        publish(*arguments)  # type: ignore[arg-type]
        published += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(crocodil.text.prepare, "publish", once)
    said: list[str] = []
    while True:
        try:
            prepared(config.text_source, vocabulary, tmp_path / "cache", said.append)
            break
        except KeyboardInterrupt:
            continue
    assert contents(only(tmp_path / "cache")) == whole
    assert published == sum(name.startswith("piece") for name in whole) > 5
    assert sum("going on from there" in line for line in said) == published


def test_a_crash_at_any_write_costs_no_byte(
    tmp_path: Path,
    vocabulary: Vocabulary,
    small_pieces: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = write(tmp_path / "texts", programs(20), "jsonl")
    prepared(config.text_source, vocabulary, tmp_path / "whole")
    whole = contents(only(tmp_path / "whole"))
    calls, last = 0, -1

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def crashing(*arguments: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt
            return call(*arguments, **named)

        return crashing

    for name in ("pwrite", "fsync", "replace", "ftruncate"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    prepared(config.text_source, vocabulary, tmp_path / "counted")
    count = calls
    assert count > 50
    for crash in range(1, count + 1):
        cache, calls, last = tmp_path / f"cache{crash}", 0, crash
        with pytest.raises(KeyboardInterrupt):
            prepared(config.text_source, vocabulary, cache)
        last = -1
        prepared(config.text_source, vocabulary, cache)
        assert contents(only(cache)) == whole, f"crash at write {crash}"


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    kills: int, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    config = write(tmp_path / "texts", programs(900 * kills), "jsonl")
    vocabulary.save(tmp_path / "tokenizer")
    whole = launch(config.source, tmp_path / "whole", tmp_path / "tokenizer")
    assert "digest" in whole.communicate(timeout=300)[0] and whole.returncode == 0
    draws, pieces, killed = random.Random(kills), 0, 0
    while killed < kills:
        process = launch(config.source, tmp_path / "cache", tmp_path / "tokenizer", pause=0.05)
        assert process.stdout is not None and process.stdout.readline() == "piece\n"
        time.sleep(draws.uniform(0, 0.25))
        process.kill()
        lines = process.communicate()[0].splitlines()
        killed += 1
        assert set(lines) <= {"piece"}, "it was done before all the kills; give it more texts"
        found = len(list((tmp_path / "cache").glob("*/piece-*.json")))
        assert found >= pieces + 1 + len(lines), "what had appeared is kept"
        pieces = found
    process = launch(config.source, tmp_path / "cache", tmp_path / "tokenizer")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "going on from there" in err
    left = contents(only(tmp_path / "cache"))
    # a kill while a small file is being written leaves its beginning behind, under a hidden name
    assert {name: data for name, data in left.items() if not name.startswith(".")} == contents(
        only(tmp_path / "whole")
    )


def test_an_interrupt_is_one_line_and_costs_no_piece(tmp_path: Path, vocabulary: Vocabulary) -> None:
    config = write(tmp_path / "texts", programs(3000), "jsonl")
    vocabulary.save(tmp_path / "tokenizer")
    process = launch(config.source, tmp_path / "cache", tmp_path / "tokenizer", pause=60)
    assert process.stdout is not None and process.stdout.readline() == "piece\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "crocodil: interrupted\n"
    assert len(list(only(tmp_path / "cache").glob("piece-*.json"))) >= 1 + len(out.splitlines())


def test_of_processes_that_begin_at_once_one_prepares(tmp_path: Path, vocabulary: Vocabulary) -> None:
    config = write(tmp_path / "texts", programs(300), "jsonl")
    vocabulary.save(tmp_path / "tokenizer")
    processes = [launch(config.source, tmp_path / "cache", tmp_path / "tokenizer") for _ in range(4)]
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len({out.splitlines()[-1] for out, _ in told}) == 1
    assert sum("is complete" in err for _, err in told) == 1
    assert sum("piece" in out for out, _ in told) == 1


def test_where_locks_do_not_reach_two_processes_write_the_same(
    tmp_path: Path, vocabulary: Vocabulary, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every piece of the one appears while the other is about to write it."""
    config = write(tmp_path / "texts", programs(40), "jsonl")
    prepared(config.text_source, vocabulary, tmp_path / "whole")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    publish, is_first = crocodil.text.prepare.publish, True

    def with_another(*arguments: object) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            prepared(config.text_source, vocabulary, tmp_path / "cache")
        publish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(crocodil.text.prepare, "publish", with_another)
    prepared(config.text_source, vocabulary, tmp_path / "cache")
    assert contents(only(tmp_path / "cache")) == contents(only(tmp_path / "whole"))


@linux
def test_memory_does_not_grow_with_the_source(tmp_path: Path, vocabulary: Vocabulary) -> None:
    texts = programs(20_000)
    config = write(tmp_path / "texts", texts, "jsonl")
    vocabulary.save(tmp_path / "tokenizer")
    peaks = []
    for limit in (5_000, 20_000):
        arguments = [
            config.source,
            str(tmp_path / "cache"),
            str(tmp_path / "tokenizer"),
            "200000",
            str(limit),
        ]
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.splitlines()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 4, f"peak memory of 5,000 and 20,000 documents in MiB: {peaks}"


def test_progress_says_how_far_and_how_long(
    tmp_path: Path, vocabulary: Vocabulary, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crocodil.text.prepare, "SAY_SECONDS", 0.0)
    config = write(tmp_path / "texts", programs(40), "jsonl")
    for texts in (
        config,
        replace(config, limit=40),
        write(tmp_path / "hub", programs(40), "datasets-parquet"),
    ):
        said: list[str] = []
        prepared(texts.text_source, vocabulary, tmp_path / "cache", said.append)
        lines = [line for line in said if "tokens/s" in line]
        assert lines[0].startswith("4 documents  ") and lines[-1].startswith("40 documents  ")
        assert any("%" in line and line.endswith(" left") for line in lines)
    assert not any("may change" in line for line in said), "files of this machine are pinned"


def test_a_data_set_without_a_revision_is_told_of(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "texts", programs(40), "datasets-parquet")
    rows = datasets.load_dataset(str(tmp_path / "texts"), split="train", streaming=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    for source, is_told in (("datasets:org/code", True), ("datasets:org/code@1a2b", False)):
        said: list[str] = []
        config = DataConfig(source, HELD_OUT, streaming=True)
        prepared(config.text_source, vocabulary, tmp_path / "cache", said.append)
        assert any("NAME@REVISION pins it" in line for line in said) == is_told


def test_ids_of_large_tables_take_four_bytes(tmp_path: Path) -> None:
    vocabulary = train_bpe(programs(10), 300)
    config = write(tmp_path / "texts", programs(40), "jsonl")
    large = Vocabulary(vocabulary.tokenizer, size=126_464)
    for small, wide in zip(
        prepared(config.text_source, vocabulary, tmp_path / "cache"),
        prepared(config.text_source, large, tmp_path / "cache"),
        strict=True,
    ):
        assert small.ids_T.dtype == np.uint16 and wide.ids_T.dtype == np.int32
        assert ids(small) == ids(wide)
