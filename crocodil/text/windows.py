"""Windows `BOS text EOS EOS…`: cut from programs to train on, split from a text for use, packed."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crocodil.errors import CrocodilError
from crocodil.text.tokens import TokenisedCorpus
from crocodil.text.vocabulary import Vocabulary, check_text

FRAME = 2  # BOS and the first EOS
BLOCK = 2**18  # documents that are looked at together, so that twelve million take little memory
CHARACTERS_PER_TOKEN = 4  # only a first guess of how much of a text fills a window

# Purposes: draws for different ends must not repeat one another.
ORDER, OFFSET, LENGTH = 0, 1, 2


@dataclass(frozen=True)
class Sample:
    """One text and its window.

    Attributes:
        id: unique within an epoch and the same in every epoch.
        text_ids: the text, without BOS and EOS.
        length: window n; the text, BOS and EOS fit, the rest is an EOS tail.
    """

    id: int
    text_ids: tuple[int, ...]
    length: int

    def window(self, vocabulary: Vocabulary) -> list[int]:
        """`[bos] + text_ids + [eos] * tail`, `length` ids with at least one EOS.

        Raises:
            CrocodilError: the text does not fit.
        """
        tail = self.length - 1 - len(self.text_ids)
        if tail < 1:
            raise CrocodilError(
                f"sample {self.id}: {len(self.text_ids)} tokens, BOS and EOS do not fit {self.length}; cut it"
            )
        return [vocabulary.bos_id, *self.text_ids, *[vocabulary.eos_id] * tail]


class Windows:
    """Map-style samples of a tokenised corpus; every draw is a function of (seed, epoch, document or sample).

    A program longer than the longest window is cut in pieces. Where the first cut falls is drawn per epoch,
    so that epochs see different cuts; the number of pieces is not, so that ids and `len` stay. Every epoch
    covers every token but those that truncation takes.
    """

    def __init__(
        self,
        tokens: TokenisedCorpus,
        lengths: Sequence[int] = (128,),
        seed: int = 0,
        short_fraction: float = 0.1,
    ) -> None:
        """Take `lengths` as the windows to draw from and truncate `short_fraction` of the samples.

        Raises:
            CrocodilError: no length, a length below 3, a negative seed, or `short_fraction` outside 0…1.
        """
        if not lengths or min(lengths) <= FRAME:
            raise CrocodilError(f"lengths {list(lengths)} must be 3 or more each; BOS and EOS take two")
        if not 0 <= short_fraction <= 1:
            raise CrocodilError(f"short_fraction {short_fraction} is no share; give a number from 0 to 1")
        if seed < 0:
            raise CrocodilError(f"seed {seed} is negative; give 0 or more")
        self.tokens = tokens
        self.lengths = tuple(sorted(set(lengths)))
        self.seed = seed
        self.short_fraction = short_fraction
        capacity = self.lengths[-1] - FRAME
        pieces = np.empty(len(tokens), np.int64)
        for start in range(0, len(tokens), BLOCK):
            counts = np.diff(tokens.offsets[start : start + BLOCK + 1])
            # see `_first_piece` for what the two cases are
            several = -(-counts // capacity) + _takes_one_more(counts, capacity)
            pieces[start : start + BLOCK] = np.where(counts <= capacity, 1, several)
        self._ends = np.cumsum(pieces, out=pieces)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batches(self, size: int) -> int:
        """Whole batches of `size` samples in an epoch.

        Raises:
            CrocodilError: not even one, or `size` below 1.
        """
        if size < 1:
            raise CrocodilError(f"a batch of {size} windows holds none; give batch_size 1 or more")
        if len(self) < size:
            raise CrocodilError(f"the texts give {len(self)} windows, a batch wants {size}; lower batch_size")
        return len(self) // size

    def order(self, epoch: int) -> np.ndarray:
        """A permutation of the sample ids, (len,) int64, by (seed, epoch)."""
        return self._random(epoch, ORDER, 0).permutation(len(self))

    def sample(self, index: int, epoch: int) -> Sample:
        """Sample `index` as this epoch sees it.

        Raises:
            IndexError: no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        document = int(np.searchsorted(self._ends, index, side="right"))
        piece = index - (int(self._ends[document - 1]) if document else 0)
        capacity = self.lengths[-1] - FRAME
        text_ids = self.tokens.document(document)
        if len(text_ids) > capacity:
            low, high = _first_piece(len(text_ids), capacity)
            first = int(self._random(epoch, OFFSET, document).integers(low, high + 1))
            start = first + (piece - 1) * capacity
            text_ids = text_ids[max(start, 0) : start + capacity]
        random = self._random(epoch, LENGTH, index)
        if random.random() < self.short_fraction and len(text_ids):
            text_ids = text_ids[: random.integers(len(text_ids))]
        holding = [length for length in self.lengths if len(text_ids) + FRAME <= length]
        return Sample(index, tuple(text_ids.tolist()), holding[random.integers(len(holding))])

    def _random(self, epoch: int, purpose: int, item: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, purpose, item])


