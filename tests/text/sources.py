"""Sources of texts that tests prepare, in this process and in others."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crocodil.text.data import DataConfig
from crocodil.text.tokens import TokenisedCorpus

KINDS = ("folder", "jsonl", "parquet", "datasets-parquet", "datasets-jsonl")
HELD_OUT = 0.3
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")

# A process of its own that prepares a folder's rows in many small pieces, and says when one appears.
PREPARER = """
import os, signal, sys, time
import crocodil.text.prepare as prepare
from crocodil.errors import one_line_errors
from crocodil.text.data import DataConfig, Texts
from crocodil.text.vocabulary import Vocabulary
source, cache, tokenizer, tokens, limit = sys.argv[1:6]
prepare.PIECE_TOKENS, prepare.DOCUMENTS_PER_BATCH, publish = int(tokens), 16, prepare.publish
os.fsync = lambda descriptor: None  # slow, and no kill can tell
def told(*arguments):
    publish(*arguments)
    print("piece", flush=True)
    until = time.monotonic() + float(os.environ.get("PAUSE", "0"))
    while time.monotonic() < until:  # whoever wants to interrupt it may be late on a busy machine
        time.sleep(0.01)  # briefly: a signal just before a sleep does not end it
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and theirs, ignore it
prepare.publish = told
config = DataConfig(
    source, held_out=0.3, lengths=(64,), cache=cache, streaming=True, limit=int(limit) or None,
    extensions=(".py", ".jsonl"),
)
with one_line_errors():
    windows, held_out = Texts(config).windows(Vocabulary.load(tokenizer), seed=0)
print("digest", windows.tokens.digest, held_out.tokens.digest, flush=True)
"""


# Not getrusage, which begins with what the process that launched this one held.
MEASURED = (
    PREPARER
    + """
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""
)


def programs(count: int, seed: int = 0) -> list[str]:
    """Programs that are no near duplicates of one another."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    word = lambda: "".join(draw.choices(letters, k=draw.randint(2, 9)))  # noqa: E731
    line = lambda: f"{word()} = {word()}({word()}, {draw.randint(0, 10**6)})\n"  # noqa: E731
    return ["".join(line() for _ in range(draw.randint(1, 12))) for _ in range(count)]


def write(folder: Path, texts: list[str], kind: str) -> DataConfig:
    """A source of this kind that holds these texts in order, in three parts."""
    folder.mkdir(parents=True)
    extensions: tuple[str, ...] = (".py",)
    parts = np.array_split(np.arange(len(texts)), 3)
    if kind == "folder":
        for i, text in enumerate(texts):
            path = folder / f"part{i % 3}" / f"{i:05d}.py" if i % 2 else folder / f"{i:05d}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text.encode())
    elif kind.endswith("jsonl"):
        extensions = (".jsonl",)
        for number, part in enumerate(parts):
            lines = [json.dumps({"content": texts[i], "stars": int(i)}) for i in part]
            (folder / f"train-{number}.jsonl").write_text("\n".join(lines) + "\n")
    else:
        extensions = (".parquet",)
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        for number, part in enumerate(parts):
            table = arrow.table({"content": [texts[i] for i in part], "stars": part})
            parquet.write_table(table, folder / f"train-{number}.parquet", row_group_size=10)
    if kind.startswith("datasets"):
        pytest.importorskip("datasets")
    source = f"datasets:{folder}" if kind.startswith("datasets") else str(folder)
    return DataConfig(source, HELD_OUT, lengths=(64,), extensions=extensions, streaming=True)


# How `datasets` says where it stands depends on where it began; it leads to the same place.
STATE = re.compile(rb'"state": .*?"epoch": 0}|"state": null')


def contents(folder: Path) -> dict[str, bytes]:
    """Every byte of a folder of prepared texts, its lock apart."""
    return {
        path.relative_to(folder).as_posix(): STATE.sub(b"", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def only(cache: Path) -> Path:
    """The one folder of a cache."""
    (folder,) = cache.iterdir()
    return folder


def ids(corpus: TokenisedCorpus) -> list[list[int]]:
    return [corpus.document(i).tolist() for i in range(len(corpus))]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("not to be called")


def launch(
    source: str, cache: Path, tokenizer: Path, limit: int = 0, tokens: int = 300, pause: float = 0.0
) -> subprocess.Popen[str]:
    arguments = [source, str(cache), str(tokenizer), str(tokens), str(limit)]
    return subprocess.Popen(
        [sys.executable, "-c", PREPARER, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "PAUSE": str(pause)},
    )  # fmt: skip
