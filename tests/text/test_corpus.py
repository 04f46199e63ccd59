from __future__ import annotations

import itertools
import json
import random
import time
import tracemalloc

import pytest

import crocodil.text.corpus
from crocodil.errors import CrocodilError
from crocodil.text.corpus import Document, load_documents


@pytest.fixture
def folder(tmp_path):
    files = {
        "b.py": b"b = 1\r\n",
        "a.py": b"\xef\xbb\xbfa = 1\n",
        "sub/c.py": b"c = 1\n",
        "sub.py": b"d = 1\n",
        "notes.md": b"no program\n",
        "empty.py": b" \n",
        "latin.py": b"# \xe9\n",
        "giant.py": b"x = 1\n" * 100_000,
        ".hidden/e.py": b"e = 1\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_folder_in_a_fixed_order_without_the_unusable(folder):
    found = list(load_documents(folder))
    assert [document.id for document in found] == ["a.py", "b.py", "sub.py", "sub/c.py"]
    assert found[0].text == "\ufeffa = 1\n" and found[1].text == "b = 1\r\n"


def test_extensions_size_and_a_single_file(folder):
    assert [found.id for found in load_documents(folder, extensions=(".md",))] == ["notes.md"]
    assert "giant.py" in [found.id for found in load_documents(folder, max_bytes=10**6)]
    assert list(load_documents(folder / "b.py")) == [Document("b.py", "b = 1\r\n")]


def read(source, after=None, **options):
    """Everything behind a place."""
    return list(load_documents(source, after=after, **options))


def places(source, **options):
    """What a reading gives, and the place behind each document, through JSON."""
    reading = load_documents(source, **options)
    found = [(reading.place(), None)]
    found += [(json.loads(json.dumps(reading.place())), document) for document in reading]
    return [place for place, _ in found], [document for _, document in found[1:]]


def test_reading_goes_on_from_every_place(folder, tmp_path):
    rows = [{"text": text} for text in ("a", "", "b", "c", None, "d")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    (folder / "sub" / "x.jsonl").write_text('{"text": "e"}')
    extensions = (".py", ".jsonl", ".parquet")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": [*"fgh", None, *"ijklm"]})
    parquet.write_table(table, folder / "t.parquet", row_group_size=2)
    before, documents = places(folder, extensions=extensions)
    assert len(documents) == 4 + 4 + 1 + 8
    for number, place in enumerate(before):
        assert place["position"] == number
        again = load_documents(folder, extensions=extensions, after=place)
        assert list(again) == documents[number:] and again.position == len(documents)
        assert again.left_out == {"empty": 4, "not UTF-8": 1, "too large": 1}


def test_rows_before_the_place_are_not_read_as_json(tmp_path):
    (tmp_path / "x.jsonl").write_text('no JSON\n{"text": "a"}\n')
    assert read(tmp_path / "x.jsonl", {"file": "x.jsonl", "row": 1}) == [Document("x.jsonl:2", "a")]


def test_a_file_that_is_gone_from_where_reading_stopped_is_named(folder):
    (place, *_), _ = places(folder / "b.py")
    *_, place = places(folder)[0]
    (folder / "sub" / "c.py").unlink()
    with pytest.raises(CrocodilError, match="sub/c.py.* is gone"):
        read(folder, place)


def test_share_is_of_the_bytes(tmp_path):
    for name, size in (("a.py", 10), ("b.py", 30), ("d.py", 40)):
        (tmp_path / name).write_text("x" * size)
    (tmp_path / "c.jsonl").write_text('{"text": "a"}      \n' * 2)
    reading = load_documents(tmp_path, extensions=(".py", ".jsonl"))
    assert reading.share() is None
    listing = reading.listing()
    assert (listing.files, listing.bytes) == (4, 120)
    shares = [round(reading.share() * 120) for _ in reading]
    assert shares == [10, 40, 60, 80, 120]
    after = load_documents(tmp_path, extensions=(".py", ".jsonl"), after={"file": "c.jsonl", "row": 1})
    after.listing()
    next(after)
    assert after.share() * 120 == 80


def test_listing_tells_of_every_change_of_files(folder):
    def now():
        return load_documents(folder).listing()

    first = now()
    assert first == now() and load_documents(folder).listing(most=3) is None
    (folder / "notes.md").write_text("not read")
    assert now() == first
    (folder / "new.py").write_text("n = 1")
    assert now() != first
    (folder / "new.py").unlink()
    (folder / "a.py").rename(folder / "z.py")  # the same files in another order
    assert now() != first
    (folder / "z.py").rename(folder / "a.py")
    assert now() == first
    (folder / "a.py").write_text("longer than it was")
    assert now() != first


def test_jsonl(tmp_path):
    rows = [
        {"text": "a"},
        {"content": "b"},
        {"text": None},
        {"text": "\ud800"},
        {"text": "c", "content": "d"},
    ]
    lines = [json.dumps(row).encode() for row in rows] + [b"", b'{"text": "\xff"}', b'{"text": "e"}']
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    found = list(load_documents(tmp_path / "x.jsonl"))
    assert found == [Document(f"x.jsonl:{n}", text) for n, text in ((1, "a"), (2, "b"), (5, "c"), (8, "e"))]
    assert list(load_documents(tmp_path, extensions=(".jsonl",))) == found


@pytest.mark.parametrize(
    "line", ["{", '{"code": "a"}', "[]", '{"text": 5}', "[" * 100_000, '{"text": %s}' % ("9" * 5000)]
)
def test_bad_rows_are_named(tmp_path, line):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' + line)
    with pytest.raises(CrocodilError, match="x.jsonl line 2"):
        list(load_documents(tmp_path / "x.jsonl"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_jsonl_of_another_encoding_is_refused_and_no_row_of_it_is_taken(tmp_path, encoding):
    """The JSON reader guesses an encoding for each line, and would take some of them."""
    rows = [{"text": f"text {i} of some, 日本"} for i in range(30)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "x.jsonl").write_bytes(text.encode(encoding))
    with pytest.raises(
        CrocodilError, match="x.jsonl line 1 holds zero bytes, as UTF-16 does; write .* in UTF-8"
    ):
        list(load_documents(tmp_path / "x.jsonl"))
    with pytest.raises(CrocodilError, match="rows are damaged; first: .*line 1 holds zero bytes"):
        list(load_documents(tmp_path / "x.jsonl", strict=False))
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(list(load_documents(tmp_path / "x.jsonl"))) == 30


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    parquet.write_table(arrow.table({"path": ["p", "q", "r"], "content": ["a", None, "c"]}), path)
    assert list(load_documents(path)) == [Document("x.parquet:1", "a"), Document("x.parquet:3", "c")]
    with pytest.raises(CrocodilError, match="no column code"):
        list(load_documents(path, fields=("code",)))
    path.write_bytes(b"no parquet")
    with pytest.raises(CrocodilError, match="cannot be read"):
        list(load_documents(path))


def test_damaged_rows_are_counted_and_too_many_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "x.jsonl"
    good, bad = '{"text": "a"}\n', '{"code": "a"}\n'
    file.write_text(((good * 99 + bad + "{\n") * 5 + good * 100) * 2)  # 10 and 10 of 1,210
    with pytest.raises(CrocodilError, match=r"11 of \d+ rows are damaged; first: .* line 100 has no text"):
        read(file, strict=False)
    file.write_text((good * 99 + bad) * 10)
    reading = load_documents(file, strict=False)
    assert len(list(reading)) == 990 and reading.left_out == {"damaged": 10}
    file.write_text(good * 50 + bad)  # too small for a judgement on the way, not at its end
    with pytest.raises(CrocodilError, match="1 of 51 rows"):
        read(file, strict=False)
    file.write_text(bad * 5)
    with pytest.raises(CrocodilError, match="line 1 has no text in text or content"):
        read(file, strict=False)


def test_the_first_damage_is_remembered_where_reading_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(crocodil.text.corpus, "JUDGED_FROM", 0)
    monkeypatch.setattr(crocodil.text.corpus, "DAMAGED_SHARE", 0.5)
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a"}\n{\n{"text": "b"}\n{\n{\n')
    reading = load_documents(file, strict=False)
    assert [next(reading).text, next(reading).text] == ["a", "b"]
    with pytest.raises(CrocodilError, match="3 of 5 rows are damaged; first: .* line 2"):
        read(file, reading.place(), strict=False)


def test_a_file_that_cannot_be_read_is_one_damaged_document(folder, monkeypatch):
    def read_bytes(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", read_bytes)
    with pytest.raises(CrocodilError, match="a.py cannot be read .Permission denied"):
        read(folder)
    monkeypatch.undo()
    (folder / "rows.jsonl").write_text('{"text": "a"}\n' * 1000)
    whole = pytest.MonkeyPatch()
    whole.setattr("pathlib.Path.read_bytes", read_bytes)
    reading = load_documents(folder, extensions=(".py", ".jsonl"), strict=False)
    assert len(list(reading)) == 1000 and reading.left_out["damaged"] == 6
    whole.undo()


def test_a_long_line_is_passed_over_in_pieces(tmp_path):
    small, long, exact = ({"text": "x" * size} for size in (5, 950, 88))
    assert len(json.dumps(exact)) == 100  # as much as is read at once where a document has at most ten bytes
    rows = [small, long, small, exact, small, long]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reading = load_documents(tmp_path / "x.jsonl", max_bytes=10)
    assert [document.id for document in reading] == ["x.jsonl:1", "x.jsonl:3", "x.jsonl:5"]
    assert reading.left_out == {"too large": 3}


@pytest.mark.parametrize("kind", ["jsonl", "py", "parquet"])
def test_a_giant_takes_little_time_and_memory(tmp_path, kind):
    size = 10_000_000
    if kind == "py":
        (tmp_path / "x.py").write_text("x" * size)
    elif kind == "jsonl":
        (tmp_path / "x.jsonl").write_text(json.dumps({"text": "x" * size}) + '\n{"text": "a"}\n')
    else:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"text": ["x" * size, "a"]}), tmp_path / "x.parquet")
    (tmp_path / "y.py").write_text("a")
    tracemalloc.start()
    began = time.process_time()
    found = read(tmp_path, extensions=(".py", ".jsonl", ".parquet"))
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {document.text for document in found} == {"a"}
    assert seconds < 1 and peak < 3 * size


def test_a_large_row_group_is_not_held_in_memory(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    draw = random.Random(0)
    table = arrow.table({"text": [draw.randbytes(500).hex() for _ in range(20_000)]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=20_000)
    size, before = table.nbytes, arrow.total_allocated_bytes()
    del table
    held = [arrow.total_allocated_bytes() for _ in load_documents(tmp_path / "x.parquet")]
    assert len(held) == 20_000 and max(held) - (before - size) < 8_000_000 < size


@pytest.fixture
def hub(tmp_path):
    """A data set of three parquet files, as the hub would hold it."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    texts = [f"x = {i}\n" if i % 7 else "" for i in range(60)]
    for shard in range(3):
        part = texts[20 * shard : 20 * shard + 20]
        table = arrow.table({"stars": [1] * 20, "content": part})
        parquet.write_table(table, tmp_path / f"train-{shard}.parquet", row_group_size=8)
    return f"datasets:{tmp_path}", [text for text in texts if text]


def test_a_data_set_is_streamed_and_goes_on_from_every_place(hub):
    source, texts = hub
    before, documents = places(source)
    assert [document.text for document in documents] == texts
    assert documents[0].id.endswith(":2") and len({document.id for document in documents}) == len(texts)
    for number in range(0, len(texts), 5):
        again = load_documents(source, after=before[number])
        assert list(again) == documents[number:]
        assert again.position == len(texts) and again.left_out == {"empty": 9}
        counted = {**before[number], "state": None}  # without what the library says of where it stood
        assert read(source, counted) == documents[number:]


def test_a_data_set_that_was_resumed_is_resumed_again(hub):
    source, texts = hub
    place, found = None, []
    for _ in range(12):
        reading = load_documents(source, after=place)
        found += [document.text for document in itertools.islice(reading, 4)]
        place = reading.place()
    assert found == texts[:48]


def test_share_of_a_data_set_is_by_its_files_or_its_rows(hub):
    reading = load_documents(hub[0])
    assert reading.share() is None and reading.listing() is None
    shares = [reading.share() for _ in reading]
    assert shares == sorted(shares) and 0 <= shares[0] < 0.4 and 0.6 < shares[-1] <= 1


def test_jsonl_through_the_library(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text('{"content": "é\\n", "n": 1}\n{"content": "b", "n": 2}\n')
    assert [document.text for document in load_documents(f"datasets:{tmp_path}")] == ["é\n", "b"]


def test_names_of_data_sets(monkeypatch, hub):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(hub[0].removeprefix("datasets:"), split="train", streaming=True)
    asked = []

    def load_dataset(name, config, **options):
        assert options.pop("streaming")
        asked.append((name, config, *options.values()))
        assert list(options) == ["data_dir", "revision", "split"]
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in (
        "org/code", "org/code:python:test", "org/code::test", "org/code@v2", "org/code/python/sub@1f@x:c", "code"
    ):  # fmt: skip
        next(load_documents(f"datasets:{source}"))
    assert asked == [
        ("org/code", None, None, None, "train"),
        ("org/code", "python", None, None, "test"),
        ("org/code", None, None, None, "test"),
        ("org/code", None, None, "v2", "train"),
        ("org/code", "c", "python/sub", "1f@x", "train"),
        ("code", None, None, None, "train"),
    ]
    with pytest.raises(CrocodilError, match="4 parts"):
        load_documents("datasets:a:b:c:d")


def test_a_data_set_without_the_column_names_those_it_has(hub):
    with pytest.raises(CrocodilError, match="has columns stars, content, none of them code or text"):
        read(hub[0], fields=("code", "text"))


def test_code_of_a_data_set_is_never_run(tmp_path):
    pytest.importorskip("datasets")
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    for source in (folder, folder / "code.py"):
        with pytest.raises(CrocodilError, match="cannot be opened"):
            read(f"datasets:{source}")
    (folder / "rows.pkl").write_bytes(b"cposix\nsystem\n(S'touch canary'\ntR.")
    with pytest.raises(CrocodilError, match="cannot be opened"):
        read(f"datasets:{folder}")
    assert not (tmp_path / "canary").exists()


def test_a_data_set_that_cannot_be_opened_is_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_, **__):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(CrocodilError, match="first") as caught:
        read("datasets:org/code")
    assert "\n" not in str(caught.value)


def test_a_connection_that_breaks_is_one_line_that_says_how_to_go_on(hub, monkeypatch):
    datasets = pytest.importorskip("datasets")
    real = datasets.IterableDataset.__iter__

    def breaking(rows):
        yield from itertools.islice(real(rows), 30)
        raise ConnectionError("Server Disconnected\n…")

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", breaking)
    reading = load_documents(hub[0])
    with pytest.raises(
        CrocodilError, match="stopped after row 30 .Server Disconnected.; .*goes on"
    ) as caught:
        list(reading)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert [document.text for document in load_documents(hub[0], after=reading.place())] == hub[1][25:]


def test_installed_python():
    found = list(itertools.islice(load_documents("stdlib"), 50))
    assert found == list(itertools.islice(load_documents("stdlib"), 50))
    assert all(document.id.startswith("stdlib/") and document.id.endswith(".py") for document in found)
    assert not any("site-packages" in document.id for document in found)


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(CrocodilError, match="no source"):
        load_documents(tmp_path / "missing")
    with pytest.raises(CrocodilError, match="no document"):
        list(load_documents(tmp_path))
