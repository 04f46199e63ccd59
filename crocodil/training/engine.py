"""One module under accelerate: accumulate, clip, step, save, resume. It does not know what the module computes.

The module's forward takes a batch with `.to(device)` and returns a record whose `total` is a sum over texts. The
caller says by how many texts of the global batch to divide, once: neither the number of micro-batches nor the number
of ranks changes the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from crocodil.training.checkpoints import require_complete
from crocodil.training.optimisation import (
    Ema,
    OptimiserConfig,
    build_optimiser,
    carry_moments,
    learning_rate,
)
from crocodil.training.state import load_optimiser, load_state, optimiser_tensors, save_state


class Movable(Protocol):
    def to(self, device: torch.device | str) -> Any: ...


class Engine:
    """A module, its optimiser and, if wanted, its average, on the ranks that accelerate found.

    Args:
        accelerator: one engine lives in it at a time.
        module: moved to the device and wrapped; `engine.module` is the bare one.
        config: optimiser.
        total_steps: of the whole run, for the learning-rate schedule.
        trainable: says of a parameter name whether this stage trains it.
        ema: decay of the average of the parameters, 0 for none.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        config: OptimiserConfig,
        total_steps: int,
        trainable: Callable[[str], bool] = lambda name: True,
        ema: float = 0.0,
    ) -> None:
        self.accelerator = accelerator
        self.module = module
        self.config = config
        self.total_steps = total_steps
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(trainable(name))
        self.bare_optimiser = build_optimiser(module.named_parameters(), config)
        self.names = {id(p): n for n, p in module.named_parameters()}
        self.wrapped, self.optimiser = accelerator.prepare(module, self.bare_optimiser)
        self.ema = Ema(self.module.named_parameters(), ema) if ema else None
        self.rate = 0.0

    def accumulate(self, batches: Sequence[Movable | None], count: int) -> Iterator[Any]:
        """Forward and backward over this rank's micro-batches; yields the record of each that is real.

        Args:
            batches: as many on every rank. None stands for a rank that has run out: see `update`.
            count: texts in the global batch.
        """
        last = len(batches) - 1
        # every engine averages over ranks, so a sum over ranks needs their number back
        scale = self.accelerator.num_processes / count
        for i, batch in enumerate(batches):
            if batch is None:
                continue
            with self._synchronising(i == last):
                losses = self.wrapped(batch.to(self.accelerator.device))
                self.accelerator.backward(losses.total * scale)
            yield losses

    def _synchronising(self, last: bool) -> Any:
        """Gradients travel with the last micro-batch only."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def update(self, step: int) -> float:
        """Clip, step, average; returns the norm of the gradient before clipping. `step` counts from 0."""
        self.rate = self.config.lr * learning_rate(step, self.config, self.total_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.clip_norm)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            self.optimiser.zero_grad()
            return float(norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.ema is not None:
            self.ema.update(self.module.named_parameters())
        return float(norm) if norm is not None else float("nan")

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The bare module in evaluation mode, holding the average where there is one."""
        self.module.eval()
        try:
            with self.ema.swap(self.module) if self.ema is not None else nullcontext():
                yield self.module
        finally:
            self.module.train()

    def save(self, directory: Path, step: int, stage: int = 0) -> None:
        """Write the resume state into a directory that is being published."""
        tensors = {f"model/{n}": p for n, p in self.module.state_dict().items()}
        tensors |= {f"optimiser/{n}": t for n, t in self._optimiser_state().items()}
        if self.ema is not None:
            tensors |= {f"ema/{n}": t for n, t in self.ema.state_dict().items()}
        if self.accelerator.is_main_process:
            save_state(directory, tensors, {"step": step, "stage": stage})

    @staticmethod
    def where(directory: Path) -> tuple[int, int]:
        """(step, stage) at which a checkpoint was saved."""
        require_complete(directory)
        _, values = load_state(directory)
        return int(values["step"]), int(values["stage"])

    def close(self) -> None:
        """Let go of wrappers and optimiser, so that the next stage can build its own around the bare module."""
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def load(self, directory: Path, stage_changed: bool = False) -> None:
        """Take a resume state back; across a stage boundary only the moments of parameters that both stages train."""
        tensors, _ = load_state(directory)
        part = lambda prefix: {  # noqa: E731
            key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)
        }
        self.module.load_state_dict(part("model/"))
        if stage_changed:
            carry_moments(part("optimiser/"), self.bare_optimiser, self.module.named_parameters())
        else:
            load_optimiser(self.bare_optimiser, part("optimiser/"), self.module.named_parameters())
        if self.ema is not None and part("ema/"):
            self.ema.load_state_dict(part("ema/"))

    def _optimiser_state(self) -> dict[str, torch.Tensor]:
        return optimiser_tensors(self.bare_optimiser, self.module.named_parameters())

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are spread over ranks (ZeRO-3)."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED
