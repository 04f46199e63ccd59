"""Whole tensors of an engine that keeps parameters in pieces: DeepSpeed ZeRO-3.

Every function is collective: call it on every rank, for the same parameters in the same order. deepspeed is imported
only here and only when a launch uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crocodil.errors import CrocodilError
from crocodil.training.optimisation import MOMENTS
from crocodil.training.ranks import rank_and_world


def whole_parameter(parameter: nn.Parameter) -> Tensor:
    """A parameter in float32 on the CPU: the master where it is trained, the weight where it is frozen."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        return safe_get_full_fp32_param(parameter).view(parameter.ds_shape).cpu()  # type: ignore[attr-defined]
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().float().cpu().clone()


def set_whole_parameter(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter, and its float32 master where it is trained, a new value (the same on every rank)."""
    from deepspeed.utils import safe_set_local_fp32_param

    _set_weight(parameter, value)
    if parameter.requires_grad:
        safe_set_local_fp32_param(parameter, cut(value, parameter))


def piece(parameter: nn.Parameter) -> Tensor:
    """This rank's piece of a trained parameter's float32 master. Not collective."""
    from deepspeed.utils import safe_get_local_fp32_param

    return safe_get_local_fp32_param(parameter)


def cut(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's piece of a whole tensor. Not collective. DeepSpeed's own setters of whole tensors fail where the
    ranks do not divide its size, because the last piece is padded."""
    rank, world = rank_and_world()
    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    flat = value.detach().float().flatten()
    return F.pad(flat, (0, size * world - flat.numel()))[rank * size : (rank + 1) * size].to(parameter.device)


def joined(piece: Tensor, parameter: nn.Parameter) -> Tensor:
    """The whole tensor, on the CPU, of which every rank has a piece."""
    _, world = rank_and_world()
    pieces = [torch.empty_like(piece) for _ in range(world)]
    torch.distributed.all_gather(pieces, piece.contiguous())
    shape = parameter.ds_shape  # type: ignore[attr-defined]
    return torch.cat(pieces)[: shape.numel()].view(shape).cpu()


@contextmanager
def swapped(module: nn.Module, pieces: Mapping[str, Tensor]) -> Iterator[None]:
    """Weights made of these pieces for the body of a `with`; the masters stay, and give the trained weights back."""
    parameters = dict(module.named_parameters())
    try:
        for name, value in pieces.items():
            _set_weight(parameters[name], joined(value, parameters[name]))
        yield
    finally:
        for name in pieces:
            _set_weight(parameters[name], whole_parameter(parameters[name]))


def moments(parameter: nn.Parameter) -> dict[str, Tensor]:
    """exp_avg, exp_avg_sq and step of one trained parameter; nothing before its first step."""
    from deepspeed.utils import safe_get_full_optimizer_state

    state = _flat_state(parameter)
    if not state:
        return {}
    shape = parameter.ds_shape  # type: ignore[attr-defined]
    whole = {name: safe_get_full_optimizer_state(parameter, name).view(shape).cpu() for name in MOMENTS[:2]}
    return {**whole, "step": torch.as_tensor(float(state["step"]))}


def set_moments(parameter: nn.Parameter, values: Mapping[str, Tensor]) -> None:
    """Give one trained parameter its Adam moments and step count.

    DeepSpeed keeps one step count for all parameters of a group, so parameters with different counts must be in
    different groups.
    """
    from deepspeed.utils import safe_set_local_optimizer_state

    state, flat = _flat_state(parameter), _flat(parameter)
    if not state:
        step = torch.zeros((), dtype=torch.float32, device=flat.device)
        state.update(step=step, exp_avg=torch.zeros_like(flat), exp_avg_sq=torch.zeros_like(flat))
        parameter._z3_optimizer.optimizer.state[flat] = state  # type: ignore[attr-defined]
    for name in MOMENTS[:2]:
        safe_set_local_optimizer_state(parameter, cut(values[name], parameter), name)
    state["step"].fill_(float(values["step"]))


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Every parameter whole on every rank for the body of a `with`: for an export."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        yield


def require_stage_3(deepspeed_plugin: Any) -> None:
    """ZeRO-3 is what this project runs and tests; the other stages keep their state differently."""
    if deepspeed_plugin.zero_stage != 3:
        raise CrocodilError(
            f"DeepSpeed ZeRO stage {deepspeed_plugin.zero_stage} is not supported; use ZeRO-3 (launch/zero3.yaml), or "
            "plain data parallel where the model fits one device (launch/ddp8.yaml)"
        )


def _set_weight(parameter: nn.Parameter, value: Tensor) -> None:
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(value.to(parameter.dtype))


def _flat(parameter: nn.Parameter) -> Tensor:
    optimiser = parameter._z3_optimizer  # type: ignore[attr-defined]
    group, _, _ = optimiser.grad_position[optimiser.get_param_id(parameter)]
    return optimiser.fp32_partitioned_groups_flat[group]


def _flat_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    return parameter._z3_optimizer.optimizer.state.get(_flat(parameter), {})  # type: ignore[attr-defined]
