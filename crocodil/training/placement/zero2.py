"""DeepSpeed ZeRO-2: every rank has whole weights, and a range of the masters and moments.

A group's masters are one flat tensor that is divided among the ranks, so a rank has all of a parameter, a part of it, or
nothing; its piece is then empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from crocodil.training.optimisation import MOMENTS


class Zero2:
    """See `Placement`."""

    steps_itself = True

    def receive(self, accelerator: Accelerator, module: nn.Module) -> None:
        pass

    def settle(self, wrapped: nn.Module) -> None:
        pass

    def whole(self, parameter: nn.Parameter) -> Tensor:
        if parameter.requires_grad:
            return self.joined(parameter, self.piece(parameter))
        return parameter.detach().float()

    def take(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.data.copy_(value)
        if parameter.requires_grad:
            self.piece(parameter).copy_(self.cut(parameter, value))

    def moments(self, optimiser: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = _state(optimiser, parameter)
        if not state:
            return {}
        pieces = {name: _range(parameter, state[name]) for name in MOMENTS[:2]}
        whole = {name: self.joined(parameter, piece) for name, piece in pieces.items()}
        return {**whole, "step": torch.as_tensor(float(state["step"]))}

    def take_moments(self, optimiser: Any, parameter: nn.Parameter, values: Mapping[str, Tensor]) -> None:
        state, flat = _state(optimiser, parameter), _flat(optimiser, parameter)
        if not state:
            step = torch.zeros((), dtype=torch.float32, device=flat.device)
            state.update(step=step, exp_avg=torch.zeros_like(flat), exp_avg_sq=torch.zeros_like(flat))
            _bare(optimiser).optimizer.state[flat] = state
        for name in MOMENTS[:2]:
            _range(parameter, state[name]).copy_(self.cut(parameter, values[name]))
        state["step"].fill_(float(values["step"]))

    def piece(self, parameter: nn.Parameter) -> Tensor:
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        return _nothing(parameter) if mapping is None else mapping.get_hp_fragment().detach()

    def cut(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return _nothing(parameter)
        at = mapping.lp_fragment_address
        return value.detach().reshape(-1)[at.start : at.start + at.numel].to(parameter.device, torch.float32)

    def joined(self, parameter: nn.Parameter, piece: Tensor) -> Tensor:
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is not None:
            at = mapping.lp_fragment_address
            whole[at.start : at.start + at.numel] = piece
        torch.distributed.all_reduce(whole)
        return whole.view_as(parameter)

    def show(self, parameter: nn.Parameter, piece: Tensor) -> None:
        parameter.data.copy_(self.joined(parameter, piece))

    @contextmanager
    def gathered(self, wrapped: nn.Module, module: nn.Module) -> Iterator[nn.Module]:
        yield module


def _nothing(parameter: nn.Parameter) -> Tensor:
    return torch.empty(0, dtype=torch.float32, device=parameter.device)


def _range(parameter: nn.Parameter, flat: Tensor) -> Tensor:
    """The part of a flat state tensor of this rank that belongs to the parameter."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return _nothing(parameter)
    at = mapping.hp_fragment_address
    return flat.narrow(0, at.start, at.numel)


def _bare(optimiser: Any) -> Any:
    """DeepSpeed's optimiser under accelerate's wrapper."""
    return optimiser.optimizer


def _flat(optimiser: Any, parameter: nn.Parameter) -> Tensor:
    """This rank's part of the masters of the parameter's group."""
    groups = _bare(optimiser).bit16_groups
    group = next(i for i, members in enumerate(groups) if any(p is parameter for p in members))
    return _bare(optimiser).single_partition_of_fp32_groups[group]


def _state(optimiser: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
    return _bare(optimiser).optimizer.state.get(_flat(optimiser, parameter), {})
