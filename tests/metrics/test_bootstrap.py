"""Intervals: where they must be exact, and how often they hold what is true."""

from __future__ import annotations

import math

import pytest
import torch

from crocodil.errors import CrocodilError
from crocodil.metrics.bootstrap import expanded_edge, interval, mean, ratio, resamples


def test_equal_numbers_have_no_width() -> None:
    found = mean([0.25] * 9)
    assert (found.value, found.n) == (0.25, 9)
    assert found.low == pytest.approx(0.25) and found.high == pytest.approx(0.25)


def test_one_text_has_no_interval() -> None:
    found = mean([0.5])
    assert (found.value, found.low, found.high, found.n) == (0.5, None, None, 1)


def test_a_ratio_weighs_texts_by_what_is_below() -> None:
    """Nats per token of a long and a short text: tokens count alike, not texts."""
    assert ratio([90.0, 1.0], [9.0, 1.0]).value == pytest.approx(9.1)
    assert ratio([90.0, 1.0], [9.0, 1.0], torch.exp).value == pytest.approx(math.exp(9.1))


def test_the_interval_holds_the_truth_about_95_times_of_100() -> None:
    draws = torch.randn(200, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = sum(found.low <= 0 <= found.high for found in map(mean, draws))  # type: ignore[operator]
    assert 0.88 <= held / len(draws) <= 0.99


@pytest.mark.parametrize("n", [8, 12])
def test_it_holds_the_truth_as_often_with_few_texts(n: int) -> None:
    draws = torch.randn(400, n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    held = sum(found.low <= 0 <= found.high for found in map(mean, draws))  # type: ignore[operator]
    assert 0.9 <= held / len(draws) <= 0.99


def test_few_texts_cut_off_less() -> None:
    """Φ(−√(n/(n−1)) t) with t from a table: 2.365 for 8 texts, 1.984 for 100."""
    assert expanded_edge(8) == pytest.approx(0.00572, rel=0.02)
    assert expanded_edge(100) == pytest.approx(0.0231, rel=0.02) and expanded_edge(10**6) == pytest.approx(
        0.025, rel=1e-3
    )


def test_its_width_is_that_of_theory() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = mean(values)
    assert found.low is not None and found.high is not None
    assert (found.high - found.low) == pytest.approx(2 * 1.96 * float(values.std()) / 20, rel=0.15)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(2))
    assert mean(values, seed=3) == mean(values, seed=3) != mean(values, seed=4)


def test_every_resample_draws_as_many() -> None:
    counts = resamples(7, seed=0, times=50)
    assert counts.shape == (50, 7) and bool((counts.sum(1) == 7).all())


def test_what_is_not_a_number_does_not_count() -> None:
    found = interval(1.0, torch.tensor([0.9, math.nan, 1.1, math.inf]), 5)
    assert found.low is not None and found.high is not None and 0.9 <= found.low < found.high <= 1.1


@pytest.mark.parametrize(("above", "below"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_nothing_to_measure_is_refused(above: list[float], below: list[float]) -> None:
    with pytest.raises(CrocodilError):
        ratio(above, below)
