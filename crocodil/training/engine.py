"""One module under accelerate: accumulate, clip, step, save, resume. It does not know what the module computes.

The module's forward takes a batch with `.to(device)` and returns a record whose `total` is a sum over texts. The
caller says by how many texts of the global batch to divide, once: neither the number of micro-batches nor the number
of ranks changes the objective.

A checkpoint holds whole float32 tensors by parameter name, whatever the engine, so that a run can go on with another
engine, on other ranks, and in another stage. Every rank writes a share of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from crocodil.errors import CrocodilError
from crocodil.training import sharded
from crocodil.training.optimisation import Ema, OptimiserConfig, build_optimiser, carry_moments, learning_rate
from crocodil.training.ranks import rank_and_world
from crocodil.training.state import load_optimiser, open_tensors, optimiser_tensors, save_state

STATE = "state-{rank:05d}"


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
        ema: decay of the average of the parameters that this stage trains, 0 for none.
        family: of a parameter name; what begins to train in one stage is one family (see `parameter_groups`).
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        config: OptimiserConfig,
        total_steps: int,
        trainable: Callable[[str], bool] = lambda name: True,
        ema: float = 0.0,
        family: Callable[[str], str] = lambda name: "",
    ) -> None:
        self.accelerator = accelerator
        self.module = module
        self.config = config
        self.total_steps = total_steps
        self.rate = 0.0
        self.is_sharded = accelerator.distributed_type == DistributedType.DEEPSPEED
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(trainable(name))
        if self.is_sharded:
            sharded.require_stage_3(accelerator.state.deepspeed_plugin)
            # DeepSpeed clips by itself, and counts texts by a number that means nothing here
            settings = accelerator.state.deepspeed_plugin.deepspeed_config
            settings["gradient_clipping"] = config.clip_norm
            settings["train_micro_batch_size_per_gpu"] = 1
        self.bare_optimiser = build_optimiser(module.named_parameters(), config, family)
        self.wrapped, self.optimiser = accelerator.prepare(module, self.bare_optimiser)
        self.ema = Ema(self._trained(), ema) if ema else None

    def accumulate(self, batches: Sequence[Movable], count: int, step: int) -> Iterator[Any]:
        """Forward and backward over this rank's micro-batches; yields the record of each.

        Args:
            batches: as many on every rank, at least one.
            count: texts in the global batch.
            step: optimiser step, from 0; it sets the learning rate here, because DeepSpeed steps with the last
                backward.
        """
        self.rate = self.config.lr * learning_rate(step, self.config, self.total_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        last = len(batches) - 1
        # every engine averages over ranks, so a sum over ranks needs their number back
        scale = self.accelerator.num_processes / count
        for i, batch in enumerate(batches):
            with self._synchronising(i == last):
                losses = self.wrapped(batch.to(self.accelerator.device))
                self.accelerator.backward(losses.total * scale)
            yield losses

    def _synchronising(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients travel with the last micro-batch only; DeepSpeed is told by the flag alone."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        return nullcontext() if last or self.is_sharded else self.accelerator.no_sync(self.wrapped)

    def update(self) -> float:
        """Clip, step, average; returns the norm of the gradient before clipping.

        A gradient that is not finite is dropped with the step, on every rank alike.
        """
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.clip_norm)
        norm = float("nan") if norm is None else float(norm)
        # DeepSpeed has stepped, or skipped, by itself
        if self.is_sharded or math.isfinite(norm):
            self.optimiser.step()
            if self.ema is not None:
                self.ema.update(self._trained())
        self.optimiser.zero_grad()
        return norm

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The bare module in evaluation mode, holding the average where there is one. Call it on every rank alike."""
        self.module.eval()
        try:
            with self._swapped():
                yield self.module
        finally:
            self.module.train()

    def _swapped(self) -> AbstractContextManager[None]:
        """The average in place of the weights, where there is one."""
        if self.ema is None:
            return nullcontext()
        return (
            sharded.swapped(self.module, self.ema.average) if self.is_sharded else self.ema.swap(self.module)
        )

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        """Names and float32 values of what this stage trains: whole, or this rank's pieces."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                yield name, sharded.piece(parameter) if self.is_sharded else parameter

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """As `averaged`, every parameter whole on every rank: for an export."""
        with self.averaged() as module, sharded.gathered(module) if self.is_sharded else nullcontext():
            yield module

    def save(self, directory: Path, step: int, stage: int, corpus: str) -> None:
        """Write the resume state into a directory that is being published; collective.

        Args:
            step: optimiser steps done.
            corpus: digest of the training texts, see `training.start`.
        """
        rank, world = rank_and_world()
        share = {key: tensor for i, (key, tensor) in enumerate(self._state()) if i % world == rank}
        save_state(
            directory, share, {"step": step, "stage": stage, "corpus": corpus}, name=STATE.format(rank=rank)
        )

    def load(self, directory: Path, stage_changed: bool = False) -> None:
        """Take a resume state back; across a stage boundary, the moments of parameters that both stages train."""
        tensors = open_tensors(directory)
        part = lambda prefix: _Part(tensors, prefix)  # noqa: E731
        weights, optimiser, average = part("model/"), part("optimiser/"), part("ema/")
        names = dict(self.module.named_parameters())
        if odd := sorted(set(weights) ^ set(names)):
            raise CrocodilError(
                f"{directory}: parameter {odd[0]!r} is on one side only; the checkpoint is of another model"
            )
        for name, parameter in names.items():
            wanted = tuple(getattr(parameter, "ds_shape", parameter.shape))  # whole, under ZeRO-3
            if tuple(weights[name].shape) != wanted:
                raise CrocodilError(
                    f"{directory}: {name} has shape {tuple(weights[name].shape)}, this run's is {wanted}; resume with "
                    "the sizes it began with, or begin a new run with start="
                )
            if self.is_sharded:
                sharded.set_whole_parameter(parameter, weights[name])
            else:
                parameter.data.copy_(weights[name])
        if self.is_sharded:
            for name, parameter in names.items():
                if parameter.requires_grad and f"step/{name}" in optimiser:
                    sharded.set_moments(
                        parameter,
                        {key: optimiser[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq", "step")},
                    )
        elif stage_changed:
            carry_moments(optimiser, self.bare_optimiser, names.items())
        else:
            load_optimiser(self.bare_optimiser, optimiser, names.items())
        if self.ema is not None:
            self.ema.restart(self._trained())
            if len(average):
                values = _Part(average, "average/")
                pieces = (
                    (name, sharded.cut(value, names[name]) if self.is_sharded and name in names else value)
                    for name, value in values.items()
                )
                self.ema.load(dict(pieces), int(average["updates"]))

    def close(self) -> None:
        """Let go of wrappers and optimiser, so that the next stage can build its own around the bare module."""
        self.module = self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.wrapped, self.optimiser = self.accelerator.free_memory(self.wrapped, self.optimiser)

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the resume state, whole, in the same order on every rank."""
        names = list(self.module.named_parameters())
        if self.is_sharded:
            for name, parameter in names:
                yield f"model/{name}", sharded.whole_parameter(parameter)
                if parameter.requires_grad:
                    for moment, tensor in sharded.moments(parameter).items():
                        yield f"optimiser/{moment}/{name}", tensor
        else:
            yield from ((f"model/{name}", parameter) for name, parameter in names)
            yield from (
                (f"optimiser/{n}", t) for n, t in optimiser_tensors(self.bare_optimiser, names).items()
            )
        if self.ema is not None:
            parameters = dict(names)
            for name, value in self.ema.average.items():
                whole = sharded.joined(value, parameters[name]) if self.is_sharded else value
                yield f"ema/average/{name}", whole
            yield "ema/updates", torch.tensor(self.ema.updates)


class _Part(Mapping[str, Tensor]):
    """The tensors below one prefix, read when asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(self._prefix) for key in self._tensors if key.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