def cut(text_ids: Sequence[int], length: int, first: int | None = None) -> list[Sequence[int]]:
    """Pieces of at most `length - 2` tokens (BOS and EOS take two places), full but for the first and last.

    Args:
        text_ids: a program; none gives one empty piece.
        length: the window.
        first: tokens of the first piece, 1 … length - 2; full if left out.

    Raises:
        CrocodilError: the window holds no text, or `first` is outside its range.
    """
    capacity = _capacity(length)
    first = capacity if first is None else first
    if not 1 <= first <= capacity:
        raise CrocodilError(f"a first piece of {first} fits no window of {length}; give 1 to {capacity}")
    starts = range(first, len(text_ids), capacity)
    return [text_ids[:first], *(text_ids[start : start + capacity] for start in starts)]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of whole samples, best fit decreasing: longest first, each into the fullest row that holds it.

    Args:
        lengths: tokens of every sample.
        capacity: tokens that a row holds.

    Returns:
        Indices into `lengths`, one list per row; every index once. The same input gives the same rows.

    Raises:
        CrocodilError: a sample is longer than a row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if length > capacity:
            raise CrocodilError(f"sample {index} has {length} tokens, a row {capacity}; widen rows or cut it")
        place = bisect_left(free, (length, -1))
        left, row = free.pop(place) if place < len(free) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(free, (left - length, row))
    return rows


def split_text(text: str, vocabulary: Vocabulary, length: int) -> list[list[int]]:
    """Ids of consecutive pieces of a text, each at most `length - 2` tokens and encoded by itself.

    Every piece but the last is as full as it can be, as in training, and none ends inside a character. So the decoded
    pieces, joined, are the text.

    Raises:
        CrocodilError: the window holds no text or not one character, or `text` is no valid text.
    """
    capacity = _capacity(length)
    check_text(text)
    pieces: list[list[int]] = []
    at = 0
    while True:
        reach = CHARACTERS_PER_TOKEN * capacity
        while len(ids := vocabulary.encode(text[at : at + reach])) <= capacity and at + reach < len(text):
            reach *= 2
        if len(ids) <= capacity:
            return [*pieces, ids]
        taken = _characters(ids[:capacity], vocabulary)
        # By itself a piece may need a token more than as the beginning of something.
        while taken > 0 and len(ids := vocabulary.encode(text[at : at + taken])) > capacity:
            taken -= 1
        if taken == 0:
            raise CrocodilError(
                f"a window of {length} does not hold the character {text[at]!r}; use 6 or more"
            )
        pieces.append(ids)
        at += taken


def _takes_one_more(counts: np.ndarray, capacity: int) -> np.ndarray:
    """Whether a program is cut in one piece more than needed, as its last would be too full to move a cut."""
    last = (counts - 1) % capacity + 1
    return (4 * last > 3 * capacity) & (last > 1)


def _first_piece(count: int, capacity: int) -> tuple[int, int]:
    """Least and most tokens of the first piece that leave the number of pieces as `Windows` counts it."""
    last = (count - 1) % capacity + 1
    return (1, last - 1) if _takes_one_more(np.asarray(count), capacity) else (last, capacity)


def _capacity(length: int) -> int:
    if length <= FRAME:
        raise CrocodilError(f"a window of {length} holds no text beside BOS and EOS; give 3 tokens or more")
    return length - FRAME


def _characters(ids: Sequence[int], vocabulary: Vocabulary) -> int:
    """Whole characters in the first ids of a text; one that is cut through does not count."""
    return len(vocabulary.decode_bytes(ids).decode("utf-8", errors="ignore"))
