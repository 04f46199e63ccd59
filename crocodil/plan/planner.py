"""A plan: one configuration on N GPUs, stage by stage, and what to change where it does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from crocodil.errors import CrocodilError
from crocodil.joint import DemaskerRecipe
from crocodil.plan import work
from crocodil.plan.activations import (
    Learning,
    demasker_kept,
    encoder_kept,
    layer_at_work,
    llada_layer,
    loss_at_work,
    qwen3_layer,
)
from crocodil.plan.cards import BETWEEN, CARDS, Card
from crocodil.plan.launches import LAUNCHES, Job, States, check_bits
from crocodil.plan.networks import FAMILIES, Networks
from crocodil.plan.rows import densest, micro_steps, step_tokens
from crocodil.training.limits import check_batch

CONTEXT = 2e9
"""Assumed bytes of the CUDA context, of NCCL's channels and of cuBLAS' workspace."""
Moment = Literal["loss", "block", "encoder", "step", "export"]
WHEN: dict[Moment, str] = {
    "loss": "where the loss is computed",
    "block": "in the backward of a block",
    "encoder": "in the backward of the encoder",
    "step": "in the optimiser's step",
    "export": "in an export, the model whole everywhere",
}
STEP: tuple[Moment, ...] = ("loss", "block", "encoder", "step")
_MOST_ROW, _MOST_GPUS = 1 << 20, 1024
_LEAST_MFU, _LEAST_BETWEEN = 1e-4, 1e6


@dataclass(frozen=True)
class Place:
    """Where a training would run."""

    gpus: int
    gpu: str = "h100"
    launch: str = "zero3"
    gpus_per_node: int = 8
    between: float = BETWEEN
    """Bytes/s of a GPU in a collective across nodes."""
    mfu: float | None = None
    """Of a step that trains everything; None takes the card's assumption."""

    def __post_init__(self) -> None:
        if self.gpu not in CARDS or self.launch not in LAUNCHES:
            raise CrocodilError(
                f"no GPU {self.gpu!r} or launch {self.launch!r}; there are {', '.join(CARDS)} and {', '.join(LAUNCHES)}"
            )
        if not _LEAST_MFU <= self.reached <= 1:
            raise CrocodilError(f"mfu {self.mfu} must be from {_LEAST_MFU} to 1")
        if not _LEAST_BETWEEN <= self.between < math.inf:
            raise CrocodilError(
                f"between is {self.between / 1e9:g} GB/s; give {_LEAST_BETWEEN / 1e9:g} or more"
            )

    @property
    def card(self) -> Card:
        return CARDS[self.gpu]

    @property
    def reached(self) -> float:
        """The MFU, assumed where nobody says it."""
        return self.card.mfu if self.mfu is None else self.mfu

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at one moment."""

    weights: float
    gradients: float
    optimiser: float
    average: float
    encoder_activations: float
    demasker_activations: float
    loss: float
    """Chunk of logits, hidden states beside it, the head's gradient."""
    buffers: float
    """What the engine gathers, reduces and copies."""
    context: float = CONTEXT

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Stage:
    """One stage of a training."""

    number: int
    """1: LLaDA's own weights are frozen; 2: everything trains."""
    steps: int
    trained: int
    """Parameters."""
    moments: dict[Moment, Memory]
    peak: Moment
    """Where a step needs most."""
    host_bytes: float
    """In the host memory of a node, for an optimiser that lives there."""
    micro_step_bytes: float
    step_bytes: float
    host_traffic: float
    compute_seconds: float
    """Of a micro-step, at the assumed rate."""
    micro_step_communication_seconds: float
    step_communication_seconds: float
    step_seconds: float
    hours: float
    computed_flops: float
    """Of a step, over all GPUs."""
    checkpoint_bytes: float

    @property
    def memory(self) -> Memory:
        """At the fullest moment of a step."""
        return self.moments[self.peak]

    @property
    def fullest(self) -> Moment:
        """Of all moments, an export's too."""
        return max(self.moments, key=lambda moment: self.moments[moment].total)

    @property
    def total(self) -> float:
        """Bytes that a GPU must have."""
        return self.moments[self.fullest].total


