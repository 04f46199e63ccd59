"""What an engine keeps on a GPU, makes room for, gathers and sends, by the files of `launch/`.

Read in DeepSpeed 0.19.8, PyTorch 2.13's FSDP2 and accelerate 1.15; `tests/plan` measures it under real engines. Where 16
bits are spoken of and `precision: no` is asked for, it is 32.

P parameters, of which p train, on N GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from crocodil.errors import CrocodilError
from crocodil.joint import family
from crocodil.plan.activations import ADAPTED, AUTOCAST, FLOAT, FLOAT32, PURE, Precision
from crocodil.plan.networks import Weight
from crocodil.training.optimisation import EIGHT_BIT_BLOCK

MOMENTS = 2 * FLOAT
EIGHT_BIT_LEAST = 4096
"""bitsandbytes packs moments of parameters of at least so many numbers."""


@dataclass(frozen=True)
class Buckets:
    """DeepSpeed's sizes, in numbers; its defaults, which launch/deepspeed/ leaves as they are."""

    reduce: int = 500_000_000
    live: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    persistent: int = 100_000


@dataclass(frozen=True)
class Job:
    """One stage of a training on N GPUs."""

    weights: Sequence[Weight]
    stage: int
    gpus: int
    micro_steps: int = 1
    bf16: bool = True
    bits: int = 32
    average: bool = False
    """Whether an average of weights is kept."""

    @property
    def trained(self) -> list[Weight]:
        return [w for w in self.weights if w.trains(self.stage)]

    @property
    def narrow(self) -> int:
        """Bytes of a number in products."""
        return 2 if self.bf16 else FLOAT

    def width(self, weight: Weight) -> int:
        """Bytes of a parameter's numbers where engines do not narrow them: what nothing trains is narrow anyway."""
        return FLOAT if weight.stage is not None else self.narrow


@dataclass(frozen=True)
class States:
    """Bytes that stay on a GPU from step to step."""

    weights: float
    gradients: float
    optimiser: float
    """Moments, and masters where they are not the weights themselves."""
    average: float = 0.0
    host: float = 0.0
    """In host memory, for this GPU."""


@dataclass(frozen=True)
class Buffers:
    """Bytes that an engine needs beside them, by moment."""

    forward: float = 0.0
    """Until gradients arrive."""
    backward: float = 0.0
    """While they do."""
    step: float = 0.0
    export: float = 0.0
    """Where the model is whole on every GPU, to be written or to sample."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that one GPU receives."""

    micro_step: float
    step: float
    host: float = 0.0
    """To and from host memory in a micro-step."""


class Launch(Protocol):
    def precision(self, bf16: bool, adapted: bool = False) -> Precision:
        """How it computes, with adapters or without."""
        ...

    def pieces(self, weights: Sequence[Weight], gpus: int) -> dict[str, list[int]]:
        """Numbers of each trained parameter that each GPU steps."""
        ...

    def states(self, job: Job) -> States: ...
    def buffers(self, job: Job) -> Buffers: ...
    def traffic(self, job: Job) -> Traffic: ...


@dataclass(frozen=True)
class Zero3:
    """DeepSpeed ZeRO-3: everything in flat pieces, gathered where it is needed."""

    offload: bool = False
    buckets: Buckets = Buckets()

    def precision(self, bf16: bool, adapted: bool = False) -> Precision:
        return PURE if bf16 else FLOAT32

    def pieces(self, weights: Sequence[Weight], gpus: int) -> dict[str, list[int]]:
        return {w.name: _chunks(w.numel, gpus) for w in weights}

    def states(self, job: Job) -> States:
        # a piece is ⌈numel / N⌉ numbers on every GPU, the last one padded
        held = sum(_up(w.numel, job.gpus) for w in job.weights)
        stepped = sum(_up(w.numel, job.gpus) for w in job.trained)
        # parameters below the threshold are whole on every GPU as well
        whole = sum(w.numel for w in job.weights if w.numel <= self.buckets.persistent)
        weights = job.narrow * (held + whole)
        # gradients are summed in float32 (grad_accum_dtype); a master is the weight itself where that is float32
        gradients, optimiser = FLOAT * stepped, (MOMENTS + (FLOAT if job.bf16 else 0)) * stepped
        average = FLOAT * stepped * job.average
        if self.offload:
            # masters, moments, summed gradients, and those of the step beside them
            return States(weights, 0, 0, 0, gradients + optimiser + average + FLOAT * stepped)
        return States(weights, gradients, optimiser, average)

    def buffers(self, job: Job) -> Buffers:
        # one bucket of gradients, made with the engine; what is gathered at a time is bounded by `live`
        bucket = job.narrow * self.buckets.reduce
        gathered = job.narrow * min(self.buckets.live, _sum(job.weights))
        # reduce-scatter interleaves a full bucket in a copy; a block's largest gradient is on its way into the bucket
        copy = job.narrow * min(self.buckets.reduce, _sum(job.trained)) + job.narrow * _largest(job)
        # a step flattens the summed gradients of one sub-group
        local = _sum(job.trained) / job.gpus
        flat = 0.0 if self.offload else FLOAT * min(self.buckets.sub_group, local)
        whole = job.narrow * _sum(job.weights)
        return Buffers(bucket + gathered, bucket + gathered + copy, bucket + flat, bucket + whole)

    def traffic(self, job: Job) -> Traffic:
        # gather for forward and for backward, reduce-scatter gradients, each (N - 1)/N of the whole
        share = _others(job)
        micro = job.narrow * share * (2 * _sum(job.weights) + _sum(job.trained))
        # the host's sums go down and come back with every micro-step, new weights come back with the step
        host = 2 * FLOAT * _sum(job.trained) / job.gpus if self.offload else 0.0
        return Traffic(micro, 0.0, host)


