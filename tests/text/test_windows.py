from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

import crocodil.text.windows
from crocodil.errors import CrocodilError
from crocodil.text.tokens import TokenisedCorpus
from crocodil.text.windows import Sample, Windows, cut, pack, split_text

COUNTS = [0, 1, 14, 15, 28, 30, 42, 43, 100, 1000, 5]


def corpus(counts=COUNTS) -> TokenisedCorpus:
    """Document d of these lengths; ids count up through the corpus, so a piece tells where it is from."""
    offsets = np.cumsum([0, *counts])
    return TokenisedCorpus(np.arange(offsets[-1], dtype=np.int32), offsets, "", "")


def test_window_of_a_sample(vocabulary):
    bos, eos = vocabulary.bos_id, vocabulary.eos_id
    assert Sample(0, (5, 6), 6).window(vocabulary) == [bos, 5, 6, eos, eos, eos]
    assert Sample(0, (), 2).window(vocabulary) == [bos, eos]
    with pytest.raises(CrocodilError, match="do not fit"):
        Sample(0, (5, 6), 3).window(vocabulary)


def test_cut_covers_the_text():
    assert cut(range(9), 6) == [range(0, 4), range(4, 8), range(8, 9)]
    assert cut(range(9), 6, first=1) == [range(0, 1), range(1, 5), range(5, 9)]
    assert cut((), 6) == [()]
    for length, first in ((2, None), (6, 0), (6, 5)):
        with pytest.raises(CrocodilError):
            cut(range(9), length, first)


@pytest.mark.parametrize("lengths", [(16,), (3,), (8, 16, 32)])
def test_an_epoch_covers_every_token_once(lengths):
    windows = Windows(corpus(), lengths, seed=1, short_fraction=0.0)
    for epoch in range(5):
        samples = [windows.sample(index, epoch) for index in range(len(windows))]
        assert [token for sample in samples for token in sample.text_ids] == list(range(sum(COUNTS)))
        assert [sample.id for sample in samples] == list(range(len(windows)))
        assert all(len(sample.text_ids) + 2 <= sample.length for sample in samples)
        assert all(sample.length in lengths for sample in samples)
        assert sum(not sample.text_ids for sample in samples) == 1  # the empty document alone


def test_samples_are_a_function_of_seed_epoch_and_index():
    one, same, other = (Windows(corpus(), (16,), seed=seed, short_fraction=0.5) for seed in (1, 1, 2))
    indices = list(range(len(one)))
    backwards = {index: same.sample(index, 3) for index in reversed(indices)}
    assert all(one.sample(index, 3) == backwards[index] for index in indices)
    assert [one.sample(index, 3) for index in indices] != [other.sample(index, 3) for index in indices]


def test_epochs_cut_long_programs_differently():
    for count in range(15, 60):  # the window holds 14
        windows = Windows(corpus([count]), (16,), short_fraction=0.0)
        firsts = {len(windows.sample(0, epoch).text_ids) for epoch in range(100)}
        assert len(firsts) >= 4


def test_short_fraction_truncates_evenly():
    windows = Windows(corpus([14] * 2000), (16,), short_fraction=0.3)
    sizes = Counter(len(windows.sample(index, 0).text_ids) for index in range(2000))
    assert sizes[14] / 2000 == pytest.approx(0.7, abs=0.05)
    assert set(sizes) == set(range(15))
    assert all(20 < sizes[size] < 80 for size in range(14))
    starts = {windows.sample(index, 0).text_ids[:1] for index in range(2000)} - {()}
    assert all(start % 14 == 0 for (start,) in starts)  # the beginning is kept


def test_window_is_drawn_among_the_lengths_that_hold_the_text():
    windows = Windows(corpus([10] * 600), (8, 12, 16, 32), short_fraction=0.0)
    sizes = Counter(windows.sample(index, 0).length for index in range(600))
    assert set(sizes) == {12, 16, 32}
    assert min(sizes.values()) > 150


@pytest.mark.parametrize("short_fraction", [0.0, 0.5, 1.0])
def test_texts_of_no_and_of_one_token_fill_a_window(vocabulary, short_fraction):
    bos, eos = vocabulary.bos_id, vocabulary.eos_id
    windows = Windows(corpus([0, 1, 0, 1, 1]), (3, 8), short_fraction=short_fraction)
    assert len(windows) == 5
    for epoch in range(20):
        for index in range(5):
            sample = windows.sample(index, epoch)
            ids = sample.window(vocabulary)
            assert len(ids) == sample.length in (3, 8) and ids[0] == bos
            assert ids[1:] == [*sample.text_ids, *[eos] * (sample.length - 1 - len(sample.text_ids))]
            assert len(sample.text_ids) <= (0, 1, 0, 1, 1)[index]


