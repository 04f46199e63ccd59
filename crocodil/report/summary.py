"""Reconstructions of many texts in one line for each NFE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crocodil.metrics.reconstruction import corpus_cer, exact_match, mean_cer, parse_rate
from crocodil.report.records import Reconstruction


@dataclass(frozen=True)
class Summary:
    """All texts at one NFE."""

    nfe: int
    texts: int
    mean_cer: float
    """Mean over texts, as in the paper."""
    corpus_cer: float
    """Edits over characters, all texts together."""
    exact: int
    """Texts that came back to the last character."""
    parses: float | None
    """Of the texts that are valid Python, the share that came back as valid Python; None where none is."""
    seconds: float
    """All texts, one after another."""


def summarise(reconstructions: Sequence[Reconstruction]) -> list[Summary]:
    """One line for each NFE, in the order in which they first appear."""
    summaries = []
    for nfe in dict.fromkeys(r.nfe for r in reconstructions):
        chosen = [r for r in reconstructions if r.nfe == nfe]
        texts, sources = [r.text for r in chosen], [r.source for r in chosen]
        summaries.append(
            Summary(
                nfe,
                len(chosen),
                mean_cer(texts, sources),
                corpus_cer(texts, sources),
                round(exact_match(texts, sources) * len(chosen)),
                parse_rate(texts, sources),
                sum(r.seconds for r in chosen),
            )
        )
    return summaries