@dataclass(frozen=True)
class Knob:
    """A change after which it fits."""

    change: str
    """As it is typed."""
    total: float
    """Bytes a GPU then."""


@dataclass(frozen=True)
class Plan:
    """What a training costs."""

    place: Place
    parameters: int
    llada_parameters: int
    encoder_parameters: int
    encoder_own_table_parameters: int | None
    adapter_parameters: int
    row_tokens: int
    densest_texts: int
    densest_registers: int
    micro_steps: int
    step_tokens: float
    step_flops: float
    """Model FLOPs, as the MFU counts."""
    stages: tuple[Stage, ...]
    fits: bool
    largest_row_tokens: int | None
    """That fits, with everything else as it is; None where not even the longest window does."""
    knobs: tuple[Knob, ...]
    hours: float
    gpu_hours: float
    texts: int
    """Seen in all steps."""
    epochs: float | None
    building_bytes: float
    """In the host memory of a node, while the model is built."""
    export_bytes: float

    def document(self) -> dict[str, Any]:
        """As JSON takes it."""
        stages = [
            asdict(stage) | {"total": stage.total, "fullest": stage.fullest, "moments": {
                moment: asdict(memory) | {"total": memory.total} for moment, memory in stage.moments.items()
            }}
            for stage in self.stages
        ]  # fmt: skip
        card = asdict(self.place.card) | {"within": self.place.card.within}
        return asdict(self) | {"place": asdict(self.place) | {"card": card}, "stages": stages}

    @property
    def worst(self) -> Stage:
        return max(self.stages, key=lambda stage: stage.total)


def plan(of: Networks, place: Place, corpus: int | None = None, mean_length: float | None = None) -> Plan:
    """Count everything.

    Args:
        of: of `networks(config)`.
        corpus: training windows of an epoch, for the number of epochs.
        mean_length: of windows in tokens; None takes each of `data.lengths` as often.

    Raises:
        CrocodilError: what the training itself would refuse.
    """
    config = of.config
    check_bits(place.launch, config.optimiser.bits)
    check_batch(config.batch_size, place.gpus)
    shortest, longest = min(config.data.lengths), max(config.data.lengths)
    if mean_length is not None and not shortest <= mean_length <= longest:
        raise CrocodilError(
            f"mean length is {mean_length}, windows have {shortest} to {longest} tokens (data.lengths); give one between"
        )
    stages = _stages(of, place, mean_length)
    fits = max(stage.total for stage in stages) <= place.card.memory
    row = densest(config, config.row_tokens)
    parameters, llada = of.parameters() + of.adapters, of.parameters("demasker.llada.")
    # LLaDA stays in its files under ZeRO-3 and under adapters; all else is built in float32, by every process of a node
    mapped = config.start is None and (config.lora is not None or place.launch.startswith("zero3"))
    in_memory = parameters - (llada if mapped else 0)
    hours = sum(stage.hours for stage in stages)
    seen = config.steps * config.batch_size
    return Plan(
        place=place,
        parameters=parameters,
        llada_parameters=llada,
        encoder_parameters=of.parameters("encoder.backbone."),
        encoder_own_table_parameters=of.own_table,
        adapter_parameters=of.adapters,
        row_tokens=config.row_tokens,
        densest_texts=row.texts,
        densest_registers=row.registers,
        micro_steps=micro_steps(config, place.gpus, config.row_tokens, mean_length),
        step_tokens=step_tokens(config, mean_length),
        step_flops=work.model_flops(work.forward(of, mean_length)),
        stages=stages,
        fits=fits,
        largest_row_tokens=largest_row(of, place, mean_length),
        knobs=() if fits else tuple(_knobs(of, place, mean_length)),
        hours=hours,
        gpu_hours=hours * place.gpus,
        texts=seen,
        epochs=None if corpus is None else seen / corpus,
        building_bytes=4.0 * in_memory * min(place.gpus, place.gpus_per_node),
        export_bytes=of.parameters() * (4.0 if config.export_dtype == "float32" else 2.0),
    )


