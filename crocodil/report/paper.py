"""Table 1 of CRoCoDiL: the autoencoder at a length of 256 tokens, with LLaDA-8B and 128 registers."""

from __future__ import annotations

LENGTH = 256
CAPTION = "paper, LLaDA-8B, 256 tokens, K=128"

CER: dict[tuple[int, int], float] = {
    (32, 8): 0.422,
    (32, 16): 0.210,
    (32, 32): 0.150,
    (32, 64): 0.130,
    (32, 128): 0.123,
    (32, 256): 0.118,
    (64, 8): 0.265,
    (64, 16): 0.171,
    (64, 32): 0.140,
    (64, 64): 0.124,
    (128, 8): 0.190,
    (128, 16): 0.149,
    (128, 32): 0.130,
    (128, 64): 0.122,
    (256, 4): 0.205,
    (256, 8): 0.155,
    (256, 16): 0.132,
    (256, 32): 0.123,
    (256, 64): 0.118,
}
"""(block size, NFE) to character error rate."""


def grid(length: int) -> list[tuple[int, int]]:
    """The lines of Table 1 for windows of another length: blocks keep their share of it, NFE its number."""
    rows = [(max(1, block * length // LENGTH), nfe) for block, nfe in CER]
    return list(dict.fromkeys(row for row in rows if _possible(*row, length)))


def full_grid(length: int, nfes: tuple[int, ...]) -> list[tuple[int, int]]:
    """Every block size of Table 1, in its share of `length`, with each of `nfes` that it allows."""
    blocks = dict.fromkeys(max(1, block * length // LENGTH) for block, _ in CER)
    return [(block, nfe) for block in blocks for nfe in nfes if _possible(block, nfe, length)]


def cer_at(block_size: int, nfe: int, length: int) -> float | None:
    """The paper's value for a block of the same share of the window and the same NFE, where it prints one."""
    block, rest = divmod(block_size * LENGTH, length)
    return None if rest else CER.get((block, nfe))


def _possible(block_size: int, nfe: int, length: int) -> bool:
    return -(-length // block_size) <= nfe <= length
