"""CADD Table 5: bits per character of texts of 27 characters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce import cadd_paper
from crocodil.reproduce.cadd_models import LABELS, named, steps_told, wanted
from crocodil.reproduce.config import Likelihood
from crocodil.reproduce.figure import (
    Chart,
    Column,
    Figure,
    Label,
    Line,
    Quote,
    Row,
    agrees,
    one,
    too_near,
)
from crocodil.reproduce.lab import CADD, Lab
from crocodil.reproduce.measures.likelihoods import Nats, beyond, likelihoods, per

MODELS = ("letters_mdm", "letters_cadd")
DISCRETE_NOTE = (
    "The discrete term is what the paper prints: cross-entropies of masked tokens, weighted by 1/t. With latents it is "
    "no bound on the likelihood, as a noised latent is made of the very token that is asked for. The bound adds what "
    "latents cost (CADD Eq. 18 and 19), for the sampler with as many steps as the configuration says. For MDM the two "
    "differ in the number of steps alone."
)
LITTLE = {"discrete term": 0.25, "perplexity": 0.2}
"""How far below MDM's, in bits and as a share of it, the verdicts take for as little as the paper's differences are."""
TOO_GOOD = (
    "; the order is the paper's, the difference far larger: it is what latents tell of the token that is asked for, and "
    "ρ, which the paper does not name, decides how much that is"
)
PAIRED = "Differences are taken text by text, so their intervals are narrower than the numbers' own."


def lines(lab: Lab, config: Likelihood, models: tuple[str, str]) -> list[Line]:
    """Of every source a line for each model; the second is read beside the first."""
    there = named(lab, models)
    found = []
    for source in config.sources:
        tasks = {
            name: likelihoods(lab, name, source, config.windows, config.samples, config.steps)
            for name in there
        }
        for name in there:
            labels: dict[str, Label] = {"source": source, "model": LABELS[name]}
            beside = tasks[models[0]] if name != models[0] and models[0] in tasks else ()
            found.append(Line(labels, [*tasks[name], *beside]))
    return found


def values(
    lab: Lab, line: Line, models: Sequence[str], among: str, finish: Mapping[str, Callable[[Tensor], Tensor]]
) -> dict[str, Estimate]:
    """Both numbers, and how much more they are than the other model's.

    Args:
        among, finish: see `likelihoods.per`; of each number by its name.
    """
    name = next(CADD + one for one in models if LABELS[one] == line.labels["model"])
    tasks = [task for task in line.tasks if isinstance(task, Nats)]
    mine, others = (
        [task for task in tasks if task.model == name],
        [task for task in tasks if task.model != name],
    )
    found = {what: per(lab, mine, what, among, finish[what]) for what in finish}
    if others:
        for what in finish:
            found[f"{what}_more"] = beyond(lab, mine, others, what, among, finish[what])
    return found


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    found = []
    for source in dict.fromkeys(row.labels["source"] for row in rows):
        mdm, cadd = (one(rows, source=source, model=LABELS[name]) for name in MODELS)
        if not (mdm and cadd and mdm.values and cadd.values):
            continue
        a, b = (row.values["discrete"].value for row in (mdm, cadd))
        told = f"the discrete term is {b:.3f} bits a character with CADD and {a:.3f} with MDM"
        otherwise = f"{told}{TOO_GOOD if b < a else ''}"
        near = spans(cadd.values["discrete_more"], 0)
        found.append(too_near(told) if near else agrees(0 < a - b < LITTLE["discrete term"], told, otherwise))
        a, b = (row.values["bound"].value for row in (mdm, cadd))
        found.append(
            f"The bound on the likelihood, which the paper does not print, is {b:.3f} bits a character with CADD and "
            f"{a:.3f} with MDM."
        )
    return [*found, *steps_told(lab, MODELS)]


def spans(one: Estimate, value: float) -> bool:
    """Whether an interval has this value in it; without an interval nothing can be told."""
    return one.low is None or one.high is None or one.low <= value <= one.high


def bits(nats: Tensor) -> Tensor:
    return nats / math.log(2)


FIGURE = Figure(
    "cadd-table5",
    "CADD, Table 5",
    "Bits per character of letters",
    "CADD's discrete term is 1.35 bits a character on Text8, below MDLM's 1.40.",
    (
        Column("discrete", "discrete term, bits a character ↓"),
        Column("discrete_more", "less MDM's"),
        Column("bound", "bound, bits a character ↓"),
        Column("bound_more", "less MDM's"),
    ),
    lambda lab: lines(lab, lab.config.cadd_table5, MODELS),
    lambda lab, line: values(lab, line, MODELS, "characters", {"discrete": bits, "bound": bits}),
    verdicts,
    (Chart("bits a character", "model", ("discrete", "bound"), kind="bars"),),
    tuple(Quote({"model": name}, {"discrete": bits}) for name, bits in cadd_paper.TABLE_5.items()),
    lambda lab: wanted(lab, MODELS),
    notes=(
        DISCRETE_NOTE,
        PAIRED,
        "Held-out programs as 27 letters, not Wikipedia: the paper's numbers are of other texts.",
    ),
)
