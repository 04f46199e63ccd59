"""Train / held-out split by file, near duplicates kept together (MinHash with locality-sensitive hashing)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from crocodil.errors import CrocodilError
from crocodil.text.corpus import Document

SHINGLE = 5  # tokens
BINS = 128  # signature length: one minimum per bin (one-permutation hashing, Li et al. 2012)
ROWS = 4  # signature entries per band: 32 bands find a pair of similarity 0.6 with probability 0.99
NEAR = 0.6  # estimated Jaccard similarity of shingles from which two files are near duplicates

SPACE, WORD, MARK = 0, 1, 2
BYTE_CLASS = np.full(256, MARK, np.uint8)
BYTE_CLASS[128:] = WORD  # pieces of non-ASCII characters
BYTE_CLASS[[*b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_"]] = WORD
BYTE_CLASS[[*b" \t\r\n\f\v"]] = SPACE
BASE = np.uint64(0x9E3779B97F4A7C15)
BASE_INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))  # odd, so it has one


@dataclass(frozen=True)
class Split:
    """Documents in their given order, in two parts that share no text and no near duplicate."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]


def split(documents: Iterable[Document], held_out: float = 0.02, seed: int = 0) -> Split:
    """Split by file; clusters of near duplicates go to one side as a whole.

    A cluster's side is a hash of `seed` and its smallest content hash, so adding files moves only clusters
    that they join. `held_out` is the expected share; a corpus of a few files may have none held out.

    Raises:
        CrocodilError: `held_out` is no probability below 1.
    """
    if not 0 <= held_out < 1:
        raise CrocodilError(f"held_out must be at least 0 and below 1, not {held_out}; 0.02 is usual")
    documents = tuple(documents)
    names = [content_hash(document.text) for document in documents]
    clusters = near_duplicates([document.text for document in documents])
    smallest: dict[int, str] = {}
    for cluster, name in zip(clusters, names, strict=True):
        smallest[cluster] = min(name, smallest.get(cluster, name))
    sides = [is_held_out(smallest[cluster], held_out, seed) for cluster in clusters]
    return Split(
        train=tuple(document for document, out in zip(documents, sides, strict=True) if not out),
        held_out=tuple(document for document, out in zip(documents, sides, strict=True) if out),
    )


def is_held_out(name: str, held_out: float, seed: int) -> bool:
    """The side of a text of this content hash, or of the cluster whose smallest it is."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < held_out


def content_hash(text: str) -> str:
    """32 hex digits that name a text."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def near_duplicates(texts: Sequence[str]) -> list[int]:
    """Cluster number of every text: the index of the cluster's first text.

    Texts equal but for white space, and texts whose token 5-shingles have an estimated Jaccard similarity of
    NEAR or more, share a cluster (single linkage).
    """
    parents = list(range(len(texts)))

    def root(text: int) -> int:
        while parents[text] != text:
            parents[text] = parents[parents[text]]
            text = parents[text]
        return text

    def unite(one: int, other: int) -> None:
        one, other = sorted((root(one), root(other)))
        parents[other] = one

    first: dict[bytes, int] = {}
    signatures = np.zeros((len(texts), BINS), np.uint64)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        tokens = token_hashes(text)
        same = first.setdefault(hashlib.blake2b(tokens.tobytes(), digest_size=16).digest(), index)
        if same != index:
            unite(same, index)
            continue
        signatures[index] = signature(tokens)
        for band in range(0, BINS, ROWS):
            buckets[band, signatures[index, band : band + ROWS].tobytes()].append(index)
    for members in buckets.values():
        for place, one in enumerate(members[:-1]):
            others = np.array([other for other in members[place + 1 :] if root(other) != root(one)], np.int64)
            if len(others):
                alike = (signatures[others] == signatures[one]).mean(axis=1)
                for other in others[alike >= NEAR]:
                    unite(one, int(other))
    return [root(text) for text in range(len(texts))]


def token_hashes(text: str) -> np.ndarray:
    """64-bit hash of every word and punctuation mark of a text, white space left out.

    A word's hash is a polynomial in BASE over its bytes, read off running sums: Σ b_j BASE^(j-start).
    """
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    kind = BYTE_CLASS[data]
    word = kind == WORD
    edge = np.diff(word.astype(np.int8), prepend=0, append=0)
    mark = kind == MARK
    starts = np.flatnonzero((edge[:-1] == 1) | mark)
    ends = np.flatnonzero((edge[1:] == -1) | mark) + 1
    powers = _powers(BASE, len(data) + 1)
    sums = np.concatenate(([np.uint64(0)], np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[:-1])))
    return _mix((sums[ends] - sums[starts]) * _powers(BASE_INVERSE, len(data) + 1)[starts])


def signature(tokens: np.ndarray) -> np.ndarray:
    """One-permutation MinHash of the shingles: the smallest hash in each of BINS ranges, (BINS,) uint64.

    An empty bin borrows from the next filled one and adds its distance (Shrivastava & Li 2014).
    """
    count = max(len(tokens) - SHINGLE + 1, 1)
    shingles = np.zeros(count, np.uint64)
    for place in range(min(SHINGLE, len(tokens))):
        shingles = shingles * BASE + tokens[place : place + count]
    shingles = _mix(shingles)
    smallest = np.full(BINS, np.iinfo(np.uint64).max)
    np.minimum.at(smallest, (shingles >> np.uint64(57)).astype(np.int64), shingles)
    filled = np.flatnonzero(smallest != np.iinfo(np.uint64).max)
    after = np.append(filled, filled[0] + BINS)[np.searchsorted(filled, np.arange(BINS))]
    return smallest[after % BINS] + (after - np.arange(BINS)).astype(np.uint64) * BASE


def _mix(values: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64: spreads every bit over all bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_POWERS: dict[np.uint64, np.ndarray] = {}


def _powers(base: np.uint64, count: int) -> np.ndarray:
    """base^0 … base^(count-1) modulo 2^64, kept between calls."""
    known = _POWERS.get(base, np.ones(1, np.uint64))
    if len(known) < count:
        known = np.concatenate(([np.uint64(1)], np.cumprod(np.full(2 * count, base))))
        _POWERS[base] = known
    return known[:count]
