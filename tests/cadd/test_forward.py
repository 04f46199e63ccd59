"""The closed forms of the forward process, against its chain and against the formulas as they are printed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from crocodil.cadd.forward import (
    Schedule,
    add_noise,
    check_schedule,
    flip,
    keep,
    noise,
    posterior,
    remask,
    signal,
    snr,
    transition,
)
from crocodil.errors import CrocodilError

SCHEDULES: tuple[Schedule, ...] = ("flow", "vp")
A = {"flow": lambda t: 1 - t, "vp": lambda t: math.cos(math.pi * t / 2)}
B = {"flow": lambda t: t, "vp": lambda t: math.sin(math.pi * t / 2)}
TIMES = (0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
PAIRS = [(0.01, 0.02), (0.1, 0.9), (0.25, 0.4), (0.5, 1.0), (0.98, 0.99)]
Z0, COPIES = 1.7, 200_000

both = pytest.mark.parametrize("schedule", SCHEDULES)
pairs = pytest.mark.parametrize(("s", "t"), PAIRS)


def kernel(s: float, t: float, schedule: Schedule) -> tuple[float, float]:
    """How a masked latent goes from s to t: factor and variance. Of vp it is Eq. 8 with γ_t = γ̄_t/γ̄_s."""
    if schedule == "vp":
        gamma = (math.cos(math.pi * t / 2) / math.cos(math.pi * s / 2)) ** 2
        return math.sqrt(gamma), 1 - gamma
    factor = (1 - t) / (1 - s)
    return factor, t**2 - factor**2 * s**2


def chain(schedule: Schedule) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(is_masked, z) of many copies of one token at every time, step by step (Eq. 7 and 8)."""
    draws = torch.Generator().manual_seed(0)
    is_masked = torch.zeros(COPIES, dtype=torch.bool)
    z = torch.full((COPIES,), Z0, dtype=torch.float64)
    yield is_masked, z
    for s, t in zip(TIMES, TIMES[1:], strict=False):
        epsilon = torch.randn(COPIES, generator=draws, dtype=torch.float64)
        first = ~is_masked & (torch.rand(COPIES, generator=draws) < 1 - (1 - t) / (1 - s))
        factor, variance = kernel(s, t, schedule)
        z = torch.where(is_masked, factor * z + math.sqrt(variance) * epsilon, z)
        # what is masked for the first time draws from the marginal (the bars that Eq. 8 has lost)
        z = torch.where(first, A[schedule](t) * Z0 + B[schedule](t) * epsilon, z)
        is_masked = is_masked | first
        yield is_masked, z


@pytest.fixture(scope="module", params=SCHEDULES)
def simulated(request: pytest.FixtureRequest) -> tuple[Schedule, list[tuple[torch.Tensor, torch.Tensor]]]:
    return request.param, list(chain(request.param))


def near(found: torch.Tensor | float, wanted: float, error: float) -> bool:
    """Within four standard errors, and a little for rounding."""
    return abs(float(found) - wanted) < 4 * error + 1e-9


@both
@pytest.mark.parametrize("t", TIMES)
def test_the_levels_are_their_formulas(schedule: Schedule, t: float) -> None:
    at = torch.tensor(t)
    assert float(signal(at, schedule)) == pytest.approx(A[schedule](float(at)), abs=1e-12)
    assert float(noise(at, schedule)) == pytest.approx(B[schedule](float(at)), abs=1e-12)
    if schedule == "vp":
        assert float(signal(at, "vp") ** 2 + noise(at, "vp") ** 2) == pytest.approx(1)


def test_masked_tokens_of_the_chain_are_distributed_as_eq_11_says(simulated) -> None:  # type: ignore[no-untyped-def]
    schedule, states = simulated
    for t, (is_masked, z) in zip(TIMES, states, strict=True):
        masked = int(is_masked.sum())
        assert near(is_masked.double().mean(), t, math.sqrt(t * (1 - t) / COPIES))
        assert (z[~is_masked] == Z0).all()
        if masked:
            at = torch.tensor(t)
            a, b = float(signal(at, schedule)), float(noise(at, schedule))
            assert near(z[is_masked].mean(), a * Z0, b / math.sqrt(masked))
            assert near(z[is_masked].var(), b**2, b**2 * math.sqrt(2 / masked))


