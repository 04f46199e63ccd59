"""CADD Fig. 3: texts out of noise against the number of steps, with latents and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce import cadd_paper
from crocodil.reproduce.cadd_models import LABELS, named, steps_told, wanted
from crocodil.reproduce.config import BySteps
from crocodil.reproduce.figure import (
    JUDGED,
    NOWHERE,
    Chart,
    Column,
    Figure,
    Label,
    Line,
    Passage,
    Quote,
    Row,
    agrees,
    apart,
    one,
    pick,
    too_near,
)
from crocodil.reproduce.lab import Lab
from crocodil.reproduce.measures.chains import Chained, chains, originals, quality
from crocodil.reproduce.measures.judging import average, of_kind

MODELS = ("mdm", "cadd")
REAL = "held-out programs"
COLUMNS = (
    Column("mauve", "MAUVE ↑", 2),
    *JUDGED,
    Column("nfe", "evaluations", 0),
)
NOTES = (
    "All texts fill their window, and are compared with held-out programs that do. Each token is revealed by itself, "
    "with a probability that depends on t alone (`ancestral`); MDM has the same sampler, without latents.",
    "Gen-PPL alone is easily fooled: a text that repeats itself is easy to predict. Read it beside entropy (of the "
    "tokens within a text) and repetition (share of 4-grams that stood before). MAUVE wants thousands of texts; with "
    "few, and with a small judge, it tells collapse from variety and nothing finer.",
)
CHART = Chart(
    "by steps T", "T", ("mauve", "gen_ppl", "token_entropy"), ("model",), log_x=True, log_y=("gen_ppl",)
)  # fmt: skip
BETTER = {
    "mauve": "higher MAUVE",
    "gen_ppl": "lower Gen-PPL",
    "token_entropy": "lower entropy",
    "fid": "lower FID",
    "inception_score": "higher IS",
}


def lines(lab: Lab, config: BySteps, models: Sequence[str]) -> list[Line]:
    there = named(lab, models)
    found: list[Line] = []
    for name in there:
        for steps in sorted(set(config.steps)):
            draws = int(not name.startswith("mdm"))
            tasks = [*chains(lab, name, steps, draws), *originals(lab, name)]
            found.append(Line({"model": LABELS[name], "T": steps}, tasks))
    if there:
        found.append(Line({"model": REAL, "T": NOWHERE}, originals(lab, there[0])))
    return found


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    found, made = quality(lab, line.tasks), of_kind(line.tasks, Chained)
    return found | {"nfe": average(lab, [task.of for task in made], "nfe")} if found and made else found


def beside(
    rows: Sequence[Row], column: str, better: Mapping[str, Label], other: Mapping[str, Label], over: str
) -> str | None:
    """A verdict on which of two curves is better, of the paper's opinion that the first is; None without both.

    Args:
        better, other: labels of the two.
        over: the label of the places where they are compared.
    """
    up = column in ("mauve", "inception_score")
    places = dict.fromkeys(row.labels[over] for row in pick(rows, **better))
    pairs = [
        (a.values[column], b.values[column])
        for place in places
        if (a := one(rows, **better, **{over: place})) and (b := one(rows, **other, **{over: place}))
        if a.values and b.values
    ]
    if not pairs:
        return None
    ahead = [(a.value > b.value) == up for a, b in pairs]
    clear = [apart(a, b) for a, b in pairs]
    won, lost = (sum(x is wins and y for x, y in zip(ahead, clear, strict=True)) for wins in (True, False))
    told = (
        f"{say(better)} has the {BETTER[column]} at {sum(ahead)} of {len(pairs)} {over} beside {say(other)}; of the "
        f"points outside of the other's interval, {won} speak for it and {lost} against it"
    )
    # a single point that is clear does not speak for all others
    return agrees(not lost, told, told) if lost or 2 * won >= len(pairs) else too_near(told)


def say(labels: Mapping[str, Label]) -> str:
    """Labels in a sentence; K = 0 is masked diffusion, which needs no more words."""
    words = [
        value if isinstance(value, str) and name != "estimate" else f"{name} = {value}"
        for name, value in labels.items()
        if value
    ]
    return ", ".join(words)


def rises(rows: Sequence[Row], label: str) -> str | None:
    """A verdict on whether a model writes better with the most steps than with the fewest."""
    curve = [row for row in pick(rows, model=label) if row.values]
    if len(curve) < 2:
        return None
    first, last = curve[0], curve[-1]
    told = (
        f"{label} goes from a MAUVE of {first.values['mauve'].value:.2f} and a Gen-PPL of "
        f"{first.values['gen_ppl'].value:.1f} at T = {first.labels['T']:,} to {last.values['mauve'].value:.2f} and "
        f"{last.values['gen_ppl'].value:.1f} at T = {last.labels['T']:,}"
    )
    pairs = {
        "MAUVE": (first.values["mauve"], last.values["mauve"]),
        "Gen-PPL": (last.values["gen_ppl"], first.values["gen_ppl"]),
    }
    clear = {name: low.value < high.value for name, (low, high) in pairs.items() if apart(low, high)}
    if len(clear) == 1:
        told += f"; outside of the intervals is {next(iter(clear))} alone"
    return agrees(all(clear.values()), told, told) if clear else too_near(told)


def as_good(first: str, a: Row | None, second: str, b: Row | None) -> str | None:
    """A verdict on MAUVE, where the paper finds two equally good."""
    if not (a and b and a.values and b.values):
        return None
    one, other = a.values["mauve"], b.values["mauve"]
    perplexities = [row.values["gen_ppl"].value for row in (a, b)]
    told = (
        f"MAUVE is {one.value:.2f} with {first} and {other.value:.2f} with {second}, Gen-PPL "
        f"{perplexities[0]:,.1f} and {perplexities[1]:,.1f}"
    )
    if apart(one, other):
        return agrees(False, told, told)
    wide = max((x.high - x.low for x in (one, other) if x.high is not None and x.low is not None), default=1)
    return too_near(told) if wide > WIDE else agrees(True, told, told)


WIDE = 0.1
"""An interval of MAUVE in which differences as the paper's would not be seen."""


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    cadd, mdm = {"model": LABELS["cadd"]}, {"model": LABELS["mdm"]}
    found = [beside(rows, name, cadd, mdm, "T") for name in ("mauve", "gen_ppl")]
    return [*filter(None, [*found, rises(rows, LABELS["cadd"])]), *steps_told(lab, MODELS)]


