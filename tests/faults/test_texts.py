"""Texts that are not those of the run, cannot be read, or are damaged: refused by name before anything is written."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crocodil.training.ahead import ahead
from tests.faults.nursery import Fault, Nursery
from tests.faults.trials import (
    SHORT,
    TINY_BASE,
    Trials,
    assert_identical,
    checkpoint,
    one_line,
    steps_saved,
)


def add(texts: Path) -> None:
    (texts / "new.py").write_text("def another(x):\n    return x - 1\n")


def remove(texts: Path) -> None:
    (texts / "7.py").unlink()


def exchange(texts: Path) -> None:
    """The same texts in another order."""
    (texts / "7.py").rename(texts / "aside")
    (texts / "8.py").rename(texts / "7.py")
    (texts / "aside").rename(texts / "8.py")


def change(texts: Path) -> None:
    (texts / "7.py").write_text((texts / "7.py").read_text() + "# a remark\n")


@pytest.fixture
def stopped(short: Path, tmp_path: Path) -> Path:
    """A run with a checkpoint of step 6 as its newest."""
    run = tmp_path / "run"
    shutil.copytree(short, run)
    for path in (run / "export", checkpoint(run, 9), checkpoint(run, 12)):
        shutil.rmtree(path)
    return run


def contents(run: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "run.lock"
    }


@pytest.mark.parametrize("act", [add, remove, exchange, change], ids=lambda act: act.__name__)
def test_other_texts_are_refused(
    act: Callable[[Path], None], trials: Trials, stopped: Path, tmp_path: Path
) -> None:
    """F13: also where only their order is another; and nothing of the run is touched."""
    texts, before = tmp_path / "texts", contents(stopped)
    shutil.copytree(trials.texts, texts)
    act(texts)
    job = trials.begin(stopped, *SHORT, f"data.source={texts}", "--resume")
    assert job.wait() == [2]
    assert "was trained on other texts" in one_line(job) and "start=" in one_line(job)
    assert contents(stopped) == before


def test_the_same_texts_elsewhere_are_refused(
    trials: Trials, short: Path, stopped: Path, tmp_path: Path
) -> None:
    """F12 and F13: another source is another setting, even if it holds the same."""
    texts = tmp_path / "texts"
    shutil.copytree(trials.texts, texts)
    job = trials.begin(stopped, *SHORT, f"data.source={texts}", "--resume")
    assert job.wait() == [2]
    assert f"data.source was {trials.texts}, is {texts}" in one_line(job)


def test_another_vocabulary_is_refused(
    trials: Trials, nursery: Nursery, stopped: Path, tmp_path: Path
) -> None:
    """F12: a demasker may have moved, but its ids must mean the same."""
    about = [f"run={tmp_path / 'base'}", f"data.source={trials.texts}", f"data.cache={tmp_path / 'corpus'}"]
    nursery.run("train_base", *about, *TINY_BASE, "shape.vocabulary=290", "steps=1")
    before = contents(stopped)
    job = trials.begin(stopped, *SHORT, f"demasker={tmp_path / 'base' / 'export'}", "--resume")
    assert job.wait() == [2]
    assert "was trained on other texts" in one_line(job)
    assert contents(stopped) == before


def test_a_text_that_cannot_be_prepared_ends_the_run(trials: Trials, short: Path, tmp_path: Path) -> None:
    """F22: what the thread that prepares texts raises is raised in the loop; the run goes on from its checkpoint."""
    run = tmp_path / "run"
    job = trials.begin(run, *SHORT, faults=[Fault(("spoil_sample", 6 * 8 + 8))])  # 8 held out, 6 a step
    assert job.wait(30) == [1]
    assert "RuntimeError: the text cannot be read" in job.err()
    assert steps_saved(run) == [3, 6]
    trials.train(run, *SHORT, "--resume")
    assert_identical(run, short)


def test_a_killed_tokenisation_leaves_nothing_that_is_taken_for_texts(
    trials: Trials, short: Path, tmp_path: Path
) -> None:
    """kill -9 between and in the files of `data.cache`."""
    run = tmp_path / "run"
    for when in (
        ("before", "crocodil.text.tokens:np.save", 2),
        ("before", "crocodil.text.tokens:os.rename", 1),
    ):
        assert trials.begin(run, *SHORT, faults=[Fault(("kill",), when)]).wait() == [-signal.SIGKILL]
    fault = Fault(("die_at_byte", 200), ("before", "crocodil.text.tokens:np.save", 1))
    assert trials.begin(run, *SHORT, faults=[fault]).wait() == [-signal.SIGXFSZ]
    trials.train(run, *SHORT)
    assert_identical(run, short)


@pytest.mark.parametrize("name", ["ids.npy", "offsets.npy"])
def test_tokenised_texts_that_are_cut_short_are_refused(
    name: str, trials: Trials, stopped: Path, tmp_path: Path
) -> None:
    """One line names the folder and says to delete it."""
    cache = tmp_path / "corpus"
    shutil.copytree(trials.base.parent.parent / "corpus", cache)
    for file in cache.glob(f"*/{name}"):
        with open(file, "r+b") as stream:
            stream.truncate(file.stat().st_size // 2)
    job = trials.begin(stopped, *SHORT, "--resume")
    assert job.wait() == [2]
    assert "is damaged" in one_line(job) and "delete the folder" in one_line(job)


def test_tokenised_texts_with_a_flipped_bit_are_refused(
    trials: Trials, stopped: Path, tmp_path: Path
) -> None:
    """F7, of the data: otherwise it would train on other tokens, or on ids that are none."""
    cache = tmp_path / "corpus"
    shutil.copytree(trials.base.parent.parent / "corpus", cache)
    for file in cache.glob("*/ids.npy"):
        with open(file, "r+b") as stream:
            stream.seek(-41, 2)
            byte = stream.read(1)[0]
            stream.seek(-41, 2)
            stream.write(bytes([byte ^ 1]))
    job = trials.begin(stopped, *SHORT, "--resume")
    assert job.wait() == [2]
    assert "is damaged" in one_line(job) and "delete the folder" in one_line(job)


def test_a_damaged_row_is_named(trials: Trials, tmp_path: Path) -> None:
    """A line that is no JSON, in a file of a thousand: which one is said."""
    texts = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": f"def f(x):\n    return x + {i}\n"}) for i in range(1000)]
    rows[500] = rows[500][:-5]
    texts.write_text("\n".join(rows) + "\n")
    job = trials.begin(tmp_path / "run", *SHORT, f"data.source={texts}")
    assert job.wait() == [2]
    assert "texts.jsonl" in one_line(job) and "501" in one_line(job)


def test_tokenisers_work_in_forked_processes(trials: Trials, nursery: Nursery) -> None:
    """F23: twenty times four, after the parent has tokenised."""
    job = nursery.begin("tests.faults.scenes:tokenise_after_forks", str(trials.base / "tokenizer"))
    assert job.wait(30) == [0], job.said


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("threaded", [True, False])
def test_what_is_prepared_ahead_comes_in_order_and_raises_in_its_place(threaded: bool) -> None:
    """F22: the values before the one that failed are handed out first, and no thread outlives the loop."""

    def make(key: int) -> int:
        if key == 3:
            raise RuntimeError("the text cannot be read")
        return key * key

    got = []
    with pytest.raises(RuntimeError, match="the text cannot be read"):
        for key, value in ahead(make, range(6), threaded):
            got.append((key, value))
    assert got == [(0, 0), (1, 1), (2, 4)] and "ahead" not in threads()


def test_a_loop_that_stops_takes_its_thread_with_it() -> None:
    made = []

    def make(key: int) -> int:
        made.append(key)
        return key

    loop = ahead(make, iter(range(10**9)))
    assert [next(loop)[1] for _ in range(3)] == [0, 1, 2]
    assert "ahead" in threads()
    loop.close()
    assert "ahead" not in threads() and made == list(range(len(made))) and len(made) <= 6


def test_keys_that_raise_are_raised_too() -> None:
    def keys() -> Iterator[int]:
        yield 0
        raise RuntimeError("no more keys")

    got: list[object] = []

    def loop() -> None:
        try:
            got.extend(key for key, _ in ahead(str, keys()))
        except RuntimeError as error:
            got.append(str(error))

    thread = threading.Thread(target=loop, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytest tells of what a thread leaves behind
        thread.start()
        thread.join(3)
    assert got == [0, "no more keys"]
