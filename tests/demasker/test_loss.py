"""The chunked loss against cross-entropy on full logits, in value, gradient and memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crocodil.demasker.loss import (
    Score,
    VocabularyHead,
    cross_entropy,
    per_text,
    row_weights,
    text_of,
)

R, E, V = 50, 16, 300


def problem(seed: int = 0, rows: int = R) -> tuple[torch.Tensor, ...]:
    """hidden (R, E), weight (V, E), targets (R,), weights (R,)."""
    draws = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, E, generator=draws).requires_grad_()
    weight = torch.randn(V, E, generator=draws).requires_grad_()
    return (
        hidden,
        weight,
        torch.randint(0, V, (rows,), generator=draws),
        torch.rand(rows, generator=draws) * 3,
    )


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The same by torch on full logits, in float64."""
    logits = hidden.double() @ weight.double().T
    return (F.cross_entropy(logits, targets, reduction="none") * weights.double()).sum()


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("chunk", [1, 7, 49, 50, 51, 1024])
def test_value_and_gradient_are_those_of_full_logits(chunk: int) -> None:
    hidden, weight, targets, weights = problem()
    total = plain(hidden, weight, targets, weights)
    score = cross_entropy(hidden, weight, targets, weights, chunk)
    assert abs(score.total.item() - total.item()) < 1e-6 * total.item()
    # a factor behind the loss, as the engine puts one
    theirs = torch.autograd.grad(total * 0.37, (hidden, weight))
    ours = torch.autograd.grad(score.total * 0.37, (hidden, weight))
    assert all(distance(a, b) < 1e-5 for a, b in zip(ours, theirs, strict=True))


def test_entropy_and_correctness_of_every_row() -> None:
    hidden, weight, targets, weights = problem()
    logits = hidden @ weight.T
    targets = torch.where(torch.arange(R) % 2 == 0, logits.argmax(-1), targets)
    score = cross_entropy(hidden, weight, targets, weights, 8)
    assert torch.allclose(score.entropy_R, F.cross_entropy(logits, targets, reduction="none"), atol=1e-5)
    assert torch.equal(score.correct_R, logits.argmax(-1) == targets)
    assert not score.entropy_R.requires_grad and not score.correct_R.requires_grad


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: str) -> None:
    hidden, weight, targets, weights = problem()
    total = cross_entropy(hidden, weight, targets, weights).total
    wanted = dict(zip(("hidden", "weight"), torch.autograd.grad(total, (hidden, weight)), strict=True))
    inputs = {"hidden": hidden.detach(), "weight": weight.detach()}
    for name, tensor in inputs.items():
        tensor.requires_grad_(frozen not in (name, "both"))
    again = cross_entropy(inputs["hidden"], inputs["weight"], targets, weights).total
    assert torch.equal(again.detach(), total.detach())
    assert again.requires_grad == (frozen != "both")
    if frozen != "both":
        again.backward()
        for name, tensor in inputs.items():
            assert tensor.grad is None if frozen == name else torch.equal(tensor.grad, wanted[name])


def test_tied_weights_get_both_gradients() -> None:
    _, table, targets, weights = problem()
    ids = torch.randint(0, V, (R,), generator=torch.Generator().manual_seed(5))

    def through(loss) -> torch.Tensor:  # type: ignore[no-untyped-def]
        hidden = torch.tanh(F.embedding(ids, table))
        return torch.autograd.grad(loss(hidden), table)[0]

    ours = through(lambda hidden: cross_entropy(hidden, table, targets, weights, 8).total)
    theirs = through(lambda hidden: plain(hidden, table, targets, weights))
    assert distance(ours, theirs) < 1e-5


def test_no_masked_row_at_all() -> None:
    hidden, weight, targets, weights = problem(rows=0)
    score = cross_entropy(hidden, weight, targets, weights)
    score.total.backward()
    assert score.total.item() == 0 and score.entropy_R.shape == (0,)
    assert hidden.grad.shape == (0, E) and (weight.grad == 0).all()


def test_rows_add_up_however_they_are_split() -> None:
    hidden, weight, targets, weights = problem()
    whole = cross_entropy(hidden, weight, targets, weights).total
    parts = [
        cross_entropy(hidden[p], weight, targets[p], weights[p]).total for p in (slice(0, 13), slice(13, R))
    ]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-6)


def test_far_logits_neither_overflow_nor_vanish() -> None:
    hidden, weight, targets, weights = problem()
    score = cross_entropy(hidden * 300, weight, targets, weights)
    assert distance(score.total.detach(), plain(hidden * 300, weight, targets, weights).detach()) < 1e-6
    gradient = torch.autograd.grad(score.total, hidden)[0]
    assert torch.isfinite(gradient).all()


def test_bf16_autocast_is_close_and_keeps_float32_parameters() -> None:
    hidden, weight, targets, weights = problem()
    theirs = torch.autograd.grad(plain(hidden, weight, targets, weights), (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = cross_entropy(hidden, weight, targets, weights, 8)
    ours = torch.autograd.grad(score.total, (hidden, weight))
    assert score.total.dtype == score.entropy_R.dtype == torch.float32
    assert distance(score.total.detach(), plain(hidden, weight, targets, weights).detach()) < 0.01
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32 and distance(mine, other) < 0.02


def test_the_head_gives_logits_or_the_loss() -> None:
    hidden, weight, targets, weights = problem()
    head = VocabularyHead(E, V, bias=False)
    head.weight.data.copy_(weight)
    assert torch.equal(head(hidden), F.linear(hidden, weight))
    assert torch.equal(
        head(hidden, targets, weights).total, cross_entropy(hidden, weight, targets, weights).total
    )


class Largest(TorchDispatchMode):
    """Remembers the elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.elements = max(
            [self.elements, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))]
        )
        return out


def test_full_logits_never_exist() -> None:
    rows, width, vocabulary, chunk = 512, 8, 4096, 32
    draws = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=draws).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=draws).requires_grad_()
    targets, weights = torch.randint(0, vocabulary, (rows,), generator=draws), torch.ones(rows)
    with Largest() as ours:
        cross_entropy(hidden, weight, targets, weights, chunk).total.backward()
    with Largest() as theirs:
        F.cross_entropy(hidden @ weight.T, targets, reduction="sum").backward()
    assert theirs.elements == rows * vocabulary
    assert ours.elements == chunk * vocabulary


def test_row_weights_are_one_over_n_t() -> None:
    lengths, t = (3, 5, 2), torch.tensor([0.5, 1.0, 0.25])
    is_masked = torch.tensor([1, 0, 1, 1, 1, 1, 1, 1, 0, 1], dtype=torch.bool)
    assert text_of(is_masked, lengths).tolist() == [0, 0, 1, 1, 1, 1, 1, 2]
    wanted = [1 / (3 * 0.5)] * 2 + [1 / (5 * 1.0)] * 5 + [1 / (2 * 0.25)]
    assert row_weights(is_masked, lengths, t).tolist() == pytest.approx(wanted)


def test_one_record_of_every_text() -> None:
    lengths = (3, 2, 2)
    is_masked = torch.tensor([1, 0, 1, 0, 0, 1, 0], dtype=torch.bool)
    score = Score(torch.tensor(7.0), torch.tensor([1.0, 3.0, 5.0]), torch.tensor([True, False, True]))
    losses = per_text(score, is_masked, lengths)
    assert losses.total == 7.0 and losses.texts == 3
    assert losses.entropy_B.tolist() == [2.0, 0.0, 5.0]
    assert losses.accuracy_B.tolist() == [0.5, 0.0, 1.0]
    assert losses.masked_B.tolist() == [2, 0, 1]
