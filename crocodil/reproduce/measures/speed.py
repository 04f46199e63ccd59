"""What a step of training and of sampling costs with latents and without (CADD Table 4), in alternation in one process.

Times of one machine drift together, so what is compared is timed in turn, in a new order in every round, and the same
work is there twice: how far its two times are apart is how far others may be by chance.
"""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crocodil.attention import Segments
from crocodil.cadd.demasker import AugmentedDemasker, seeded
from crocodil.cadd.loss import Objective
from crocodil.demasker.masking import MaskedTexts
from crocodil.metrics.bootstrap import Estimate, interval, resamples
from crocodil.reproduce.lab import Lab, Task
from crocodil.reproduce.measures.latents import require_latents
from crocodil.reproduce.store import Measured

WARM = 2
"""Rounds that nobody counts."""
MDM, AGAIN, PLAIN, SOFT, HARD = (
    "MDM",
    "MDM again",
    "CADD",
    "CADD, soft squared error",
    "CADD, hard squared error",
)
OBJECTIVES = {PLAIN: None, SOFT: "soft", HARD: "hard"}
MASKED = 0.5
"""Share of the tokens that a training step masks: the mean of a uniform t."""


@dataclass(frozen=True)
class Training(Task):
    """Seconds of optimiser steps of one network in rounds, under each objective; and bytes at most."""

    batch: int
    length: int
    rounds: int
    seed: int
    model: str

    def check(self, lab: Lab) -> None:
        model = lab.model(self.model)
        model.resolve_length(self.length)
        require_latents(model)

    def run(self, lab: Lab) -> Measured:
        model = lab.model(self.model)
        trained = copy.deepcopy(model.augmented)
        assert trained is not None
        trained.train().requires_grad_(True)
        optimiser = torch.optim.AdamW(trained.parameters(), lr=1e-6)
        random = torch.Generator().manual_seed(self.seed)
        texts = _masked(
            self.batch, self.length, model.vocabulary.size - 3, model.vocabulary.mask_id, random
        ).to(model.device)

        def step(objective: Objective, latents: bool) -> Callable[[], None]:
            module = AugmentedDemasker(trained.host, trained.latents if latents else None, objective)

            def work() -> None:
                with torch.enable_grad():
                    (module(texts).total / self.batch).backward()
                optimiser.step()
                optimiser.zero_grad()

            return work

        works = {name: step(Objective("one", how), True) for name, how in OBJECTIVES.items()}  # type: ignore[arg-type]
        works |= {name: step(Objective("one"), False) for name in (MDM, AGAIN)}
        return _timed(works, self.rounds, random, model.device)

    def weight(self, lab: Lab) -> float:
        return 3.0 * 5 * self.batch * self.length * (self.rounds + WARM)


@dataclass(frozen=True)
class Sampling(Task):
    """Seconds of so many steps of sampling in rounds, for each number of draws (0 is without latents, −1 that again)."""

    batch: int
    length: int
    rounds: int
    steps: int
    draws: tuple[int, ...]
    seed: int
    model: str

    def check(self, lab: Lab) -> None:
        lab.model(self.model).resolve_length(self.length)
        require_latents(lab.model(self.model))

    def run(self, lab: Lab) -> Measured:
        model = lab.model(self.model)

        def write(draws: int) -> Callable[[], None]:
            method = "cadd" if draws > 0 else "mdm"

            def work() -> None:
                model.generate(
                    self.batch, method=method, nfe=self.steps, length=self.length, min_length=self.length,
                    remasking="ancestral", draws=max(0, draws), seed=self.seed,
                )  # fmt: skip

            return work

        random = torch.Generator().manual_seed(self.seed)
        works = {str(draws): write(draws) for draws in (0, -1, *self.draws)}
        return _timed(works, self.rounds, random, model.device)

    def weight(self, lab: Lab) -> float:
        evaluations = (2 + sum(self.draws)) * self.steps
        return float(self.batch * self.length * evaluations * (self.rounds + WARM))


def typical(seconds: Sequence[float], of: Sequence[float] | None = None, times: float = 1.0) -> Estimate:
    """The median over rounds, or that of the ratio to another's seconds in the same round; drawn again by rounds."""
    values_B = torch.tensor(seconds, dtype=torch.float64)
    if of is not None:
        values_B = values_B / torch.tensor(of, dtype=torch.float64)
    values_B = values_B * times
    rows_RB = torch.repeat_interleave(
        torch.arange(len(values_B)).repeat(1000), resamples(len(values_B)).long().flatten()
    )
    medians_R = values_B[rows_RB].view(1000, -1).median(dim=1).values
    return interval(float(values_B.median()), medians_R, len(values_B))


def _timed(
    works: Mapping[str, Callable[[], None]], rounds: int, random: torch.Generator, device: torch.device
) -> Measured:
    """Seconds of each work in each round, in a new order each time; and the bytes of tensors it makes, at most."""
    names = list(works)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round in range(WARM + rounds):
        for at in torch.randperm(len(names), generator=random).tolist():
            _wait(device)
            began = time.perf_counter()
            works[names[at]]()
            _wait(device)
            if round >= WARM:
                seconds[names[at]].append(time.perf_counter() - began)
    return Measured({"seconds": seconds, "bytes": {name: _most(works[name], device) for name in names}})


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _most(work: Callable[[], None], device: torch.device) -> int:
    """Bytes that a work takes at most, beside what is there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _Live() as live:
        work()
    return live.most


class _Live(TorchDispatchMode):
    """Bytes of all storages that operators make and that are still there, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(out):
            # what an operator returns of its arguments, as a view or in place, it has not made
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:
                self._add(leaf.untyped_storage())
        self.most = max(self.most, self._now)
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            del self._storages[key]
            self._now -= size

        self._storages[key] = weakref.ref(storage, gone)
        self._now += size


def _masked(batch: int, length: int, tokens: int, mask_id: int, random: torch.Generator) -> MaskedTexts:
    """Texts of random tokens, half of them masked."""
    total = batch * length
    texts = MaskedTexts(
        torch.randint(tokens, (total,), generator=random),
        torch.rand(total, generator=random) < MASKED,
        torch.full((batch,), MASKED),
        Segments.of([length] * batch),
        mask_id,
    )
    return seeded(texts, [random] * batch)
