"""Two real ranks over gloo: what one rank cannot show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from crocodil.errors import CrocodilError
from crocodil.training.checkpoints import checkpoint_name, damage, latest, prune, publishing
from crocodil.training.ranks import broadcast, gather, rank_and_world
from crocodil.training.run_lock import run_lock
from crocodil.training.state import open_tensors, save_tensors


def save(run_dir: Path, step: int, rank: int) -> None:
    with publishing(run_dir, checkpoint_name(step)) as directory:
        save_tensors(directory, {"part": torch.full((8,), float(rank))}, f"rank{rank}")


def on_each_rank(rank: int, run_dir: Path) -> None:
    dist.init_process_group("gloo", f"file://{run_dir}.rendezvous", rank=rank, world_size=2)
    try:
        assert rank_and_world() == (rank, 2)
        assert gather(rank) == [0, 1] and broadcast(f"from {rank}") == "from 0"
        with run_lock(run_dir):
            save(run_dir, 1, rank)
            assert damage(run_dir / checkpoint_name(1)) is None
            with pytest.raises(OSError, match="disk full"):  # on both, though one failed
                with publishing(run_dir, checkpoint_name(2)):
                    if rank == 1:
                        raise OSError("disk full")
            save(run_dir, 3, rank)
            if rank == 0:
                file = run_dir / checkpoint_name(3) / "rank1.safetensors"
                file.write_bytes(file.read_bytes()[:-1] + b"\x01")
            gather(None)
            found = latest(run_dir)
            assert found == run_dir / checkpoint_name(1)
            tensors = open_tensors(found, f"rank{rank}.safetensors")
            assert tensors["part"][0] == rank
            with pytest.raises(CrocodilError, match="already there and complete"):
                save(run_dir, 1, rank)
            save(run_dir, 4, rank)
            prune(run_dir, keep=1)
            gather(None)
            left = sorted(path.name for path in run_dir.iterdir() if path.is_dir())
            assert left == [checkpoint_name(4)]
    finally:
        dist.destroy_process_group()


def test_two_ranks_save_agree_and_fail_together(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.spawn(on_each_rank, args=(tmp_path / "run",), nprocs=2)
