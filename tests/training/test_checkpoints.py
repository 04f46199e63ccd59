from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from crocodil.errors import CrocodilError
from crocodil.training.checkpoints import (
    DIGEST,
    MANIFEST,
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
    assert latest(tmp_path) is None


def test_killed_while_writing_leaves_the_previous_one(tmp_path: Path) -> None:
    older = save(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        with publishing(tmp_path, checkpoint_name(2)) as directory:
            (directory / "state.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt  # not an Exception: like a kill, nothing is tidied
    assert directory.exists()
    assert latest(tmp_path) == older
    assert save(tmp_path, 2) == latest(tmp_path)  # the same step again, over the stray
    assert names(tmp_path) == [checkpoint_name(1), checkpoint_name(2)]


def test_a_failed_body_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"):
        with publishing(tmp_path, checkpoint_name(1)) as directory:
            (directory / "state.json").write_text("{}")
            raise OSError("disk full")
    assert names(tmp_path) == []


@pytest.mark.parametrize("point", ["_manifest_text", "write_atomically", "_retire", "fsync"])
def test_stopped_at_any_point_the_previous_one_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    save(tmp_path, 1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"crocodil.training.checkpoints.{point}", stop)
        with pytest.raises(KeyboardInterrupt):
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


def test_no_pickle_is_read(tmp_path: Path) -> None:
    save_tensors(tmp_path, {}, "state")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "state-0.safetensors")
    with pytest.raises(CrocodilError, match="unreadable"):
        open_tensors(tmp_path)


def test_manifest_is_json_with_sizes_and_digests(tmp_path: Path) -> None:
    files = json.loads((save(tmp_path, 1) / MANIFEST).read_text())["files"]
    assert set(files) == {"state.safetensors", "state.json", "engine/shard.bin"}
    assert files["engine/shard.bin"]["bytes"] == 200 and len(files["engine/shard.bin"][DIGEST]) == 64
