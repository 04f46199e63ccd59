from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from crocodil.errors import CrocodilError
from crocodil.training.optimisation import (
    Ema,
    OptimiserConfig,
    build_optimiser,
    learning_rate,
    parameter_groups,
    read_moments,
    write_moments,
)


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, times: int = 1, seed: int = 1) -> None:
    draws = torch.Generator().manual_seed(seed)
    for _ in range(times):
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=draws)).square().mean().backward()
        optimizer.step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"betas": (2.0, 2.0)}, {"eps": -1.0}, {"eps": 0.0},
        {"weight_decay": -0.1}, {"warmup_steps": -1}, {"min_ratio": 2.0}, {"clip_norm": 0.0},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CrocodilError, match=rf"optimiser.*{next(iter(wrong))}"):
        OptimiserConfig(**wrong)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = tiny()
    model[2].requires_grad_(False)
    decayed, kept = parameter_groups(model.named_parameters(), 0.1)
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert [p.ndim for p in kept["params"]] == [1, 1, 1] and kept["weight_decay"] == 0.0
    with pytest.raises(CrocodilError, match="every parameter of this stage is frozen"):
        build_optimiser(model.requires_grad_(False).named_parameters(), OptimiserConfig())


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedule_limits(schedule: str) -> None:
    config = OptimiserConfig(warmup_steps=4, schedule=schedule, min_ratio=0.2)  # type: ignore[arg-type]
    factors = [learning_rate(n, config, 20) for n in range(25)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert all(a >= b for a, b in zip(factors[4:], factors[5:], strict=False))
    assert factors[20] == factors[24] == pytest.approx(1.0 if schedule == "constant" else 0.2)
    assert learning_rate(12, config, 20) == pytest.approx(1.0 if schedule == "constant" else 0.6)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, OptimiserConfig(schedule="cosine"), 10) == 1.0
    assert learning_rate(0, OptimiserConfig(schedule="linear", warmup_steps=5), 3) == 0.2


def carried(
    source: torch.optim.Optimizer, old: nn.Module, target: torch.optim.Optimizer, new: nn.Module
) -> None:
    """Moments by parameter name, as a checkpoint carries them."""
    for name, parameter in old.named_parameters():
        if moments := read_moments(source, parameter):
            kept = {key: tensor.clone() for key, tensor in moments.items()}
            write_moments(target, dict(new.named_parameters())[name], kept)


def test_moments_carried_by_name_give_a_bit_equal_step() -> None:
    straight, resumed = tiny(), tiny()
    optimizer = build_optimiser(straight.named_parameters(), OptimiserConfig(lr=0.01))
    step(straight, optimizer, 3)
    resumed.load_state_dict(straight.state_dict())
    fresh = build_optimiser(reversed(list(resumed.named_parameters())), OptimiserConfig(lr=0.01))
    carried(optimizer, straight, fresh, resumed)
    step(straight, optimizer, 2, seed=7)
    step(resumed, fresh, 2, seed=7)
    assert same(weights(straight), weights(resumed))


@pytest.mark.parametrize("fused", [True, False])
def test_moments_pass_between_fused_and_plain(fused: bool) -> None:
    model = tiny()
    source = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    step(model, source)
    target = torch.optim.AdamW(model.parameters(), lr=0.01, fused=not fused)
    carried(source, model, target, model)
    step(model, target)
    assert all(state["step"].item() == 2 for state in target.state.values())


def test_what_has_not_been_stepped_has_no_moments() -> None:
    model = tiny()
    optimizer = build_optimiser(model.named_parameters(), OptimiserConfig())
    assert read_moments(optimizer, model[0].weight) == {}


def test_moments_of_another_shape_are_refused() -> None:
    model = tiny()
    optimizer = build_optimiser(model.named_parameters(), OptimiserConfig())
    step(model, optimizer)
    other = nn.Sequential(nn.Linear(3, 5))
    target = build_optimiser(other.named_parameters(), OptimiserConfig())
    with pytest.raises(CrocodilError, match=r"exp_avg has shape \(4, 3\)"):
        write_moments(target, other[0].weight, read_moments(optimizer, model[0].weight))


@pytest.mark.parametrize("shape", [(64, 128), (63, 131), (4096,), (7,)])
def test_eight_bit_moments_survive_unpacking_and_packing(shape: tuple[int, ...]) -> None:
    pytest.importorskip("bitsandbytes")
    parameters = [nn.Parameter(torch.randn(shape)) for _ in range(2)]
    optimisers = [build_optimiser([("w", p)], OptimiserConfig(lr=0.01, bits=8)) for p in parameters]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        parameters[0].grad = torch.randn(shape, generator=generator)
        optimisers[0].step()
    write_moments(optimisers[1], parameters[1], read_moments(optimisers[0], parameters[0]))
    one, other = (o.state[p] for o, p in zip(optimisers, parameters, strict=True))
    assert one.keys() == other.keys() and one["step"] == other["step"] == 3
    assert all(torch.equal(one[key], other[key]) for key in one if isinstance(one[key], torch.Tensor))


def test_ema_is_the_average_of_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema = Ema(model.named_parameters(), decay=0.15)
    expected = 0.0
    for n in range(4):
        with torch.no_grad():
            model.weight.fill_(n + 1.0)
        ema.update(model.named_parameters())
        decay = min(0.15, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * (n + 1.0)
    assert ema.average["weight"].item() == pytest.approx(expected)


def test_ema_state_round_trip_and_refusal() -> None:
    model = tiny()
    ema = Ema(model.named_parameters(), decay=0.9)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    ema.update(model.named_parameters())
    other = Ema(tiny().named_parameters(), decay=0.9)
    other.load(ema.average, ema.updates)
    for average in (ema, other):
        average.update(model.named_parameters())
    assert same(ema.average, other.average) and ema.updates == other.updates
    with pytest.raises(CrocodilError, match="another model"):
        other.load(Ema(nn.Linear(1, 1).named_parameters(), 0.9).average, 1)
    with pytest.raises(CrocodilError, match="no parameter"):
        other.load({"9.weight": torch.zeros(1)}, 1)
    with pytest.raises(CrocodilError, match="decay"):
        Ema(model.named_parameters(), 1.0)
