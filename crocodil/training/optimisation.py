"""AdamW: its schedule, its groups, and what outlives one optimiser: moments by name, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crocodil.errors import CrocodilError
from crocodil.training.limits import require_at_least

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW remembers of one parameter; the flat key of each is `exp_avg/NAME` and so on."""


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW and its learning rate.

    From the paper: `lr` and `weight_decay`. Ours, since the paper is silent: `betas` (0.95 is usual for
    language models of this size), `eps`, `warmup_steps`, `schedule`, `min_ratio` and `clip_norm`.

    Attributes:
        lr: peak learning rate.
        warmup_steps: optimiser steps of linear warm-up; 0 for none.
        schedule: what follows the warm-up, down to `min_ratio * lr` at the last step.
        clip_norm: largest global gradient norm; the loop clips, or DeepSpeed does, never both.
    """

    lr: float = 2.5e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    eps: float = 1e-8
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    min_ratio: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require_at_least(0, self, "lr", "weight_decay", "warmup_steps", section="optimiser.")
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 <= self.min_ratio <= 1:
            raise CrocodilError(
                f"optimiser: betas {list(self.betas)} must be from 0 to below 1, min_ratio {self.min_ratio} at most 1"
            )
        if not 0 < self.eps < math.inf or not self.clip_norm > 0:
            raise CrocodilError(f"optimiser: eps {self.eps} and clip_norm {self.clip_norm} must be above 0")


def learning_rate(step: int, config: OptimiserConfig, total_steps: int) -> float:
    """The factor on `config.lr` for optimiser step `step` (the first is 0); pure, so a resume needs no state.

    Warm-up gives the first step 1/warmup_steps, not 0; past `total_steps` the factor stays at its last value.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    remaining = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.min_ratio + (1.0 - config.min_ratio) * remaining


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    family: Callable[[str], str] = lambda name: "",
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters: matrices and tables decay; 1-D tensors do not.

    A 1-D tensor is the gain of a norm or a bias: pulling it to zero shrinks activations without regularising
    any map. Frozen parameters (`requires_grad` false) are in no group and so get no optimiser state.

    Args:
        family: parameters of different families are never in one group. An engine that counts Adam's steps per
            group needs a family for everything that begins to train at the same time.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            # ZeRO-3 leaves an empty 1-D tensor in place of a parameter that it has taken apart
            shape = getattr(parameter, "ds_shape", parameter.shape)
            groups.setdefault((family(name), len(shape) > 1), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        for (_, decays), parameters in groups.items()
    ]


def build_optimiser(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimiserConfig,
    family: Callable[[str], str] = lambda name: "",
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, fused on CPU and CUDA (fewer passes over the state).

    Raises:
        CrocodilError: nothing is trainable.
    """
    groups = parameter_groups(named_parameters, config.weight_decay, family)
    if not groups:
        raise CrocodilError("no trainable parameter: every parameter of this stage is frozen")
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def carry_moments(
    old_state: Mapping[str, Tensor],
    new_optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
) -> list[str]:
    """Give a new optimiser the Adam moments and step counts it shares with an old one, by parameter name.

    This is the stage boundary: what was already training goes on as if nothing had happened, what starts now
    starts with no moments and a step count of zero.

    Args:
        old_state: flat, as `crocodil.training.state.optimiser_tensors` gives it: `exp_avg/NAME`, ....
        new_optimizer: an AdamW over (some of) `named_parameters`.

    Returns:
        The names that were carried.

    Raises:
        CrocodilError: a moment has another shape than the parameter of that name.
    """
    groups = {parameter: group for group in new_optimizer.param_groups for parameter in group["params"]}
    carried: list[str] = []
    for name, parameter in named_parameters:
        if parameter not in groups or f"step/{name}" not in old_state:
            continue
        state: dict[str, Tensor] = {}
        for moment in MOMENTS[:2]:
            old = old_state[f"{moment}/{name}"]
            if old.shape != parameter.shape:
                raise CrocodilError(
                    f"optimiser state {moment}/{name} has shape {tuple(old.shape)}, the parameter "
                    f"{tuple(parameter.shape)}: the checkpoint is of another model"
                )
            state[moment] = old.detach().to(device=parameter.device, dtype=parameter.dtype, copy=True)
        # AdamW keeps the count on the CPU unless its kernel reads it on the device.
        on_device = groups[parameter].get("fused") or groups[parameter].get("capturable")
        state["step"] = old_state[f"step/{name}"].detach().to(
            device=parameter.device if on_device else "cpu", dtype=torch.float32, copy=True
        )  # fmt: skip
        new_optimizer.state[parameter] = state
        carried.append(name)
    return carried


class Ema:
    """Exponential moving average of tensors by name, in float32: parameters, or this rank's pieces of them.

    The decay of update n (from 0) is min(decay, (1 + n) / (10 + n)), so that a short run averages what it has
    learnt and not its initialisation. Names are those of the unwrapped model.
    """

    def __init__(self, named_values: Iterable[tuple[str, Tensor]], decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise CrocodilError(f"ema decay is {decay}: expected a value in [0, 1)")
        self.decay = decay
        self.restart(named_values)

    def restart(self, named_values: Iterable[tuple[str, Tensor]]) -> None:
        """Begin anew from these values."""
        self.updates = 0
        self.average = {name: value.detach().to(torch.float32, copy=True) for name, value in named_values}

    @torch.no_grad()
    def update(self, named_values: Iterable[tuple[str, Tensor]]) -> None:
        """Move the average towards the values; call once after each optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in named_values:
            if name in self.average:
                self.average[name].lerp_(value.detach().float(), 1.0 - decay)
        self.updates += 1

    def load(self, average: Mapping[str, Tensor], updates: int) -> None:
        """Take back `average` and `updates` of an earlier one. A name that it lacks stays as it is: a parameter that
        begins to train now is averaged from its present value.

        Raises:
            CrocodilError: the names or shapes are those of another model.
        """
        if odd := sorted(set(average) - set(self.average)):
            raise CrocodilError(
                f"ema state: no parameter {odd[0]!r} here; the checkpoint is of another model"
            )
        for name, tensor in average.items():
            if tensor.shape != self.average[name].shape:
                shapes = f"{tuple(tensor.shape)}, not {tuple(self.average[name].shape)}"
                raise CrocodilError(f"ema state: {name!r} has shape {shapes}; it is of another model")
            self.average[name].copy_(tensor)
        self.updates = updates

    @contextmanager
    def swap(self, model: nn.Module) -> Iterator[None]:
        """Put the average into `model` for the body of a `with`, and the trained weights back after it."""
        parameters = dict(model.named_parameters())
        missing = self.average.keys() - parameters.keys()
        if missing:
            name = sorted(missing)[0]
            raise CrocodilError(f"ema: the model has no parameter {name!r}; pass it unwrapped")
        trained = {name: parameters[name].detach().clone() for name in self.average}
        try:
            with torch.no_grad():
                for name, average in self.average.items():
                    parameters[name].copy_(average)
            yield
        finally:
            with torch.no_grad():
                for name, tensor in trained.items():
                    parameters[name].copy_(tensor)
