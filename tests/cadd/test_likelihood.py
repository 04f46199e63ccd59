"""Bounds against the probabilities themselves, by enumeration and quadrature on vocabularies of three tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from crocodil.cadd.demasker import AugmentedDemasker
from crocodil.cadd.forward import Schedule, flip, keep, posterior, snr
from crocodil.cadd.latents import LatentConfig, TokenLatents
from crocodil.cadd.likelihood import (
    PredictEach,
    TextNats,
    bits_per_character,
    bound,
    discrete_nats,
    per_token,
    perplexity,
)
from crocodil.cadd.loss import Estimate
from crocodil.cadd.sampler import LatentSpace, sample
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.errors import CrocodilError

V, MASK = 3, 3


def space(E: int, **changes: Any) -> LatentSpace:
    rows = torch.randn(V, E, generator=torch.Generator().manual_seed(1))
    settings = {
        "table_VE": 1.3 * rows / rows.norm(dim=1, keepdim=True),
        "schedule": "flow",
        "estimate": "soft",
    }
    if E == 1:
        settings["table_VE"] = torch.tensor([[-1.2], [0.1], [1.0]])
    return LatentSpace(**(settings | changes))


def network(E: int) -> PredictEach:
    """Fixed: what it says at a position depends on its latent, its neighbour's, the neighbour's token, and t."""
    draws = torch.Generator().manual_seed(4)
    own, other = torch.randn(2, E, 5, generator=draws, dtype=torch.float64)
    tokens = torch.randn(V + 1, 5, generator=draws, dtype=torch.float64)
    time, out = (
        torch.randn(5, generator=draws, dtype=torch.float64),
        torch.randn(5, V, generator=draws).double(),
    )

    def predict(
        ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: torch.Tensor
    ) -> torch.Tensor:
        state = tokens[ids] + time * t.double()[:, None, None]
        # of a neighbour, where there is one
        if ids.shape[1] == 2:
            state = state + 0.8 * tokens[ids.flip(1)]
        if z is not None:
            z = z.double()
            state = state + z @ own
            if ids.shape[1] == 2:
                state = state + z.flip(1) @ other
        return (torch.tanh(state) @ out)[rows]

    return predict


def normal_nodes(axes: int, Q: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (G, axes) and weights (G,) of an expectation over that many standard normals.

    Gauss and Hermite's for smooth functions; an even grid, where Q is large, for those that jump.
    """
    if Q > 100:
        points = torch.linspace(-6, 6, Q, dtype=torch.float64)
        weights = (-points.square() / 2).exp()
    else:
        points, weights = (torch.from_numpy(x) for x in numpy.polynomial.hermite_e.hermegauss(Q))
    weights = weights / weights.sum()
    grid = torch.cartesian_prod(*[points] * axes).view(-1, axes)
    return grid, torch.cartesian_prod(*[weights] * axes).view(-1, axes).prod(1)


