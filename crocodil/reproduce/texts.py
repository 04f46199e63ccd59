"""The texts that figures are made on: held-out programs that come with the package, or those of a corpus."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from crocodil.errors import CrocodilError
from crocodil.model import Model
from crocodil.text.corpus import Document, load_documents
from crocodil.text.data import DataConfig, load_split
from crocodil.text.tokens import corpus_digest, tokenise
from crocodil.text.windows import Sample, Windows

BUNDLED = "bundled"
PROGRAMS = Path(__file__).parent.parent / "models" / "held_out" / "programs.jsonl"
"""Excerpts of programs from the held-out side of the split that the bundled models were trained on."""


@lru_cache(maxsize=4)
def held_out_documents(source: str) -> tuple[Document, ...]:
    """Documents that nobody was trained on: `bundled`, or the held-out side of a corpus.

    Raises:
        CrocodilError: the source cannot be read, or is so small that nothing of it is held out.
    """
    if source == BUNDLED:
        return tuple(load_documents(PROGRAMS))
    held_out = load_split(DataConfig(source=source)).held_out
    if not held_out:
        raise CrocodilError(
            f"nothing of {source} is held out, it is too small; give a larger one, or `bundled`"
        )
    return held_out


def held_out_windows(
    model: Model, source: str, count: int, length: int | None = None, seed: int = 0
) -> list[Sample]:
    """At most `count` windows of held-out texts, drawn at random; the same for the same source, length and seed.

    Args:
        length: tokens of a window; the model's if left out.
    """
    tokens = tokenise(held_out_documents(source), model.vocabulary)
    windows = Windows(tokens, (length or model.window,), seed, short_fraction=0.0)
    return [windows.sample(int(i), 0) for i in windows.order(0)[:count]]


def texts_digest(model: Model, source: str) -> str:
    """16 hex digits over the held-out documents of a source in this model's tokens."""
    return corpus_digest(held_out_documents(source), model.vocabulary)