@pytest.mark.parametrize(("i", "j"), [(1, 2), (2, 3), (2, 5), (4, 6), (5, 7)])
def test_the_posterior_is_the_regression_of_the_chain_s_earlier_latent_on_its_later_one(
    i: int,
    j: int,
    simulated,  # type: ignore[no-untyped-def]
) -> None:
    schedule, states = simulated
    (earlier, z_s), (later, z_t) = states[i], states[j]
    chosen = earlier & later
    x, y = z_t[chosen], z_s[chosen]
    n, spread = len(x), float((x - x.mean()).square().sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    found = posterior(TIMES[i], TIMES[j], schedule)
    assert near(slope, found.keep, found.std / math.sqrt(spread))
    level = y.mean() - found.keep * x.mean()
    assert near(level, found.take * Z0, found.std / math.sqrt(n))
    rest = y - found.keep * x - found.take * Z0
    assert near(rest.square().mean(), found.std**2, found.std**2 * math.sqrt(2 / n))


@pytest.mark.parametrize(("i", "j"), [(1, 2), (2, 5), (4, 6)])
def test_the_transition_is_the_regression_of_the_later_latent_on_the_earlier(
    i: int,
    j: int,
    simulated,  # type: ignore[no-untyped-def]
) -> None:
    schedule, states = simulated
    chosen, x, y = states[i][0], states[i][1], states[j][1]
    x, y = x[chosen], y[chosen]
    on = transition(TIMES[i], TIMES[j], schedule)
    spread = float((x - x.mean()).square().sum())
    assert near(float(((x - x.mean()) * y).sum()) / spread, on.keep, on.std / math.sqrt(spread))
    assert near((y - on.keep * x).var(), on.std**2, on.std**2 * math.sqrt(2 / len(x)))


@pytest.mark.parametrize(("i", "j"), [(1, 2), (2, 5), (4, 6)])
def test_what_is_visible_earlier_says_nothing_about_the_later_latent(i: int, j: int, simulated) -> None:  # type: ignore[no-untyped-def]
    """Lemma 3: z_t of a token that is masked at t does not know whether it was masked at s."""
    schedule, states = simulated
    earlier, (later, z) = states[i][0], states[j]
    b = B[schedule](TIMES[j])
    for group in (later & earlier, later & ~earlier):
        n = int(group.sum())
        assert near(z[group].mean(), A[schedule](TIMES[j]) * Z0, b / math.sqrt(n))
        assert near(z[group].var(), b**2, b**2 * math.sqrt(2 / n))


@pytest.mark.parametrize(("i", "j"), [(1, 2), (2, 5), (4, 6), (5, 7)])
def test_flip_keep_and_remask_are_counts_of_the_chain(i: int, j: int, simulated) -> None:  # type: ignore[no-untyped-def]
    _, states = simulated
    s, t, earlier, later = TIMES[i], TIMES[j], states[i][0], states[j][0]

    def agrees(share: torch.Tensor, p: float) -> bool:
        return near(share.double().mean(), p, math.sqrt(p * (1 - p) / len(share)))

    assert agrees(~earlier[later], flip(s, t)) and agrees(earlier[later], keep(s, t))
    assert agrees(later[~earlier], remask(s, t))


@pairs
def test_a_masked_token_flips_or_keeps(s: float, t: float) -> None:
    alpha_s, alpha_t = 1 - s, 1 - t
    assert flip(s, t) + keep(s, t) == pytest.approx(1)
    assert flip(s, t) == pytest.approx((alpha_s - alpha_t) / (1 - alpha_t))  # Eq. 38
    assert keep(s, t) == pytest.approx((1 - alpha_s) / (1 - alpha_t))
    assert remask(s, t) == pytest.approx(1 - alpha_t / alpha_s)
    assert flip(0.0, t) == 1 and keep(0.0, t) == 0


@both
@pairs
def test_the_posterior_is_the_conditional_of_a_joint_normal(s: float, t: float, schedule: Schedule) -> None:
    """mean + cov/var (z_t − mean) and var − cov²/var, of z_s and z_t given z₀."""
    factor, variance = kernel(s, t, schedule)
    b_s = B[schedule](s)
    covariance, of_t = factor * b_s**2, factor**2 * b_s**2 + variance
    slope = covariance / of_t
    found = posterior(s, t, schedule)
    assert found.keep == pytest.approx(slope)
    assert found.take == pytest.approx(A[schedule](s) - slope * A[schedule](t))
    assert found.std**2 == pytest.approx(b_s**2 - covariance**2 / of_t)


@pairs
def test_of_the_variance_preserving_chain_it_is_eq_17_and_ddpm_s(s: float, t: float) -> None:
    bar_s, bar_t = math.cos(math.pi * s / 2) ** 2, math.cos(math.pi * t / 2) ** 2
    gamma = bar_t / bar_s
    found = posterior(s, t, "vp")
    assert found.take == pytest.approx(math.sqrt(bar_s) * (1 - gamma) / (1 - bar_t))
    assert found.keep == pytest.approx(math.sqrt(gamma) * (1 - bar_s) / (1 - bar_t))
    assert found.std**2 == pytest.approx((1 - bar_s) * (1 - gamma) / (1 - bar_t))

    # as DDPMScheduler.step of diffusers writes it
    alpha_prod_t, alpha_prod_t_prev = bar_t, bar_s
    beta_prod_t, beta_prod_t_prev = 1 - alpha_prod_t, 1 - alpha_prod_t_prev
    current_alpha_t = alpha_prod_t / alpha_prod_t_prev
    current_beta_t = 1 - current_alpha_t
    assert found.take == pytest.approx((alpha_prod_t_prev**0.5 * current_beta_t) / beta_prod_t)
    assert found.keep == pytest.approx(current_alpha_t**0.5 * beta_prod_t_prev / beta_prod_t)
    assert found.std**2 == pytest.approx((1 - alpha_prod_t_prev) / (1 - alpha_prod_t) * current_beta_t)


@pairs
def test_of_flow_matching_it_is_what_the_paper_leaves_out(s: float, t: float) -> None:
    v = t**2 - ((1 - t) / (1 - s)) ** 2 * s**2
    found = posterior(s, t, "flow")
    assert found.keep == pytest.approx((1 - t) * s**2 / ((1 - s) * t**2))
    assert found.take == pytest.approx((1 - s) * v / t**2)
    assert found.std**2 == pytest.approx(v * s**2 / t**2)


@both
@pairs
def test_the_deterministic_step_keeps_the_noise_and_changes_its_share(
    s: float, t: float, schedule: Schedule
) -> None:
    found = posterior(s, t, schedule, stochastic=False)
    z_t, z0 = 0.83, -1.4
    epsilon = (z_t - A[schedule](t) * z0) / B[schedule](t)
    assert found.keep * z_t + found.take * z0 == pytest.approx(A[schedule](s) * z0 + B[schedule](s) * epsilon)
    assert found.std == 0
    if schedule == "flow":
        assert (found.keep, found.take) == pytest.approx((s / t, 1 - s / t))


@both
def test_steps_compose(schedule: Schedule) -> None:
    s, r, t = 0.2, 0.45, 0.9
    early, late, whole = (transition(*at, schedule) for at in ((s, r), (r, t), (s, t)))
    assert early.keep * late.keep == pytest.approx(whole.keep)
    assert math.hypot(late.keep * early.std, late.std) == pytest.approx(whole.std)
    for stochastic in (True, False):
        late_back, early_back, back = (
            posterior(*at, schedule, stochastic) for at in ((r, t), (s, r), (s, t))
        )
        assert early_back.keep * late_back.keep == pytest.approx(back.keep)
        assert early_back.keep * late_back.take + early_back.take == pytest.approx(back.take)
        assert math.hypot(early_back.keep * late_back.std, early_back.std) == pytest.approx(back.std)


@both
@pairs
def test_forward_and_back_again_leaves_the_joint_as_it_was(s: float, t: float, schedule: Schedule) -> None:
    a_s, a_t, b_s, b_t = A[schedule](s), A[schedule](t), B[schedule](s), B[schedule](t)
    on, back = transition(s, t, schedule), posterior(s, t, schedule)
    assert on.keep * a_s == pytest.approx(a_t, abs=1e-12)
    assert math.hypot(on.keep * b_s, on.std) == pytest.approx(b_t)
    assert back.keep * a_t + back.take == pytest.approx(a_s)
    assert math.hypot(back.keep * b_t, back.std) == pytest.approx(b_s)
    assert back.keep * b_t**2 == pytest.approx(on.keep * b_s**2)  # the covariance, from either end


@both
def test_at_time_0_it_is_the_clean_latent(schedule: Schedule) -> None:
    for t in (1e-6, 0.3, 1.0):
        for stochastic in (True, False):
            found = posterior(0.0, t, schedule, stochastic)
            assert (found.keep, found.take, found.std) == pytest.approx((0, 1, 0), abs=1e-12)


@both
def test_from_time_1_nothing_is_kept_of_noise_but_its_share(schedule: Schedule) -> None:
    """At t = 1 there is no signal, so z_s is the marginal of z₀ by itself."""
    found = posterior(0.6, 1.0, schedule)
    assert found.keep == pytest.approx(0, abs=1e-12)
    assert (found.take, found.std) == pytest.approx((A[schedule](0.6), B[schedule](0.6)))


@both
def test_signal_to_noise_falls_from_infinity_to_nothing(schedule: Schedule) -> None:
    ratios = snr(torch.linspace(0, 1, 101, dtype=torch.float64), schedule)
    assert ratios[0] == math.inf and ratios[-1] == pytest.approx(0, abs=1e-12)
    assert (ratios[1:] < ratios[:-1]).all()
    assert float(snr(torch.tensor(0.5), schedule)) == pytest.approx(1)


@both
@pairs
def test_the_kl_of_two_posteriors_is_the_fall_of_signal_to_noise(
    s: float, t: float, schedule: Schedule
) -> None:
    """Eq. 19, with a_t²/β̃_t written as SNR_s − SNR_t."""
    z0, guess, z_t = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    back = posterior(s, t, schedule)
    q, p = (torch.distributions.Normal(back.keep * z_t + back.take * z, back.std) for z in (z0, guess))
    kl = torch.distributions.kl_divergence(q, p).sum()
    snr_s, snr_t = snr(torch.tensor([s, t], dtype=torch.float64), schedule)
    assert float(kl) == pytest.approx(float(0.5 * (snr_s - snr_t) * (z0 - guess).square().sum()))


@both
def test_every_token_is_noised_at_its_own_time(schedule: Schedule) -> None:
    clean, epsilon = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.0, 0.3, 1.0])
    noised = add_noise(clean, times, epsilon, schedule)
    for row, t in enumerate(times.tolist()):
        assert torch.allclose(noised[row], A[schedule](t) * clean[row] + B[schedule](t) * epsilon[row])
    assert torch.equal(noised[0], clean[0]) and noised.dtype == torch.float32
    assert add_noise(clean.bfloat16(), times, epsilon.bfloat16(), schedule).dtype == torch.bfloat16


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (0.0, math.nan)])
def test_times_out_of_order_are_refused(s: float, t: float) -> None:
    for step in (posterior, transition):
        with pytest.raises(CrocodilError, match="0 ≤ s < t ≤ 1"):
            step(s, t, "flow")


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(CrocodilError, match="schedule 'cosine' is not one of flow, vp"):
        check_schedule("cosine")
