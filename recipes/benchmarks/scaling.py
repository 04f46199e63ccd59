"""P10: how cost grows. Fitted exponents of time against N, B and files, and of peak memory against N; time against K.

All of it is our own code at several sizes, compared with the growth that counting operations predicts. A dense mask
or a quadratic loop in Python shows here first.

B batch, N text positions, K registers, D register width.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from crocodil.attention import Segments
from crocodil.demasker.guided import GuidedDemasker
from crocodil.demasker.masking import MaskedTexts
from crocodil.sampler.demask import demask
from crocodil.text.corpus import load_documents
from crocodil.text.split import split
from crocodil.text.tokens import tokenise
from crocodil.text.vocabulary import Vocabulary, train_bpe
from crocodil.text.windows import Windows, pack
from recipes.benchmarks.harness import Bench, Benchmark, Row, Unequal, exponent, sweep, unrest
from recipes.benchmarks.memory import peak_bytes
from recipes.benchmarks.networks import guided_demasker
from recipes.benchmarks.sizes import Network, ScalingSizes

WINDOW = 256


def step(demasker: GuidedDemasker, B: int, N: int, k: int) -> Callable[[], object]:
    """One demasking step on texts that are all mask."""
    device = demasker.boundaries.device
    mask_id = demasker.llada.config.mask_token_id
    x_BN = torch.full((B, N), mask_id, device=device)
    generator = torch.Generator().manual_seed(0)
    registers_BKD = torch.randn(B, k, demasker.config.D, generator=generator).to(device)
    return lambda: demask(
        lambda ids_BN, rows_BN: demasker.logits(ids_BN, rows_BN, registers_BKD), x_BN, mask_id, nfe=1
    )


def training_job(network: dict[str, Any], N: int, k: int, device: str) -> Callable[[], object]:
    """Loss and gradients of two packed texts of different length, for the peak memory in a process of its own."""
    demasker = guided_demasker(Network(**network), k, N, device).train()

    def train(lengths: Sequence[int]) -> None:
        total = sum(lengths)
        generator = torch.Generator().manual_seed(0)
        ids_T = torch.randint(0, demasker.llada.config.mask_token_id, (total,), generator=generator)
        is_masked_T = torch.rand(total, generator=generator) < 0.5
        texts = MaskedTexts(
            ids_T,
            is_masked_T,
            torch.full((2,), 0.5),
            Segments.of(lengths),
            demasker.llada.config.mask_token_id,
        )
        registers_kD = torch.randn(2 * k, demasker.config.D, generator=generator).to(device)
        demasker(texts.to(device), registers_kD, [k, k]).total.backward()

    train([4, 2])  # so that the gradients of the parameters, which do not grow with N, are there already
    return lambda: train([N, N // 2])


def prepare(folder: Path, vocabulary: Vocabulary) -> list[list[int]]:
    """The way of files into training rows: read, split, tokenise, cut, pack."""
    documents = split(load_documents(folder)).train
    windows = Windows(tokenise(documents, vocabulary), (WINDOW,))
    return pack([len(windows.sample(index, epoch=0).text_ids) for index in range(len(windows))], 4 * WINDOW)


def _write_files(root: Path, sizes: ScalingSizes) -> None:
    """Pieces of the interpreter's own sources as so many small files: one folder for each number."""
    pieces: list[str] = []
    for document in load_documents("stdlib"):
        for start in range(0, len(document.text), sizes.file_characters):
            pieces.append(document.text[start : start + sizes.file_characters])
        if len(pieces) >= 2 * max(sizes.files):
            break
    pieces = [piece for piece in pieces if piece.strip()]
    for number in sizes.files:
        folder = root / str(number)
        folder.mkdir()
        for index in range(number):
            # the texts of a small folder are spread over those of a large one
            text = pieces[index * len(pieces) // number]
            (folder / f"{index:05}.py").write_text(text, encoding="utf-8", newline="")


def _exponents(
    name: str, bench: Bench, points: dict[int, Callable[[], object]], floor: float, aim: float, ideal: float
) -> Row:
    """The exponent of every round, and the median of them."""
    seconds, control = sweep(points, bench)
    slopes = [exponent(list(seconds), taken) for taken in zip(*seconds.values(), strict=True)]
    return Row(
        name=name,
        measure="exponent",
        value=statistics.median(slopes),
        low=min(slopes),
        high=max(slopes),
        control=control,
        floor=floor,
        aim=aim,
        at_most=True,
        ideal=ideal,
        samples={str(size): taken for size, taken in seconds.items()},
    )


def _memory(bench: Bench) -> Row:
    sizes = bench.sizes.scaling
    peaks = {}
    for N in (*sizes.lengths, sizes.lengths[-1]):
        peaks.setdefault(N, []).append(
            peak_bytes(
                training_job,
                network=asdict(sizes.network),
                N=N,
                k=sizes.length_registers,
                device=str(bench.device),
            )
        )
    slope = exponent(list(peaks), [taken[0] for taken in peaks.values()])
    return Row(
        name=f"peak memory of a training step against N, {sizes.lengths[0]} to {sizes.lengths[-1]}",
        measure="exponent",
        value=slope,
        low=slope,
        high=slope,
        control=unrest([tuple(peaks[sizes.lengths[-1]])]),
        floor=1.05,
        aim=1.0,
        at_most=True,
        ideal=1.0,
        samples={str(N): taken for N, taken in peaks.items()},
    )


def measure(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes.scaling
    longest = max(*sizes.lengths, sizes.registers_length, sizes.batches_length)
    k = sizes.length_registers
    demasker = guided_demasker(sizes.network, max(*sizes.registers, k), longest, bench.device)
    _check(demasker, sizes)

    yield _exponents(
        f"time of a demasking step against N, {sizes.lengths[0]} to {sizes.lengths[-1]}",
        bench,
        {N: step(demasker, 1, N, k) for N in sizes.lengths},
        floor=1.15,
        aim=1.08,
        ideal=exponent(sizes.lengths, [_flops(demasker, N, k) for N in sizes.lengths]),
    )
    yield _exponents(
        f"time of a demasking step against B, {sizes.batches[0]} to {sizes.batches[-1]}",
        bench,
        {B: step(demasker, B, sizes.batches_length, k) for B in sizes.batches},
        floor=1.03,
        aim=1.0,
        ideal=1.0,
    )
    yield from _registers(bench, demasker)
    with TemporaryDirectory() as folder:
        _write_files(Path(folder), sizes)
        vocabulary = train_bpe(
            [document.text for document in load_documents(Path(folder, str(sizes.files[0])))], 1024
        )
        yield _exponents(
            f"time to read, split, tokenise and pack files, {sizes.files[0]:,} to {sizes.files[-1]:,}",
            bench,
            {number: partial(prepare, Path(folder, str(number)), vocabulary) for number in sizes.files},
            floor=1.05,
            aim=1.0,
            ideal=1.0,
        )
    yield _memory(bench)


def _registers(bench: Bench, demasker: GuidedDemasker) -> Iterator[Row]:
    """Time at k registers over time at the fewest, against the number of positions at each."""
    sizes = bench.sizes.scaling
    N, fewest = sizes.registers_length, sizes.registers[0]
    seconds, control = sweep({k: step(demasker, 1, N, k) for k in sizes.registers}, bench)
    for k in sizes.registers[1:]:
        positions = (N + k + 2) / (N + fewest + 2)
        ratios = [
            at_k / at_fewest / positions for at_k, at_fewest in zip(seconds[k], seconds[fewest], strict=True)
        ]
        yield Row(
            name=f"time of a demasking step at K = {k} over K = {fewest}, N = {N}",
            measure="time / positions",
            value=statistics.median(ratios),
            low=min(ratios),
            high=max(ratios),
            control=control,
            floor=1.10,
            aim=1.05,
            at_most=True,
            ideal=_flops(demasker, N, k) / _flops(demasker, N, fewest) / positions,
            samples={str(fewest): seconds[fewest], str(k): seconds[k]},
        )


def _flops(demasker: GuidedDemasker, N: int, k: int) -> float:
    """Operations of one step on a text that is all mask."""
    from crocodil.metrics.cost import (
        demasker_flops,
    )  # it imports transformers, which a memory process does without

    return demasker_flops(demasker.llada.config, [N], [k + 2], N)


def _check(demasker: GuidedDemasker, sizes: ScalingSizes) -> None:
    """A text is demasked the same alone and in a batch, so that sizes differ in size alone."""
    N, k = sizes.batches_length, sizes.length_registers
    alone, together = step(demasker, 1, N, k)(), step(demasker, 2, N, k)()
    if not torch.equal(alone.ids[0], together.ids[0]):  # type: ignore[attr-defined]
        raise Unequal("a text is demasked otherwise in a batch than alone")


BENCHMARK = Benchmark(
    "P10",
    "how cost grows",
    "the growth that counting operations predicts",
    "a text is demasked the same alone and in a batch",
    measure,
)
