"""Where an engine keeps parameters and what AdamW remembers of them: whole, or in pieces on several ranks.

The engine speaks of whole tensors and of this rank's pieces and does not know which launch it is in.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from crocodil.errors import CrocodilError


class Placement(Protocol):
    """One parameter at a time. What is marked collective is called on every rank, in the same order.

    `optimiser` and `wrapped` are what accelerate made of the bare ones; a parameter is one of the engine's module.
    """

    steps_itself: bool
    """Whether the engine clips and steps with the last backward, as DeepSpeed does."""

    def receive(self, accelerator: Accelerator, module: nn.Module) -> None:
        """Make ready what the engine is about to be built around. Collective."""
        ...

    def settle(self, wrapped: nn.Module) -> None:
        """Put back into pieces what forwards and backwards have left whole."""
        ...

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """Its float32 value: the master where it is trained, the weight where it is frozen. Collective."""
        ...

    def take(self, parameter: nn.Parameter, value: Tensor) -> None:
        """A new value, the same whole tensor on every rank (it may be memory-mapped: each rank reads its piece)."""
        ...

    def moments(self, optimiser: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
        """`MOMENTS` of a trained parameter, whole, in float32; nothing before its first step. Collective."""
        ...

    def take_moments(self, optimiser: Any, parameter: nn.Parameter, values: Mapping[str, Tensor]) -> None:
        """Give a trained parameter its moments and step count.

        Some engines count the steps of a group together, so parameters with different counts must be in different
        groups (see `parameter_groups`).
        """
        ...

    def piece(self, parameter: nn.Parameter) -> Tensor:
        """This rank's piece of a trained parameter's float32 value."""
        ...

    def cut(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's piece of a whole tensor."""
        ...

    def joined(self, parameter: nn.Parameter, piece: Tensor) -> Tensor:
        """The whole tensor of which every rank has a piece. Collective."""
        ...

    def show(self, parameter: nn.Parameter, piece: Tensor) -> None:
        """Compute with this piece from now on; what AdamW trains stays. Collective."""
        ...

    def gathered(self, wrapped: nn.Module, module: nn.Module) -> AbstractContextManager[nn.Module]:
        """The bare module, or a twin of it, with every parameter whole on every rank and no collective in its forward,
        for the body of a `with`. Collective."""
        ...


def placement_of(accelerator: Accelerator, eight_bit: bool = False) -> Placement:
    """What this launch needs; deepspeed is imported only where a launch uses it.

    Raises:
        CrocodilError: an engine that is not known here, or an 8-bit optimiser where state is kept in pieces.
    """
    kind = accelerator.distributed_type
    if eight_bit and kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise CrocodilError(
            "optimiser.bits=8 keeps its state whole: launch it on one process or under plain data parallel "
            "(launch/gpu.yaml, launch/ddp8.yaml); sharded state is small anyway"
        )
    if kind == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        if plugin.zero_stage == 3:
            from crocodil.training.placement.zero3 import Zero3

            return Zero3()
        if plugin.zero_stage == 2:
            from crocodil.training.placement.zero2 import Zero2

            return Zero2()
        raise CrocodilError(
            f"DeepSpeed ZeRO stage {plugin.zero_stage} is not supported; take 2 or 3 (launch/zero2.yaml, "
            "launch/zero3.yaml), or plain data parallel (launch/ddp8.yaml)"
        )
    if kind == DistributedType.FSDP:
        from crocodil.training.placement.fsdp2 import Fsdp2, require_version_2

        require_version_2(accelerator)
        return Fsdp2()
    from crocodil.training.placement.whole import Whole

    return Whole()


def is_taken_apart(accelerator: Accelerator) -> bool:
    """Whether an engine will take weights apart as it receives them (ZeRO-3), so that they need not be in memory."""
    kind = accelerator.distributed_type
    return kind == DistributedType.DEEPSPEED and accelerator.state.deepspeed_plugin.zero_stage == 3
