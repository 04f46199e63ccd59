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
import secrets
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import xxhash
from torch.distributed import ProcessGroup

from crocodil.atomic import fsync, write_atomically
from crocodil.errors import CrocodilError
from crocodil.training.ranks import broadcast, gather, rank_and_world

MANIFEST = "manifest.json"

_log = logging.getLogger(__name__)
_STEP = re.compile(r"step-(\d+)")
_RANKED = re.compile(r"-(\d{5})(?:-\d+)?\.\w+$")
_THREADS = 4
_FORMAT = 2
DIGEST = "xxh3_128"
"""The digest of a file, which every entry of the manifest has beside `bytes`. It finds accidents, at the speed of memory;
a forger could write the manifest anew under any digest."""
_ENTRY = {"bytes", DIGEST}


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
        replace: an export that a longer run writes again takes the place of the one before, when it is complete. Who
            replaces, or writes a checkpoint, is alone with that name: what killed runs have left of it is removed.

    Raises:
        CrocodilError: `run_dir/name` exists (a damaged checkpoint is no hindrance: it is replaced), or what is to be
            replaced was not published here.
        OSError: a file could not be written, here or on another rank; training may go on and try again.
    """
    rank, _ = rank_and_world(group)
    target = run_dir / name
    is_alone = replace or _STEP.fullmatch(name) is not None
    # Two exports to one name, each with a temporary one of its own, do not write into one another.
    temporary = broadcast(run_dir / f".{name}.{secrets.token_hex(4)}.writing", group)

    def prepare() -> str | None:
        if refusal := _occupied(target, replace):
            return refusal
        run_dir.mkdir(parents=True, exist_ok=True)
        if is_alone:
            _sweep(run_dir, re.escape(name))
        temporary.mkdir()
        return None

    with together(f"prepare {temporary}", group):
        refusal = prepare() if rank == 0 else None
    if refusal := broadcast(refusal, group):
        raise CrocodilError(refusal)
    try:
        with together(f"write {temporary}", group):
            yield temporary
        with together(f"flush {temporary}", group):
            parts = gather(_describe_files(temporary, *rank_and_world(group)), group)
        with together(f"publish {target}", group):
            if rank == 0:
                files = {path: entry for part in parts for path, entry in part.items()}
                write_atomically(temporary / MANIFEST, _manifest_text(files))
                for directory, _, _ in os.walk(temporary):
                    fsync(Path(directory))
                if not is_alone and (refusal := _occupied(target)):  # since we began
                    raise CrocodilError(refusal)
                _put(temporary, target)
    except (Exception, KeyboardInterrupt) as error:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(target)  # a disk that is full in the middle of a file does not say which
        raise


def damage(directory: Path) -> str | None:
    """What is wrong with a published directory, naming the file; None when every byte is as it was written.

    Missing, truncated, altered and added files are found, and changes to the manifest itself.
    """
    return _damage(directory, 0, 1)


def latest(run_dir: Path, group: ProcessGroup | None = None) -> Path | None:
    """The newest checkpoint that verifies, None where there are none; a warning names the damaged file of each passed
    over.

    Raises:
        CrocodilError: none of those that are there verifies. Beginning anew would cost what may still be mended.
    """
    faults = []
    for candidate in _checkpoints(run_dir, group):
        fault = _agreed_damage(candidate, group)
        if fault is None:
            return candidate
        faults.append(f"{candidate.name}: {fault}")
        if rank_and_world(group)[0] == 0:
            _log.warning("%s: passed over: %s; trying the checkpoint before it", candidate, fault)
    if faults:
        raise CrocodilError(f"{run_dir}: no checkpoint is whole ({faults[0]}); mend one, or move them away")
    return None


def require_complete(directory: Path, group: ProcessGroup | None = None) -> None:
    """Refuse a directory whose manifest does not verify.

    Call it before an engine loads its shards: those hold pickles, and only our own files may be unpickled.

    Raises:
        CrocodilError: naming the damaged file.
    """
    with together(f"read {directory}", group):
        if not directory.is_dir():
            there = ", ".join(sorted(path.name for path in directory.parent.glob("step-*"))) or "none"
            raise CrocodilError(f"{directory}: there is no such checkpoint; beside it there are: {there}")
    if fault := _agreed_damage(directory, group):
        raise CrocodilError(f"{directory}: not loaded: {fault}; choose another checkpoint of the run")


def prune(run_dir: Path, keep: int, group: ProcessGroup | None = None, trusted: Sequence[str] = ()) -> None:
    """Delete checkpoints older than the newest `keep` that verify, and what killed runs left half-written.

    Nothing is deleted until `keep` checkpoints verify, so the last good one always stays. What cannot be deleted stays
    too, and is told once: no run ends for it.

    Args:
        trusted: names of those that this process has published or verified itself; they are not read again, and the
            last of them is never deleted.

    Raises:
        OSError: the folder cannot be read.
    """
    if keep < 1:
        raise CrocodilError(f"keep is {keep}: at least one checkpoint must stay")
    is_first = rank_and_world(group)[0] == 0
    good = 0
    for candidate in _checkpoints(run_dir, group):
        if good >= keep:
            if is_first and candidate.name not in trusted[-1:]:
                with _telling(candidate):
                    _discard(_retire(candidate))
        elif candidate.name in trusted or _agreed_damage(candidate, group) is None:
            good += 1
    if is_first:
        _sweep(run_dir, _STEP.pattern)


def beyond(run_dir: Path, checkpoint: Path, step: int, group: ProcessGroup | None = None) -> list[str]:
    """Names of the checkpoints of a run, whole or not, that stand in the way of one that goes on from `checkpoint`: those
    of its step and later, itself left out."""
    found = _checkpoints(run_dir, group)
    return sorted(one.name for one in found if checkpoint_step(one) >= step and not is_same(one, checkpoint))


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one place."""
    return one.resolve() == other.resolve()


def _checkpoints(run_dir: Path, group: ProcessGroup | None) -> list[Path]:
    """Directories named like checkpoints, newest step first, as rank 0 finds them; temporary names never match."""
    found: list[Path] = []
    with together(f"read {run_dir}", group):
        if rank_and_world(group)[0] == 0 and run_dir.is_dir():
            found = [path for path in run_dir.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
    return broadcast(sorted(found, key=checkpoint_step, reverse=True), group)


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
        manifest = json.loads(text)
        expected = manifest["files"]
        if manifest["format"] != _FORMAT or any(entry.keys() != _ENTRY for entry in expected.values()):
            return f"{MANIFEST} is of another version of crocodil"
        if _manifest_text(expected) != text:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{MANIFEST} was altered or cut short"
    try:
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
        with ThreadPoolExecutor(_THREADS) as pool:
            for path, digest in zip(
                mine, pool.map(lambda path: _digest(directory / path), mine), strict=True
            ):
                if digest != expected[path][DIGEST]:
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
    with ThreadPoolExecutor(_THREADS) as flushing, ThreadPoolExecutor(_THREADS) as reading:
        flushed = [flushing.submit(fsync, directory / path) for path in mine]
        digests = list(reading.map(lambda path: _digest(directory / path), mine))
        for one in flushed:
            one.result()
    return {
        path: {"bytes": (directory / path).stat().st_size, DIGEST: digest}
        for path, digest in zip(mine, digests, strict=True)
    }


def _owner(path: str, world: int) -> int:
    named = _RANKED.search(path)
    return int(named[1]) if named and int(named[1]) < world else 0


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def _manifest_text(files: dict[str, dict[str, int | str]]) -> str:
    """One text per content, with a digest over itself: any change to the file is then visible."""
    body = json.dumps(files, sort_keys=True)
    seal = xxhash.xxh3_128_hexdigest(body.encode())
    return json.dumps({"format": _FORMAT, "files": files, DIGEST: seal}, sort_keys=True, indent=1) + "\n"


def _occupied(target: Path, replace: bool = False) -> str | None:
    """Why nothing can be published there, or None."""
    if not os.path.lexists(target):
        return None
    if replace:
        ours = not target.is_symlink() and (target / MANIFEST).is_file()
        return None if ours else f"{target}: already there, and not of crocodil's making; move it away"
    if not _STEP.fullmatch(target.name):
        return f"{target}: already there; give another name, or remove it"
    if damage(target) is None:
        return f"{target}: already there and complete; resume from it, or give another run directory"
    return None


def _put(temporary: Path, target: Path) -> None:
    """Give a whole directory its name; what had it before goes when the new one is in place."""
    before = _retire(target) if os.path.lexists(target) else None
    try:
        os.rename(temporary, target)
    except OSError:
        if before is not None:
            os.rename(before, target)
        raise
    fsync(target.parent)
    if before is not None:
        _discard(before)


def _retire(directory: Path) -> Path:
    """Take its name from a published directory: a kill half-way through deleting leaves no half one in sight."""
    aside = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.removing")
    os.rename(directory, aside)
    return aside


def _sweep(folder: Path, name: str) -> None:
    """Remove what killed runs have left of a name (a pattern): half-written, or half-removed."""
    with _telling(folder):
        for path in folder.iterdir():
            if re.fullmatch(rf"\.{name}\.([0-9a-f]{{8}}\.)?(writing|removing)", path.name):
                _discard(path)


def _discard(path: Path) -> None:
    """Remove as much as can be removed."""
    with _telling(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            if path.exists():
                shutil.rmtree(path)  # says why
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """What cannot be tidied is told once, and costs nothing else."""
    try:
        yield
    except OSError as error:
        _warn_once(f"{path}: not removed ({error.strerror or error}); remove it by hand")


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)


@contextmanager
def together(what: str, group: ProcessGroup | None = None) -> Iterator[None]:
    """Run the body on every rank; when it fails on one, fail on all, so that none waits for one that left.

    Raises:
        CrocodilError: a rank has raised one.
        OSError: whatever else another rank has raised.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    kind = CrocodilError if isinstance(failure, CrocodilError) else OSError
    told = gather(None if failure is None else (kind, f"{type(failure).__name__}: {failure}"), group)
    if failure is not None:
        raise failure
    for rank, fault in enumerate(told):
        if fault is not None:
            kind, message = fault
            raise kind(f"rank {rank} could not {what}: {message}")
