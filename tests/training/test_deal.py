"""Every text goes to one rank, and every rank gets as many micro-batches."""

from __future__ import annotations

import random

import pytest

from crocodil.errors import CrocodilError
from crocodil.training.deal import deal, turns


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_every_text_once_and_as_many_rows_on_every_rank(ranks: int) -> None:
    draws = random.Random(ranks)
    for _ in range(200):
        texts = list(range(ranks * draws.randint(1, 12)))
        draws.shuffle(texts)
        cuts = (
            sorted(draws.sample(range(1, len(texts)), draws.randint(0, len(texts) - 1))) if texts[1:] else []
        )
        rows = [texts[a:b] for a, b in zip([0, *cuts], [*cuts, len(texts)], strict=True)]
        dealt = deal(rows, ranks)
        assert len(dealt) == ranks and len({len(of_rank) for of_rank in dealt}) == 1
        found = [row for of_rank in dealt for row in of_rank]
        assert all(found) and sorted(text for row in found for text in row) == sorted(texts)
        # a row is never filled beyond what it held, so it still fits
        assert all(any(set(row) <= set(whole) for whole in rows) for row in found)


def test_rows_that_come_out_even_stay_whole() -> None:
    rows = [[0, 1], [2], [3, 4, 5], [6]]
    assert deal(rows, 2) == [[[0, 1], [3, 4, 5]], [[2], [6]]]
    assert deal(rows, 1) == [rows]


def test_the_longest_rows_are_shared() -> None:
    dealt = deal([[0, 1, 2, 3], [4]], 4)
    assert sorted(map(len, (row for of_rank in dealt for row in of_rank))) == [1, 1, 1, 2]


def test_what_cannot_be_dealt_is_refused() -> None:
    with pytest.raises(
        CrocodilError, match="a batch of 3 texts cannot be dealt to 4 ranks; raise batch_size"
    ):
        deal([[0, 1, 2]], 4)
    with pytest.raises(CrocodilError, match="make batch_size a multiple of the ranks"):
        deal([[0], [1], [2]], 2)


def test_the_rows_given_are_left_alone() -> None:
    rows = [[0, 1, 2]]
    deal(rows, 2)
    assert rows == [[0, 1, 2]]


@pytest.mark.parametrize(("rows", "ranks"), [(1, 1), (1, 3), (4, 2), (5, 2), (3, 8), (16, 8)])
def test_every_row_counts_once_and_all_ranks_take_as_many_turns(rows: int, ranks: int) -> None:
    taken = turns(rows, ranks)
    assert len(taken) == ranks and len({len(of_rank) for of_rank in taken}) == 1
    assert sorted(row for of_rank in taken for row, counts in of_rank if counts) == list(range(rows))
    assert all(0 <= row < rows for of_rank in taken for row, _ in of_rank)
