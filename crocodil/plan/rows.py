"""Micro-batches: how many texts a packed row holds, and how many positions each network meets in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from crocodil.joint import DemaskerRecipe
from crocodil.registers.geometry import NestedDropout, group_ends
from crocodil.text.windows import pack

BOUNDARIES = 2
"""START and END; and BOS and EOS of a window."""
_DEVIATIONS = 3.0
_PACKED = 4096
"""Texts of a step that are packed to be counted; of a larger batch each so many."""


@dataclass(frozen=True)
class Row:
    """A packed micro-batch."""

    texts: int
    tokens: int
    """Window positions, T."""
    registers: int
    """Registers that its texts expose together."""
    guided: int
    """Texts that expose any."""

    @property
    def positions(self) -> int:
        """The demasker's: windows behind START, registers, END."""
        return self.tokens + self.registers + BOUNDARIES * self.guided

    @property
    def clean(self) -> int:
        """The encoder's: texts that fill their windows, EOS and suffix; a hidden text is encoded with one register."""
        return self.tokens - BOUNDARIES * self.texts + self.registers + (self.texts - self.guided)


def register_counts(K: int, config: NestedDropout) -> dict[int, float]:
    """Probability of each k, as `registers.geometry.draw_k` draws it."""
    if config.draw == "off":
        drawn = {K: 1.0}
    else:
        choices = group_ends(K) if config.draw == "groups" else tuple(range(1, K + 1))
        drawn = dict.fromkeys(choices, 1 / len(choices))
    free = 1 - config.hide_all - config.keep_all
    found = {k: free * p for k, p in drawn.items()}
    found[K] = found.get(K, 0.0) + config.keep_all
    return found | ({0: config.hide_all} if config.hide_all else {})


def densest(config: DemaskerRecipe, row_tokens: int) -> Row:
    """The micro-batch that takes most memory: a full row of the shortest windows, because every text brings registers.

    Their number is a sum of independent draws: mean and three standard deviations, at most K for everyone.
    """
    counts = register_counts(config.K, config.corruption.nested_dropout)
    mean = sum(k * p for k, p in counts.items())
    variance = sum((k - mean) ** 2 * p for k, p in counts.items())
    texts = max(1, row_tokens // min(config.data.lengths))
    drawn = mean * texts + _DEVIATIONS * math.sqrt(variance * texts)
    return Row(texts, row_tokens, min(config.K * texts, math.ceil(drawn)), texts)


def windows(config: DemaskerRecipe, mean_length: float | None = None) -> list[tuple[float, float]]:
    """(tokens of a window, share of the texts): each of `data.lengths` as often, or all of one length."""
    if mean_length is not None:
        return [(mean_length, 1.0)]
    lengths = config.data.lengths
    return [(float(n), 1 / len(lengths)) for n in lengths]


def step_tokens(config: DemaskerRecipe, mean_length: float | None = None) -> float:
    """Window tokens of an optimiser step."""
    return config.batch_size * sum(n * share for n, share in windows(config, mean_length))


def micro_steps(config: DemaskerRecipe, gpus: int, row_tokens: int, mean_length: float | None = None) -> int:
    """Micro-batches of a rank in a step: rows of the whole batch, dealt out evenly (`training.deal`)."""
    return math.ceil(rows_of_step(config, row_tokens, mean_length) / gpus)


def rows_of_step(config: DemaskerRecipe, row_tokens: int, mean_length: float | None = None) -> int:
    """Rows that the texts of a step are packed into. Where windows do not fill a row, the rest of it stays empty; of a
    mean length alone nothing more is known than that short windows fill what long ones leave."""
    lengths = config.data.lengths
    if mean_length is not None and len(set(lengths)) > 1:
        return math.ceil(step_tokens(config, mean_length) / row_tokens)
    packed = min(config.batch_size, _PACKED)
    return math.ceil(_packed_rows(lengths, packed, row_tokens) * config.batch_size / packed)


@lru_cache(maxsize=256)
def _packed_rows(lengths: tuple[int, ...], texts: int, row_tokens: int) -> int:
    """Rows of so many texts, each of the lengths as often."""
    return len(pack([lengths[i % len(lengths)] for i in range(texts)], row_tokens))
