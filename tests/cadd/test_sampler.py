"""CADD's sampler around a `predict` of a few lines, whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from crocodil.cadd.forward import Schedule, flip
from crocodil.cadd.loss import Estimate
from crocodil.cadd.sampler import Guess, LatentSpace, Predict, Reveal, cosine_temperature, sample
from crocodil.errors import CrocodilError
from crocodil.sampler.demask import Step

MASK, VOCABULARY, E = 50, 64, 8
REVEALS: tuple[Reveal, ...] = ("ancestral", "random", "low_confidence", "entropy")


def oracle(text: torch.Tensor) -> Predict:
    """Certain of the right token everywhere."""
    return lambda ids, rows, z, t: torch.nn.functional.one_hot(text[rows], VOCABULARY) * 100.0


def listener() -> Predict:
    """Logits that depend on all tokens and latents of the row, on the position and on t, and on no other row."""
    draws = torch.Generator().manual_seed(0)
    of_ids = torch.randn(97, 40, VOCABULARY, generator=draws)
    of_z = torch.randn(E, VOCABULARY, generator=draws) / 2

    def predict(ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: float) -> torch.Tensor:
        state = (ids * (torch.arange(ids.shape[1]) * 7 + 1)).sum(1) % 97
        row, position = rows.nonzero(as_tuple=True)
        logits = of_ids[state[row], position] * (1 + t)
        if z is None:
            return logits
        # row by row, so that sums do not depend on how many rows there are
        return logits + torch.stack(
            [(z[b].mean(0) + z[b, n]) @ of_z for b, n in zip(row, position, strict=True)]
        )

    return predict


def always(*chances: float) -> Predict:
    """The same probabilities everywhere."""
    return lambda ids, rows, z, t: torch.tensor(chances).log().expand(int(rows.sum()), -1)


def unreachable(*_: Any) -> torch.Tensor:
    raise AssertionError("predict was called")


def table(rows: int = VOCABULARY, width: int = E, norm: float = 3.0) -> torch.Tensor:
    found = torch.randn(rows, width, generator=torch.Generator().manual_seed(3))
    return norm * found / found.norm(dim=1, keepdim=True)


def space(**changes: Any) -> LatentSpace:
    return LatentSpace(**({"table_VE": table(), "schedule": "flow"} | changes))


def text(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, MASK, shape, generator=torch.Generator().manual_seed(seed))


def holes(text: torch.Tensor, share: float = 0.6) -> torch.Tensor:
    return text.masked_fill(torch.rand(text.shape, generator=torch.Generator().manual_seed(1)) < share, MASK)


def masks(*shape: int) -> torch.Tensor:
    return torch.full(shape, MASK)


def seeded(*rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in rows]


@pytest.mark.parametrize("schedule", ["flow", "vp"])
@pytest.mark.parametrize("reveal", REVEALS)
def test_an_oracle_writes_the_exact_text_whatever_else(reveal: Reveal, schedule: Schedule) -> None:
    wanted = text(2, 12)
    spaces: list[LatentSpace | None] = [None]
    for draws in (1, 3):
        for estimate in ("hard", "soft", "drawn"):
            for stochastic in (True, False):
                spaces.append(space(schedule=schedule, draws=draws, estimate=estimate, stochastic=stochastic))
    for latents in spaces:
        for steps in (1, 3, 14):
            for corrector, temperature in ((0.0, 1.0), (1.5, 0.0)):
                found = sample(
                    oracle(wanted),
                    masks(2, 12),
                    MASK,
                    steps=steps,
                    generators=seeded(0, 1),
                    latents=latents,
                    reveal=reveal,
                    corrector=corrector,
                    temperature=temperature,
                )
                assert torch.equal(found.ids, wanted)


@pytest.mark.parametrize("corrector", [0.0, 1.0])
@pytest.mark.parametrize("latents", [None, space(draws=2)])
def test_given_tokens_are_kept_with_their_clean_latents(
    latents: LatentSpace | None, corrector: float
) -> None:
    given, predict = holes(text(3, 20)), listener()
    kept = given != MASK

    def watch(ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: float) -> torch.Tensor:
        assert torch.equal(rows, ids == MASK)
        assert torch.equal(ids[kept], given[kept])
        if z is not None:
            # what has become visible on the way has its clean latent too
            assert torch.equal(z[~rows], table()[ids[~rows]])
            assert torch.cdist(z[rows], table()).min() > 0.01
        return predict(ids, rows, z, t)

    found = sample(
        watch, given, MASK, steps=15, generators=seeded(0, 1, 2), latents=latents, corrector=corrector
    )
    assert torch.equal(found.ids[kept], given[kept]) and (found.ids != MASK).all()
    assert torch.equal(found.steps == -1, kept) and int(found.steps.max()) < 15


def test_without_latents_the_number_revealed_is_binomial_with_the_chance_of_a_flip() -> None:
    N, steps, left = 20_000, 25, [20_000]
    sample(
        always(0.5, 0.5),
        masks(1, N),
        MASK,
        steps=steps,
        generators=seeded(0),
        on_step=lambda step: left.append(int(step.is_masked_BN.sum())),
    )
    chi_square = 0.0
    for step in range(steps - 1):
        t, s = 1 - step / steps, 1 - (step + 1) / steps
        p = flip(s, t)
        chi_square += (left[step] - left[step + 1] - left[step] * p) ** 2 / (left[step] * p * (1 - p))
    assert left[-1] == 0 and 8 < chi_square < 52  # 24 degrees of freedom, one in a thousand on either side


@pytest.mark.parametrize("corrector", [0.5, 3.0])
def test_with_a_corrector_as_many_are_masked_as_the_forward_process_masks(corrector: float) -> None:
    N, steps, left = 20_000, 12, []
    sample(
        always(0.5, 0.5),
        masks(1, N),
        MASK,
        steps=steps,
        generators=seeded(0),
        corrector=corrector,
        on_step=lambda step: left.append(int(step.is_masked_BN.sum())),
    )
    for step, number in enumerate(left, start=1):
        s = 1 - step / steps
        assert abs(number - N * s) < 4 * math.sqrt(N * s * (1 - s)) + 1e-6


# Two positions and three tokens: a distribution with strong ties between the two.
JOINT = torch.tensor([[0.30, 0.02, 0.00], [0.01, 0.05, 0.25], [0.20, 0.10, 0.07]])


def exact(table_VE: torch.Tensor | None = None, schedule: Schedule = "flow") -> Predict:
    """The true conditional of each token of many pairs in a row, given the other where visible, and all latents."""

    def predict(ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: float) -> torch.Tensor:
        pairs = ids.view(-1, 2)
        # how well each token fits what is seen at each position: (pairs, 2, 3)
        fit = torch.nn.functional.one_hot(pairs, 4)[..., :3].double()
        fit[pairs == 3] = 1.0
        if z is not None and table_VE is not None:
            a, b = (
                (1 - t, t) if schedule == "flow" else (math.cos(math.pi * t / 2), math.sin(math.pi * t / 2))
            )
            far = (z.view(-1, 2, 1, z.shape[-1]) - a * table_VE).square().sum(-1).double()
            fit = torch.where((pairs == 3)[..., None], torch.softmax(-far / (2 * b * b), -1), fit)
        left = torch.einsum("pj,ij->pi", fit[:, 1], JOINT.double()) * fit[:, 0]
        right = torch.einsum("pi,ij->pj", fit[:, 0], JOINT.double()) * fit[:, 1]
        return torch.stack([left, right], 1).flatten(0, 1)[rows.flatten()].log().clamp(min=-60)

    return predict


def variation(ids: torch.Tensor) -> float:
    """Total variation between pairs of tokens and JOINT."""
    pairs = ids.view(-1, 2)
    counts = torch.bincount(pairs[:, 0] * 3 + pairs[:, 1], minlength=9).view(3, 3)
    return float((counts / len(pairs) - JOINT).abs().sum() / 2)


@pytest.mark.parametrize("corrector", [0.0, 1.0])
def test_an_exact_predictor_without_latents_gives_the_distribution_itself(corrector: float) -> None:
    def found(steps: int) -> float:
        return variation(
            sample(
                exact(), torch.full((1, 20_000), 3), 3, steps=steps, generators=seeded(0), corrector=corrector
            ).ids
        )

    # in one step both tokens are drawn at once, as if they did not know one another
    alone = JOINT.sum(1)[:, None] * JOINT.sum(0)
    assert found(1) == pytest.approx(float((alone - JOINT).abs().sum() / 2), abs=0.015)
    assert found(40) < 0.025


@pytest.mark.parametrize("schedule", ["flow", "vp"])
@pytest.mark.parametrize("corrector", [0.0, 1.0])
@pytest.mark.parametrize("estimate", ["soft", "drawn"])
def test_an_exact_predictor_with_latents_gives_it_too(
    estimate: Guess, corrector: float, schedule: Schedule
) -> None:
    """Of Bayes' predictions, soft and drawn estimates in many small steps are the chain's own reverse."""
    rows = table(3, 2, norm=1.5)
    found = sample(
        exact(rows, schedule),
        torch.full((1, 20_000), 3),
        3,
        steps=40,
        generators=seeded(0),
        latents=LatentSpace(rows, schedule, estimate=estimate),
        corrector=corrector,
    )
    assert variation(found.ids) < 0.025


def test_a_row_s_text_depends_neither_on_its_neighbours_nor_on_their_number() -> None:
    given = torch.cat([holes(text(3, 10)), masks(1, 10), holes(text(1, 10), 0.15)])
    for latents in (None, space(draws=2), space(estimate="soft"), space(estimate="drawn")):
        for corrector in (0.0, 0.7):
            for reveal in REVEALS:
                whole, part, alone = (
                    sample(
                        listener(),
                        given[rows],
                        MASK,
                        steps=7,
                        generators=seeded(*rows),
                        latents=latents,
                        reveal=reveal,
                        corrector=corrector,
                    )
                    for rows in ([0, 1, 2, 3, 4], [3, 1], [4])
                )
                assert torch.equal(part.ids, whole.ids[[3, 1]])
                assert torch.equal(part.steps, whole.steps[[3, 1]])
                assert torch.equal(alone.ids, whole.ids[[4]])


def test_every_draw_is_a_chain_of_its_own_and_their_predictions_are_averaged() -> None:
    """Three chains are sure of one token each, so each of the three is written as often as another."""
    seen: list[torch.Tensor] = []
    N, K = 6000, 3

    def predict(ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: float) -> torch.Tensor:
        assert z is not None
        number = len(seen) % K
        seen.append(z[rows].clone())
        return torch.nn.functional.one_hot(torch.full((int(rows.sum()),), number), VOCABULARY) * 40.0

    found = sample(predict, masks(1, N), MASK, steps=4, generators=seeded(0), latents=space(draws=K))
    assert len(seen) == found.nfe == 4 * K
    shares = torch.bincount(found.ids[0], minlength=K) / N
    assert len(shares) == K and (shares - 1 / K).abs().max() < 4 * math.sqrt(2 / 9 / N)
    for first in range(0, len(seen), K):
        one, two, three = seen[first : first + K]
        assert not (one == two).any() and not (two == three).any()
        centre = torch.stack([one, two, three]).mean(dim=(0, 1))
        for left, right in ((one, two), (one, three)):
            assert abs(float(((left - centre) * (right - centre)).mean())) < 0.03 * float(one.var())


def test_estimates_come_from_the_averaged_prediction() -> None:
    """Two chains, sure of two tokens: soft goes halfway, hard to the likelier of both on average."""
    for estimate, weights in (("soft", torch.tensor([0.3, 0.7])), ("hard", torch.tensor([0.0, 1.0]))):
        seen: list[torch.Tensor] = []

        def predict(
            ids: torch.Tensor,
            rows: torch.Tensor,
            z: torch.Tensor | None,
            t: float,
            seen: list[torch.Tensor] = seen,
        ) -> torch.Tensor:
            assert z is not None
            seen.append(z.clone())
            chances = (0.6, 0.4) if len(seen) % 2 else (0.0, 1.0)
            return torch.tensor(chances).log().expand(int(rows.sum()), -1)

        latents = space(draws=2, estimate=estimate, stochastic=False)
        sample(predict, masks(1, 400), MASK, steps=4, generators=seeded(0), latents=latents)
        z0 = weights @ table()[:2]
        for chain in (0, 1):
            before, after = seen[chain][0], seen[chain + 2][0]
            # those that are visible now are at the latent of their token
            still = (after[:, None] - table()[:2]).norm(dim=2).min(dim=1).values > 1e-3
            assert torch.allclose(after[still], 0.75 * before[still] + 0.25 * z0, atol=1e-5)
            assert 200 < int(still.sum()) < 400


@pytest.mark.parametrize("corrector", [0.0, 1.3])
@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("schedule", ["flow", "vp"])
def test_latents_of_masked_tokens_are_distributed_as_in_training(
    schedule: Schedule, stochastic: bool, corrector: float
) -> None:
    """With an oracle, N(a z₀, b² I) at every step, though each went through all steps before it."""
    N, wanted = 20_000, text(1, 20_000)
    times = []

    def predict(ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: float) -> torch.Tensor:
        assert z is not None
        times.append(t)
        a, b = (1 - t, t) if schedule == "flow" else (math.cos(math.pi * t / 2), math.sin(math.pi * t / 2))
        z0 = table()[wanted[rows]]
        epsilon = (z[rows] - a * z0) / b
        n = epsilon.numel()
        assert abs(float(epsilon.mean())) < 4.5 / math.sqrt(n)
        assert abs(float(epsilon.var()) - 1) < 4.5 * math.sqrt(2 / n)
        assert abs(float((epsilon * z0).mean())) < 4.5 * 3 / math.sqrt(E * n)
        return oracle(wanted)(ids, rows, z, t)

    sample(
        predict,
        masks(1, N),
        MASK,
        steps=8,
        generators=seeded(0),
        latents=space(schedule=schedule, stochastic=stochastic),
        corrector=corrector,
    )
    assert times == [1 - step / 8 for step in range(8)]


@pytest.mark.parametrize("schedule", ["flow", "vp"])
def test_sixteen_bits_of_the_network_are_not_those_of_its_latents(schedule: Schedule) -> None:
    """A step of many changes less of a latent than bfloat16 holds: the chain is that of a float32 network."""
    clean, seen = table().bfloat16(), []

    def predict(ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: float) -> torch.Tensor:
        assert z is not None
        if t < 0.1:
            seen.append(z[rows].float())
        return oracle(text(1, 48))(ids, rows, z, t)

    for table_VE in (clean, clean.float()):
        latents = space(table_VE=table_VE, schedule=schedule)
        sample(predict, masks(1, 48), MASK, steps=500, generators=seeded(0), latents=latents)
    half = len(seen) // 2
    assert half > 10 and all(
        torch.equal(one, other) for one, other in zip(seen[:half], seen[half:], strict=True)
    )


def test_the_deterministic_step_draws_nothing_and_the_stochastic_one_does() -> None:
    """Two latents that start alike stay alike, or do not."""
    for stochastic in (False, True):
        seen: list[torch.Tensor] = []

        def predict(
            ids: torch.Tensor,
            rows: torch.Tensor,
            z: torch.Tensor | None,
            t: float,
            seen: list[torch.Tensor] = seen,
        ) -> torch.Tensor:
            assert z is not None
            seen.append(z.clone())
            return oracle(torch.zeros_like(ids))(ids, rows, z, t)

        latents = space(stochastic=stochastic)
        sample(predict, masks(1, 200), MASK, steps=2, generators=seeded(0), latents=latents)
        z0 = table()[0]
        straight = 0.5 * seen[0] + 0.5 * z0  # s/t = 1/2
        still = (seen[1] - z0).norm(dim=-1) > 1e-4
        assert 60 < int(still.sum()) < 140
        assert torch.allclose(seen[1][still], straight[still], atol=1e-5) == (not stochastic)


def test_latents_start_as_noise_of_variance_one() -> None:
    def predict(ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: float) -> torch.Tensor:
        assert z is not None and t == 1.0
        assert abs(float(z.mean())) < 0.02 and abs(float(z.var()) - 1) < 0.03
        return oracle(torch.zeros_like(ids))(ids, rows, z, t)

    sample(predict, masks(2, 2000), MASK, steps=1, generators=seeded(0, 1), latents=space())


def test_temperature_falls_as_a_quarter_of_a_cosine() -> None:
    temperature = cosine_temperature(2.5)
    assert temperature(1.0) == 2.5 and temperature(0.0) == pytest.approx(0, abs=1e-12)
    assert temperature(0.5) == pytest.approx(2.5 * math.sqrt(0.5))
    asked: list[float] = []

    def at(t: float) -> float:
        asked.append(t)
        return temperature(t)

    sample(oracle(text(1, 30)), masks(1, 30), MASK, steps=4, generators=seeded(0), temperature=at)
    assert asked == [1.0, 0.75, 0.5, 0.25]


def test_tokens_are_drawn_at_the_temperature_and_never_the_mask() -> None:
    chances = torch.tensor([0.5, 0.3, 0.0, 0.2])
    for temperature, mask_id in ((1.0, 50), (2.0, 50), (0.0, 50), (1.0, 0), (0.0, 0)):
        left = chances.clone()
        if mask_id == 0:
            left[0] = 0
        wanted = torch.nn.functional.one_hot(left.argmax(), 4).float()
        if temperature:
            wanted = left ** (1 / temperature) / (left ** (1 / temperature)).sum()
        found = sample(
            always(*chances.tolist()),
            torch.full((1, 20_000), mask_id),
            mask_id,
            steps=2,
            generators=seeded(0),
            temperature=temperature,
        )
        shares = torch.bincount(found.ids[0], minlength=4) / 20_000
        assert (shares - wanted).abs().max() < 4 * math.sqrt(0.25 / 20_000) * bool(temperature) + 1e-6


@pytest.mark.parametrize("estimate", ["hard", "soft"])
def test_the_mask_token_has_no_share_in_estimates(estimate: Estimate) -> None:
    """Nor needs the table a row for it: pixels have 256 latents, and a mask beyond them."""
    for rows, mask_id in ((VOCABULARY, MASK), (VOCABULARY, VOCABULARY), (VOCABULARY, VOCABULARY + 9)):
        for width in {VOCABULARY, min(mask_id + 1, VOCABULARY)}:
            wanted, first = text(1, 40), torch.zeros(1, 40, E)

            def predict(
                ids: torch.Tensor,
                rows: torch.Tensor,
                z: torch.Tensor | None,
                t: float,
                width: int = width,
                mask_id: int = mask_id,
                wanted: torch.Tensor = wanted,
                first: torch.Tensor = first,
            ) -> torch.Tensor:
                logits = torch.nn.functional.one_hot(wanted[rows], width) * 60.0
                if mask_id < width:
                    logits[:, mask_id] = 90.0  # the network would rather have the mask
                if t == 0.5 and z is not None:
                    z0 = table()[wanted[rows]]
                    assert torch.allclose(z[rows] - 0.5 * z0, 0.5 * first[rows], atol=1e-4)
                elif z is not None:
                    first.copy_(z)
                return logits

            latents = space(table_VE=table(rows), estimate=estimate, stochastic=False)
            given = torch.full((1, 40), mask_id)
            found = sample(predict, given, mask_id, steps=2, generators=seeded(0), latents=latents)
            assert torch.equal(found.ids, wanted)


def by_position(logits_NV: torch.Tensor) -> Predict:
    """Logits that depend on the position alone."""
    return lambda ids, rows, z, t: logits_NV[rows.nonzero()[:, 1]]


def order(found: torch.Tensor) -> list[int]:
    """Positions in the order in which they became visible."""
    return found[0].argsort().tolist()


def test_orders_of_revealing_by_hand() -> None:
    """The second position is the surest of its first choice, the third has the least entropy, over two tokens."""
    chances = torch.tensor(
        [
            [0.40, 0.20, 0.20, 0.20],
            [0.60, 0.134, 0.133, 0.133],
            [0.55, 0.45, 0.00, 0.00],
            [0.25, 0.25, 0.25, 0.25],
        ]
    )
    run = {
        reveal: sample(
            by_position(chances.log()),
            masks(1, 4),
            MASK,
            steps=4,
            generators=seeded(5),
            reveal=reveal,
            temperature=0.0,
        )
        for reveal in REVEALS[1:]
    }
    assert order(run["low_confidence"].steps) == [1, 2, 0, 3]
    assert order(run["entropy"].steps) == [2, 1, 0, 3]
    # random: the second uniform numbers of every step, the largest first
    draws, left, wanted = torch.Generator().manual_seed(5), [0, 1, 2, 3], []
    for _ in range(4):
        _, scores = (torch.rand(4, generator=draws, dtype=torch.float64) for _ in range(2))
        wanted.append(max(left, key=lambda n: float(scores[n])))
        left.remove(wanted[-1])
    assert order(run["random"].steps) == wanted


@pytest.mark.parametrize("reveal", REVEALS[1:])
def test_the_others_reveal_as_many_as_ancestral_does_on_average(reveal: Reveal) -> None:
    left: list[list[int]] = []
    given = torch.cat([masks(1, 20), holes(text(1, 20), 0.5)])
    slots = (given == MASK).sum(dim=1)
    sample(
        listener(),
        given,
        MASK,
        steps=8,
        generators=seeded(0, 1),
        reveal=reveal,
        on_step=lambda step: left.append(step.is_masked_BN.sum(dim=1).tolist()),
    )
    for step, numbers in enumerate(left, start=1):
        assert numbers == [round(int(n) * (1 - step / 8)) for n in slots]


def test_more_steps_than_positions_and_evaluations_that_are_made_are_counted() -> None:
    calls = 0
    truth = oracle(text(1, 3))

    def predict(ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor | None, t: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return truth(ids, rows, z, t)

    for reveal in REVEALS:
        for draws in (1, 2):
            calls, seen = 0, []
            found = sample(
                predict,
                masks(1, 3),
                MASK,
                steps=50,
                generators=seeded(0),
                latents=space(draws=draws),
                reveal=reveal,
                on_step=seen.append,
            )
            assert torch.equal(found.ids, text(1, 3))
            assert found.nfe == calls <= 50 * draws
            # it ends when the text is complete, and not before
            last: Step = seen[-1]
            assert not last.is_masked_BN.any() and len(seen) * draws == calls
            assert len(seen) == 1 or seen[-2].is_masked_BN.any()
            assert [step.number for step in seen] == list(range(1, len(seen) + 1)) and last.total == 50


def test_a_corrector_takes_tokens_back_and_says_when_they_were_written_last() -> None:
    states: list[Step] = []
    found = sample(
        listener(),
        masks(1, 40),
        MASK,
        steps=10,
        generators=seeded(0),
        latents=space(),
        corrector=1.0,
        on_step=states.append,
    )
    back = [
        (late.is_masked_BN & ~early.is_masked_BN).any()
        for early, late in zip(states, states[1:], strict=False)
    ]
    assert any(back) and not states[-1].is_masked_BN.any() and len(states) == 10
    for position, step in enumerate(found.steps[0].tolist()):
        assert all(not state.is_masked_BN[0, position] for state in states[step:])
        assert step == 0 or states[step - 1].is_masked_BN[0, position]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"x_BN": text(1, 4)}, "nothing to fill in: no position holds the mask token 50"),
    ({"steps": 0}, "steps = 0: at least one is needed"),
    ({"generators": seeded(0, 1)}, "2 generators for 1 rows: give one per row"),
    ({"reveal": "top_k"}, "reveal = 'top_k': choose one of ancestral, random, low_confidence, entropy"),
    ({"temperature": -1.0}, "temperature = -1.0"),
    ({"temperature": math.nan}, "temperature = nan"),
    ({"corrector": -0.1}, "corrector = -0.1: give 0 or a positive number"),
    ({"corrector": math.inf}, "corrector = inf"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_numbers_that_do_not_fit_are_refused_before_any_evaluation(
    changes: dict[str, Any], message: str
) -> None:
    arguments = {"x_BN": masks(1, 4), "mask_id": MASK, "steps": 3, "generators": seeded(0)} | changes
    with pytest.raises(CrocodilError, match=message) as caught:
        sample(unreachable, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": 0}, "draws = 0: at least one chain"),
        ({"estimate": "mean"}, "estimate = 'mean': choose one of hard, soft, drawn"),
        ({"schedule": "cosine"}, "schedule 'cosine' is not one of flow, vp"),
    ],
)
def test_a_space_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CrocodilError, match=message):
        space(**changes)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda rows: torch.zeros(int(rows.sum()) + 1, 5), r"shape \(5, 5\) for 4 positions"),
        (lambda rows: torch.zeros(1, int(rows.sum()), 5), r"shape \(1, 4, 5\) for 4 positions"),
        (lambda rows: torch.full((int(rows.sum()), 5), math.nan), "infinite or not a number in 4 of 4 rows"),
        (lambda rows: torch.zeros(int(rows.sum()), 65), "logits of 65 tokens, the table has latents of 64"),
    ],
)
def test_answers_that_do_not_fit_are_refused(
    answer: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    with pytest.raises(CrocodilError, match=message):
        sample(
            lambda ids, rows, z, t: answer(rows),
            masks(1, 4),
            MASK,
            steps=2,
            generators=seeded(0),
            latents=space(),
        )


def test_logits_of_predict_are_left_as_they_were() -> None:
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    sample(lambda ids, rows, z, t: logits, masks(1, 4), MASK, steps=1, generators=seeded(0), latents=space())
    assert torch.equal(logits, before)
