from __future__ import annotations

import itertools
import json

import pytest

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


def test_position_goes_on_where_reading_stopped(folder):
    reading = load_documents(folder)
    first = list(itertools.islice(reading, 3))
    assert reading.position == 3
    again = load_documents(folder, start=reading.position)
    assert first + list(again) == list(load_documents(folder))
    assert again.position == 4
    assert list(load_documents(folder, start=4)) == []


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


def test_datasets_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config, split, streaming):
        asked.append((name, config, split, streaming))
        return iter([{"content": "a"}, {"content": ""}, {"content": "c"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(load_documents("datasets:org/code")) == [
        Document("org/code:1", "a"),
        Document("org/code:3", "c"),
    ]
    list(load_documents("datasets:org/code:python:test"))
    list(load_documents("datasets:org/code::test"))
    assert asked == [
        ("org/code", None, "train", True),
        ("org/code", "python", "test", True),
        ("org/code", None, "test", True),
    ]


def test_datasets_library_failing_is_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_, **__):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(CrocodilError, match="first") as caught:
        list(load_documents("datasets:org/code"))
    assert "\n" not in str(caught.value)


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
