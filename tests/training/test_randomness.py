from __future__ import annotations

import torch

from crocodil.training.randomness import draw_seed, generator


def draw(*key: int, purpose: str = "t") -> float:
    return torch.rand((), generator=generator(*key, purpose=purpose)).item()


def test_draws_depend_on_the_sample_and_not_on_order_or_batch() -> None:
    forwards = {i: draw(0, 1, i) for i in range(16)}
    torch.manual_seed(5)  # the process generator takes no part
    backwards = {i: draw(0, 1, i) for i in reversed(range(16))}
    on_two_ranks = {i: draw(0, 1, i) for rank in range(2) for i in range(rank, 16, 2)}
    assert forwards == backwards == on_two_ranks


def test_each_part_of_the_key_matters() -> None:
    draws = {draw(0, 0, 0), draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 1), draw(0, 0, 0, purpose="mask")}
    assert len(draws) == 5
    assert draw_seed(1, 11, 1, "t") != draw_seed(11, 1, 1, "t")


def test_seeds_are_those_of_every_machine() -> None:
    assert draw_seed(0, 0, 0, "t") == 1937009790928186827
    assert all(0 <= draw_seed(0, 0, i, "t") < 2**63 for i in range(100))


def test_levels_of_neighbouring_samples_are_uniform() -> None:
    draws = torch.tensor([draw(0, 0, i) for i in range(4000)]).sort().values
    grid = torch.linspace(0, 1, 4000)
    assert (draws - grid).abs().max() < 0.03  # Kolmogorov-Smirnov: 1.9 / sqrt(4000), one in a thousand