def needed(of: Networks, place: Place, mean_length: float | None = None) -> float:
    """Bytes on a GPU at the worst moment of the worst stage."""
    return max(
        memory.total
        for stage, _ in _spans(of.config)
        for memory in _moments(of, place, stage, mean_length)[1].values()
    )


def largest_row(of: Networks, place: Place, mean_length: float | None = None) -> int | None:
    """Most row_tokens that fit, in whole shortest windows; None where not even the longest window does."""
    unit, least = min(of.config.data.lengths), max(of.config.data.lengths)

    def fits(row_tokens: int) -> bool:
        return needed(_with(of, row_tokens=row_tokens), place, mean_length) <= place.card.memory

    if not fits(least):
        return None
    low, high = least // unit, _MOST_ROW // unit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return max(least, low * unit)


def _spans(config: DemaskerRecipe) -> list[tuple[int, int]]:
    """(stage, optimiser steps) of the stages that have any."""
    first = min(config.encoder_steps, config.steps)
    return [(stage, steps) for stage, steps in ((0, first), (1, config.steps - first)) if steps]


def _learning(of: Networks, part: Literal["demasker", "encoder"], stage: int) -> Learning:
    """What of a part's layers learns in a stage."""
    lora = of.config.lora
    begins = FAMILIES.index("llada" if part == "demasker" else "guide")
    if begins > stage:
        return Learning(False)
    if lora is None:
        return Learning(True)
    return Learning(False, getattr(lora, part), lora.rank, lora.dropout > 0)


def _moments(
    of: Networks, place: Place, stage: int, mean_length: float | None
) -> tuple[Job, dict[Moment, Memory], States]:
    config, llada, encoder = of.config, of.llada, of.encoder
    launch = LAUNCHES[place.launch]
    bf16 = config.precision != "no"
    job = Job(
        of.weights,
        stage,
        place.gpus,
        micro_steps(config, place.gpus, config.row_tokens, mean_length),
        bf16,
        config.optimiser.bits,
        bool(config.ema),
    )
    states, buffers = launch.states(job), launch.buffers(job)
    precision = launch.precision(bf16, config.lora is not None)
    row = densest(config, config.row_tokens)
    reads, writes = _learning(of, "encoder", stage), _learning(of, "demasker", stage)
    head = any(w.name == _head(of) for w in of.trained(stage))
    again = config.recompute
    encoder_acts = encoder_kept(row, encoder, precision, reads, again)
    demasker_acts = demasker_kept(row, llada, precision, writes, again)
    at_loss = loss_at_work(row, llada, precision, head, again, writes)
    at_block = layer_at_work(row.positions, llada_layer(llada), precision, writes, again)
    at_encoder = layer_at_work(row.clean, qwen3_layer(encoder), precision, reads, again)
    learns = any(w.name.startswith("demasker.llada.") for w in of.trained(stage))

    def memory(encoder: float, demasker: float, loss: float, buffers: float) -> Memory:
        return Memory(
            states.weights, states.gradients, states.optimiser, states.average, encoder, demasker, loss, buffers
        )  # fmt: skip

    moments: dict[Moment, Memory] = {
        "loss": memory(encoder_acts, demasker_acts, at_loss, buffers.forward),
        # gradients of a frozen demasker do not arrive
        "block": memory(
            encoder_acts, demasker_acts + at_block, 0, buffers.backward if learns else buffers.forward
        ),
        "encoder": memory(encoder_acts + at_encoder, 0, 0, buffers.backward),
        "step": memory(0, 0, 0, buffers.step),
    }
    if config.sample_every or stage == _spans(config)[-1][0]:
        moments["export"] = memory(0, 0, 0, buffers.export)
    return job, moments, states


