from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crocodil.errors import CrocodilError
from crocodil.training.checkpoints import (
    DIGEST,
    MANIFEST,
    _manifest_text,
    beyond,
    checkpoint_name,
    checkpoint_step,
    damage,
    latest,
    prune,
    publishing,
    require_complete,
)
from crocodil.training.state import load_values, open_tensors, save_tensors, save_values


def save(run_dir: Path, step: int) -> Path:
    with publishing(run_dir, checkpoint_name(step)) as directory:
        save_tensors(directory, {"weight": torch.full((64,), float(step))}, "state")
        save_values(directory, {"step": step}, "state")
        (directory / "engine").mkdir()
        (directory / "engine" / "shard.bin").write_bytes(bytes(range(200)))
    return run_dir / checkpoint_name(step)


class Killed(BaseException):
    """Like a kill, it leaves nobody the time to tidy up."""


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.iterdir())


def test_newest_is_found_and_read_back(tmp_path: Path) -> None:
    assert latest(tmp_path / "absent") is None
    for step in (9, 100, 20):
        save(tmp_path, step)
    found = latest(tmp_path)
    assert found is not None and checkpoint_step(found) == 100
    assert torch.equal(open_tensors(found, "state.safetensors")["weight"], torch.full((64,), 100.0))
    assert load_values(found, "state") == {"step": 100}
    require_complete(found)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("fault", [truncate, empty, flip, lengthen, remove])
