"""Table 1 of CRoCoDiL: the autoencoder at a length of 256 tokens, with LLaDA-8B and 128 registers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from crocodil.errors import CrocodilError

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


def rows(
    length: int, block_sizes: Sequence[int] | None = None, nfes: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """Lines of a table block size × NFE for windows of another length.

    Left to itself it is Table 1: blocks keep their share of the window, NFE its number. Of what is given instead,
    every pair is taken; a pair that the sampler does not allow is left out.

    Raises:
        CrocodilError: nothing is left.
    """
    lines = [(max(1, block * length // LENGTH), nfe) for block, nfe in CER]
    if block_sizes is not None or nfes is not None:
        block_sizes = block_sizes or [block for block, _ in lines]
        nfes = nfes or [nfe for _, nfe in lines]
        lines = list(product(dict.fromkeys(block_sizes), dict.fromkeys(nfes)))
    possible = [line for line in dict.fromkeys(lines) if _possible(*line, length)]
    if not possible:
        raise CrocodilError(
            f"no block size allows any NFE asked for in windows of {length} tokens; NFE lies between the number of "
            f"blocks and {length}"
        )
    return possible


def cer_at(block_size: int, nfe: int, length: int) -> float | None:
    """The paper's value for a block of the same share of the window and the same NFE, where it prints one."""
    block, rest = divmod(block_size * LENGTH, length)
    return None if rest else CER.get((block, nfe))


def _possible(block_size: int, nfe: int, length: int) -> bool:
    """Whether every block gets a step, and no step is without a token."""
    return 1 <= block_size <= length and -(-length // block_size) <= nfe <= length
