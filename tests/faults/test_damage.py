"""Damaged checkpoints: found by size and digest, named, passed over for the one before.

There is no file that points to the newest checkpoint, and so none that could be stale: the folder's names are read.
"""

from __future__ import annotations

import logging
import shutil
import signal
from pathlib import Path

import pytest

from crocodil.errors import CrocodilError
from crocodil.training.checkpoints import MANIFEST, damage, latest, require_complete
from tests.faults.nursery import Fault
from tests.faults.trials import SHORT, Trials, assert_identical, checkpoint, draws, one_line, steps_saved

FLIPS = 200


@pytest.fixture
def run(pair: Path, tmp_path: Path) -> Path:
    """Two checkpoints of a real run on two ranks, 9 and 12, to be damaged."""
    for step in (9, 12):
        shutil.copytree(checkpoint(pair, step), checkpoint(tmp_path / "run", step))
    return tmp_path / "run"


def files(saved: Path) -> list[Path]:
    return sorted(path for path in saved.iterdir() if path.is_file())


def assert_passed_over(run: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The newest is told to be damaged, by the file's name, and the one before is taken."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert latest(run) == checkpoint(run, 9)
    assert "step-00000012: passed over" in caplog.text and name in caplog.text
    with pytest.raises(CrocodilError, match=f"not loaded: .*{name}"):
        require_complete(checkpoint(run, 12))


def test_every_file_cut_anywhere_is_found(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """F6: tensors of both ranks, values, manifest; at 0, 1, 30, 70 and 99 %."""
    cut = 0
    for file in files(checkpoint(run, 12)):
        whole = file.read_bytes()
        for share in (0, 1, 30, 70, 99):
            file.write_bytes(whole[: len(whole) * share // 100])
            assert_passed_over(run, file.name, caplog)
            cut += 1
        file.write_bytes(whole)
    assert cut == 20 and latest(run) == checkpoint(run, 12)


def test_every_flipped_bit_is_found(run: Path) -> None:
    """F7: drawn over all bytes of all files, and in each of them."""
    random, saved = draws(7), checkpoint(run, 12)
    sizes = {file: file.stat().st_size for file in files(saved)}
    places = [(file, random.randrange(size)) for file, size in sizes.items() for _ in range(20)]
    places += [
        (file, random.randrange(sizes[file]))
        for file in random.choices([*sizes], [*sizes.values()], k=FLIPS - len(places))
    ]
    for file, byte in places:
        with open(file, "r+b") as stream:
            stream.seek(byte)
            was = stream.read(1)[0]
            bit = 1 << random.randrange(8)
            stream.seek(byte)
            stream.write(bytes([was ^ bit]))
            stream.flush()
            found = damage(saved)
            assert found is not None and file.name in found, (file.name, byte, bit)
            stream.seek(byte)
            stream.write(bytes([was]))
    assert len(places) == FLIPS and damage(saved) is None


def remove(file: Path, older: Path, other: Path) -> None:
    file.unlink()


def rename(file: Path, older: Path, other: Path) -> None:
    file.rename(file.with_name("state-00007-000.safetensors"))


def add(file: Path, older: Path, other: Path) -> None:
    shutil.copy(file, file.with_name("state-00002-000.safetensors"))


def take_from_the_step_before(file: Path, older: Path, other: Path) -> None:
    shutil.copy(older, file)


def exchange_between_ranks(file: Path, older: Path, other: Path) -> None:
    aside = file.with_name("aside")
    file.rename(aside)
    other.rename(file)
    aside.rename(other)


@pytest.mark.parametrize(
    "act", [remove, rename, add, take_from_the_step_before, exchange_between_ranks], ids=lambda act: act.__name__
)  # fmt: skip
def test_missing_extra_and_exchanged_files_are_found(
    act: object, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F8."""
    name = "state-00000-000.safetensors"
    act(
        checkpoint(run, 12) / name,
        checkpoint(run, 9) / name,
        checkpoint(run, 12) / "state-00001-000.safetensors",
    )  # type: ignore[operator]
    assert_passed_over(run, "state-0000", caplog)


def test_values_of_another_step_are_found(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(checkpoint(run, 9) / "state-00000.json", checkpoint(run, 12) / "state-00000.json")
    assert_passed_over(run, "state-00000.json", caplog)
    shutil.copy(checkpoint(run, 9) / MANIFEST, checkpoint(run, 12) / MANIFEST)
    assert_passed_over(run, "state-0000", caplog)


def test_nothing_points_to_the_newest(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """F9: files that other programs take for pointers, empty and half-written folders change nothing."""
    (run / "latest").write_text("step-00000099")
    (run / "latest_universal").write_text("")
    (run / "step-00000098").write_text("a file")
    (run / "step-banana").mkdir()
    shutil.copytree(checkpoint(run, 12), run / ".step-00000097.writing")
    (run / "checkpoint-96").symlink_to(run / "step-00000009")
    assert latest(run) == checkpoint(run, 12) and not caplog.text
    (run / "step-00000095").mkdir()
    assert latest(run) == checkpoint(run, 12)
    assert f"step-00000095: passed over: {MANIFEST} is missing" in caplog.text


def test_the_run_goes_on_from_the_one_before(trials: Trials, short: Path, tmp_path: Path) -> None:
    """F6, to the end: the newest two are damaged, the third is taken, and nothing else is different."""
    run = tmp_path / "run"
    shutil.copytree(short, run)
    shutil.rmtree(run / "export")
    for step, file in ((12, "state-00000-000.safetensors"), (9, "state-00000.json")):
        with open(checkpoint(run, step) / file, "r+b") as stream:
            stream.truncate(100)
    job = trials.begin(run, *SHORT, "--resume").done()
    said = job.err()
    assert "step-00000012: passed over: state-00000-000.safetensors has 100 bytes" in said
    assert "step-00000009: passed over: state-00000.json has 100 bytes" in said and "from step 6" in said
    assert_identical(run, short)
    assert steps_saved(run) == [3, 6, 9, 12]


def test_a_damaged_newest_is_not_among_those_that_stay(trials: Trials, short: Path, tmp_path: Path) -> None:
    """Of `keep=1`, it is the newest whole one that is kept; killed right after what is older has been removed."""
    run = tmp_path / "run"
    shutil.copytree(short, run)
    with open(checkpoint(run, 12) / "state-00000-000.safetensors", "r+b") as stream:
        stream.truncate(100)
    kill = Fault(("kill",), ("at", 10, "forward and backward"))
    job = trials.begin(run, *SHORT, "save_every=1", "keep=1", "--resume", faults=[kill])
    assert job.wait() == [-signal.SIGKILL]
    assert latest(run) == checkpoint(run, 10) and steps_saved(run) == [10, 12]
    trials.train(run, *SHORT, "--resume")
    assert_identical(run, short)


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(trials: Trials, run: Path, tmp_path: Path) -> None:
    asked = checkpoint(run, 12)
    with open(asked / "state-00001-000.safetensors", "r+b") as stream:
        stream.seek(1000)
        stream.write(b"\xff\x00\xff")
    job = trials.begin(tmp_path / "new", *SHORT, f"--resume={asked}")
    assert job.wait() == [2]
    assert "state-00001-000.safetensors was altered; choose another checkpoint" in one_line(job)
    assert not (tmp_path / "new" / "metrics.jsonl").exists()
