"""Run a model for a report: reconstructions, the table block size × NFE, and the steps of one window.

Shape letters: N text positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from crocodil.metrics.reconstruction import cer, corpus_cer, exact_match, mean_cer
from crocodil.model import Model
from crocodil.registers.registers import Registers
from crocodil.report.forming import Forming
from crocodil.report.records import Decoding, Demasking, GridRow, Reconstruction, Source
from crocodil.reproduce.paper import cer_at
from crocodil.sampler.demask import demask
from crocodil.text.windows import split_text

Progress = Callable[[int], None]
"""Told how many window-evaluations have been done since it was told last."""


@dataclass(frozen=True)
class Decoded:
    """One text of some registers at one NFE."""

    index: int
    """Of the text, from 0."""
    text: str
    nfe: int
    seconds: float
    """Wall time of decoding this text."""


@dataclass(frozen=True)
class Encoded:
    """One text as registers, and what it took."""

    file: str
    text: str
    registers: Registers
    seconds: float


def rehearse(model: Model, decoding: Decoding, rows: Sequence[tuple[int | None, int]] = ()) -> None:
    """Refuse whatever the model will refuse later, and take its slow first evaluation off the clock.

    Args:
        rows: further (block size, NFE) that are going to be asked for.

    Raises:
        CrocodilError: k, length, block size, NFE or temperature out of range.
    """
    model.decode(model.encode([], decoding.k), length=decoding.length)
    slots_BN = torch.full((1, decoding.length or model.window), model.vocabulary.mask_id)
    for block_size, nfe in [*((decoding.block_size, nfe) for nfe in decoding.nfe), *rows]:
        try:
            demask(
                _answer_nothing,
                slots_BN,
                model.vocabulary.mask_id,
                nfe=nfe,
                block_size=block_size,
                temperature=decoding.temperature,
            )
        except _Asked:
            pass
    model.decode(model.encode("", decoding.k), nfe=1, length=decoding.length)


class _Asked(Exception):
    """The sampler found its arguments in order and asked for a first prediction."""


def _answer_nothing(ids_BN: torch.Tensor, rows_BN: torch.Tensor) -> torch.Tensor:
    raise _Asked


def encode(model: Model, sources: Sequence[Source], k: int | None, truncate: bool) -> list[Encoded]:
    """Every text as registers, window by window unless it is truncated."""
    encoded = []
    for source in sources:
        began = time.perf_counter()
        registers = model.encode(source.text, k, truncate=truncate, split=not truncate)
        seconds = time.perf_counter() - began
        text = _beginning(model, source.text) if truncate else source.text
        encoded.append(Encoded(source.file, text, registers, seconds))
    return encoded


def reconstruct(
    model: Model, encoded: Sequence[Encoded], decoding: Decoding, progress: Progress | None = None
) -> list[Reconstruction]:
    """Decode every text at every NFE: in the order of the texts, and of the NFE within a text."""
    return [
        Reconstruction(
            one.file, one.text, new.text, cer(new.text, one.text), new.nfe, one.seconds + new.seconds
        )
        for one in encoded
        for new in decode(model, one.registers, decoding, progress)
    ]


def decode(
    model: Model, registers: Registers, decoding: Decoding, progress: Progress | None = None
) -> list[Decoded]:
    """Every text of the registers at every NFE, in the same order."""
    decoded = []
    for index in range(len(registers)):
        for nfe in decoding.nfe:
            began = time.perf_counter()
            (text,) = _write(model, registers[index], decoding, nfe, progress)
            decoded.append(Decoded(index, text, nfe, time.perf_counter() - began))
    return decoded


def pieces(model: Model, sources: Sequence[Source], length: int, count: int) -> list[str]:
    """At most `count` windows of at most `length` tokens, spread evenly over the texts; none of them empty."""
    found = [ids for s in sources for ids in split_text(s.text, model.vocabulary, length) if ids]
    count = min(count, len(found))
    return [model.vocabulary.decode(found[i * len(found) // count]) for i in range(count)]


def score_grid(
    model: Model,
    texts: Sequence[str],
    rows: Sequence[tuple[int, int]],
    decoding: Decoding,
    progress: Progress | None = None,
) -> list[GridRow]:
    """The table block size × NFE (CRoCoDiL Tab. 1) over texts that fit one window each.

    Args:
        rows: (block size, NFE) of each line.
        decoding: k, length, temperature and seed; its own NFE and block size are not used.
    """
    length = decoding.length or model.window
    registers = model.encode(list(texts), decoding.k)
    scored = []
    for block_size, nfe in rows:
        began = time.perf_counter()
        written = _write(model, registers, replace(decoding, block_size=block_size), nfe, progress)
        seconds = (time.perf_counter() - began) / len(texts)
        scored.append(
            GridRow(
                block_size,
                nfe,
                len(texts),
                mean_cer(written, texts),
                corpus_cer(written, texts),
                exact_match(written, texts),
                seconds,
                cer_at(block_size, nfe, length),
            )
        )
    return scored


def record_demasking(model: Model, encoded: Encoded, decoding: Decoding, nfe: int) -> Demasking:
    """Write the first window of a text once more and note the step that revealed each token."""
    first = replace(encoded.registers, values_WKD=encoded.registers.values_WKD[:1], windows=(1,))
    length = decoding.length or model.window
    forming = Forming(model.vocabulary, torch.full((length,), model.vocabulary.mask_id))
    model.decode(
        first,
        nfe=nfe,
        block_size=decoding.block_size,
        length=length,
        temperature=decoding.temperature,
        seed=decoding.seed,
        on_step=forming.note,
    )
    return Demasking(encoded.file, forming.tokens, nfe, min(decoding.block_size or length, length))


def window_evaluations(encoded: Sequence[Encoded], nfes: Sequence[int]) -> int:
    """What `reconstruct` will report to its progress in all."""
    return sum(len(one.registers.values_WKD) for one in encoded) * sum(nfes)


def _write(
    model: Model, registers: Registers, decoding: Decoding, nfe: int, progress: Progress | None
) -> list[str]:
    return model.decode(
        registers,
        nfe=nfe,
        block_size=decoding.block_size,
        length=decoding.length,
        temperature=decoding.temperature,
        seed=decoding.seed,
        on_step=None if progress is None else lambda step: progress(len(step.ids_BN)),
    )


def _beginning(model: Model, text: str) -> str:
    """What of a text fits one window, without a character that is cut through."""
    ids = model.vocabulary.encode(text, limit=model.window - 2)
    return model.vocabulary.decode_bytes(ids).decode("utf-8", errors="ignore")
