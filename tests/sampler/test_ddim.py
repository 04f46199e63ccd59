"""DDIM over registers: an oracle, the published sampler, and what offsets must not break."""

from __future__ import annotations

import pytest
import torch

from crocodil.denoiser.schedule import add_noise, offsets, signal, times
from crocodil.errors import CrocodilError
from crocodil.sampler.ddim import ddim

B, K, D = 3, 8, 5
NONE = torch.zeros(K, dtype=torch.float64)


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(B, K, D, generator=torch.Generator().manual_seed(0))


def half(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """A denoiser that is wrong in a smooth way, differently at every level."""
    return torch.tanh(x) * (1 - s[..., None]).float() + 0.1


@pytest.mark.parametrize("shift", [NONE, offsets(K), offsets(K, 1.0)], ids=["none", "default", "largest"])
@pytest.mark.parametrize("steps", [1, 3, 32])
def test_an_oracle_is_believed(shift: torch.Tensor, steps: int, noise: torch.Tensor) -> None:
    truth = torch.arange(B * K * D).float().reshape(B, K, D).cos()
    done = ddim(lambda x, s: truth, noise, signal, shift, steps=steps)
    assert torch.allclose(done.registers_BKD, truth, atol=1e-6) and done.steps == steps


@pytest.mark.parametrize("steps", [1, 5, 20, 50])
def test_without_offsets_it_is_diffusers_(steps: int, noise: torch.Tensor) -> None:
    diffusers = pytest.importorskip("diffusers")
    published = diffusers.DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="sample",
        clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True,
    )  # fmt: skip
    published.set_timesteps(steps)
    theirs = noise
    for step in published.timesteps:
        level = torch.full((B, K), (int(step) + 1) / 1000)
        theirs = published.step(half(theirs, level), step, theirs).prev_sample
    ours = ddim(half, noise, signal, NONE, steps=steps).registers_BKD
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_levels_fall_together_and_end_at_zero(noise: torch.Tensor) -> None:
    shift, seen = offsets(K), []

    def watch(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        seen.append(s)
        return half(x, s)

    ddim(watch, noise, signal, shift, steps=12)
    levels = torch.stack(seen)
    assert len(seen) == 12 and (levels[0] == 1).all()
    assert (levels.diff(dim=0) <= 0).all()
    base = 1 - torch.arange(12) * 1.2 / 12
    assert torch.allclose(levels[:, 0], times(base, shift), atol=1e-12)


def test_a_register_that_waits_is_copied(noise: torch.Tensor) -> None:
    """While the base time falls from 1, a group with a positive offset is still at level 1."""
    states = []

    def watch(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        states.append((x, s))
        return half(x, s)

    end = ddim(watch, noise, signal, offsets(K, 0.5), steps=30).registers_BKD
    for (x, s), (later, then) in zip(states, states[1:], strict=False):
        waits = s == then
        assert torch.equal(x[waits], later[waits])
    assert any((s == then).any() for (_, s), (_, then) in zip(states, states[1:], strict=False))
    assert end.isfinite().all()


def test_samples_do_not_depend_on_their_company(noise: torch.Tensor) -> None:
    together = ddim(half, noise, signal, offsets(K), steps=7).registers_BKD
    for i in range(B):
        assert torch.equal(
            ddim(half, noise[i : i + 1], signal, offsets(K), steps=7).registers_BKD[0], together[i]
        )


def test_it_may_start_half_way(noise: torch.Tensor) -> None:
    truth = torch.ones(B, K, D)
    begin = add_noise(truth, times(torch.full((B,), 0.4, dtype=torch.float64), offsets(K)), noise)
    first = []
    done = ddim(lambda x, s: (first.append(s), truth)[1], begin, signal, offsets(K), steps=4, start=0.4)
    assert torch.equal(first[0], times(torch.full((B,), 0.4, dtype=torch.float64), offsets(K)))
    assert torch.allclose(done.registers_BKD, truth, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "start", "says"), [(0, 1.0, "at least one"), (4, 0.0, "above 0"), (4, 1.1, "at most 1")]
)
def test_impossible_numbers_are_refused(steps: int, start: float, says: str, noise: torch.Tensor) -> None:
    with pytest.raises(CrocodilError, match=says):
        ddim(half, noise, signal, NONE, steps=steps, start=start)