@dataclass(frozen=True)
class Zero2:
    """DeepSpeed ZeRO-2: whole 16-bit weights, a range of masters, moments and summed gradients."""

    buckets: Buckets = Buckets()

    def precision(self, bf16: bool, adapted: bool = False) -> Precision:
        return PURE if bf16 else FLOAT32

    def groups(self, weights: Sequence[Weight]) -> list[list[Weight]]:
        """As `optimisation.parameter_groups` makes them: by family, and by whether they decay."""
        found: dict[tuple[str, bool], list[Weight]] = {}
        for w in weights:
            found.setdefault((family(w.name), len(w.shape) > 1), []).append(w)
        return list(found.values())

    def pieces(self, weights: Sequence[Weight], gpus: int) -> dict[str, list[int]]:
        # a group is one flat tensor, cut in N equal ranges of an even number
        found = {}
        for group in self.groups(weights):
            size = self._range(group, gpus)
            at = 0
            for w in group:
                found[w.name] = [
                    max(0, min(at + w.numel, (r + 1) * size) - max(at, r * size)) for r in range(gpus)
                ]
                at += w.numel
        return found

    @staticmethod
    def _range(group: Sequence[Weight], gpus: int) -> int:
        return 2 * _up(_sum(group), 2 * gpus)

    def states(self, job: Job) -> States:
        groups = self.groups(job.trained)
        stepped = sum(self._range(group, job.gpus) for group in groups)
        padding = stepped * job.gpus - _sum(job.trained)
        weights = job.narrow * (_sum(job.weights) + padding)
        return States(weights, FLOAT * stepped, (FLOAT + MOMENTS) * stepped, FLOAT * stepped * job.average)

    def buffers(self, job: Job) -> Buffers:
        # two buckets take turns in backward (overlap_comm), and all-reduce flattens one in a copy
        bucket = job.narrow * self.buckets.reduce
        copy = job.narrow * min(self.buckets.reduce, _sum(job.trained)) + job.narrow * _largest(job)
        return Buffers(0.0, 2 * bucket + copy, 0.0, 0.0)

    def traffic(self, job: Job) -> Traffic:
        # gradients are all-reduced (twice their bytes) with every micro-step; new weights are gathered once a step
        sent = job.narrow * _others(job) * _sum(job.trained)
        return Traffic(2 * sent, sent)


@dataclass(frozen=True)
class Ddp:
    """Plain data parallel, or one GPU: everything whole, in float32, with products in 16 bits. What lies under adapters
    is kept in 16 bits."""

    def precision(self, bf16: bool, adapted: bool = False) -> Precision:
        return (ADAPTED if adapted else AUTOCAST) if bf16 else FLOAT32

    def pieces(self, weights: Sequence[Weight], gpus: int) -> dict[str, list[int]]:
        return {w.name: [w.numel] * gpus for w in weights}

    def states(self, job: Job) -> States:
        p = _sum(job.trained)
        # with more than one GPU the reducer has buckets for all gradients beside them
        gradients = FLOAT * p * (2 if job.gpus > 1 else 1)
        packed = [w.numel for w in job.trained if job.bits == 8 and w.numel >= EIGHT_BIT_LEAST]
        # two bytes a number, and two float32 scales for every block
        optimiser = sum(2 * n + 2 * FLOAT * _up(n, EIGHT_BIT_BLOCK) for n in packed)
        optimiser += MOMENTS * (p - sum(packed))
        weights = sum(job.width(w) * w.numel for w in job.weights)
        return States(weights, gradients, optimiser, FLOAT * p * job.average)

    def buffers(self, job: Job) -> Buffers:
        return Buffers()

    def traffic(self, job: Job) -> Traffic:
        # one all-reduce of float32 gradients a step: twice their bytes
        return Traffic(0.0, 2 * FLOAT * _others(job) * _sum(job.trained))


