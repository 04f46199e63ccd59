"""What may go wrong with texts: sources, disks, bytes, places to run (the data rows of the fault matrix)."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import crocodil.text.data
import crocodil.text.files
import crocodil.text.pieces
import crocodil.text.prepare
from crocodil.errors import CrocodilError
from crocodil.text.prepare import prepared
from crocodil.text.vocabulary import Vocabulary
from crocodil.text.windows import Windows
from tests.text.sources import (
    MEASURED,
    PREPARER,
    contents,
    ids,
    launch,
    linux,
    only,
    programs,
    write,
)

# F13


@pytest.mark.parametrize("change", ["add", "remove", "rename", "longer"])
@pytest.mark.parametrize("when", ["begun", "finished"])
def test_a_source_that_has_changed_is_refused(
    change: str,
    when: str,
    tmp_path: Path,
    vocabulary: Vocabulary,
    small_pieces: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = write(tmp_path / "texts", programs(40), "folder")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if when == "begun":
        monkeypatch.setattr(crocodil.text.prepare.Side, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            prepared(config.text_source, vocabulary, tmp_path / "cache")
        monkeypatch.undo()
    else:
        prepared(config.text_source, vocabulary, tmp_path / "cache")
    before = contents(only(tmp_path / "cache"))
    one = tmp_path / "texts" / "00002.py"
    match change:
        case "add":
            (tmp_path / "texts" / "new.py").write_text("new = 1\n")
        case "remove":
            one.unlink()
        case "rename":  # the same contents in another order
            one.rename(tmp_path / "texts" / "00099.py")
        case "longer":
            one.write_text("longer = 1\n" * 50)
    with pytest.raises(CrocodilError, match="texts has changed since .*; put it back, or delete that folder"):
        prepared(config.text_source, vocabulary, tmp_path / "cache")
    assert contents(only(tmp_path / "cache")) == before


def test_a_source_that_gives_other_texts_is_refused(
    tmp_path: Path, vocabulary: Vocabulary, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, so that only reading tells."""
    texts = programs(40)
    config = write(tmp_path / "texts", texts, "jsonl")
    publish = crocodil.text.prepare.publish

    def once(*arguments: object) -> None:
        publish(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(crocodil.text.prepare, "publish", once)
    with pytest.raises(KeyboardInterrupt):
        prepared(config.text_source, vocabulary, tmp_path / "cache")
    monkeypatch.undo()
    file = tmp_path / "texts" / "train-0.jsonl"
    size = file.stat().st_size
    rows = [{"content": text[::-1], "stars": i} for i, text in enumerate(texts[:14])]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert file.stat().st_size == size
    with pytest.raises(CrocodilError, match="gives other documents than when .* delete that folder to begin"):
        prepared(config.text_source, vocabulary, tmp_path / "cache")


def test_where_the_library_does_not_find_its_place_rows_are_counted(
    tmp_path: Path, vocabulary: Vocabulary, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `datasets` before 5.2 does after a second resume: it begins at the beginning."""
    datasets = pytest.importorskip("datasets")
    config = write(tmp_path / "texts", programs(60), "datasets-parquet")
    prepared(config.text_source, vocabulary, tmp_path / "whole")
    publish, count = crocodil.text.prepare.publish, 0

    def fourth(*arguments: object) -> None:
        nonlocal count
        publish(*arguments)  # type: ignore[arg-type]
        count += 1
        if count == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(crocodil.text.prepare, "publish", fourth)
    with pytest.raises(KeyboardInterrupt):
        prepared(config.text_source, vocabulary, tmp_path / "cache")
    monkeypatch.setattr(datasets.IterableDataset, "load_state_dict", lambda rows, state: None)
    prepared(config.text_source, vocabulary, tmp_path / "cache")
    assert contents(only(tmp_path / "cache")) == contents(only(tmp_path / "whole"))


# F14


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace", "ftruncate"])
def test_a_full_disk_is_one_line_and_loses_nothing(
    call: str, tmp_path: Path, vocabulary: Vocabulary, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path / "texts", programs(40), "jsonl")
    prepared(config.text_source, vocabulary, tmp_path / "whole")
    real, left = getattr(os, call), {"pwrite": 40, "fsync": 40, "replace": 5, "ftruncate": 1}[call]

    def full(*arguments: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        CrocodilError, match=r"cache/streamed-\w+/.* cannot be written .No space left"
    ) as caught:
        prepared(config.text_source, vocabulary, tmp_path / "cache")
    assert "\n" not in str(caught.value) and "the same command goes on" in str(caught.value)
    pieces = set(only(tmp_path / "cache").glob("piece-*.json"))
    assert pieces
    with pytest.raises(CrocodilError, match="No space left"):  # still full
        prepared(config.text_source, vocabulary, tmp_path / "cache")
    assert set(only(tmp_path / "cache").glob("piece-*.json")) == pieces
    left = 10**9
    prepared(config.text_source, vocabulary, tmp_path / "cache")
    assert contents(only(tmp_path / "cache")) == contents(only(tmp_path / "whole"))


def test_a_real_limit_on_files_is_met(tmp_path: Path, vocabulary: Vocabulary) -> None:
    config = write(tmp_path / "texts", programs(600), "jsonl")
    vocabulary.save(tmp_path / "tokenizer")
    limited = (
        "import resource\nhard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))\n"
    )
    arguments = [config.source, str(tmp_path / "cache"), str(tmp_path / "tokenizer"), "300", "0"]
    done = subprocess.run(
        [sys.executable, "-c", limited + PREPARER, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "train/ids.npy cannot be written (File too large)" in done.stderr.splitlines()[-1]
    process = launch(config.source, tmp_path / "cache", tmp_path / "tokenizer")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "going on from there" in err


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, vocabulary: Vocabulary) -> None:
    config = write(tmp_path / "texts", programs(10), "jsonl")
    (tmp_path / "file").touch()
    with pytest.raises(
        CrocodilError, match="file/streamed-.* cannot be written .Not a directory.*data.cache"
    ):
        prepared(config.text_source, vocabulary, tmp_path / "file")


# Damage


@pytest.mark.parametrize("side", ["train", "held_out"])
@pytest.mark.parametrize("name", ["ids.npy", "offsets.npy"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_what_was_cut_short_is_found_and_made_again(
    side: str,
    name: str,
    share: float,
    tmp_path: Path,
    vocabulary: Vocabulary,
    small_pieces: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = write(tmp_path / "texts", programs(60), "jsonl")
    prepared(config.text_source, vocabulary, tmp_path / "cache")
    folder = only(tmp_path / "cache")
    whole = contents(folder)
    file = folder / side / name
    os.truncate(file, int(file.stat().st_size * share))
    encoded, encode = 0, Vocabulary.encode_batch

    def counted(vocabulary: Vocabulary, texts: list[str]) -> list[list[int]]:
        nonlocal encoded
        encoded += len(texts)
        return encode(vocabulary, texts)

    monkeypatch.setattr(Vocabulary, "encode_batch", counted)
    said: list[str] = []
    prepared(config.text_source, vocabulary, tmp_path / "cache", said.append)
    assert "is damaged; what is missing is made again" in said[0]
    assert contents(folder) == whole
    assert 0 < encoded <= 60 and (share < 0.99 or encoded < 30), "only what is behind the damage"


@pytest.mark.parametrize("name", ["texts.json", "piece-00003.json", "train/corpus.json", "source.json"])
def test_records_that_are_damaged_or_gone_are_written_again(
    name: str, tmp_path: Path, vocabulary: Vocabulary, small_pieces: None
) -> None:
    config = write(tmp_path / "texts", programs(60), "jsonl")
    prepared(config.text_source, vocabulary, tmp_path / "cache")
    folder = only(tmp_path / "cache")
    whole = contents(folder)
    for damage in (b"", b"{", b"[]", b'{"train": {"documents": "x"}}'):
        (folder / name).write_bytes(damage)
        try:
            prepared(config.text_source, vocabulary, tmp_path / "cache", verify=True)
        except CrocodilError as error:
            assert f"{folder / name} " in str(error) and "delete that file, and go on" in str(error)
            (folder / name).unlink()
            prepared(config.text_source, vocabulary, tmp_path / "cache", verify=True)
        assert {**contents(folder), "source.json": b""} == {**whole, "source.json": b""}


def test_every_flipped_bit_is_found_by_verifying(
    tmp_path: Path, vocabulary: Vocabulary, small_pieces: None
) -> None:
    config = write(tmp_path / "texts", programs(60), "jsonl")
    prepared(config.text_source, vocabulary, tmp_path / "cache")
    folder, draw = only(tmp_path / "cache"), random.Random(0)
    whole = contents(folder)
    said: list[str] = []
    prepared(config.text_source, vocabulary, tmp_path / "cache", said.append, verify=True)
    assert len(said) == 1 and "is whole: " in said[0]
    for number in range(40):
        name = draw.choice(
            [f"{side}/{file}" for side in ("train", "held_out") for file in ("ids.npy", "offsets.npy")]
        )
        data = bytearray(whole[name])
        at = draw.randrange(128, len(data))
        data[at] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(data)
        prepared(config.text_source, vocabulary, tmp_path / "cache", verify=True)
        assert contents(folder) == whole, f"flip {number}, {name} byte {at}"


def test_a_last_piece_that_did_not_reach_the_disk_is_made_again(
    tmp_path: Path, vocabulary: Vocabulary, small_pieces: None
) -> None:
    """As after a power cut on a disk that lies: the record is there, the ids are zeros."""
    config = write(tmp_path / "texts", programs(60), "jsonl")
    prepared(config.text_source, vocabulary, tmp_path / "cache")
    folder = only(tmp_path / "cache")
    whole = contents(folder)
    (folder / "texts.json").unlink()
    data = whole["train/ids.npy"]
    (folder / "train" / "ids.npy").write_bytes(data[:-60] + bytes(60))
    prepared(config.text_source, vocabulary, tmp_path / "cache")
    assert contents(folder) == whole


# F19, F22, F28 to F31


def test_nothing_on_one_side_is_said(tmp_path: Path, vocabulary: Vocabulary) -> None:
    config = write(tmp_path / "texts", ["a = 1\n"], "jsonl")
    with pytest.raises(CrocodilError, match="held_out=0.2"):
        prepared(config.text_source, vocabulary, tmp_path / "cache")
    with pytest.raises(CrocodilError, match="above 0 and below 1"):
        prepared(replace(config, held_out=0.0).text_source, vocabulary, tmp_path / "cache")


def test_texts_of_one_token_and_of_none(tmp_path: Path, vocabulary: Vocabulary) -> None:
    texts = ["x", "", "y", " ", "\n", "z", "\x00"] * 30
    config = write(
        tmp_path / "texts",
        [text + str(i) if text.isalpha() else text for i, text in enumerate(texts)],
        "jsonl",
    )
    said: list[str] = []
    train, held_out = prepared(config.text_source, vocabulary, tmp_path / "cache", said.append)
    assert len(train) + len(held_out) == 120 and "left out: 90 empty" in said[-1]
    for tokens in (train, held_out):
        windows = Windows(tokens, (3, 8), short_fraction=0.5)
        for index in range(len(windows)):
            sample = windows.sample(index, 0)
            assert len(sample.window(vocabulary)) == sample.length


def test_a_bad_row_in_a_thousand_costs_that_row(tmp_path: Path, vocabulary: Vocabulary) -> None:
    texts = programs(1500)
    config = write(tmp_path / "texts", texts, "jsonl")
    file = tmp_path / "texts" / "train-1.jsonl"
    lines = file.read_text().splitlines()
    bad = {100: "{", 200: '{"code": "x"}', 300: "[]", 400: '{"content": 5}'}
    file.write_text("\n".join(bad.get(i, line) for i, line in enumerate(lines)))
    said: list[str] = []
    corpora = prepared(config.text_source, vocabulary, tmp_path / "cache", said.append)
    found = {vocabulary.decode(text) for corpus in corpora for text in ids(corpus)}
    assert found == {text for i, text in enumerate(texts) if i - 500 not in bad}
    assert "left out: 4 damaged" in said[-1]


def fuzzed(draw: random.Random) -> str:
    """Text with everything that has ever broken a reader."""
    nasty = [
        "\x00", "\ufeff", "\r\n", "\r", "\u2028", "\u202eabc\u202c", "e\u0301", "👩‍👩‍👧", "日本", "\ud800", "\udfff",
        "\ud83d\ude00", "<|endoftext|>", "<|mdm_mask|>", "<|startoftext|>", "\\ud800", "\x1b[31m", "a" * 50, " " * 50,
        "\t", "\v", "\x85", "𐍈", "ﬁ", "def f(x):\n    return x\n",
    ]  # fmt: skip
    return "".join(draw.choices(nasty, k=draw.randint(1, 8)))


def test_a_thousand_fuzzed_texts_come_back_exactly_or_alone_are_left_out(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    draw = random.Random(0)
    texts = [fuzzed(draw) for _ in range(1000)]
    config = write(tmp_path / "texts", texts, "jsonl")
    said: list[str] = []
    corpora = prepared(config.text_source, vocabulary, tmp_path / "cache", said.append)

    def is_usable(text: str) -> bool:
        return bool(text.strip()) and not any("\ud800" <= character <= "\udfff" for character in text)

    # JSON joins a pair of surrogates into the character they stand for
    read = [json.loads(json.dumps(text)) for text in texts]
    good = [text for text in read if is_usable(text)]
    assert 200 < len(good) < 900
    found = [vocabulary.decode_bytes(text).decode() for corpus in corpora for text in ids(corpus)]
    assert sorted(found) == sorted(good)
    specials = {vocabulary.bos_id, vocabulary.eos_id, vocabulary.mask_id}
    assert not any(specials & set(corpus.ids_T.tolist()) for corpus in corpora)
    assert f"{sum(not is_usable(text) and bool(text.strip()) for text in read):,} not UTF-8" in said[-1]


@linux
@pytest.mark.slow
def test_a_million_short_texts_take_little_memory(tmp_path: Path, vocabulary: Vocabulary) -> None:
    (tmp_path / "texts").mkdir()
    with (tmp_path / "texts" / "x.jsonl").open("w") as lines:
        lines.writelines(f'{{"text": "x = {i}"}}\n' for i in range(1_000_000))
    vocabulary.save(tmp_path / "tokenizer")
    arguments = [
        str(tmp_path / "texts"),
        str(tmp_path / "cache"),
        str(tmp_path / "tokenizer"),
        "1000000",
        "0",
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.splitlines()[-1]) / 1024 < 150
    assert "is complete" in done.stderr


# F23


@pytest.mark.parametrize("parallelism", [None, "true", "false"])
def test_a_forked_process_can_tokenise(
    parallelism: str | None, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    vocabulary.save(tmp_path)
    forking = """
import os, sys, time
from crocodil.text.vocabulary import Vocabulary
vocabulary = Vocabulary.load(sys.argv[1])
texts = ["def f(x): return x\\n" * 20] * 64
before = vocabulary.encode_batch(texts)
def forked():
    os._exit(0 if vocabulary.encode_batch(texts) == before else 1)
left = [pid for _ in range(4) if (pid := os.fork()) or forked()]
deadline = time.monotonic() + 10
while left and time.monotonic() < deadline:
    left = [pid for pid in left if os.waitpid(pid, os.WNOHANG) == (0, 0)]
    time.sleep(0.01)
for pid in left:
    os.kill(pid, 9)
sys.exit(len(left))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment |= {"TOKENIZERS_PARALLELISM": parallelism} if parallelism else {}
    for _ in range(2):
        command = [sys.executable, "-c", forking, str(tmp_path)]
        assert subprocess.run(command, env=environment, timeout=60, capture_output=True).returncode == 0


# F36


def test_it_runs_without_home_network_or_locale(tmp_path: Path, vocabulary: Vocabulary) -> None:
    texts = [f"# café 日本 {i}\n{text}" for i, text in enumerate(programs(40))]
    config = write(tmp_path / "texts", texts, "folder")
    (tmp_path / "texts" / "naïve.py").write_bytes("é = 1\n".encode())
    (tmp_path / "texts").joinpath(os.fsdecode(b"latin-\xe9.py")).write_bytes(b"e = 1\n")
    vocabulary.save(tmp_path / "tokenizer")
    plain = {
        name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
    }
    bare = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "HOME": "/nonexistent",
        "PYTHONPATH": "",
    }
    bare |= {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "1"}
    outs = []
    for number, environment in enumerate((plain | {"LC_ALL": "C.UTF-8"}, plain | bare)):
        arguments = [config.source, str(tmp_path / f"cache{number}"), str(tmp_path / "tokenizer"), "300", "0"]
        done = subprocess.run(
            [sys.executable, "-c", PREPARER, *arguments],
            env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outs.append(done.stdout.splitlines()[-1])
    assert outs[0] == outs[1]


def test_a_data_set_is_read_without_home_or_network(tmp_path: Path, vocabulary: Vocabulary) -> None:
    config = write(tmp_path / "texts", programs(40), "datasets-parquet")
    vocabulary.save(tmp_path / "tokenizer")
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": "/nonexistent", "HF_HUB_OFFLINE": "1"}
    arguments = [config.source, str(tmp_path / "cache"), str(tmp_path / "tokenizer"), "300", "0"]
    done = subprocess.run(
        [sys.executable, "-c", PREPARER, *arguments],
        env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, vocabulary: Vocabulary, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path / "texts", programs(40), "jsonl")
    prepared(config.text_source, vocabulary, tmp_path / "whole")
    draw = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: draw.uniform(-1e9, 1e9))
    prepared(config.text_source, vocabulary, tmp_path / "cache")
    assert contents(only(tmp_path / "cache")) == contents(only(tmp_path / "whole"))
