"""DeepSpeed ZeRO-3: every rank has a flat piece of each parameter, of its master and of its moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from crocodil.training.optimisation import MOMENTS
from crocodil.training.ranks import rank_and_world


class Zero3:
    """See `Placement`. DeepSpeed's own setters of whole tensors fail where the ranks do not divide a size, because the
    last piece is padded; so pieces are cut and joined here."""

    steps_itself = True

    def receive(self, accelerator: Accelerator, module: nn.Module) -> None:
        """Take the parameters apart one layer after another, so that no rank ever holds a whole model: of weights that
        are memory-mapped it reads its own pieces. DeepSpeed itself would first move everything to the device."""
        asked = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero = {key: value for key, value in asked.items() if value != "auto"}
        settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
        dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        for layer in module.modules():
            own = [p for p in layer.parameters(recurse=False) if not hasattr(p, "ds_id")]
            if not own:
                continue
            for parameter in own:
                # a copy even on the CPU, because DeepSpeed broadcasts into it
                parameter.data = parameter.data.to(accelerator.device, dtype, copy=True)
            deepspeed.zero.Init(module=nn.ParameterList(own), config_dict_or_path=settings, dtype=dtype)

    def settle(self, wrapped: nn.Module) -> None:
        pass

    def whole(self, parameter: nn.Parameter) -> Tensor:
        if parameter.requires_grad:
            return safe_get_full_fp32_param(parameter).view(_shape(parameter))
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().to(torch.float32, copy=True)

    def take(self, parameter: nn.Parameter, value: Tensor) -> None:
        piece = self.cut(parameter, value)
        parameter.ds_tensor.data.copy_(piece)  # type: ignore[attr-defined]
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # type: ignore[attr-defined]
            parameter.data.copy_(value)  # a small one, which every rank keeps
        if parameter.requires_grad:
            safe_set_local_fp32_param(parameter, piece)

    def moments(self, optimiser: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = _flat_state(parameter)
        if not state:
            return {}
        shape = _shape(parameter)
        whole = {name: safe_get_full_optimizer_state(parameter, name).view(shape) for name in MOMENTS[:2]}
        return {**whole, "step": torch.as_tensor(float(state["step"]))}

    def take_moments(self, optimiser: Any, parameter: nn.Parameter, values: Mapping[str, Tensor]) -> None:
        state, flat = _flat_state(parameter), _flat(parameter)
        if not state:
            step = torch.zeros((), dtype=torch.float32, device=flat.device)
            state.update(step=step, exp_avg=torch.zeros_like(flat), exp_avg_sq=torch.zeros_like(flat))
            parameter._z3_optimizer.optimizer.state[flat] = state  # type: ignore[attr-defined]
        for name in MOMENTS[:2]:
            safe_set_local_optimizer_state(parameter, self.cut(parameter, values[name]), name)
        state["step"].fill_(float(values["step"]))

    def piece(self, parameter: nn.Parameter) -> Tensor:
        return safe_get_local_fp32_param(parameter)

    def cut(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        rank, world = rank_and_world()
        local = parameter.ds_tensor  # type: ignore[attr-defined]
        size = local.numel()
        # only this rank's part is touched, so a memory-mapped tensor is read once by all ranks together
        flat = value.detach().reshape(-1)[rank * size : (rank + 1) * size].to(local.device, torch.float32)
        return F.pad(flat, (0, size - flat.numel()))

    def joined(self, parameter: nn.Parameter, piece: Tensor) -> Tensor:
        _, world = rank_and_world()
        pieces = [torch.empty_like(piece) for _ in range(world)]
        torch.distributed.all_gather(pieces, piece.contiguous())
        shape = _shape(parameter)
        return torch.cat(pieces)[: shape.numel()].view(shape)

    def show(self, parameter: nn.Parameter, piece: Tensor) -> None:
        parameter.ds_tensor.data.copy_(piece)  # type: ignore[attr-defined]
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # type: ignore[attr-defined]
            parameter.data.copy_(self.joined(parameter, piece))

    @contextmanager
    def gathered(self, wrapped: nn.Module, module: nn.Module) -> Iterator[nn.Module]:
        # DeepSpeed takes its hooks away meanwhile, and puts them back only if the body does not raise
        failure: BaseException | None = None
        with unwrap_model_for_generation(wrapped):
            try:
                yield module
            except BaseException as error:
                failure = error
        if failure is not None:
            raise failure


def _shape(parameter: nn.Parameter) -> torch.Size:
    return parameter.ds_shape  # type: ignore[attr-defined]


def _flat(parameter: nn.Parameter) -> Tensor:
    optimiser = parameter._z3_optimizer  # type: ignore[attr-defined]
    group, _, _ = optimiser.grad_position[optimiser.get_param_id(parameter)]
    return optimiser.fp32_partitioned_groups_flat[group]


def _flat_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    return parameter._z3_optimizer.optimizer.state.get(_flat(parameter), {})  # type: ignore[attr-defined]
