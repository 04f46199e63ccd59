"""Checkpoints that are complete or absent, on one rank or many.

A checkpoint is a directory. It is written under a temporary name beside its own, every file is flushed,
the manifest with the size and digest of each file is written last, then one rename publishes it. Resuming
takes the newest checkpoint whose manifest verifies. The functions with a `group` are collective: with
torch.distributed initialised, call them on every rank (the ranks share one file system); digesting is divided
among them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from torch.distributed import ProcessGroup

from crocodil.atomic import fsync, write_atomically
from crocodil.errors import CrocodilError
from crocodil.training.ranks import broadcast, gather, rank_and_world

MANIFEST = "manifest.json"

_log = logging.getLogger(__name__)
_STEP = re.compile(r"step-(\d+)")
_STRAY = re.compile(r"\..+\.(writing|removing)")
_RANKED = re.compile(r"-(\d{5})(?:-\d+)?\.\w+$")
_DIGEST_THREADS = 4
_PART = 16 << 20
DIGEST = "blake2b of 16 MiB parts"
"""What the manifest calls a file's digest; every entry has it beside `bytes`."""


def checkpoint_name(step: int) -> str:
    """The directory name that `latest` and `prune` look for: `step-00001234`."""
    return f"step-{step:08d}"


def checkpoint_step(directory: Path) -> int:
    """The step a checkpoint was taken at, from its name."""
    match = _STEP.fullmatch(directory.name)
    if match is None:
        raise CrocodilError(f"{directory}: not a checkpoint; its name should be like {checkpoint_name(0)}")
    return int(match.group(1))


@contextmanager
def publishing(
    run_dir: Path, name: str, group: ProcessGroup | None = None, replace: bool = False
) -> Iterator[Path]:
    """Yield a temporary directory to write into; publish it as `run_dir/name` once every rank has succeeded.

    Every rank may write its own files there, so an engine can save its shards. When the body fails on any
    rank, nothing is published, all ranks raise, and what was published before is untouched.

    Args:
        run_dir: made when missing.
        name: `checkpoint_name(step)`, or any other name for an export.
        group: for the barriers; a gloo group with a long timeout keeps a slow disk from tripping NCCL's.
        replace: an export that a longer run writes again takes the place of the one before, when it is complete.

    Raises:
        CrocodilError: `run_dir/name` exists (a damaged checkpoint is no hindrance: it is replaced).
        OSError: a file could not be written, here or on another rank; training may go on and try again.
    """
    rank, _ = rank_and_world(group)
    target = run_dir / name
    temporary = run_dir / f".{name}.writing"

    def prepare() -> str | None:
        if target.exists() and not replace and not _STEP.fullmatch(name):
            return f"{target}: already there; give another name, or remove it"
        if target.exists() and not replace and damage(target) is None:
            return f"{target}: already there and complete; resume from it, or give another run directory"
        run_dir.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        temporary.mkdir()
        return None

    with _together(group, f"prepare {temporary}"):
        refusal = prepare() if rank == 0 else None
    if refusal := broadcast(refusal, group):
        raise CrocodilError(refusal)
    try:
        with _together(group, f"write {temporary}"):
            yield temporary
        with _together(group, f"flush {temporary}"):
            parts = gather(_describe_files(temporary, *rank_and_world(group)), group)
        with _together(group, f"publish {target}"):
            if rank == 0:
                files = {path: entry for part in parts for path, entry in part.items()}
                write_atomically(temporary / MANIFEST, _manifest_text(files))
                for directory, _, _ in os.walk(temporary):
                    fsync(Path(directory))
                _retire(target)  # a damaged one, or one that is to be replaced
                os.rename(temporary, target)
                fsync(run_dir)
    except Exception:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def damage(directory: Path) -> str | None:
    """What is wrong with a published directory, naming the file; None when every byte is as it was written.

    Missing, truncated, altered and added files are found, and changes to the manifest itself.
    """
    return _damage(directory, 0, 1)


def latest(run_dir: Path, group: ProcessGroup | None = None) -> Path | None:
    """The newest checkpoint that verifies, or None; a warning names the damaged file of each passed over."""
    for candidate in broadcast(_candidates(run_dir), group):
        fault = _agreed_damage(candidate, group)
        if fault is None:
            return candidate
        if rank_and_world(group)[0] == 0:
            _log.warning("%s: passed over: %s; trying the checkpoint before it", candidate, fault)
    return None


def require_complete(directory: Path, group: ProcessGroup | None = None) -> None:
    """Refuse a directory whose manifest does not verify.

    Call it before an engine loads its shards: those hold pickles, and only our own files may be unpickled.

    Raises:
        CrocodilError: naming the damaged file.
    """
    if fault := _agreed_damage(directory, group):
        raise CrocodilError(f"{directory}: not loaded: {fault}; choose another checkpoint of the run")


