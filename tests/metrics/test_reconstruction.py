"""Error rates against values counted by hand and against the textbook recursion."""

from __future__ import annotations

import random
from functools import cache

import pytest

from crocodil.errors import CrocodilError
from crocodil.metrics.reconstruction import (
    cer,
    corpus_cer,
    exact_match,
    mean_cer,
    parse_rate,
    parses,
    token_accuracy,
    valid_rate,
)


def edits(a: str, b: str) -> int:
    """The definition of the Levenshtein distance, word for word."""

    @cache
    def rest(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return len(a) - i + len(b) - j
        replaced = rest(i + 1, j + 1) + (a[i] != b[j])
        return min(replaced, rest(i + 1, j) + 1, rest(i, j + 1) + 1)

    return rest(0, 0)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("kitten", "sitting", 3 / 7),
        ("sitting", "kitten", 3 / 6),
        ("", "abcd", 1.0),
        ("abcdabcd", "ab", 3.0),
        ("return x", "return x", 0.0),
        ("naïve", "naive", 1 / 5),
        ("a😀b", "a😃b", 1 / 3),
        ("a\x00b", "ab", 1 / 2),
        ("", "", 0.0),
        ("xyz", "", 3.0),
    ],
)
def test_cer_of_hand_counted_pairs(prediction: str, reference: str, expected: float) -> None:
    assert cer(prediction, reference) == pytest.approx(expected)


def test_cer_agrees_with_the_recursion_on_random_strings() -> None:
    rng = random.Random(0)
    for _ in range(200):
        a, b = ("".join(rng.choices("ab\n é", k=rng.randrange(12))) for _ in range(2))
        assert cer(a, b) == edits(a, b) / max(1, len(b))


def test_mean_weighs_texts_alike_and_corpus_weighs_characters_alike() -> None:
    predictions, references = ["ax", "bbbbbbbb"], ["aa", "bbbbbbbb"]
    assert mean_cer(predictions, references) == pytest.approx((1 / 2 + 0) / 2)
    assert corpus_cer(predictions, references) == pytest.approx(1 / 10)


def test_texts_of_one_length_have_one_rate_by_either_average() -> None:
    predictions, references = ["abcd", "abxx", "yyyy"], ["abcd"] * 3
    assert mean_cer(predictions, references) == pytest.approx(corpus_cer(predictions, references))


def test_exact_match_counts_whole_texts() -> None:
    assert exact_match(["a", "b ", ""], ["a", "b", ""]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("predicted", "reference", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
        ([1, 2, 9, 4], [1, 2, 3, 4], 3 / 4),
        ([1, 2], [1, 2, 3, 4], 2 / 4),
        ([1, 2, 3, 4, 5, 5, 5, 5], [1, 2, 3, 4], 4 / 8),
        ([9, 1, 2, 3], [1, 2, 3], 0.0),
        ([], [1, 2], 0.0),
        ([1, 2], [], 0.0),
        ([], [], 1.0),
    ],
)
def test_token_accuracy_of_hand_counted_texts(
    predicted: list[int], reference: list[int], expected: float
) -> None:
    assert token_accuracy([predicted], [reference]) == pytest.approx(expected)
    assert token_accuracy([reference], [predicted]) == pytest.approx(expected)


def test_a_longer_prediction_is_never_more_accurate() -> None:
    rng = random.Random(0)
    for _ in range(100):
        reference, predicted = (rng.choices(range(3), k=8) for _ in range(2))
        score = token_accuracy([predicted], [reference])
        assert token_accuracy([predicted + rng.choices(range(3), k=4)], [reference]) <= score


def test_token_accuracy_weighs_texts_alike() -> None:
    assert token_accuracy([[1], [1, 2, 3, 4]], [[2], [1, 2, 3, 4]]) == pytest.approx(1 / 2)


@pytest.mark.parametrize("text", ["x = 1\n", "", "s = '\\d'\n", "def f(x):\n    return x"])
def test_valid_programs_parse_without_a_warning(text: str) -> None:
    assert parses(text)


@pytest.mark.parametrize("text", ["x = = 1", "def f(:", "a\x00b", "(" * 5000, "  x\n y"])
def test_invalid_programs_do_not(text: str) -> None:
    assert not parses(text)


def test_parse_rate_looks_only_at_references_that_parse() -> None:
    assert parse_rate(["x = 1", "x = (", "x ="], ["x = 1", "x = 1", "not a program"]) == pytest.approx(1 / 2)
    assert parse_rate(["x"], ["not a program"]) is None


def test_valid_rate_wants_no_reference() -> None:
    assert valid_rate(["x = 1", "x = (", "", "def f(:"]) == pytest.approx(2 / 4)
    assert valid_rate(["x ="]) == 0 and valid_rate(["x"]) == 1
    with pytest.raises(CrocodilError, match="no texts"):
        valid_rate([])


@pytest.mark.parametrize("measure", [mean_cer, corpus_cer, exact_match, parse_rate, token_accuracy])
def test_lists_that_do_not_pair_up_are_refused(measure) -> None:
    with pytest.raises(CrocodilError, match="2 predictions for 1"):
        measure(["a", "b"], ["a"])
    with pytest.raises(CrocodilError, match="no texts"):
        measure([], [])
