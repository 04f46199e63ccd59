"""Every rank has everything: one process, or plain data parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from crocodil.training.optimisation import read_moments, write_moments


class Whole:
    """See `Placement`; pieces are whole tensors."""

    steps_itself = False

    def receive(self, accelerator: Accelerator, module: nn.Module) -> None:
        pass

    def settle(self, wrapped: nn.Module) -> None:
        pass

    def whole(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().float()

    def take(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.data.copy_(value)

    def moments(self, optimiser: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
        return read_moments(optimiser.optimizer, parameter)

    def take_moments(self, optimiser: Any, parameter: nn.Parameter, values: Mapping[str, Tensor]) -> None:
        write_moments(optimiser.optimizer, parameter, values)

    def piece(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach()

    def cut(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        return value

    def joined(self, parameter: nn.Parameter, piece: Tensor) -> Tensor:
        return piece

    def show(self, parameter: nn.Parameter, piece: Tensor) -> None:
        parameter.data.copy_(piece)

    @contextmanager
    def gathered(self, wrapped: nn.Module, module: nn.Module) -> Iterator[nn.Module]:
        yield module