@dataclass(frozen=True)
class Fsdp2:
    """PyTorch's FSDP2: float32 rows of every parameter; blocks, layers and head are gathered in 16 bits in their turn."""

    def precision(self, bf16: bool, adapted: bool = False) -> Precision:
        # weights are narrow when they are gathered, so autocast finds nothing to cast
        return PURE if bf16 else FLOAT32

    def pieces(self, weights: Sequence[Weight], gpus: int) -> dict[str, list[int]]:
        return {
            w.name: [rows * (w.numel // w.shape[0]) for rows in _chunks(w.shape[0], gpus)] for w in weights
        }

    def states(self, job: Job) -> States:
        weights = sum(job.width(w) * _rows(w, job.gpus) for w in job.weights)
        stepped = sum(_rows(w, job.gpus) for w in job.trained)
        gradients = float(FLOAT * stepped)
        if job.micro_steps > 1:
            # until the last micro-batch gradients are summed whole, in float32
            gradients = max(gradients, float(FLOAT * _sum(job.trained)))
        return States(weights, gradients, MOMENTS * stepped, FLOAT * stepped * job.average)

    def buffers(self, job: Job) -> Buffers:
        # what is in no unit of its own stays gathered from forward to backward
        units = _units(job.weights)
        root = units.pop("", 0)
        head = units.pop("head", 0)
        block = max(units.values(), default=0)
        learns = _units(job.trained)
        most = max((n for unit, n in learns.items() if unit not in ("", "head")), default=0)
        # a block and the next one; with backward the gradients of what learns in one, and a float32 copy to reduce
        forward = job.narrow * (root + head + block)
        backward = job.narrow * (root + 2 * block) + (job.narrow + FLOAT) * most
        return Buffers(forward, backward, 0.0, job.narrow * _sum(job.weights))

    def traffic(self, job: Job) -> Traffic:
        # units are gathered for forward and for backward, the root once; gradients are reduced with the last micro-batch
        root = _units(job.weights).get("", 0)
        gathered = job.narrow * (2 * _sum(job.weights) - root)
        return Traffic(_others(job) * gathered, _others(job) * FLOAT * _sum(job.trained))


LAUNCHES: dict[str, Launch] = {
    "zero3": Zero3(),
    "zero2": Zero2(),
    "ddp": Ddp(),
    "fsdp2": Fsdp2(),
    "zero3_offload": Zero3(offload=True),
}


def check_bits(launch: str, bits: int) -> None:
    """Refuse what `training.placement` refuses.

    Raises:
        CrocodilError: an 8-bit optimiser where its state is kept in pieces.
    """
    if bits == 8 and launch != "ddp":
        raise CrocodilError(
            f"optimiser.bits=8 keeps its state whole, {launch} in pieces; plan with --launch ddp, or leave bits out"
        )


def _units(weights: Sequence[Weight]) -> dict[str, int]:
    """Numbers of each unit of launch/fsdp2.yaml: blocks, layers, the head; the rest under no name."""
    found: dict[str, int] = {}
    for w in weights:
        parts = w.name.split(".")
        at = next((i for i, part in enumerate(parts) if part in ("blocks", "layers")), None)
        if at is not None:
            unit = ".".join(parts[: at + 2])
        else:
            unit = "head" if parts[-2:] == ["ff_out", "weight"] else ""
        found[unit] = found.get(unit, 0) + w.numel
    return found


def _chunks(n: int, parts: int) -> list[int]:
    """n things in parts of ⌈n / parts⌉, the last ones short or empty."""
    size = _up(n, parts)
    return [max(0, min(size, n - i * size)) for i in range(parts)]


def _rows(weight: Weight, parts: int) -> int:
    """Numbers in ⌈rows / parts⌉ rows."""
    return _up(weight.shape[0], parts) * (weight.numel // weight.shape[0])


def _up(n: int, parts: int) -> int:
    return -(-n // parts)


def _sum(weights: Sequence[Weight]) -> int:
    return sum(w.numel for w in weights)


def _largest(job: Job) -> int:
    """The largest trained matrix of a block or layer."""
    return max((w.numel for w in job.trained if ".blocks." in w.name or ".layers." in w.name), default=0)


def _others(job: Job) -> float:
    """What comes from other GPUs."""
    return (job.gpus - 1) / job.gpus
