"""CADD Tables 6 and 7: perplexity of held-out programs, and of kinds of text that no model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crocodil.reproduce import cadd_paper
from crocodil.reproduce.cadd_models import LABELS, steps_told, wanted
from crocodil.reproduce.figure import Chart, Column, Figure, Quote, Row, agrees, pick, too_near
from crocodil.reproduce.figures.cadd_fig3 import MODELS
from crocodil.reproduce.figures.cadd_table5 import (
    DISCRETE_NOTE,
    LITTLE,
    PAIRED,
    TOO_GOOD,
    lines,
    spans,
    values,
)
from crocodil.reproduce.lab import Lab

TRAINED = "programs"
"""The kind of text that the models were trained on."""


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    found = []
    pairs = [row for row in pick(rows, model=LABELS["cadd"]) if "discrete_more" in row.values]
    for row in pick(pairs, source=TRAINED):
        share = row.values["discrete_more"]
        told = f"on held-out programs, CADD's discrete term gives {share.value:.3f} times MDM's perplexity"
        otherwise = f"{told}{TOO_GOOD if share.value < 1 else ''}"
        found.append(too_near(told) if spans(share, 1) else agrees(_a_little(share.value), told, otherwise))
    others = [row.values["discrete_more"] for row in pairs if row.labels["source"] != TRAINED]
    if others:
        wins, clear = sum(one.value < 1 for one in others), sum(not spans(one, 1) for one in others)
        told = (
            f"of {len(others)} kinds of text that neither was trained on, CADD's discrete term is the lower in {wins}; "
            f"in {clear} the two are apart"
        )
        holds = 2 * wins > len(others) and all(one.value > 1 - LITTLE["perplexity"] for one in others)
        otherwise = f"{told}{TOO_GOOD if 2 * wins > len(others) else ''}"
        found.append(agrees(holds, told, otherwise) if clear else too_near(told))
    if pairs:
        better = sum(row.values["bound_more"].value < 0 for row in pairs)
        found.append(
            f"By the bound on the likelihood, which the paper does not print, CADD is the better in {better} of "
            f"{len(pairs)}."
        )
    return [*found, *steps_told(lab, MODELS)]


def _a_little(share: float) -> bool:
    """Whether a perplexity is lower, and by no more than can be compared with the paper's differences."""
    return 1 - LITTLE["perplexity"] < share < 1


def nats(x: Tensor) -> Tensor:
    return x


def quotes() -> tuple[Quote, ...]:
    """The lines of MDLM and CADD."""
    trained = [
        Quote({"source": f"{source}, trained on it", "model": name}, {"discrete": perplexity})
        for at, source in enumerate(("LM1B", "OpenWebText"))
        for name in ("MDLM", "CADD")
        if (perplexity := cadd_paper.TABLE_6[name][at]) is not None
    ]
    foreign = [
        Quote({"source": source, "model": name}, {"discrete": models[name]})
        for source, models in cadd_paper.TABLE_7.items()
        for name in ("MDLM", "CADD")
    ]
    return (*trained, *foreign)


FIGURE = Figure(
    "cadd-table7",
    "CADD, Tables 6 and 7",
    "Perplexity of other kinds of text",
    "By the discrete term CADD is a little better than MDLM on what it was trained on, and on 4 of 7 other data sets.",
    (
        Column("discrete", "perplexity by the discrete term ↓", 1),
        Column("discrete_more", "of MDM's"),
        Column("bound", "bound, nats a token ↓", 2),
        Column("bound_more", "less MDM's", 2),
    ),
    lambda lab: lines(lab, lab.config.cadd_table7, MODELS),
    lambda lab, line: values(lab, line, MODELS, "tokens", {"discrete": torch.exp, "bound": nats}),
    verdicts,
    (Chart("by kind of text", "source", ("discrete", "bound"), ("model",), kind="bars"),),
    quotes(),
    lambda lab: wanted(lab, MODELS),
    notes=(
        DISCRETE_NOTE,
        PAIRED,
        "`programs` are held out of the corpus that the models were trained on; `comments` are what is said in them; "
        "`manual` is Python's, as `help()` has it; `descriptions` are those of installed packages; `headers` are C++ of "
        "PyTorch, `javascript` is matplotlib's. Perplexities are per token of the models; the bound is its logarithm.",
    ),
)
