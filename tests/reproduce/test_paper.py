"""The table has the paper's shape at any window."""

from __future__ import annotations

import pytest

from crocodil.errors import CrocodilError
from crocodil.reproduce import paper


def test_at_256_tokens_it_is_table_1() -> None:
    table = paper.TABLES[256]
    assert paper.rows(256) == list(table) and len(table) == 19
    assert [paper.scores_at(block, nfe, 256) for block, nfe in paper.rows(256)] == list(table.values())


def test_at_512_tokens_it_is_table_2() -> None:
    table = paper.TABLES[512]
    assert paper.rows(512, table=512) == list(table) and len(table) == 25
    assert paper.scores_at(256, 16, 256, table=512) == table[512, 16]
    # half of its windows: no step may be without a token
    assert all(nfe <= 128 for _, nfe in paper.rows(128, table=512))


def test_elsewhere_blocks_keep_their_share() -> None:
    rows = paper.rows(128)
    assert {block for block, _ in rows} == {16, 32, 64, 128}
    assert paper.cer_at(128, 4, 128) == paper.TABLES[256][256, 4].cer
    assert paper.cer_at(16, 64, 128) == paper.TABLES[256][32, 64].cer


@pytest.mark.parametrize("length", [1, 3, 32, 100, 128, 256, 512])
def test_every_row_is_one_that_the_sampler_allows(length: int) -> None:
    for block, nfe in paper.rows(length, nfes=[1, 4, 16, 64, 256]):
        assert 1 <= block <= length and -(-length // block) <= nfe <= length


def test_pairs_that_are_not_possible_are_left_out() -> None:
    assert paper.rows(32, [8, 32], [1, 4, 64]) == [(8, 4), (32, 1), (32, 4)]


def test_nothing_possible_is_refused() -> None:
    with pytest.raises(CrocodilError, match="windows of 32 tokens"):
        paper.rows(32, [8], [2])


def test_what_the_paper_does_not_print_is_none() -> None:
    assert paper.cer_at(128, 5, 128) is None and paper.cer_at(33, 8, 100) is None