@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "engine/shard.bin", MANIFEST])
def test_damage_is_named_and_the_one_before_is_used(
    tmp_path: Path, fault, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    fault(newer / file)
    assert latest(tmp_path) == older
    assert file in caplog.text and newer.name in caplog.text
    with pytest.raises(CrocodilError, match=file):
        require_complete(newer)


def test_every_single_bit_flip_is_found(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    draws = random.Random(0)
    for trial in range(200):
        file = files[trial % len(files)]
        whole = file.read_bytes()
        content = bytearray(whole)
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        file.write_bytes(content)
        assert damage(checkpoint) is not None
        file.write_bytes(whole)
    assert damage(checkpoint) is None


def test_added_and_exchanged_files_are_found(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    shutil.copy(first / "state.safetensors", second / "state.safetensors")
    assert damage(second) == "state.safetensors was altered"
    (first / "engine" / "extra.bin").write_bytes(b"")
    assert damage(first) == "engine/extra.bin is not in the manifest"


def test_where_all_are_damaged_none_is_not_the_answer(tmp_path: Path) -> None:
    """Whoever is told that there is none begins anew."""
    for step in (1, 2):
        (save(tmp_path, step) / "notes.txt").write_text("mine")
    with pytest.raises(CrocodilError, match="no checkpoint is whole.*step-00000002: notes.txt is not in"):
        latest(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda files: [1, 2],
        lambda files: None,
        lambda files: dict.fromkeys(files),
        lambda files: {name: [1, 2] for name in files},
        lambda files: {name: {"bytes": entry["bytes"]} for name, entry in files.items()},
        lambda files: {name: {"bytes": 1, "sha256": ""} for name in files},
    ],
)
def test_a_manifest_that_is_sealed_and_odd_is_damage(tmp_path: Path, spoil: Callable[[Any], Any]) -> None:
    """Of another version, or of another program: passed over like any other damage."""
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    files = json.loads((newer / MANIFEST).read_text())["files"]
    (newer / MANIFEST).write_text(_manifest_text(spoil(files)))
    assert MANIFEST in str(damage(newer)) and latest(tmp_path) == older


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"files": ' + "[" * 100_000, '{"files": {}, "format": 1}', "7"]
)
def test_a_manifest_that_is_none_is_damage(tmp_path: Path, text: str) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    (newer / MANIFEST).write_text(text)
    assert MANIFEST in str(damage(newer)) and latest(tmp_path) == older


def test_killed_while_writing_leaves_the_previous_one(tmp_path: Path) -> None:
    older = save(tmp_path, 1)
    with pytest.raises(Killed):
        with publishing(tmp_path, checkpoint_name(2)) as directory:
            (directory / "state.safetensors").write_bytes(b"half")
            raise Killed
    assert directory.exists()
    assert latest(tmp_path) == older
    assert save(tmp_path, 2) == latest(tmp_path)  # the same step again, over the stray
    assert names(tmp_path) == [checkpoint_name(1), checkpoint_name(2)]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_body_publishes_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        with publishing(tmp_path, checkpoint_name(1)) as directory:
            (directory / "state.json").write_text("{}")
            raise error
    assert names(tmp_path) == []


def test_a_full_disk_says_where(tmp_path: Path) -> None:
    """What a write raises has no name in it."""
    with pytest.raises(OSError, match=r"No space left on device: .*export"):
        with publishing(tmp_path, "export"):
            raise OSError(28, "No space left on device")


@pytest.mark.parametrize("point", ["_manifest_text", "write_atomically", "_put", "fsync"])
def test_stopped_at_any_point_the_previous_one_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    save(tmp_path, 1)

    def stop(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"crocodil.training.checkpoints.{point}", stop)
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert latest(tmp_path) == tmp_path / checkpoint_name(1)
    save(tmp_path, 2)
    assert latest(tmp_path) == tmp_path / checkpoint_name(2)


def test_published_is_not_overwritten_unless_damaged(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    with pytest.raises(CrocodilError, match="already there and complete"):
        save(tmp_path, 1)
    flip(checkpoint / "state.safetensors")
    save(tmp_path, 1)
    assert latest(tmp_path) == checkpoint


def test_publishing_never_replaces_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "thesis.tex").write_text("years of work")
    with pytest.raises(CrocodilError, match="already there"):
        with publishing(tmp_path, "export"):
            pass
    assert (tmp_path / "export" / "thesis.tex").read_text() == "years of work"


def export(folder: Path, content: str, replace: bool = True) -> None:
    with publishing(folder, "export", replace=replace) as directory:
        (directory / "model").write_text(content)


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_only_what_was_published_is_replaced(tmp_path: Path, kind: str) -> None:
    target, thesis = tmp_path / "export", tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("years of work")
    {
        "file": lambda: target.write_text("mine"),
        "link": lambda: target.symlink_to(thesis),
        "folder": lambda: shutil.copytree(thesis, target),
    }[kind]()
    before = target.read_text() if kind == "file" else (target / "thesis.tex").read_text()
    with pytest.raises(
        CrocodilError, match="export: already there, and not of crocodil's making; move it away"
    ):
        export(tmp_path, "new")
    assert (target.read_text() if kind == "file" else (target / "thesis.tex").read_text()) == before
    assert names(tmp_path) == ["export", "thesis"]


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(CrocodilError, match="already there"):
        with publishing(tmp_path, "export") as directory:
            (directory / "model").write_text("new")
            (tmp_path / "export").mkdir()
            (tmp_path / "export" / "thesis.tex").write_text("years of work")
    assert (tmp_path / "export" / "thesis.tex").read_text() == "years of work"
    assert names(tmp_path) == ["export"]


def test_two_exports_to_one_name_do_not_mix(tmp_path: Path) -> None:
    """One of them is there in the end, whole; the other is told."""
    with pytest.raises(CrocodilError, match="already there"):
        with publishing(tmp_path, "export") as directory:
            (directory / "model").write_text("A")
            export(tmp_path, "B", replace=False)
    assert (tmp_path / "export" / "model").read_text() == "B"
    assert damage(tmp_path / "export") is None and names(tmp_path) == ["export"]


def test_an_export_beside_a_run_is_none_of_its_business(tmp_path: Path) -> None:
    """It prunes, and publishes an export of its own, while another one is written into its folder."""
    save(tmp_path, 1)
    with publishing(tmp_path, "another") as directory:
        (directory / "model").write_text("whole")
        save(tmp_path, 2)
        prune(tmp_path, keep=1)
        export(tmp_path, "of the run")
    assert damage(tmp_path / "another") is None and damage(tmp_path / "export") is None
    assert names(tmp_path) == ["another", "export", checkpoint_name(2)]


def test_what_stood_there_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path, "old")
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if str(source).endswith(".writing"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", refuse)
        with pytest.raises(OSError, match="Input/output error"):
            export(tmp_path, "new")
    assert (tmp_path / "export" / "model").read_text() == "old" and names(tmp_path) == ["export"]
    export(tmp_path, "new")
    assert (tmp_path / "export" / "model").read_text() == "new" and names(tmp_path) == ["export"]


def stuck(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A folder of this name cannot be removed: a file in it is open elsewhere, on a file system of the network."""
    rmtree = shutil.rmtree

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if name not in Path(path).name:
            rmtree(path, ignore_errors)
        elif not ignore_errors:
            raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("crocodil.training.checkpoints.shutil.rmtree", refuse)


def test_an_old_one_that_cannot_be_removed_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, and goes as soon as it can; neither a checkpoint nor an export waits for it."""
    for step in (1, 2):
        save(tmp_path, step)
    export(tmp_path, "old")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        stuck(patch, "step-00000001")
        for step in (3, 4):
            prune(tmp_path, keep=1)
            save(tmp_path, step)
        prune(tmp_path, keep=1)
        assert latest(tmp_path) == tmp_path / checkpoint_name(4)
        (left,) = tmp_path.glob(".*")
        assert left.name.startswith(".step-00000001.") and left.name.endswith(".removing")
    assert caplog.text.count("not removed (Device or resource busy); remove it by hand") == 1
    with monkeypatch.context() as patch:
        stuck(patch, "export")
        export(tmp_path, "new")
        assert (tmp_path / "export" / "model").read_text() == "new" and damage(tmp_path / "export") is None
        export(tmp_path, "newer")
    prune(tmp_path, keep=1)
    export(tmp_path, "newest")
    assert names(tmp_path) == ["export", checkpoint_name(4)]


def test_an_old_one_that_cannot_be_moved_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name == checkpoint_name(1):
            raise OSError(1, "Operation not permitted")
        rename(source, target)

    monkeypatch.setattr("os.rename", refuse)
    with caplog.at_level(logging.WARNING):
        prune(tmp_path, keep=1)
    assert names(tmp_path) == [checkpoint_name(1), checkpoint_name(3)]
    assert f"{checkpoint_name(1)}: not removed (Operation not permitted)" in caplog.text


def test_the_one_published_last_is_never_removed(tmp_path: Path) -> None:
    """Even where later ones are in the folder, of another branch."""
    for step in (3, 6, 8):
        save(tmp_path, step)
    prune(tmp_path, keep=2, trusted=[checkpoint_name(2), checkpoint_name(3)])
    assert names(tmp_path) == [*map(checkpoint_name, (3, 6, 8))]


def test_what_stands_in_the_way_of_going_back(tmp_path: Path) -> None:
    for step in (4, 6, 8):
        save(tmp_path, step)
    flip(tmp_path / checkpoint_name(6) / "state.safetensors")
    shutil.copytree(tmp_path / checkpoint_name(4), tmp_path / "kept" / checkpoint_name(4))
    assert beyond(tmp_path, tmp_path / checkpoint_name(4), 4) == [*map(checkpoint_name, (6, 8))]
    assert beyond(tmp_path, tmp_path / "kept" / checkpoint_name(4), 4) == [*map(checkpoint_name, (4, 6, 8))]
    assert beyond(tmp_path, tmp_path / checkpoint_name(8), 8) == []
    assert beyond(tmp_path / "absent", tmp_path / checkpoint_name(4), 4) == []


def test_pruning_keeps_the_newest_that_verify(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    flip(tmp_path / checkpoint_name(5) / "state.safetensors")
    (tmp_path / ".step-00000009.writing").mkdir()
    (tmp_path / "samples.txt").write_text("kept")
    prune(tmp_path, keep=2)
    assert names(tmp_path) == ["samples.txt", *map(checkpoint_name, (3, 4, 5))]
    flip(tmp_path / checkpoint_name(4) / "state.safetensors")
    prune(tmp_path, keep=1)
    prune(tmp_path, keep=1)
    assert latest(tmp_path) == tmp_path / checkpoint_name(3)
    with pytest.raises(CrocodilError, match="at least one"):
        prune(tmp_path, keep=0)


def test_state_holds_scalars_shared_memory_and_exact_floats(tmp_path: Path) -> None:
    table = torch.randn(4, 3)
    tensors = {"a": table, "tied": table, "row": table[1], "turned": table.T, "step": torch.tensor(3.0)}
    save_tensors(tmp_path, tensors, "rank0")
    save_values(tmp_path, {"loss": 0.1 + 0.2, "seen": [1, 2]}, "rank0")
    read, values = open_tensors(tmp_path, "rank*.safetensors"), load_values(tmp_path, "rank0")
    assert all(torch.equal(read[key], tensor) for key, tensor in tensors.items())
    assert values == {"loss": 0.1 + 0.2, "seen": [1, 2]}
    with pytest.raises(CrocodilError, match="no readable state 'state'"):
        load_values(tmp_path, "state")


@pytest.mark.parametrize(
    "lost", ["optimiser/exp_avg_sq/a", "optimiser/step/b", "optimiser/exp_avg/b", "ema/updates"]
)
def test_a_state_that_lacks_a_part_of_itself_is_refused(tmp_path: Path, lost: str) -> None:
    kept = [f"optimiser/{moment}/{name}" for name in "ab" for moment in ("exp_avg", "exp_avg_sq", "step")]
    whole = {key: torch.zeros(1) for key in ["model/a", "model/b", *kept, "ema/average/a", "ema/updates"]}
    save_tensors(tmp_path, whole, "state-00000-000")
    assert set(open_tensors(tmp_path)) == set(whole)
    del whole[lost]
    save_tensors(tmp_path, whole, "state-00000-000")
    with pytest.raises(CrocodilError, match=f"lacks {lost}; choose another checkpoint"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("text", ["[1, 2]", "7", "null", "{", "[" * 100_000])
def test_values_that_are_no_section_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CrocodilError, match="no readable state 'state'.*move it away"):
        load_values(tmp_path, "state")


def test_no_pickle_is_read(tmp_path: Path) -> None:
    save_tensors(tmp_path, {}, "state")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "state-0.safetensors")
    with pytest.raises(CrocodilError, match="unreadable"):
        open_tensors(tmp_path)


def test_manifest_is_json_with_sizes_and_digests(tmp_path: Path) -> None:
    files = json.loads((save(tmp_path, 1) / MANIFEST).read_text())["files"]
    assert set(files) == {"state.safetensors", "state.json", "engine/shard.bin"}
    assert files["engine/shard.bin"]["bytes"] == 200 and len(files["engine/shard.bin"][DIGEST]) == 32
