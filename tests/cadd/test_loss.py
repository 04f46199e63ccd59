"""The loss of CADD, by hand and against autograd of the plain formula on full logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from crocodil.cadd.latents import LatentConfig, TokenLatents
from crocodil.cadd.loss import Estimate, Objective, estimate, score
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.loss import CHUNK_LOGITS
from crocodil.errors import CrocodilError

LENGTHS = (3, 5)
IS_MASKED = torch.tensor([1, 0, 1, 1, 1, 0, 0, 1], dtype=torch.bool)
LEVELS = torch.tensor([0.5, 0.8])
R = 5
MakeLLaDA = Callable[..., LLaDA]


def latents_of(llada: LLaDA, rho: float | None = None) -> TokenLatents:
    return TokenLatents(LatentConfig(rho), llada.config.vocab_size, llada.config.d_model)


def problem(llada: LLaDA, rows: int = R) -> tuple[torch.Tensor, ...]:
    """hidden (R, E), targets (R,), weights (R,)."""
    draws = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, llada.config.d_model, generator=draws) * 2
    targets = torch.randint(llada.config.vocab_size, (rows,), generator=draws)
    return hidden.requires_grad_(), targets, torch.rand(rows, generator=draws)


def plain(
    llada: LLaDA, latents: TokenLatents, objective: Objective, hidden_RE: torch.Tensor, *targets: torch.Tensor
) -> torch.Tensor:
    """The same on full logits."""
    targets_R, weights_R = targets
    V, table = llada.config.vocab_size, llada.model.transformer.wte.weight
    logits = hidden_RE @ llada.head_weight.T
    terms = F.cross_entropy(logits, targets_R, reduction="none")
    clean = latents.rho * table[:V] / table[:V].norm(dim=1, keepdim=True)
    if objective.squared == "soft":
        guess = logits[:, :V].softmax(1) @ clean
    elif objective.squared == "hard":
        guess = clean[logits[:, :V].argmax(1)]
    if objective.squared is not None:
        terms = terms + objective.share * (guess - clean[targets_R]).square().sum(1) / latents.rho**2
    return (terms * weights_R).sum()


def test_eq_20_on_logits_that_can_be_counted_by_hand(make_llada: MakeLLaDA) -> None:
    """Three tokens of weight 1, 2 and 5: −ln 5/8 at one position of three, −ln 2/8 at the other."""
    llada = make_llada(d_model=4, n_heads=1, vocab_size=3, embedding_size=3)
    with torch.no_grad():
        llada.head_weight.copy_(torch.tensor([[1.0, 2.0, 5.0]]).log().T @ torch.tensor([[1.0, 0, 0, 0]]))
    hidden = torch.tensor([[1.0, 3.0, -1.0, 0.0]] * 2)
    targets, is_masked = torch.tensor([2, 1]), torch.tensor([True, False, True])
    for weighting, t in (("one", 1.0), ("inverse_t", 0.25)):
        objective = Objective(weighting)
        weights = objective.weights(is_masked, (3,), torch.tensor([0.25]))
        found = score(llada, latents_of(llada), objective, hidden, targets, torch.zeros(2, 4), weights)
        wanted = (-math.log(5 / 8) - math.log(2 / 8)) / 3 / t
        assert found.total.item() == pytest.approx(wanted, rel=1e-6)
        assert found.entropy_R.tolist() == pytest.approx([-math.log(5 / 8), -math.log(2 / 8)], rel=1e-6)
        assert found.correct_R.tolist() == [True, False]


def test_estimates_and_their_squared_errors_by_hand() -> None:
    table = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0]])
    logits = torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]]).log()
    assert torch.allclose(estimate(logits, table, "soft"), torch.tensor([[0.0, 1.0], [1.25, 0.25]]))
    assert torch.equal(estimate(logits, table, "hard"), table[[1, 0]])


@pytest.mark.parametrize(("how", "wanted"), [("soft", (0 + 1 + 3.25**2 + 0.25**2)), ("hard", 0 + 16)])
def test_the_squared_error_is_a_share_of_rho_squared(
    how: Estimate, wanted: float, make_llada: MakeLLaDA
) -> None:
    """Tokens at (2, 0), (0, 2), (−2, 0): the first position says the second token rightly, the second the first."""
    llada = make_llada(d_model=2, n_heads=1, vocab_size=3, embedding_size=3)
    with torch.no_grad():
        llada.model.transformer.wte.weight.copy_(torch.tensor([[0.1, 0.0], [0.0, 7.0], [-3.0, 0.0]]))
        # rows of hidden pick the logits log(1, 2, 1) and log(6, 1, 1)
        llada.head_weight.copy_(torch.tensor([[1.0, 6.0], [2.0, 1.0], [1.0, 1.0]]).log())
    latents = latents_of(llada, rho=2.0)
    table = latents.clean(llada.embed(torch.arange(3)))
    hidden, targets, weights = torch.eye(2), torch.tensor([1, 2]), torch.tensor([1.0, 1.0])
    entropy = score(llada, latents, Objective(), hidden, targets, table[targets], weights).total
    for share in (1.0, 0.3):
        objective = Objective(squared=how, share=share)
        total = score(llada, latents, objective, hidden, targets, table[targets], weights).total
        assert (total - entropy).item() == pytest.approx(share * wanted / 4, rel=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("squared", [None, "soft", "hard"])
def test_value_and_gradients_are_those_of_the_plain_formula(
    squared: Estimate | None, tied: bool, make_llada: MakeLLaDA
) -> None:
    llada = make_llada(weight_tying=tied)
    latents, objective = latents_of(llada), Objective(squared=squared, share=0.7)
    hidden, targets, weights = problem(llada)
    matrices = [hidden, llada.model.transformer.wte.weight, *([] if tied else [llada.head_weight])]
    # what Eq. 20 alone does not touch has no gradient
    unused = not tied and squared is None
    clean = latents.clean(llada.embed(targets))
    found = score(llada, latents, objective, hidden, targets, clean, weights).total
    wanted = plain(llada, latents, objective, hidden, targets, weights)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    ours, theirs = (
        torch.autograd.grad(total * 0.37, matrices, allow_unused=True) for total in (found, wanted)
    )
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if unused and i == 1:
            assert mine is None and other is None
        else:
            assert (mine - other).norm() < 2e-5 * other.norm()


def test_a_hard_estimate_moves_the_table_and_not_the_network(make_llada: MakeLLaDA) -> None:
    llada = make_llada()
    latents = latents_of(llada)
    hidden, targets, weights = problem(llada)
    clean = latents.clean(llada.embed(targets))
    with_it, without = (
        score(llada, latents, Objective(squared=how), hidden, targets, clean, weights).total
        for how in ("hard", None)
    )
    mine, other = (torch.autograd.grad(total, hidden, retain_graph=True)[0] for total in (with_it, without))
    assert torch.equal(mine, other)
    assert torch.autograd.grad(with_it - without, llada.model.transformer.wte.weight)[0].abs().sum() > 0


@pytest.mark.parametrize("squared", [None, "soft", "hard"])
def test_chunks_do_not_matter(
    squared: Estimate | None, make_llada: MakeLLaDA, monkeypatch: pytest.MonkeyPatch
) -> None:
    llada = make_llada()
    latents, objective = latents_of(llada), Objective(squared=squared)
    found = []
    for chunk in (1, 3, R, 100):
        monkeypatch.setitem(CHUNK_LOGITS, "cpu", chunk * llada.config.embedding_size)
        hidden, targets, weights = problem(llada)
        clean = latents.clean(llada.embed(targets))
        total = score(llada, latents, objective, hidden, targets, clean, weights).total
        found.append((total, *torch.autograd.grad(total, [hidden, llada.head_weight])))
    for others in found[1:]:
        for mine, other in zip(found[0], others, strict=True):
            assert torch.allclose(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("squared", [None, "soft"])
def test_nothing_masked_costs_nothing(squared: Estimate | None, make_llada: MakeLLaDA) -> None:
    llada = make_llada()
    hidden, targets, weights = problem(llada, rows=0)
    clean = torch.zeros(0, llada.config.d_model)
    found = score(llada, latents_of(llada), Objective(squared=squared), hidden, targets, clean, weights)
    assert found.total == 0 and found.entropy_R.shape == (0,)
    found.total.backward()


def test_without_latents_it_is_the_cross_entropy_alone(make_llada: MakeLLaDA) -> None:
    llada = make_llada()
    hidden, targets, weights = problem(llada)
    found = score(llada, None, Objective(), hidden, targets, None, weights)
    assert torch.equal(found.total, llada.score(hidden, targets, weights).total)


def test_weights_are_one_over_n_or_one_over_n_t() -> None:
    one = Objective("one").weights(IS_MASKED, LENGTHS, LEVELS)
    assert one.tolist() == pytest.approx([1 / 3] * 2 + [1 / 5] * 3)
    inverse = Objective("inverse_t").weights(IS_MASKED, LENGTHS, LEVELS)
    assert inverse.tolist() == pytest.approx([1 / (3 * 0.5)] * 2 + [1 / (5 * 0.8)] * 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weighting": "snr"}, "weighting 'snr' is not one of one, inverse_t"),
        ({"squared": "mean"}, "squared 'mean' is not one of null, hard, soft"),
        ({"share": -0.5}, "share -0.5 must be finite and not negative"),
        ({"share": math.nan}, "share nan must be finite and not negative"),
    ],
)
def test_objectives_that_cannot_be_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(CrocodilError, match=message):
        Objective(**config)  # type: ignore[arg-type]
