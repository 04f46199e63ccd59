"""GPUs: what their data sheets say, and what is assumed of their links.

Data sheets: NVIDIA A100 (80 GB and 40 GB, SXM4: 312 TFLOP/s dense bfloat16, NVLink 600 GB/s both ways together), H100
SXM5 (80 GB, 989 TFLOP/s dense, 900 GB/s) and H200 SXM (141 GB, otherwise an H100). Gigabytes are decimal here; the cards
hold 2 to 7 % more bytes than that, which is left to the driver and to gaps of the allocator.
"""

from __future__ import annotations

from dataclasses import dataclass

BETWEEN = 40e9
"""Assumed bytes/s at which one GPU takes part in a collective across nodes (nccl-tests' bus bandwidth): one port of
400 Gb/s for a node, at 80 %. A node with a port for every GPU has several times as much: measure it."""
_LINK_SHARE = 0.75
"""Assumed share of NVLink's one-way bandwidth that a collective within a node reaches."""


@dataclass(frozen=True)
class Card:
    """One kind of GPU."""

    name: str
    memory: float
    """Bytes."""
    peak: float
    """Dense bfloat16 FLOP/s."""
    link: float
    """NVLink, bytes/s in one direction."""
    mfu: float
    """Assumed of a step that trains everything, recomputation on, within a node: llm-foundry's public table has 40.4 %
    for a 7B on 8 H100 and 54.8 % on 8 A100-80 (4,096 tokens, full recomputation)."""

    @property
    def within(self) -> float:
        """Assumed bytes/s of a collective within a node."""
        return _LINK_SHARE * self.link


CARDS = {
    "a100-40": Card("A100 40 GB", 40e9, 312e12, 300e9, 0.5),
    "a100-80": Card("A100 80 GB", 80e9, 312e12, 300e9, 0.5),
    "h100": Card("H100 80 GB", 80e9, 989e12, 450e9, 0.4),
    "h200": Card("H200 141 GB", 141e9, 989e12, 450e9, 0.4),
}