class Exact:
    """The chain of `sample` and its bound, summed over all that can be masked and integrated over all latents."""

    def __init__(
        self, predict: PredictEach, text: tuple[int, ...], T: int, latents: LatentSpace, Q: int
    ) -> None:
        self.predict, self.T, self.space, self.Q = predict, T, latents, Q
        self.text = torch.tensor(text)
        self.table = latents.table_VE.double()

    def look(self, masked: tuple[int, ...], z: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
        """π of the right token (P, m) and ẑ₀ (P, m, E) at masked positions, of latents there (P, K, m, E)."""
        P, K, m, E = z.shape
        ids = self.text.repeat(P, 1)
        ids[:, list(masked)] = MASK
        pi = torch.zeros(P, m, V, dtype=torch.float64)
        for k in range(K):
            full = self.table[self.text].repeat(P, 1, 1)
            full[:, list(masked)] = z[:, k]
            logits = self.predict(ids, ids == MASK, full, torch.full((P,), t))
            pi += logits.view(P, m, V).softmax(-1) / K
        guess = pi @ self.table if self.space.estimate == "soft" else self.table[pi.argmax(-1)]
        return pi.gather(2, self.text[list(masked)].expand(P, m)[..., None])[..., 0], guess

    def draw(self, mean: torch.Tensor, std: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (P, G, K, m, E) around means (P, K, m, E), and their weights (G,)."""
        points, weights = normal_nodes(mean[0].numel(), self.Q)
        return mean[:, None] + std * points.view(-1, *mean.shape[1:]), weights

    def chance(self) -> float:
        """p(text) of the sampler."""
        K, N, E = self.space.draws, len(self.text), self.table.shape[1]
        z, weights = self.draw(torch.zeros(1, K, N, E, dtype=torch.float64), 1.0)
        return float(self._chance(self.T, tuple(range(N)), z[0]) @ weights)

    def _chance(self, step: int, masked: tuple[int, ...], z: torch.Tensor) -> torch.Tensor:
        """(P,): that the chain ends in the text when only this much of it is masked, with these latents."""
        t, s = step / self.T, (step - 1) / self.T
        right, guess = self.look(masked, z, t)
        if step == 1:
            return right.prod(1)
        to = posterior(s, t, self.space.schedule)
        total = torch.zeros(len(z), dtype=torch.float64)
        for shown in itertools.product([True, False], repeat=len(masked)):
            hidden = [i for i, visible in enumerate(shown) if not visible]
            here = keep(s, t) ** len(hidden) * flip(s, t) ** (len(shown) - len(hidden))
            part = here * right[:, [i for i, visible in enumerate(shown) if visible]].prod(1)
            if hidden:
                mean = to.keep * z[:, :, hidden] + to.take * guess[:, None, hidden]
                points, weights = self.draw(mean, to.std)
                later = self._chance(step - 1, tuple(masked[i] for i in hidden), points.flatten(0, 1))
                part = part * (later.view(len(z), -1) @ weights)
            total += part
        return total

    def bound(self) -> tuple[float, float]:
        """Both terms of Eq. 24, in nats."""
        K, N = self.space.draws, len(self.text)
        discrete = continuous = 0.0
        for step in range(1, self.T + 1):
            t, s = step / self.T, (step - 1) / self.T
            a, b = (
                (1 - t, t)
                if self.space.schedule == "flow"
                else (math.cos(math.pi * t / 2), math.sin(math.pi * t / 2))
            )
            for hidden in itertools.product([True, False], repeat=N):
                masked = tuple(n for n in range(N) if hidden[n])
                if not masked:
                    continue
                here = t ** len(masked) * (1 - t) ** (N - len(masked))
                z0 = self.table[self.text[list(masked)]]
                z, weights = self.draw(a * z0.expand(1, K, *z0.shape), b)
                right, guess = self.look(masked, z[0], t)
                discrete += here * flip(s, t) * float(-right.log().sum(1) @ weights)
                if step > 1:
                    fall = snr(torch.tensor([s, t], dtype=torch.float64), self.space.schedule)
                    squared = K * (guess - z0).square().sum(dim=(1, 2))
                    continuous += here * keep(s, t) * 0.5 * float((fall[0] - fall[1]) * (squared @ weights))
        return discrete, continuous


def estimated(
    how: Callable[..., list[TextNats]],
    predict: PredictEach,
    text: tuple[int, ...],
    rows: int,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the discrete and the continuous term over many rows of one text, and their standard errors."""
    ids = torch.tensor(text).repeat(rows, 1)
    generators = [torch.Generator().manual_seed(row) for row in range(rows)]
    everything = torch.ones_like(ids, dtype=torch.bool)
    found = how(predict, ids, everything, MASK, generators=generators, **arguments)
    both = torch.tensor([[one.discrete, one.continuous] for one in found], dtype=torch.float64)
    return both.mean(0), both.std(0) / math.sqrt(rows)


# (text, E, T, draws, schedule, estimate, points of every integral)
CASES: list[tuple[tuple[int, ...], int, int, int, Schedule, Estimate, int]] = [
    ((2,), 1, 2, 1, "flow", "soft", 32),
    ((0,), 1, 3, 1, "flow", "soft", 24),
    ((1,), 1, 3, 1, "vp", "soft", 24),
    ((1,), 2, 2, 1, "flow", "soft", 16),
    ((2, 0), 1, 2, 1, "flow", "soft", 14),
    ((1, 1), 1, 2, 1, "vp", "soft", 14),
    ((0,), 1, 2, 2, "flow", "soft", 14),
    ((2,), 1, 2, 1, "flow", "hard", 401),
]


@pytest.mark.parametrize(("text", "E", "T", "draws", "schedule", "estimate", "Q"), CASES)
def test_the_bound_is_its_integral_and_above_minus_log_p(
    text: tuple[int, ...], E: int, T: int, draws: int, schedule: Schedule, estimate: Estimate, Q: int
) -> None:
    latents = space(E, schedule=schedule, estimate=estimate, draws=draws)
    exact = Exact(network(E), text, T, latents, Q)
    discrete, continuous = exact.bound()
    truth = -math.log(exact.chance())
    assert truth < discrete + continuous < truth + 2
    assert continuous > 0.01
    found, error = estimated(bound, network(E), text, 1500, steps=T, samples=T, latents=latents)
    for mine, wanted, spread in zip(found, (discrete, continuous), error, strict=True):
        assert abs(float(mine) - wanted) < 4 * float(spread) < 0.08 * (discrete + continuous)


@pytest.mark.parametrize(("N", "E", "T", "Q"), [(1, 1, 3, 16), (1, 2, 2, 10), (2, 1, 2, 10)])
def test_the_probabilities_of_all_texts_add_up_to_one(N: int, E: int, T: int, Q: int) -> None:
    """So what the bound is held against is the probability."""
    chances = [
        Exact(network(E), text, T, space(E), Q).chance() for text in itertools.product(range(V), repeat=N)
    ]
    assert sum(chances) == pytest.approx(1, abs=1e-9)


def test_the_sampler_writes_texts_as_often_as_that() -> None:
    latents, predict, rows = space(1), network(1), 20_000

    def of_one_token(
        ids: torch.Tensor, masked: torch.Tensor, z: torch.Tensor | None, t: float
    ) -> torch.Tensor:
        assert z is not None  # every position of the row is a text of its own
        return predict(ids.T, masked.T, z.transpose(0, 1), torch.full((rows,), t))

    found = sample(
        of_one_token,
        torch.full((1, rows), MASK),
        MASK,
        steps=3,
        generators=[torch.Generator().manual_seed(0)],
        latents=latents,
    )
    shares = torch.bincount(found.ids[0], minlength=V) / rows
    for token, share in enumerate(shares.tolist()):
        chance = Exact(predict, (token,), 3, latents, 16).chance()
        assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / rows)


JOINT = torch.tensor([[0.30, 0.02, 0.01], [0.01, 0.05, 0.24], [0.20, 0.10, 0.07]])


def conditional(
    ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: torch.Tensor
) -> torch.Tensor:
    """Of pairs of tokens as JOINT has them: each given the other, where that is visible."""
    fit = torch.cat([torch.eye(V), torch.ones(1, V)])[ids]
    left, right = torch.einsum("bj,ij->bi", fit[:, 1], JOINT), torch.einsum("bi,ij->bj", fit[:, 0], JOINT)
    return torch.stack([left, right], 1)[rows].log()


@pytest.mark.parametrize("text", [(0, 0), (1, 2), (2, 1)])
def test_of_an_exact_predictor_the_discrete_term_without_latents_is_minus_log_p(
    text: tuple[int, int],
) -> None:
    truth = -math.log(float(JOINT[text]))
    found, error = estimated(discrete_nats, conditional, text, 2000, samples=2)
    assert abs(float(found[0]) - truth) < 4 * float(error[0]) < 0.1 and found[1] == 0

    def by_hand(T: int) -> float:
        """Masking both costs −ln of the two margins, masking one −ln of what is left."""
        margins = -math.log(float(JOINT.sum(1)[text[0]])) - math.log(float(JOINT.sum(0)[text[1]]))
        ones = 2 * truth - margins
        times = [(step / T, 1 / step) for step in range(1, T + 1)]
        return sum(rho * (t * t * margins + t * (1 - t) * ones) for t, rho in times)

    assert by_hand(1) == pytest.approx(-math.log(float(JOINT.sum(1)[text[0]] * JOINT.sum(0)[text[1]])))
    assert by_hand(10_000) == pytest.approx(truth, abs=1e-3)
    for T in (1, 2, 8):
        found, error = estimated(bound, conditional, text, 2000, steps=T, samples=T)
        assert abs(float(found[0]) - by_hand(T)) < 4 * float(error[0]) + 1e-5


def test_samples_are_spread_evenly() -> None:
    """As many as there are numbers of masked tokens, or steps, look at each once."""
    seen: list[tuple[int, float]] = []

    def predict(
        ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: torch.Tensor
    ) -> torch.Tensor:
        seen.extend((int(n), float(at)) for n, at in zip(rows.sum(1), t, strict=True))
        return torch.zeros(int(rows.sum()), V)

    ids = torch.zeros(1, 9, dtype=torch.long)
    everything = torch.ones_like(ids, dtype=torch.bool)
    generators = [torch.Generator().manual_seed(3)]
    found = discrete_nats(predict, ids, everything, MASK, samples=9, generators=generators)
    assert [n for n, _ in seen] == list(range(1, 10))
    assert all(0 < t < 1 for _, t in seen)
    # a network that knows nothing costs ln V a token, without any spread
    assert found[0].discrete == pytest.approx(9 * math.log(3)) and found[0].tokens == 9
    seen.clear()
    bound(predict, ids, everything, MASK, steps=7, samples=7, generators=generators)
    assert {round(7 * t) for _, t in seen} | {1} == set(range(1, 8)) and seen[-1] == (9, 1.0)


def test_the_weight_of_few_samples_has_a_finite_spread() -> None:
    """Where a uniform t with weight 1/t would not: its square has no mean."""
    found, error = estimated(discrete_nats, conditional, (1, 2), 3000, samples=1)
    assert abs(float(found[0]) + math.log(0.24)) < 4 * float(error[0]) < 0.15


def bayes(rows_VE: torch.Tensor) -> PredictEach:
    """The true p(x₀ | z_t) of a single token, all of them as likely: it reads the latent as well as can be."""

    def predict(
        ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: torch.Tensor
    ) -> torch.Tensor:
        assert z is not None
        t_R1 = t.expand(ids.shape[1], -1).T[rows][:, None]
        far = (z[rows][:, None] - (1 - t_R1[..., None]) * rows_VE).square().sum(-1)
        return -far / (2 * t_R1**2)

    return predict


def test_the_discrete_term_of_a_network_that_reads_latents_is_no_bound_and_the_whole_is() -> None:
    """Of three tokens all as likely no model is below ln 3 on average; Bayes' predictor gets there as T → ∞."""
    latents = space(2)
    predict = bayes(latents.table_VE)

    def over_texts(how: Callable[..., list[TextNats]], **arguments: Any) -> tuple[float, float]:
        parts = [estimated(how, predict, (v,), 250, latents=latents, **arguments) for v in range(V)]
        mean = sum(float(found.sum()) for found, _ in parts) / V
        return mean, math.sqrt(sum(float(error.square().sum()) for _, error in parts)) / V

    peeking, error = over_texts(discrete_nats, samples=8)
    assert peeking + 20 * error < math.log(3)
    wholes = [over_texts(bound, steps=T, samples=min(T, 24)) for T in (1, 6, 24, 96)]
    assert all(value > math.log(3) - 4 * error for value, error in wholes)
    # one step of a single token is tight: it never looks at a latent that says anything
    assert wholes[0][0] == pytest.approx(math.log(3))
    for (few, _), (many, _) in zip(wholes[1:], wholes[2:], strict=False):
        assert many < few
    last, error = wholes[-1]
    assert abs(last - math.log(3)) < 4 * error + 0.02 and error < 0.03


def texts(rows: int, N: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    counts = torch.rand(rows, N, generator=draws) < 0.7
    counts[:, 1] = True
    return torch.randint(0, 250, (rows, N), generator=draws), counts


def tiny(make_llada: Callable[..., LLaDA], **config: Any) -> tuple[AugmentedDemasker, int]:
    llada = make_llada()
    sizes = llada.config
    latents = TokenLatents(LatentConfig(**config), sizes.vocab_size, sizes.d_model)
    latents.initialise(llada.model.transformer.wte.weight)
    return AugmentedDemasker(UnguidedDemasker(llada), latents), sizes.vocab_size


@pytest.mark.parametrize("steps", [None, 6])
def test_a_text_s_number_depends_neither_on_its_neighbours_nor_on_what_stands_behind_it(
    steps: int | None, make_llada: Callable[..., LLaDA]
) -> None:
    demasker, rows = tiny(make_llada, fusion="reweight")
    mask_id = demasker.llada.config.mask_token_id
    with torch.no_grad():
        latents = LatentSpace(demasker.clean_table(), "flow", draws=2, estimate="soft")
    ids, counts = texts(4, 12)

    def predict(ids: torch.Tensor, at: torch.Tensor, z: torch.Tensor | None, t: torch.Tensor) -> torch.Tensor:
        assert torch.equal(at, ids == mask_id) and z is not None
        visible = demasker.latents.clean(demasker.llada.embed(ids))[~at]  # type: ignore[union-attr]
        assert torch.allclose(z[~at], visible, atol=1e-5)
        return demasker.logits(ids, at, None, z, t)[:, :rows]

    def of(chosen: list[int], samples: int = 5) -> list[TextNats]:
        generators = [torch.Generator().manual_seed(row) for row in chosen]
        arguments: dict[str, Any] = {"samples": samples, "generators": generators, "latents": latents}
        if steps is None:
            return discrete_nats(predict, ids[chosen], counts[chosen], mask_id, **arguments)
        return bound(predict, ids[chosen], counts[chosen], mask_id, steps=steps, **arguments)

    together = of([0, 1, 2, 3])
    for row in range(4):
        (alone,) = of([row])
        assert alone.discrete == pytest.approx(together[row].discrete, rel=1e-4)
        assert alone.continuous == pytest.approx(together[row].continuous, rel=1e-4)
        assert alone.tokens == int(counts[row].sum())
        assert (alone.continuous > 0) == (steps is not None)
    assert of([2]) == of([2]) != of([2], samples=4)


def test_what_does_not_count_is_never_masked() -> None:
    ids, counts = torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, dtype=torch.bool)
    counts[0, 1:4], counts[1, 2] = True, True

    def predict(
        ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: torch.Tensor
    ) -> torch.Tensor:
        assert not (rows & ~counts).any() and torch.equal(rows, ids == MASK)
        return torch.zeros(int(rows.sum()), V + 1)

    for found in (
        discrete_nats(
            predict, ids, counts, MASK, samples=6, generators=[torch.Generator() for _ in range(2)]
        ),
        bound(
            predict, ids, counts, MASK, steps=1, samples=1, generators=[torch.Generator() for _ in range(2)]
        ),
    ):
        assert [one.tokens for one in found] == [3, 1]
        # and the mask, though it has a logit, no share: three tokens are left
        assert [one.discrete for one in found] == pytest.approx([3 * math.log(3), math.log(3)])


def test_nats_become_perplexity_and_bits_with_an_interval_over_texts() -> None:
    found = [TextNats(6.0, 0.0, 3), TextNats(3.0, 2.0, 1), TextNats(1.0, 0.0, 2)]
    assert [one.nats for one in found] == [6.0, 5.0, 1.0]
    assert per_token(found).value == pytest.approx(2.0) and per_token(found).n == 3
    assert perplexity(found).value == pytest.approx(math.exp(2.0))
    bits = bits_per_character(found, [10, 4, 6])
    assert bits.value == pytest.approx(12 / math.log(2) / 20)
    for one in (per_token(found), perplexity(found), bits):
        assert one.low is not None and one.high is not None and one.low < one.value < one.high
    assert perplexity(found).low == pytest.approx(math.exp(per_token(found).low or 0))
    assert perplexity(found[:1]).low is None


def unreachable(*_: Any) -> torch.Tensor:
    raise AssertionError("predict was called")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts_BN": torch.ones(2, 3)}, r"torch.float32 of shape \(2, 3\): wanted bool, \(2, 3\)"),
        ({"counts_BN": torch.ones(2, 4, dtype=torch.bool)}, r"torch.bool of shape \(2, 4\)"),
        ({"counts_BN": torch.tensor([[True] * 3, [False] * 3])}, "no token of text 1 counts"),
        ({"ids_BN": torch.full((2, 3), MASK)}, "these texts hold the mask token 3"),
        ({"samples": 0}, "samples = 0: at least one"),
        ({"generators": [torch.Generator()]}, "1 generators for 2 texts"),
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"latents": space(1, stochastic=False)}, "no density, so no bound: take stochastic ones"),
        ({"latents": space(1, estimate="drawn")}, "no bound of this form: take soft ones"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_any_evaluation(
    changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {
        "ids_BN": torch.zeros(2, 3, dtype=torch.long),
        "counts_BN": torch.ones(2, 3, dtype=torch.bool),
        "mask_id": MASK,
        "steps": 2,
        "samples": 2,
        "generators": [torch.Generator(), torch.Generator()],
    }
    with pytest.raises(CrocodilError, match=message) as caught:
        bound(unreachable, **(arguments | changes))
    assert "\n" not in str(caught.value)
