"""P6: the joint training step, against matrix products of as many operations and against the common loss.

A step is what the recipes do through the engine: forward of encoder and demasker, backward, clipping, AdamW. Its
operations are counted as `crocodil.metrics.cost` does: three forwards, padding none, the head on masked positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from recipes.benchmarks.harness import (
    Bench,
    Benchmark,
    Row,
    Unequal,
    assert_close,
    compare,
    ratio_of_bytes,
)
from recipes.benchmarks.memory import peak_bytes
from recipes.benchmarks.sizes import TrainingSizes

if TYPE_CHECKING:
    from recipes.benchmarks.engines import Training

LOSS_APART, GRADIENT_APART = 1e-6, 1e-5


def job(sizes: dict[str, Any], every_position: bool, device: str) -> Callable[[], object]:
    """What is run for its peak memory, in a process of its own; the moments of AdamW are there before."""
    from recipes.benchmarks.engines import sizes_of, training

    case = training(sizes_of(sizes), device, every_position=every_position)
    case.step()
    return case.step


def check_operations(case: Training) -> float:
    """Operations of one forward by our count, which is torch's own count of what runs but for two known terms."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from recipes.benchmarks.engines import demasker_forward, encoder_forward

    module, batch = case.engine.module, case.batch
    encoder = module.encoder.backbone.config
    ours = demasker_forward(module.demasker, batch) + encoder_forward(module, batch)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(batch)
    # the map from registers to embeddings, which nobody counts; and the half that a causal mask leaves out
    registers = 2 * sum(batch.k) * module.demasker.projection.weight.numel()
    queries = encoder.num_attention_heads * encoder.head_dim
    pairs = sum((n + k) ** 2 for n, k in zip(batch.clean.lengths, batch.k, strict=True))
    hidden_half = 2 * encoder.num_hidden_layers * queries * pairs
    if counter.get_total_flops() != ours + registers + hidden_half:
        raise Unequal(
            f"operations of a forward: torch counts {counter.get_total_flops():,}, we {ours:,.0f} and "
            f"{registers + hidden_half:,} that we leave out"
        )
    return ours


def check_gradients(theirs: Training, ours: Training) -> None:
    """The same loss and the same gradient of every parameter."""
    (their_losses, their_gradients), (our_losses, our_gradients) = theirs.gradients(), ours.gradients()
    assert_close("loss", their_losses.total.detach(), our_losses.total.detach(), relative=LOSS_APART)
    if odd := their_gradients.keys() ^ our_gradients.keys():
        raise Unequal(f"only one side has a gradient of {sorted(odd)[0]}")
    for name, gradient in their_gradients.items():
        assert_close(f"gradient of {name}", gradient, our_gradients[name], relative=GRADIENT_APART)


def check_trains(case: Training) -> None:
    """A step moves every parameter."""
    before = {name: parameter.detach().clone() for name, parameter in case.engine.module.named_parameters()}
    case.step()
    for name, parameter in case.engine.module.named_parameters():
        if torch.equal(before[name], parameter):
            raise Unequal(f"a step leaves {name} as it was")


def measure(bench: Bench) -> Iterator[Row]:
    from recipes.benchmarks.engines import demasker_forward, demasker_training, training

    sizes = bench.sizes.training
    shape = f"{sizes.texts} texts of {sizes.length} tokens"
    a, b = torch.randn(2, bench.sizes.gemm, bench.sizes.gemm, device=bench.device)
    of_product = 2 * bench.sizes.gemm**3

    def product() -> torch.Tensor:
        return a @ b

    ours, common = training(sizes, bench.device), training(sizes, bench.device, every_position=True)
    joint = check_operations(ours)
    check_gradients(common, ours)
    check_trains(ours)
    yield compare(product, ours.step, bench).row(
        f"joint step, {shape}", floor=0.7, aim=0.85, times=3 * joint / of_product
    )
    yield compare(common.step, ours.step, bench).row("joint step, logits everywhere", floor=1.0)
    demasker = demasker_forward(ours.engine.module.demasker, ours.batch)
    del ours, common
    alone = demasker_training(sizes, bench.device)
    check_trains(alone)
    yield compare(product, alone.step, bench).row("demasker alone", times=3 * demasker / of_product)
    del alone

    for measured, name in (
        (sizes, "joint step, logits everywhere"),
        (
            bench.sizes.true_vocabulary,
            f"the same, {bench.sizes.true_vocabulary.network.vocab_size:,} rows behind a small network",
        ),
    ):

        def peak(every_position: bool, measured: TrainingSizes = measured) -> int:
            return peak_bytes(
                job, sizes=asdict(measured), every_position=every_position, device=str(bench.device)
            )

        yield ratio_of_bytes(name, theirs=[peak(True), peak(True)], ours=peak(False))


BENCHMARK = Benchmark(
    "P6",
    "a training step of encoder and demasker",
    "matrix products of as many operations; the same step with logits at every position",
    "operations as torch counts them; loss within 1e-6, every gradient within 1e-5, relative; all parameters move",
    measure,
)
