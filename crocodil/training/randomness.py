"""Randomness belongs to the sample: every draw is a pure function of (seed, epoch, sample id, purpose).

The level t, the mask, the all-mask coin, k and the register noise of a text are therefore the same on one
rank or eight, before and after a resume, alone or in another batch. A step uses no process-wide generator.
"""

from __future__ import annotations

import hashlib

import torch


def draw_seed(seed: int, epoch: int, sample_id: int, purpose: str) -> int:
    """63 bits of blake2b over (seed, epoch, sample id, purpose); the same on every machine."""
    key = f"{seed}/{epoch}/{sample_id}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def generator(seed: int, epoch: int, sample_id: int, purpose: str) -> torch.Generator:
    """A fresh CPU generator for one draw of one sample.

    Draw on the CPU and move the result: CPU and GPU generators give different numbers for one seed. Two
    purposes of one sample ("t", "mask", "k", ...) get unrelated streams, so a new draw never shifts another.
    torch's CPU generator takes in only 32 bits of a seed: of ten million samples about ten thousand pairs
    share a stream, which is harmless, since their texts differ.
    """
    made = torch.Generator()
    made.manual_seed(draw_seed(seed, epoch, sample_id, purpose))
    return made


def permutation(seed: int, epoch: int, samples: int) -> list[int]:
    """The order in which an epoch goes through its samples."""
    made = torch.Generator()
    made.manual_seed(draw_seed(seed, epoch, -1, "order"))
    return torch.randperm(samples, generator=made).tolist()
