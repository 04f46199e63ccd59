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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from crocodil.errors import CrocodilError
from crocodil.training.optimisation import Ema, OptimiserConfig, build_optimiser, learning_rate
from crocodil.training.placement import placement_of
from crocodil.training.ranks import is_distributed, rank_and_world
from crocodil.training.state import open_tensors, save_tensors, save_values

STATE = "state-{rank:05d}"
PART_BYTES = 4 << 30
"""A rank writes its share in files of about this size, so that no more is held in memory at once."""


class Movable(Protocol):
    def to(self, device: torch.device | str) -> Any: ...


@dataclass(frozen=True)
class Update:
    """What became of a step."""

    norm: float
    """Of the gradient, before clipping."""
    applied: bool
    """False where loss or gradient were no number, or the loss above the ceiling: then nothing has moved."""


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
        fixed: says of a parameter name whether no stage ever trains it, as what lies under adapters; it is in no
            checkpoint.
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
        fixed: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.accelerator = accelerator
        self.module = module
        self.config = config
        self.total_steps = total_steps
        self.rate = 0.0
        self._fixed = fixed
        self.placement = placement_of(accelerator, config.bits == 8)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(trainable(name))
        if self.placement.steps_itself:
            # DeepSpeed clips by itself, and counts texts by a number that means nothing here
            settings = accelerator.state.deepspeed_plugin.deepspeed_config
            settings["gradient_clipping"] = config.clip_norm
            settings["train_micro_batch_size_per_gpu"] = 1
        module.train()  # a released encoder comes in evaluation mode
        self.placement.receive(accelerator, module)
        bare = build_optimiser(module.named_parameters(), config, family)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        groups = [[names[id(parameter)] for parameter in group["params"]] for group in bare.param_groups]
        self.wrapped, self.optimiser = accelerator.prepare(module, bare)
        if not self.placement.steps_itself:
            # accelerate finds the pieces of FSDP2 by their addresses, and empty ones have none
            present = dict(module.named_parameters())
            for group, members in zip(self.optimiser.param_groups, groups, strict=True):
                group["params"] = [present[name] for name in members]
        self.ema = Ema(self._pieces(), ema) if ema else None

    def accumulate(
        self, batches: Sequence[Movable], count: int, step: int, ceiling: float = math.inf
    ) -> Iterator[Any]:
        """Forward and backward over this rank's micro-batches; yields the record of each.

        Args:
            batches: as many on every rank, at least one.
            count: texts in the global batch.
            step: optimiser step, from 0; it sets the learning rate here, because DeepSpeed steps with the last
                backward.
            ceiling: a loss of the global batch above it is not learned from (see `training.guard`).

        Raises:
            CrocodilError: a micro-batch does not fit the device.
        """
        self.rate = self.config.lr * learning_rate(step, self.config, self.total_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        last = len(batches) - 1
        # every engine averages over ranks, so a sum over ranks needs their number back
        scale = self.accelerator.num_processes / count
        summed = torch.zeros((), dtype=torch.float32, device=self.accelerator.device)
        for i, batch in enumerate(batches):
            with self._synchronising(i == last), _explaining_memory(step):
                losses = self.wrapped(batch.to(self.accelerator.device))
                summed += losses.total.detach()
                total = losses.total * scale
                if i == last:
                    total = total * self._verdict(summed / count, ceiling)
                self.accelerator.backward(total)
            yield losses

    def _synchronising(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients travel with the last micro-batch only; DeepSpeed is told by the flag alone."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        if last or self.placement.steps_itself:
            return nullcontext()
        return self.accelerator.no_sync(self.wrapped)

    @staticmethod
    def _verdict(loss: Tensor, ceiling: float) -> Tensor:
        """1 for a loss to learn from, else NaN, on every rank alike and without waiting for the device: every engine
        drops a step whose gradient is no number."""
        if is_distributed():
            torch.distributed.all_reduce(loss)
        return torch.where(loss <= ceiling, 1.0, math.nan)

    def update(self) -> Update:
        """Clip, step, average. A gradient that is not finite is dropped with the step, on every rank alike."""
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.clip_norm)
        if isinstance(norm, Tensor) and hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        norm = math.nan if norm is None else float(norm)
        if self.placement.steps_itself:  # it has stepped, or skipped, already
            self.optimiser.step()
            applied = bool(self.wrapped.was_step_applied())
        else:
            applied = math.isfinite(norm)
            if applied:
                self.optimiser.step()
        self.placement.settle(self.wrapped)
        if applied and self.ema is not None:
            self.ema.update(self._pieces())
        self.optimiser.zero_grad()
        return Update(norm, applied)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The bare module in evaluation mode, holding the average where there is one. Call it on every rank alike."""
        self.module.eval()
        try:
            with self._swapped():
                try:
                    yield self.module
                finally:
                    self.placement.settle(self.wrapped)
        finally:
            self.module.train()

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """As `averaged`, every parameter whole on every rank and gathered once: for an export, and to sample. In the
        body each rank is on its own: it may do more or less than the others, or fail."""
        with self.averaged() as module, self.placement.gathered(self.wrapped, module) as whole:
            yield whole

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        """The average in place of the weights, where there is one."""
        if self.ema is None:
            yield
            return
        parameters = dict(self.module.named_parameters())
        trained = {name: piece.clone() for name, piece in self._pieces()}
        try:
            for name, average in self.ema.average.items():
                self.placement.show(parameters[name], average)
            yield
        finally:
            for name, piece in trained.items():
                self.placement.show(parameters[name], piece)

    def _pieces(self) -> Iterator[tuple[str, Tensor]]:
        """Names and float32 values of what this stage trains: whole, or this rank's pieces."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                yield name, self.placement.piece(parameter)

    def save(self, directory: Path, values: Mapping[str, Any]) -> None:
        """Write the resume state into a directory that is being published; collective.

        Args:
            values: what else the run must know to go on, as JSON; rank 0's are kept (see `training.start`).
        """
        rank, world = rank_and_world()
        share: dict[str, Tensor] = {}
        part = 0

        def flush() -> None:
            nonlocal part
            save_tensors(directory, share, f"{STATE.format(rank=rank)}-{part:03d}")
            share.clear()
            part += 1

        given = [0] * world  # bytes of each rank: the next tensor goes to the one with the fewest
        for key, tensor in self._state():
            whose = min(range(world), key=given.__getitem__)
            given[whose] += tensor.nbytes
            if whose == rank:
                share[key] = tensor.cpu()
                if sum(t.nbytes for t in share.values()) >= PART_BYTES:
                    flush()
        if share:
            flush()
        if rank == 0:
            save_values(directory, values, STATE.format(rank=0))

    def state_bytes(self) -> int:
        """What a checkpoint will hold: weights, and two moments of what is trained."""
        size = 0
        for parameter in self._kept().values():
            numbers = getattr(parameter, "ds_numel", parameter.numel())
            size += 4 * numbers * ((3 + bool(self.ema)) if parameter.requires_grad else 1)
        return size

    def load(self, directory: Path, stage_changed: bool = False) -> None:
        """Take a resume state back; across a stage boundary, the moments of parameters that both stages train.

        Raises:
            CrocodilError: it is of another model.
        """
        tensors = open_tensors(directory)
        weights, optimiser, average = (
            {key.removeprefix(f"{part}/"): key for key in tensors if key.startswith(f"{part}/")}
            for part in ("model", "optimiser", "ema")
        )
        names = self._kept()
        if odd := sorted(set(weights) ^ set(names)):
            raise CrocodilError(
                f"{directory}: parameter {odd[0]!r} is on one side only; the checkpoint is of another model"
            )
        for name, parameter in names.items():
            value = tensors[weights[name]]
            wanted = tuple(getattr(parameter, "ds_shape", parameter.shape))  # whole, under ZeRO-3
            if tuple(value.shape) != wanted:
                raise CrocodilError(
                    f"{directory}: {name} has shape {tuple(value.shape)}, this run's is {wanted}; resume with the sizes "
                    "it began with, or begin a new run with start="
                )
            self.placement.take(parameter, value)
        for name in [key.removeprefix("step/") for key in optimiser if key.startswith("step/")]:
            if name in names and names[name].requires_grad:
                its = [key for key in optimiser if key.endswith(f"/{name}")]
                moments = {key.removesuffix(f"/{name}"): tensors[optimiser[key]] for key in its}
                self.placement.take_moments(self.optimiser, names[name], moments)
            elif not stage_changed:
                raise CrocodilError(
                    f"{directory}: optimiser state of {name!r}, which this stage does not train; resume its own stage"
                )
        if self.ema is not None:
            self.ema.restart(self._pieces())
            if average:
                # an average of what is no parameter here stays as it is, for `Ema.load` to refuse
                kept = {
                    name.removeprefix("average/"): tensors[key]
                    for name, key in average.items()
                    if name.startswith("average/")
                }
                pieces = {
                    name: self.placement.cut(names[name], value) if name in names else value
                    for name, value in kept.items()
                }
                self.ema.load(pieces, int(tensors[average["updates"]]))

    def close(self) -> None:
        """Let go of wrappers and optimiser, so that the next stage can build its own around the bare module."""
        self.module = self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        # accelerate would take the bare module for a prepared one, and leave autocast out of the next stage
        self.module.__dict__.pop("_is_accelerate_prepared", None)
        self.wrapped, self.optimiser = self.accelerator.free_memory(self.wrapped, self.optimiser)

    def _kept(self) -> dict[str, nn.Parameter]:
        """Parameters that a checkpoint holds."""
        return {name: p for name, p in self.module.named_parameters() if not self._fixed(name)}

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the resume state, whole, in the same order on every rank."""
        parameters = self._kept()
        for name, parameter in parameters.items():
            yield f"model/{name}", self.placement.whole(parameter)
            if parameter.requires_grad:
                for moment, tensor in self.placement.moments(self.optimiser, parameter).items():
                    yield f"optimiser/{moment}/{name}", tensor
        if self.ema is not None:
            for name, value in self.ema.average.items():
                yield f"ema/average/{name}", self.placement.joined(parameters[name], value)
            yield "ema/updates", torch.tensor(self.ema.updates)


@contextmanager
def _explaining_memory(step: int) -> Iterator[None]:
    """Say which knobs there are when a micro-batch is too large."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if (
            isinstance(error, torch.OutOfMemoryError)
            or "can't allocate memory" in said
            or "not enough memory" in said
        ):
            raise CrocodilError(
                f"step {step}: a micro-batch does not fit into memory ({said.splitlines()[0]:.120}); lower row_tokens or "
                "micro_batch, set recompute=true, or take more ranks (`crocodil plan` says what fits)"
            ) from None
        raise
