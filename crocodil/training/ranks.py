"""What one rank tells the others. Without torch.distributed there is one rank and nothing to tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank_and_world(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) without torch.distributed."""
    return (dist.get_rank(group), dist.get_world_size(group)) if is_distributed() else (0, 1)


def gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank's value, in rank order, on every rank. Also a barrier. Call it on every rank."""
    if not is_distributed():
        return [value]
    values: list[T] = [value] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def broadcast(value: T, group: dist.ProcessGroup | None = None) -> T:
    """Rank 0's value, on every rank. Call it on every rank; what the others pass is ignored."""
    return gather(value, group)[0]


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums over ranks, in float64, on every rank. Call it on every rank with as many values."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor.tolist()
