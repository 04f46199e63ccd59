"""How near a reconstruction is to its source: character error rate (CRoCoDiL Tab. 1, 2), exact match, validity.

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


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise CrocodilError(
            f"{len(predictions)} predictions for {len(references)} references; give one for each"
        )
    if not references:
        raise CrocodilError("no texts to compare; give one at least")
