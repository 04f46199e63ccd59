"""How near a reconstruction is to its source: character error rate (CRoCoDiL Tab. 1, 2), tokens, exact match, validity.

Characters are Unicode code points, so an accented letter costs what a plain one costs.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from crocodil.errors import CrocodilError


def cer(prediction: str, reference: str) -> float:
    """Characters to insert, delete or substitute, per character of the reference.

    It exceeds 1 where the prediction is longer and wrong. An empty reference counts as one character, so an
    empty prediction of it scores 0 and any other the number of its characters.
    """
    if not isinstance(prediction, str) or not isinstance(reference, str):
        raise CrocodilError("cer compares two texts; mean_cer compares several with several")
    return Levenshtein.distance(prediction, reference) / max(1, len(reference))


def mean_cer(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean of the texts' error rates, every text alike however long: what the paper's tables print."""
    _check(predictions, references)
    return sum(map(cer, predictions, references)) / len(references)


def corpus_cer(predictions: Sequence[str], references: Sequence[str]) -> float:
    """All edits over all characters of the references, so that a long text weighs more."""
    _check(predictions, references)
    edits = sum(map(Levenshtein.distance, predictions, references))
    return edits / max(1, sum(map(len, references)))


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of texts that came back to the last character."""
    _check(predictions, references)
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


def token_accuracy(predicted: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """Share of positions with the same token on both sides, mean over texts, every text alike however long.

    A text has as many positions as the longer of its two sides, so that tokens too few and tokens too many are both
    wrong. Nothing is shifted: one token inserted at the beginning may cost all that follow. Two empty texts score 1.

    Args:
        predicted: token ids of every text.
        reference: of the same vocabulary.
    """
    _check(predicted, reference)
    shares = (
        sum(a == b for a, b in zip(p, r, strict=False)) / max(len(p), len(r)) if len(p) or len(r) else 1.0
        for p, r in zip(predicted, reference, strict=True)
    )
    return sum(shares) / len(reference)


def parses(text: str) -> bool:
    """Whether a text is a syntactically valid Python program for the running interpreter."""
    with warnings.catch_warnings():
        # an odd escape in somebody's string is no concern of ours, and no error either
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def parse_rate(predictions: Sequence[str], references: Sequence[str]) -> float | None:
    """Of the references that parse, the share whose prediction parses too; None where none does."""
    _check(predictions, references)
    valid = [p for p, r in zip(predictions, references, strict=True) if parses(r)]
    return sum(map(parses, valid)) / len(valid) if valid else None


def valid_rate(texts: Sequence[str]) -> float:
    """Share of texts that parse, for generated texts, which have no reference; an empty text parses."""
    if not texts:
        raise CrocodilError("no texts to parse; give one at least")
    return sum(map(parses, texts)) / len(texts)


def _check(predictions: Sequence[object], references: Sequence[object]) -> None:
    if len(predictions) != len(references):
        raise CrocodilError(
            f"{len(predictions)} predictions for {len(references)} references; give one for each"
        )
    if not references:
        raise CrocodilError("no texts to compare; give one at least")
