"""P11: a checkpoint saved and read back, against plain writes and reads of the same bytes.

Ours is durable, digested and appears whole, and is checked to the last byte before it is read. The plain way writes
bytes that are at hand and flushes them; and reads them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from recipes.benchmarks.harness import Bench, Benchmark, Row, Unequal, assert_equal, compare

if TYPE_CHECKING:
    from recipes.benchmarks.engines import Training

STEP = 1


@dataclass(frozen=True)
class Case:
    """A run that has trained one step, and its folder."""

    training: Training
    folder: Path

    def save(self) -> None:
        """The checkpoint, in place of the one that is there."""
        from crocodil.training.checkpoints import checkpoint_name, publishing

        with publishing(self.folder, checkpoint_name(STEP), replace=True) as directory:
            self.training.engine.save(directory, {"step": STEP})

    def load(self) -> dict[str, torch.Tensor]:
        """Every tensor, after every byte was compared with its digest."""
        from crocodil.training.checkpoints import require_complete
        from crocodil.training.state import open_tensors

        require_complete(self.checkpoint)
        # a copy, because what is read so far is a view of the mapped file
        return {name: tensor.clone() for name, tensor in open_tensors(self.checkpoint).items()}

    @property
    def checkpoint(self) -> Path:
        from crocodil.training.checkpoints import checkpoint_name

        return self.folder / checkpoint_name(STEP)

    @property
    def files(self) -> list[Path]:
        """Of the checkpoint."""
        return sorted(self.checkpoint.iterdir())

    def write_plainly(self, contents: dict[str, bytes]) -> None:
        for name, content in contents.items():
            with open(self.folder / f"plain-{name}", "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())

    def read_plainly(self) -> list[bytes]:
        return [file.read_bytes() for file in sorted(self.folder.glob("plain-*"))]


def check(case: Case, contents: dict[str, bytes]) -> None:
    """What is read is what the run holds, both ways; and a checkpoint with one bit turned is refused."""
    from crocodil.errors import CrocodilError

    read = case.load()
    parameters = dict(case.training.engine.module.named_parameters())
    state = case.training.engine.optimiser.state
    wanted = {f"model/{name}": parameter for name, parameter in parameters.items()} | {
        f"optimiser/{moment}/{name}": tensor
        for name, parameter in parameters.items()
        for moment, tensor in state[parameter].items()
    }
    if odd := read.keys() ^ wanted.keys():
        raise Unequal(f"{sorted(odd)[0]} is on one side only")
    for name, tensor in wanted.items():
        assert_equal(name, tensor.detach().cpu(), read[name])
    if case.read_plainly() != [contents[name] for name in sorted(contents)]:
        raise Unequal("the plain files do not hold the bytes of the checkpoint")
    largest = max(case.files, key=lambda file: file.stat().st_size)
    with open(largest, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        for byte, refused in ((last ^ 1, True), (last, False)):
            stream.seek(-1, os.SEEK_END)
            stream.write(bytes([byte]))
            stream.flush()
            try:
                case.load()
            except CrocodilError:
                was_refused = True
            else:
                was_refused = False
            if was_refused != refused:
                raise Unequal(
                    f"a checkpoint {'with one bit turned' if refused else 'as written'} is misjudged"
                )


def measure(bench: Bench) -> Iterator[Row]:
    from recipes.benchmarks.engines import training

    run = training(bench.sizes.training, bench.device)
    run.step()
    with TemporaryDirectory() as folder:
        case = Case(run, Path(folder))
        case.save()
        contents = {file.name: file.read_bytes() for file in case.files}
        case.write_plainly(contents)
        check(case, contents)
        megabytes = sum(map(len, contents.values())) / 1e6
        yield compare(lambda: case.write_plainly(contents), case.save, bench).row(
            f"save, {megabytes:.0f} MB", floor=1 / 1.5, aim=1 / 1.15
        )
        yield compare(case.read_plainly, case.load, bench).row("load, every byte compared with its digest")


BENCHMARK = Benchmark(
    "P11",
    "a checkpoint on disk",
    "the same bytes written and flushed, and read",
    "every tensor exactly as it was; the same bytes; one turned bit is refused",
    measure,
)
