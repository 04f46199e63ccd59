"""P2: a token and its confidence from rows of logits at LLaDA's vocabulary, against float64 Gumbel noise and softmax.

R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from crocodil.sampler.reveal import Drawn
from crocodil.sampler.reveal import draw as our_draw
from recipes.benchmarks.anchor import Anchor, open_anchor
from recipes.benchmarks.anchor import draw as their_draw
from recipes.benchmarks.harness import (
    Bench,
    Benchmark,
    Row,
    Unequal,
    assert_close,
    assert_equal,
    compare,
    ratio_of_bytes,
)
from recipes.benchmarks.memory import peak_bytes

CONFIDENCE_APART = 1e-5
CHECKED_TEMPERATURE = 0.7
SHORT_VOCABULARY = 300
"""Rows for the chi-square of both sides; short, because float64 noise for many draws over the true one is slow."""
DEVIATIONS = 5
"""Standard deviations by which a chi-square may lie above its mean."""


def logits_of(rows: int, vocab_size: int, device: torch.device | str) -> Tensor:
    """(R, V) float32, as sharp as a trained model's."""
    return (3 * torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(0))).to(device)


def ours(logits_RV: Tensor, temperature: float) -> Drawn:
    """Our draw, its random numbers made as the sampler makes them. No column is the mask's: the anchor has none."""
    uniforms_R = torch.rand(len(logits_RV), dtype=torch.float64).to(logits_RV.device) if temperature else None
    return our_draw(logits_RV, temperature, uniforms_R, mask_id=logits_RV.shape[1])


def job(
    side: str, official: str | None, rows: int, vocab_size: int, temperature: float, device: str
) -> Callable[[], object]:
    """What is run for its peak memory, in a process of its own."""
    logits_RV = logits_of(rows, vocab_size, device)
    if side == "ours":
        return lambda: ours(logits_RV, temperature)
    anchor = open_anchor(official)
    return lambda: their_draw(anchor, logits_RV, temperature)


def check_greedy(anchor: Anchor, logits_RV: Tensor) -> None:
    """Temperature 0: the same token and its softmax probability."""
    ids_R, confidence_R = their_draw(anchor, logits_RV, 0.0)
    drawn = ours(logits_RV, 0.0)
    assert_equal("likeliest token", ids_R, drawn.ids_R)
    assert_close("confidence", confidence_R, drawn.confidence_R, relative=CONFIDENCE_APART)


def check_inversion(logits_V: Tensor, temperature: float, draws: int) -> None:
    """Evenly spaced numbers instead of random ones: every token comes as often as its probability says, within one."""
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    logits_RV = logits_V.expand(draws, -1)
    drawn = our_draw(logits_RV, temperature, uniforms.to(logits_V.device), mask_id=len(logits_V))
    expected = draws * (logits_V.double() / temperature).softmax(dim=0)
    apart = float((drawn.ids_R.bincount(minlength=len(logits_V)) - expected).abs().max())
    if not apart < 1.01:
        raise Unequal(f"the inverse-CDF draw gives a token {apart:.2f} times more or less often than its law")


def check_law(anchor: Anchor, logits_V: Tensor, temperature: float, draws: int) -> None:
    """Chi-square of both sides against softmax(logits / temperature)."""
    logits_RV = logits_V.expand(draws, -1)
    expected = draws * (logits_V.double() / temperature).softmax(dim=0)
    often = expected >= 5  # the rest, together, is one more class
    for name, ids_R in (
        ("the anchor", their_draw(anchor, logits_RV, temperature)[0]),
        ("ours", ours(logits_RV, temperature).ids_R),
    ):
        found = ids_R.bincount(minlength=len(logits_V)).double()
        terms = (found - expected).square()[often] / expected[often]
        rest = (found[~often].sum() - expected[~often].sum()) ** 2 / expected[~often].sum().clamp_min(1e-9)
        square, freedom = float(terms.sum() + rest), int(often.sum())
        if not square < freedom + DEVIATIONS * math.sqrt(2 * freedom):
            raise Unequal(f"{name} does not draw from softmax: chi-square {square:.0f} of {freedom} degrees")


@torch.no_grad()
def measure(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes.draw
    torch.manual_seed(0)
    logits_RV = logits_of(sizes.rows, sizes.vocab_size, bench.device)
    check_greedy(bench.anchor, logits_RV)
    for temperature in (CHECKED_TEMPERATURE, 1.0):
        check_inversion(logits_RV[0], temperature, sizes.draws)
        check_law(bench.anchor, logits_RV[0, :SHORT_VOCABULARY].contiguous(), temperature, 8 * sizes.draws)
    for temperature, floor, aim in ((1.0, 8.0, 15.0), (0.0, 1.0, None)):
        yield compare(
            partial(their_draw, bench.anchor, logits_RV, temperature),
            partial(ours, logits_RV, temperature),
            bench,
        ).row(f"T = {temperature:g}, {sizes.rows} rows, V = {sizes.vocab_size:,}", floor, aim)

    def peak(side: str) -> int:
        return peak_bytes(
            job,
            side=side,
            official=bench.anchor.path,
            rows=sizes.rows,
            vocab_size=sizes.vocab_size,
            temperature=1.0,
            device=str(bench.device),
        )

    yield ratio_of_bytes(
        f"T = 1, {sizes.rows} rows, V = {sizes.vocab_size:,}",
        theirs=[peak("theirs"), peak("theirs")],
        ours=peak("ours"),
        floor=1 / 0.4,
        aim=1 / 0.25,
    )


BENCHMARK = Benchmark(
    "P2",
    "a token and its confidence",
    "the official sampler's float64 Gumbel noise, argmax and softmax",
    "temperature 0: token and confidence; above it: both draw from softmax, by chi-square and by evenly spaced numbers",
    measure,
)
