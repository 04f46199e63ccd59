"""PyTorch's FSDP2: every parameter is a DTensor, cut by rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from crocodil.errors import CrocodilError
from crocodil.training.optimisation import MOMENTS

TWIN = "_whole_twin"
"""Where a sharded module keeps a copy of itself without weights and without FSDP's hooks; it is no submodule."""


def require_version_2(accelerator: Accelerator) -> None:
    """Refuse FSDP1, and a loading that leaves all ranks but one empty."""
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading:
        raise CrocodilError(
            "FSDP is supported in version 2 with fsdp_cpu_ram_efficient_loading: false; take launch/fsdp2.yaml"
        )


class Fsdp2:
    """See `Placement`. Masters are the parameters themselves, in float32; the forward gets 16-bit copies."""

    steps_itself = False

    def receive(self, accelerator: Accelerator, module: nn.Module) -> None:
        self._dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        if TWIN not in module.__dict__:
            blank = {
                id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in module.parameters()
            }
            object.__setattr__(module, TWIN, copy.deepcopy(module, blank))
            return
        # A later stage finds the module sharded. FSDP2 has noted for each layer what its gradients are like, and for one
        # that was frozen nothing; torch has no public way to make it look again.
        for part in _parts(module):
            state = part._get_fsdp_state()
            for group in getattr(state, "_fsdp_param_groups", [state._fsdp_param_group]):
                if group is not None:
                    group._init_mp_dtypes()

    def settle(self, wrapped: nn.Module) -> None:
        # a forward without backward leaves the outermost parameters whole, and frozen ones too
        for part in _parts(wrapped):
            part.reshard()

    def whole(self, parameter: nn.Parameter) -> Tensor:
        return _whole(cast(DTensor, parameter.detach())).float()

    def take(self, parameter: nn.Parameter, value: Tensor) -> None:
        self.show(parameter, self.cut(parameter, value))

    def moments(self, optimiser: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = optimiser.optimizer.state.get(parameter)
        if not state:
            return {}
        return {name: _whole(state[name]).float() for name in MOMENTS[:2]} | {
            "step": torch.as_tensor(float(state["step"]))
        }

    def take_moments(self, optimiser: Any, parameter: nn.Parameter, values: Mapping[str, Tensor]) -> None:
        group = next(
            group
            for group in optimiser.optimizer.param_groups
            if any(p is parameter for p in group["params"])
        )
        device = _local(parameter).device if group.get("fused") or group.get("capturable") else "cpu"
        state: dict[str, Tensor] = {
            name: _like(parameter, self.cut(parameter, values[name])) for name in MOMENTS[:2]
        }
        state["step"] = values["step"].detach().to(device, torch.float32, copy=True)
        optimiser.optimizer.state[parameter] = state

    def piece(self, parameter: nn.Parameter) -> Tensor:
        return _local(parameter)

    def cut(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        sharded, local = cast(DTensor, parameter), _local(parameter)
        # as torch.chunk: rows are rounded up, so the last ranks may have fewer or none
        size = -(-value.shape[0] // sharded.device_mesh.size())
        first = sharded.device_mesh.get_local_rank() * size
        return value.detach()[first : first + size].to(local.device, torch.float32, copy=True)

    def joined(self, parameter: nn.Parameter, piece: Tensor) -> Tensor:
        return _whole(_like(parameter, piece))

    def show(self, parameter: nn.Parameter, piece: Tensor) -> None:
        _local(parameter).copy_(piece)

    @contextmanager
    def gathered(self, wrapped: nn.Module, module: nn.Module) -> Iterator[nn.Module]:
        # FSDP2 has no way to take its hooks away, so the weights go into a twin that never had them
        twin: nn.Module = module.__dict__[TWIN]
        # one after another into the dtype that the forward computes in: masters of a large model would not fit
        whole = {
            name: _whole(cast(DTensor, p.detach())).to(self._dtype) for name, p in module.named_parameters()
        }
        twin.load_state_dict(whole, strict=True, assign=True)
        try:
            yield twin.eval()
        finally:
            blank = {name: torch.empty_like(value, device="meta") for name, value in whole.items()}
            twin.load_state_dict(blank, strict=True, assign=True)


def _parts(wrapped: nn.Module) -> list[FSDPModule]:
    return [module for module in wrapped.modules() if isinstance(module, FSDPModule)]


def _whole(tensor: DTensor) -> Tensor:
    return tensor.full_tensor()


def _local(parameter: nn.Parameter) -> Tensor:
    return cast(DTensor, parameter.detach()).to_local()


def _like(parameter: nn.Parameter, piece: Tensor) -> DTensor:
    """A DTensor of these pieces, laid out as the parameter is."""
    of = cast(DTensor, parameter)
    return DTensor.from_local(
        piece, of.device_mesh, of.placements, shape=of.shape, stride=of.stride(), run_check=False
    )