def prune(run_dir: Path, keep: int, group: ProcessGroup | None = None, trusted: Collection[str] = ()) -> None:
    """Delete checkpoints older than the newest `keep` that verify, and what killed runs left half-written.

    Nothing is deleted until `keep` checkpoints verify, so the last good one always stays.

    Args:
        trusted: names of those that this process has published or verified itself; they are not read again.
    """
    if keep < 1:
        raise CrocodilError(f"keep is {keep}: at least one checkpoint must stay")
    good = 0
    for candidate in broadcast(_candidates(run_dir), group):
        if good >= keep:
            if rank_and_world(group)[0] == 0:
                _retire(candidate)
        elif candidate.name in trusted or _agreed_damage(candidate, group) is None:
            good += 1
    if rank_and_world(group)[0] == 0 and run_dir.is_dir():
        for stray in run_dir.iterdir():
            if _STRAY.fullmatch(stray.name):
                _remove(stray)


def _candidates(run_dir: Path) -> list[Path]:
    """Directories named like checkpoints, newest step first; temporary names never match."""
    if not run_dir.is_dir():
        return []
    found = [path for path in run_dir.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=checkpoint_step, reverse=True)


def _agreed_damage(directory: Path, group: ProcessGroup | None) -> str | None:
    faults = gather(_damage(directory, *rank_and_world(group)), group)
    return next((fault for fault in faults if fault is not None), None)


def _damage(directory: Path, rank: int, world: int) -> str | None:
    """The check of every name and size, and of this rank's share of the digests."""
    try:
        text = (directory / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, UnicodeDecodeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    try:
        expected = json.loads(text)["files"]
        if _manifest_text(expected) != text:
            raise ValueError
    except (ValueError, TypeError, KeyError):
        return f"{MANIFEST} was altered or cut short"
    present = _relative_files(directory)
    for path in sorted(expected.keys() | set(present)):
        if path not in expected:
            return f"{path} is not in the manifest"
        if path not in present:
            return f"{path} is missing"
        size = (directory / path).stat().st_size
        if size != expected[path]["bytes"]:
            return f"{path} has {size} bytes, not {expected[path]['bytes']}"
    mine = present[rank::world]
    try:
        with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
            digests = {path: _digest(directory / path, pool) for path in mine}
            for path, digest in digests.items():
                if digest() != expected[path][DIGEST]:
                    return f"{path} was altered"
    except OSError as error:
        return f"a file cannot be read ({error})"
    return None


def _relative_files(directory: Path) -> list[str]:
    found = [
        (Path(folder) / name).relative_to(directory).as_posix()
        for folder, _, names in os.walk(directory)
        for name in names
    ]
    return sorted(path for path in found if path != MANIFEST)


def _describe_files(directory: Path, rank: int, world: int) -> dict[str, dict[str, int | str]]:
    """Flush this rank's files, and read each meanwhile for its manifest entry. What a rank has written it has in memory
    still, and only its own machine can flush; what bears no rank is rank 0's."""
    present = _relative_files(directory)
    mine = [path for path in present if _owner(path, world) == rank]
    with ThreadPoolExecutor(_DIGEST_THREADS) as pool, ThreadPoolExecutor(_DIGEST_THREADS) as flushing:
        flushed = [flushing.submit(fsync, directory / path) for path in mine]
        digests = {path: _digest(directory / path, pool) for path in mine}
        for one in flushed:
            one.result()
        return {
            path: {"bytes": (directory / path).stat().st_size, DIGEST: digest()}
            for path, digest in digests.items()
        }


def _owner(path: str, world: int) -> int:
    named = _RANKED.search(path)
    return int(named[1]) if named and int(named[1]) < world else 0


def _digest(path: Path, pool: ThreadPoolExecutor) -> Callable[[], str]:
    """blake2b over the blake2b digests of the file's parts of 16 MiB, which the pool works out side by side. Returns what
    waits for it."""
    parts = [pool.submit(_digest_part, path, start) for start in range(0, max(1, path.stat().st_size), _PART)]
    return lambda: hashlib.blake2b(b"".join(part.result() for part in parts), digest_size=32).hexdigest()


def _digest_part(path: Path, start: int) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(start)
        return hashlib.blake2b(stream.read(_PART), digest_size=32).digest()


def _manifest_text(files: dict[str, dict[str, int | str]]) -> str:
    """One text per content, with a digest over itself: any change to the file is then visible."""
    body = json.dumps(files, sort_keys=True)
    seal = hashlib.blake2b(body.encode(), digest_size=32).hexdigest()
    return json.dumps({"format": 1, "files": files, "blake2b": seal}, sort_keys=True, indent=1) + "\n"


def _retire(directory: Path) -> None:
    """Delete a published directory; renamed first, so that a kill half-way leaves no half one in sight."""
    if directory.exists():
        aside = directory.with_name(f".{directory.name}.removing")
        _remove(aside)
        os.rename(directory, aside)
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _together(group: ProcessGroup | None, what: str) -> Iterator[None]:
    """Run the body on every rank; when it fails on one, fail on all, so that none waits for one that left."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    told = gather(None if failure is None else f"{type(failure).__name__}: {failure}", group)
    if failure is not None:
        raise failure
    for rank, message in enumerate(told):
        if message is not None:
            raise OSError(f"rank {rank} could not {what}: {message}")
