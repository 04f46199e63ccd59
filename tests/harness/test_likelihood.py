"""The Monte Carlo estimate against oracles whose likelihood is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from crocodil.errors import CrocodilError
from crocodil.harness.likelihood import is_greedy, loglikelihood
from crocodil.sampler.demask import Predict

V, MASK, N = 3, 3, 5
"""Tokens 0 … 2, the mask, and positions of the oracle's windows."""


def joint_distribution(seed: int = 0) -> Tensor:
    """log p of every window of N tokens, (V, …, V), far from independent."""
    logits = 2 * torch.randn([V] * N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits - logits.logsumexp(dim=tuple(range(N)))


def oracle(joint: Tensor) -> Predict:
    """The exact conditional of each masked position, given all that is visible."""

    def predict(ids_BN: Tensor, rows_BN: Tensor) -> Tensor:
        rows = []
        for ids_N, wanted_N in zip(ids_BN, rows_BN, strict=True):
            for at in wanted_N.nonzero()[:, 0].tolist():
                index = tuple(slice(None) if i == MASK else slice(i, i + 1) for i in ids_N.tolist())
                others = tuple(axis for axis in range(N) if axis != at)
                marginal_V = joint[index].logsumexp(dim=others).flatten()
                rows.append(torch.cat([marginal_V, torch.tensor([-math.inf], dtype=torch.float64)]))
        return torch.stack(rows)

    return predict


def exact(joint: Tensor, prefix: list[int], target: list[int]) -> float:
    """log p(target | prefix), whatever follows."""
    before = joint[tuple(prefix)].logsumexp(dim=tuple(range(N - len(prefix))))
    both = joint[tuple(prefix + target)]
    return float((both.logsumexp(dim=tuple(range(both.ndim))) if both.ndim else both) - before)


def independent(marginals_NV: Tensor, calls: list[int] | None = None) -> Predict:
    """Every position by itself."""

    def predict(ids_BN: Tensor, rows_BN: Tensor) -> Tensor:
        if calls is not None:
            calls.append(len(ids_BN))
        assert bool((ids_BN[rows_BN] == MASK).all())
        return marginals_NV.expand(len(ids_BN), -1, -1)[rows_BN]

    return predict


@pytest.mark.parametrize(
    ("prefix", "target"), [([], [0, 1, 2, 0, 1]), ([1, 0], [2, 1, 1]), ([2, 2, 0, 1], [0])]
)
def test_the_estimate_converges_to_the_likelihood_of_an_oracle(prefix: list[int], target: list[int]) -> None:
    joint = joint_distribution()
    wanted = exact(joint, prefix, target)
    estimates = [
        loglikelihood(
            oracle(joint), prefix, target, MASK, draws=64, generator=torch.Generator().manual_seed(seed)
        )
        for seed in range(12)
    ]
    mean = sum(estimates) / len(estimates)
    error = (sum((x - mean) ** 2 for x in estimates) / 11 / 12) ** 0.5
    assert abs(mean - wanted) < 4 * error + 1e-5
    assert error < 0.15 and abs(wanted) > 0.1


def test_what_follows_is_open_with_a_tail() -> None:
    joint, prefix, target = joint_distribution(1), [0], [2, 1]
    wanted = exact(joint, prefix, target)
    estimates = [
        loglikelihood(
            oracle(joint), prefix, target, MASK, tail=2, draws=64, generator=torch.Generator().manual_seed(s)
        )
        for s in range(12)
    ]
    assert sum(estimates) / 12 == pytest.approx(wanted, abs=0.15)


def test_numbers_of_masked_tokens_are_spread_evenly() -> None:
    """With L draws every number of masked tokens comes once, so equal marginals give the exact value without noise."""
    L = 6
    marginals_NV = torch.randn(1, V + 1, dtype=torch.float64).expand(L, -1)
    wanted = float(marginals_NV.log_softmax(-1)[:, 1].sum())
    for seed in range(5):
        got = loglikelihood(
            independent(marginals_NV),
            [],
            [1] * L,
            MASK,
            draws=L,
            generator=torch.Generator().manual_seed(seed),
        )
        assert got == pytest.approx(wanted, rel=1e-6)


def test_one_token_needs_one_draw() -> None:
    marginals_NV = torch.randn(2, V + 1)
    got = loglikelihood(independent(marginals_NV), [0], [2], MASK, draws=1)
    assert got == pytest.approx(float(marginals_NV.log_softmax(-1)[1, 2]), rel=1e-6)


def test_batches_change_nothing_and_hold_no_more_than_they_may() -> None:
    marginals_NV, calls = torch.randn(7, V + 1), list[int]()
    target = [0, 1, 2, 0, 1, 2, 0]
    values = [
        loglikelihood(
            independent(marginals_NV, calls),
            [],
            target,
            MASK,
            draws=10,
            batch_size=size,
            generator=torch.Generator().manual_seed(3),
        )
        for size in (1, 4, 100)
    ]
    assert values == pytest.approx([values[0]] * 3)
    assert calls == [1] * 10 + [4, 4, 2] + [10]


def test_nothing_is_certain_and_what_cannot_be_is_minus_infinity() -> None:
    assert loglikelihood(independent(torch.zeros(0, V)), [1], [], MASK) == 0.0
    never = torch.zeros(2, V + 1)
    never[1, 2] = -math.inf
    assert loglikelihood(independent(never), [0], [2], MASK) == -math.inf
    with pytest.raises(CrocodilError, match="not a number"):
        loglikelihood(independent(torch.full((2, V + 1), math.nan)), [0], [2], MASK)
    with pytest.raises(CrocodilError, match="draws"):
        loglikelihood(independent(never), [0], [1], MASK, draws=0)


def test_greedy_is_the_one_text_that_demasking_writes() -> None:
    joint = joint_distribution(2)
    predict = oracle(joint)
    prefix = [1, 2]
    greedy = [
        list(target)
        for target in itertools.product(range(V), repeat=N - len(prefix))
        if is_greedy(predict, prefix, target, MASK)
    ]
    assert len(greedy) == 1
    # word for word: the surest position first
    ids = [*prefix, *[MASK] * 3]
    while MASK in ids:
        at = [i for i, token in enumerate(ids) if token == MASK]
        rows = torch.zeros(1, N, dtype=torch.bool)
        rows[0, at] = True
        best, token = predict(torch.tensor([ids]), rows).softmax(-1).max(-1)
        surest = int(best.argmax())
        ids[at[surest]] = int(token[surest])
    assert greedy[0] == ids[len(prefix) :]


def test_the_greedy_check_ends_with_the_first_difference() -> None:
    calls: list[int] = []
    marginals_NV = torch.zeros(8, V + 1)
    marginals_NV[:, 1] = torch.arange(8).float() + 1
    assert is_greedy(independent(marginals_NV, calls), [], [1] * 8, MASK) and len(calls) == 8
    calls.clear()
    assert not is_greedy(independent(marginals_NV, calls), [], [1] * 7 + [0], MASK) and len(calls) == 1
    assert is_greedy(independent(marginals_NV), [1], [], MASK)
