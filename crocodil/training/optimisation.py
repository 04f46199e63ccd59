"""AdamW: its schedule, its groups, and what outlives one optimiser: moments by name, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crocodil.errors import CrocodilError
from crocodil.training.limits import require_at_least

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW remembers of one parameter; the flat key of each is `exp_avg/NAME` and so on."""
EIGHT_BIT_BLOCK = 256
"""Numbers that share a scale in an 8-bit moment, as bitsandbytes' AdamW has it."""


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
        bits: of Adam's moments; 8 packs them by blocks of 256 (bitsandbytes), which spares 6 bytes a parameter.
    """

    lr: float = 2.5e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    eps: float = 1e-8
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    min_ratio: float = 0.1
    clip_norm: float = 1.0
    bits: Literal[8, 32] = 32

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
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, fused on CPU and CUDA (fewer passes over the state), or with 8-bit moments.

    Raises:
        CrocodilError: nothing is trainable, or bitsandbytes is wanted and missing.
    """
    groups = parameter_groups(named_parameters, config.weight_decay, family)
    if not groups:
        raise CrocodilError("no trainable parameter: every parameter of this stage is frozen")
    if config.bits == 8:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise CrocodilError("optimiser.bits=8 needs bitsandbytes; pip install bitsandbytes") from None
        return AdamW8bit(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def read_moments(optimiser: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """`MOMENTS` of a parameter in float32 on the CPU; nothing before its first step. Those of 8 bits are unpacked, and
    the scales of their blocks come with them: without, they could not be packed again to the same codes."""
    state = optimiser.state.get(parameter)
    if not state:
        return {}
    if "exp_avg" in state:
        return {name: state[name].detach().float().cpu() for name in MOMENTS}
    read = {"step": torch.as_tensor(float(state["step"]))}
    for name, number in zip(MOMENTS, "12", strict=False):
        values = state[f"state{number}"]
        if values.dtype == torch.uint8:
            scales = state[f"absmax{number}"]
            read[f"{name}_scale"] = scales.cpu()
            values = _blocks(state[f"qmap{number}"][values.int()]) * scales[:, None]
            values = values.flatten()[: parameter.numel()].view_as(parameter)
        read[name] = values.detach().float().cpu()
    return read


def write_moments(
    optimiser: torch.optim.Optimizer, parameter: nn.Parameter, values: Mapping[str, Tensor]
) -> None:
    """Give a parameter the moments that `read_moments` gave; the next step is then bit-equal. Moments may pass between
    32 and 8 bits.

    Raises:
        CrocodilError: a moment has another shape than the parameter.
    """
    for name in MOMENTS[:2]:
        if values[name].shape != parameter.shape:
            raise CrocodilError(
                f"optimiser state {name} has shape {tuple(values[name].shape)}, the parameter "
                f"{tuple(parameter.shape)}: the checkpoint is of another model"
            )
    place = next(
        (g, i)
        for g, group in enumerate(optimiser.param_groups)
        for i, member in enumerate(group["params"])
        if member is parameter
    )
    group = optimiser.param_groups[place[0]]
    if not hasattr(optimiser, "init_state"):
        # AdamW keeps the count on the CPU unless its kernel reads it on the device
        on_device = group.get("fused") or group.get("capturable")
        step = values["step"].detach()
        optimiser.state[parameter] = {
            **{name: values[name].detach().to(parameter.device, parameter.dtype, copy=True) for name in MOMENTS[:2]},
            "step": step.to(parameter.device if on_device else "cpu", torch.float32, copy=True),
        }  # fmt: skip
        return
    optimiser.init_state(group, parameter, *place)
    state = optimiser.state[parameter]
    for name, number in zip(MOMENTS, "12", strict=False):
        whole = values[name].detach().to(parameter.device, torch.float32)
        kept = state[f"state{number}"]
        if kept.dtype == torch.uint8:
            blocks, codes = _blocks(whole), state[f"qmap{number}"]
            scales = values.get(f"{name}_scale", blocks.abs().amax(dim=1)).to(parameter.device)
            nearest = torch.bucketize(blocks / scales[:, None].clamp_min(1e-30), (codes[1:] + codes[:-1]) / 2)
            kept.copy_(nearest.flatten()[: whole.numel()].view_as(kept))
            state[f"absmax{number}"].copy_(scales)
        else:  # too small to be packed
            kept.copy_(whole)
    state["step"] = int(values["step"])


def _blocks(values: Tensor) -> Tensor:
    """All numbers in rows that share a scale, the last one filled up with zeros."""
    flat = values.flatten()
    return F.pad(flat, (0, -flat.numel() % EIGHT_BIT_BLOCK)).view(-1, EIGHT_BIT_BLOCK)


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