def test_millions_of_documents_are_looked_at_in_blocks(monkeypatch):
    draw = np.random.default_rng(0)
    counts = draw.integers(0, 100, 1000).tolist()
    whole = Windows(corpus(counts), (16,))
    monkeypatch.setattr(crocodil.text.windows, "BLOCK", 7)
    blocks = Windows(corpus(counts), (16,))
    assert len(blocks) == len(whole)
    assert all(blocks.sample(index, 1) == whole.sample(index, 1) for index in range(0, len(whole), 50))


def test_order_is_a_permutation_per_epoch():
    windows = Windows(corpus(), (16,), seed=1)
    order = windows.order(0)
    assert sorted(order.tolist()) == list(range(len(windows)))
    assert np.array_equal(order, Windows(corpus(), (16,), seed=1).order(0))
    assert not np.array_equal(order, windows.order(1))
    assert not np.array_equal(order, Windows(corpus(), (16,), seed=2).order(0))


def test_bad_settings_and_indices_are_refused():
    for settings in ({"lengths": ()}, {"lengths": (2, 16)}, {"short_fraction": 1.5}, {"seed": -1}):
        with pytest.raises(CrocodilError):
            Windows(corpus(), **settings)
    windows = Windows(corpus(), (16,))
    for size in (0, -2, len(windows) + 1):
        with pytest.raises(CrocodilError, match="batch"):
            windows.batches(size)
    for index in (-1, len(windows)):
        with pytest.raises(IndexError):
            windows.sample(index, 0)


def test_packing_keeps_samples_whole_and_rows_full():
    draw = random.Random(0)
    lengths = [draw.randint(0, 100) for _ in range(500)]
    rows = pack(lengths, 128)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert all(sum(lengths[index] for index in row) <= 128 for row in rows)
    assert sum(lengths) / (128 * len(rows)) > 0.95
    assert rows == pack(lengths, 128)


def test_packing_is_best_fit_decreasing():
    assert pack([2, 6, 3, 5, 4], 10) == [[1, 4], [3, 2, 0]]
    assert pack([6, 7, 3], 10) == [[1, 2], [0]]  # the fuller row
    assert pack([], 10) == []


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(CrocodilError, match="sample 1 has 11"):
        pack([3, 11], 10)


@pytest.mark.parametrize("length", [6, 7, 16, 64, 1000])
def test_split_text_joins_to_the_text(vocabulary, python_source, prose, length):
    draw = random.Random(length)
    noise = "".join(draw.choices(["a", " ", "\n", "\r\n", "日", "😀", "e\u0301", "\x00", "return"], k=2000))
    for text in ("", "x", python_source * 5, prose * 5, noise, " " * 5000, "\n" * 5000):
        pieces = split_text(text, vocabulary, length)
        assert "".join(vocabulary.decode(piece) for piece in pieces) == text
        assert all(len(piece) <= length - 2 for piece in pieces)
        assert len(pieces) == 1 or all(pieces)
        assert all(vocabulary.encode(vocabulary.decode(piece)) == piece for piece in pieces)


def test_split_text_fills_every_window_but_the_last(vocabulary):
    text = "".join(f"value_{number} = {number}\n" for number in range(300))
    pieces = split_text(text, vocabulary, 128)
    assert len(pieces) > 10
    # a piece encoded by itself may need a token less or more than as part of the text
    assert all(len(piece) >= 124 for piece in pieces[:-1])


def test_split_text_in_one_piece_is_the_encoding(vocabulary, python_source):
    assert split_text(python_source, vocabulary, 2000) == [vocabulary.encode(python_source)]


def test_split_text_takes_time_in_proportion(vocabulary, python_source):
    assert len(split_text(python_source * 2000, vocabulary, 512)) > 300


def test_windows_too_small_for_a_character_are_refused(vocabulary):
    with pytest.raises(CrocodilError, match="character"):
        split_text("aaaa\U0001f9ff", vocabulary, 4)
    with pytest.raises(CrocodilError, match="3 tokens"):
        split_text("a", vocabulary, 2)