def passages(lab: Lab, lines: Sequence[Line], label: str = "model") -> list[Passage]:
    """The first text of each model, at the most steps."""
    made = [(line, task.of) for line in lines for task in of_kind(line.tasks, Chained)[:1]]
    last = {line.labels[label]: task for line, task in made}
    return [
        Passage("out of noise", f"{name}, T = {task.steps}", text)  # type: ignore[attr-defined]
        for name, task in last.items()
        for text in lab.result(task).values["texts"][:1]
    ]


def figure(
    name: str,
    place: str,
    title: str,
    finding: str,
    models: Sequence[str],
    verdicts: Callable[[Lab, Sequence[Row]], list[str]],
    quotes: tuple[Quote, ...] = (),
    passages: Callable[[Lab, Sequence[Line]], list[Passage]] = lambda lab, lines: [],
) -> Figure:
    """Fig. 3 or 4."""
    return Figure(
        name,
        place,
        title,
        finding,
        COLUMNS,
        lambda lab: lines(lab, getattr(lab.config, name.replace("-", "_")), models),
        values,
        verdicts,
        (CHART,),
        quotes,
        lambda lab: wanted(lab, models),
        passages,
        NOTES,
    )


FIGURE = figure(
    "cadd-fig3",
    "CADD, Figure 3",
    "Texts out of noise against sampling steps",
    "CADD is better than masked diffusion at every number of steps, in MAUVE and Gen-PPL, and gains more from many.",
    MODELS,
    verdicts,
    tuple(
        Quote({"model": "CADD", "T": steps}, {"gen_ppl": ppl}) for steps, ppl in cadd_paper.GEN_PPL.items()
    ),
    passages,
)
