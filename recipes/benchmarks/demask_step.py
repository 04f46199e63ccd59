"""P1: one demasking step with a fixed schedule, against a step of the official sampler's shape on the same weights.

Ours asks the head for masked positions alone, draws with one number a row, and chooses for all rows at once. Both
sides run their own loop; the model stops them after so many steps.

B batch, N positions, K registers, D register width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from crocodil.attention import Segments
from crocodil.demasker.guided import GuidedDemasker
from crocodil.sampler.demask import demask
from recipes.benchmarks.anchor import Anchor
from recipes.benchmarks.harness import (
    Bench,
    Benchmark,
    Row,
    assert_close,
    assert_equal,
    compare,
    mean_of_ratios,
)
from recipes.benchmarks.networks import guided_demasker
from recipes.benchmarks.sizes import StepSizes

LOGITS_APART = 1e-3
# geometric mean over masking levels and batches, by temperature: (floor, aim, aim on a GPU)
TARGETS = {0.0: (1.0, 1.10, 1.25), 1.0: (1.1, 1.25, 1.4)}


class Enough(Exception):
    """So many steps have been done."""


class Meter:
    """Keeps the tokens of every evaluation and ends the loop when `steps` are done."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seen: list[Tensor] = []

    def __call__(self, ids_BN: Tensor) -> None:
        self.seen.append(ids_BN.clone())
        if len(self.seen) > self.steps:
            raise Enough


@dataclass(frozen=True)
class Case:
    """A text whose first part is given and whose rest is masked, and how it is demasked."""

    demasker: GuidedDemasker
    registers_BKD: Tensor
    given_BN: Tensor
    slots: int
    nfe: int
    temperature: float

    @property
    def mask_id(self) -> int:
        return self.demasker.llada.config.mask_token_id

    @property
    def masked_BN(self) -> Tensor:
        B = len(self.given_BN)
        return torch.cat([self.given_BN, self.given_BN.new_full((B, self.slots), self.mask_id)], dim=1)

    def all_logits(self, ids_BN: Tensor) -> Tensor:
        """(B, N, V), as the official sampler asks for them."""
        B, N = ids_BN.shape
        k = self.registers_BKD.shape[1]
        hidden_TE = self.demasker.hidden(
            ids_BN.flatten(), Segments.of([N] * B, ids_BN.device), self.registers_BKD.flatten(0, 1), [k] * B
        )
        return self.demasker.llada.head(hidden_TE).view(B, N, -1)

    def theirs(self, anchor: Anchor, steps: int) -> list[Tensor]:
        """Tokens before every step, and after the last."""
        meter = Meter(steps)
        with contextlib.suppress(Enough):
            ids_BN = anchor.generate(
                _Released(self, meter),
                self.given_BN,
                steps=self.nfe,
                gen_length=self.slots,
                block_length=self.slots,
                temperature=self.temperature,
                remasking="low_confidence",
                mask_id=self.mask_id,
            )
            meter.seen.append(ids_BN)
        return meter.seen

    def ours(self, steps: int) -> list[Tensor]:
        """The same with our sampler."""
        meter = Meter(steps)

        def predict(ids_BN: Tensor, rows_BN: Tensor) -> Tensor:
            meter(ids_BN)
            return self.demasker.logits(ids_BN, rows_BN, self.registers_BKD)

        with contextlib.suppress(Enough):
            result = demask(predict, self.masked_BN, self.mask_id, nfe=self.nfe, temperature=self.temperature)
            meter.seen.append(result.ids)
        return meter.seen


class _Released:
    """The case's demasker with the face of the released model."""

    def __init__(self, case: Case, meter: Meter) -> None:
        self.case = case
        self.meter = meter
        self.device = case.given_BN.device

    def __call__(self, ids_BN: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        self.meter(ids_BN)
        return SimpleNamespace(logits=self.case.all_logits(ids_BN))


def _case(
    demasker: GuidedDemasker, sizes: StepSizes, B: int, share: float, nfe: int | None, temperature: float
) -> Case:
    """`nfe` None reveals one token a step, so that the share hardly changes while it is timed."""
    device = demasker.boundaries.device
    generator = torch.Generator().manual_seed(B)
    slots = round(share * sizes.length)
    given = torch.randint(
        1, demasker.llada.config.mask_token_id, (B, sizes.length - slots), generator=generator
    ).to(device)
    registers = torch.randn(B, sizes.registers, demasker.config.D, generator=generator).to(device)
    return Case(demasker, registers, given, slots, nfe or slots, temperature)


def _check(bench: Bench, demasker: GuidedDemasker, share: float) -> None:
    """The same logits, and at temperature 0 the same tokens after every step of a whole run."""
    sizes = bench.sizes.step
    case = _case(demasker, sizes, 2, share, sizes.checked_steps, 0.0)
    rows_BN = case.masked_BN == case.mask_id
    assert_close(
        "logits",
        case.all_logits(case.masked_BN)[rows_BN],
        demasker.logits(case.masked_BN, rows_BN, case.registers_BKD),
        largest=LOGITS_APART,
    )
    _assert_same_steps(case.theirs(bench.anchor, case.nfe), case.ours(case.nfe))


def _assert_same_steps(theirs: list[Tensor], ours: list[Tensor]) -> None:
    assert_equal("number of steps", torch.tensor(len(theirs)), torch.tensor(len(ours)))
    for step, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        assert_equal(f"tokens after step {step}", one, other)


@torch.no_grad()
def measure(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes.step
    demasker = guided_demasker(sizes.network, sizes.registers, sizes.length, bench.device)
    for share in sizes.shares:
        _check(bench, demasker, share)
    for temperature in sizes.temperatures:
        floor, aim, aim_gpu = TARGETS[temperature]
        rows = []
        for B, steps in sizes.runs:
            for share in sizes.shares:
                case = _case(demasker, sizes, B, share, None, temperature)
                theirs, ours = case.theirs(bench.anchor, steps), case.ours(steps)
                if temperature == 0:
                    _assert_same_steps(theirs, ours)
                # drawn tokens differ, but as many are revealed in every step
                assert_equal(
                    "masked after every step", *(_masked(side, case.mask_id) for side in (theirs, ours))
                )
                pairs = compare(partial(case.theirs, bench.anchor, steps), partial(case.ours, steps), bench)
                rows.append(pairs.row(f"T = {temperature:g}, {share:.0%} masked, B = {B}"))
                yield rows[-1]
        yield mean_of_ratios(
            f"T = {temperature:g}, geometric mean",
            rows,
            floor,
            aim_gpu if bench.device.type == "cuda" else aim,
        )


def _masked(states: list[Tensor], mask_id: int) -> Tensor:
    return torch.stack([(ids_BN == mask_id).sum(dim=1) for ids_BN in states])


BENCHMARK = Benchmark(
    "P1",
    "one demasking step",
    "a step of the official sampler, same weights",
    "float32 logits; at temperature 0 the tokens after every step, above it the number revealed",
    measure,
)