def _stages(of: Networks, place: Place, mean_length: float | None) -> tuple[Stage, ...]:
    config = of.config
    one = work.forward(of, mean_length)
    everything = work.computed_flops(one, True, True, config.recompute)
    rate = place.gpus * place.card.peak * place.reached
    bandwidth = place.card.within if place.nodes == 1 else min(place.between, place.card.within)
    found = []
    for stage, steps in _spans(config):
        job, moments, states = _moments(of, place, stage, mean_length)
        traffic = LAUNCHES[place.launch].traffic(job)
        computed = work.computed_flops(
            one, _learning(of, "demasker", stage).weights, _learning(of, "encoder", stage).weights, config.recompute
        )  # fmt: skip
        # the MFU is of a step that trains everything; one that computes less takes less, at the same rate of FLOPs
        compute = work.model_flops(one) * computed / everything / rate / job.micro_steps
        sending, at_step = traffic.micro_step / bandwidth, traffic.step / bandwidth
        # what is sent in a micro-step hides behind what is computed, or the other way round
        seconds = job.micro_steps * max(compute, sending) + at_step
        found.append(
            Stage(
                number=stage + 1,
                steps=steps,
                trained=sum(w.numel for w in job.trained),
                moments=moments,
                peak=max(STEP, key=lambda moment: moments[moment].total),
                host_bytes=states.host * min(place.gpus, place.gpus_per_node),
                micro_step_bytes=traffic.micro_step,
                step_bytes=job.micro_steps * traffic.micro_step + traffic.step,
                host_traffic=traffic.host,
                compute_seconds=compute,
                micro_step_communication_seconds=sending,
                step_communication_seconds=job.micro_steps * sending + at_step,
                step_seconds=seconds,
                hours=steps * seconds / 3600,
                computed_flops=computed,
                checkpoint_bytes=checkpoint_bytes(of, stage),
            )
        )
    return tuple(found)


def checkpoint_bytes(of: Networks, stage: int) -> float:
    """As `Engine.state_bytes`: float32 weights; of what trains two moments, and its average where one is kept. What lies
    under adapters is in none."""
    kept = [w for w in of.weights if w.stage is not None]
    return 4.0 * sum(w.numel * (3 + bool(of.config.ema) if w.trains(stage) else 1) for w in kept)


def _knobs(of: Networks, place: Place, mean_length: float | None) -> Iterator[Knob]:
    """Single changes that make it fit; where there is none, such changes beside recomputation or the smallest row; and
    larger GPUs."""
    least = max(of.config.data.lengths)
    again = "" if of.config.recompute else "recompute=true "
    tries: dict[str, dict[str, int | bool]] = {
        "": {},
        again: {"recompute": True},
        f"{again}row_tokens={least} ": {"recompute": True, "row_tokens": least},
    }
    for given, changes in tries.items():
        found = list(_tried(_with(of, **changes), place, mean_length, given))
        yield from found
        if found:
            break
    total = needed(of, place, mean_length)
    for name, card in CARDS.items():
        if place.card.memory < total <= card.memory:
            yield Knob(f"--gpu {name}", total)


def _tried(of: Networks, place: Place, mean_length: float | None, given: str) -> Iterator[Knob]:
    def knob(change: str, of: Networks, place: Place) -> Iterator[Knob]:
        total = needed(of, place, mean_length)
        if total <= place.card.memory:
            yield Knob((given + change).strip(), total)

    if given:
        yield from knob("", of, place)
    if not of.config.recompute:
        yield from knob("recompute=true", _with(of, recompute=True), place)
    row = largest_row(of, place, mean_length)
    if row is not None and row < of.config.row_tokens:
        yield from knob(f"row_tokens={row}", _with(of, row_tokens=row), place)
    if of.config.optimiser.bits == 32:
        for launch in ("zero3", "zero3_offload"):
            if launch != place.launch:
                yield from knob(f"--launch {launch}", of, replace(place, launch=launch))
    gpus = 2 * place.gpus
    while gpus <= _MOST_GPUS and of.config.batch_size % gpus == 0:
        if more := list(knob(f"--gpus {gpus}", of, replace(place, gpus=gpus))):
            yield from more
            break
        gpus *= 2


def _with(of: Networks, **changes: int | bool) -> Networks:
    return replace(of, config=replace(of.config, **changes))  # type: ignore[arg-type]


def _head(of: Networks) -> str:
    return f"demasker.llada.model.transformer.{'wte' if of.llada.weight_tying else 'ff_out'}.weight"
