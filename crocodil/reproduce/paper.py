"""What the paper prints (CRoCoDiL, LLaDA-8B with Qwen3-Embedding-0.6B, Python programs).

Its figures have no numbers to copy; of them, only what the text says stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from crocodil.errors import CrocodilError

LENGTH = 256
CAPTION = "paper, LLaDA-8B, 256 tokens, K=128"


class PaperScores(NamedTuple):
    """A line of Table 1 or 2."""

    gen_ppl: float
    bert_score: float
    cer: float


TABLES: dict[int, dict[tuple[int, int], PaperScores]] = {
    256: {
        (32, 8): PaperScores(59.538, 0.901, 0.422),
        (32, 16): PaperScores(20.263, 0.936, 0.21),
        (32, 32): PaperScores(13.525, 0.957, 0.15),
        (32, 64): PaperScores(11.301, 0.968, 0.13),
        (32, 128): PaperScores(10.401, 0.97, 0.123),
        (32, 256): PaperScores(10.085, 0.972, 0.118),
        (64, 8): PaperScores(28.172, 0.925, 0.265),
        (64, 16): PaperScores(15.553, 0.951, 0.171),
        (64, 32): PaperScores(12.463, 0.963, 0.14),
        (64, 64): PaperScores(10.971, 0.97, 0.124),
        (128, 8): PaperScores(18.027, 0.946, 0.19),
        (128, 16): PaperScores(13.244, 0.96, 0.149),
        (128, 32): PaperScores(11.566, 0.968, 0.13),
        (128, 64): PaperScores(10.639, 0.971, 0.122),
        (256, 4): PaperScores(19.221, 0.939, 0.205),
        (256, 8): PaperScores(13.937, 0.957, 0.155),
        (256, 16): PaperScores(11.981, 0.965, 0.132),
        (256, 32): PaperScores(10.962, 0.97, 0.123),
        (256, 64): PaperScores(10.458, 0.973, 0.118),
    },
    512: {
        (32, 16): PaperScores(35.477, 0.833, 1.149),
        (32, 32): PaperScores(15.554, 0.877, 0.237),
        (32, 64): PaperScores(9.63, 0.904, 0.146),
        (32, 128): PaperScores(8.17, 0.959, 0.118),
        (32, 256): PaperScores(7.583, 0.96, 0.105),
        (64, 8): PaperScores(33.738, 0.764, 1.1),
        (64, 16): PaperScores(29.314, 0.821, 1.196),
        (64, 32): PaperScores(11.834, 0.935, 0.183),
        (64, 64): PaperScores(8.989, 0.948, 0.132),
        (64, 128): PaperScores(7.989, 0.955, 0.113),
        (64, 256): PaperScores(7.534, 0.959, 0.103),
        (128, 8): PaperScores(35.547, 0.856, 1.18),
        (128, 16): PaperScores(18.715, 0.945, 1.229),
        (128, 32): PaperScores(10.806, 0.953, 1.218),
        (128, 64): PaperScores(7.497, 0.957, 1.152),
        (256, 8): PaperScores(22.527, 0.935, 1.24),
        (256, 16): PaperScores(11.828, 0.948, 0.218),
        (256, 32): PaperScores(9.277, 0.955, 0.176),
        (256, 64): PaperScores(8.178, 0.959, 0.158),
        (256, 128): PaperScores(7.646, 0.96, 0.149),
        (512, 8): PaperScores(13.146, 0.877, 1.337),
        (512, 16): PaperScores(9.82, 0.904, 0.189),
        (512, 32): PaperScores(8.447, 0.959, 0.163),
        (512, 64): PaperScores(7.832, 0.96, 0.152),
        (512, 128): PaperScores(7.517, 0.957, 0.145),
    },
}
"""Tables 1 and 2: length to (block size, NFE) to scores. A CER above 1 beside a low Gen-PPL, as in nine lines of
Table 2, is as printed."""


class PaperPoint(NamedTuple):
    """A point of Fig. 6."""

    length: int
    method: str
    nfe: int
    mauve: float
    gen_ppl: float


GENERATION = (
    PaperPoint(512, "mdm", 512, 0.62, 19.4),
    PaperPoint(512, "conwithindisc", 40, 0.60, 14.3),
    PaperPoint(1024, "mdm", 1024, 0.76, 23.5),
    PaperPoint(1024, "conwithindisc", 72, 0.80, 12.5),
)
"""§5, the points of Fig. 6 that the text names; its NFE counts the denoiser's evaluations by parameters."""

PRDC: dict[str, dict[str, float]] = {
    "nothing": {"precision": 0.956, "recall": 0.651, "density": 1.105, "coverage": 0.870},
    "50%": {"recall": 0.74},
}
"""App. E, 5,000 samples, 128 registers, by what the denoiser sees of the text; with the condition "similar precision"."""

FIGURE_5 = {4: 0.12, 16: 0.03}
"""NFE to the CER of the example of Fig. 5."""


def rows(
    length: int,
    block_sizes: Sequence[int] | None = None,
    nfes: Sequence[int] | None = None,
    table: int = LENGTH,
) -> list[tuple[int, int]]:
    """Lines of a table block size × NFE for windows of another length.

    Left to itself it is Table 1 (`table` 256) or 2 (512): blocks keep their share of the window, NFE its number.
    Of what is given instead, every pair is taken; a pair that the sampler does not allow is left out.
    Raises:
        CrocodilError: nothing is left.
    """
    lines = [(max(1, block * length // table), nfe) for block, nfe in TABLES[table]]
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


def scores_at(block_size: int, nfe: int, length: int, table: int = LENGTH) -> PaperScores | None:
    """The paper's values for a block of the same share of the window and the same NFE, where it prints them."""
    block, rest = divmod(block_size * table, length)
    return None if rest else TABLES[table].get((block, nfe))


def cer_at(block_size: int, nfe: int, length: int) -> float | None:
    """The CER of `scores_at` in Table 1."""
    scores = scores_at(block_size, nfe, length)
    return None if scores is None else scores.cer


def _possible(block_size: int, nfe: int, length: int) -> bool:
    """Whether every block gets a step, and no step is without a token."""
    return 1 <= block_size <= length and -(-length // block_size) <= nfe <= length
