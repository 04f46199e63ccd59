"""CADD Table 4: what latents cost, in training and by the number of draws."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce import cadd_paper
from crocodil.reproduce.cadd_models import wanted
from crocodil.reproduce.figure import Chart, Column, Figure, Line, Quote, Row, agrees, one, pick
from crocodil.reproduce.lab import CADD, Lab
from crocodil.reproduce.measures.speed import AGAIN, MDM, OBJECTIVES, PLAIN, Sampling, Training, typical

TRAINING, SAMPLING = "training", "sampling"
MEGABYTE = 1e6
SAME, LINEAR = 0.1, 0.2
"""How far the verdicts let times be from the same, and from K times."""
FIRST = {-1: AGAIN, 0: MDM}


def training(lab: Lab, name: str) -> list[Training]:
    """Training steps of a model's network, in rounds."""
    config, window = lab.config.cadd_table4, lab.model(CADD + name).window
    length = min(config.length or window, window)
    return [Training(config.batch, length, config.rounds, lab.config.seed, CADD + name)]


def sampling(lab: Lab, name: str) -> list[Sampling]:
    """Steps of sampling, in rounds."""
    config, window = lab.config.cadd_table4, lab.model(CADD + name).window
    draws = tuple(sorted({1, *config.draws}))
    length = min(config.length or window, window)
    return [Sampling(config.batch, length, config.rounds, config.steps, draws, lab.config.seed, CADD + name)]


def lines(lab: Lab) -> list[Line]:
    if not lab.has("cadd"):
        return []
    steps, chains = training(lab, "cadd"), sampling(lab, "cadd")
    found = []
    for setting in (MDM, AGAIN, *OBJECTIVES):
        printed = {}
        if setting in cadd_paper.TRAINING:
            ours, theirs = cadd_paper.TRAINING[MDM], cadd_paper.TRAINING[setting]
            printed = {"time": ours.tokens_per_second / theirs.tokens_per_second}
        found.append(Line({"of": TRAINING, "setting": setting}, steps, printed))
    for draws in (0, -1, *chains[0].draws):
        printed = {}
        if draws in cadd_paper.SAMPLING and draws != cadd_paper.MISPRINTED:
            printed = {
                "time": cadd_paper.SAMPLING[1].tokens_per_second
                / cadd_paper.SAMPLING[draws].tokens_per_second
            }
        found.append(Line({"of": SAMPLING, "setting": _setting(draws)}, chains, printed))
    return found


def _setting(draws: int) -> str:
    return FIRST.get(draws, f"K = {draws}")


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    task = line.tasks[0]
    result = lab.result(task).values
    if isinstance(task, Training):
        name, unit, steps = str(line.labels["setting"]), MDM, 1
    else:
        assert isinstance(task, Sampling)
        name = next(str(k) for k in (0, -1, *task.draws) if _setting(k) == line.labels["setting"])
        unit, steps = "1", task.steps
    seconds = result["seconds"]
    tokens = task.batch * task.length * steps
    rates = [tokens / one for one in seconds[name]]
    return {
        "tokens_per_second": typical(rates),
        "time": typical(seconds[name], seconds[unit]),
        "memory": Estimate(result["bytes"][name] / MEGABYTE, None, None, len(rates)),
    }


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    found = []
    steps, chains = pick(rows, of=TRAINING), pick(rows, of=SAMPLING)
    cadd, again = (one(steps, setting=name) for name in (PLAIN, AGAIN))
    if cadd and again:
        time = cadd.values["time"]
        told = (
            f"a training step of CADD takes {time.value:.3f} times that of MDM{_between(time)}, and "
            f"{_memory(steps, PLAIN, MDM):.2f} times the memory; MDM beside itself is at {again.values['time'].value:.3f}"
        )
        found.append(agrees(abs(time.value - 1) <= SAME, told, told))
    ks = [k for k in sorted(lab.config.cadd_table4.draws) if one(chains, setting=_setting(k))]
    times = {k: row.values["time"].value for k in ks if (row := one(chains, setting=_setting(k)))}
    bare = one(chains, setting=MDM)
    if bare:
        share = bare.values["time"].value
        told = f"a step of sampling takes {1 / share:.2f} times as long with one draw as without latents"
        found.append(agrees(abs(1 / share - 1) <= SAME, told, told))
    if max(times, default=1) > 1:
        told = "a step takes " + ", ".join(f"{time:.2f} times at K = {k}" for k, time in times.items())
        near = all(abs(time / k - 1) <= LINEAR for k, time in times.items())
        found.append(agrees(near, told, told))
    return found


def _between(one: Estimate) -> str:
    return "" if one.low is None or one.high is None else f" ({one.low:.3f} to {one.high:.3f})"


def _memory(rows: Sequence[Row], name: str, other: str) -> float:
    a, b = (one(rows, setting=label) for label in (name, other))
    return a.values["memory"].value / b.values["memory"].value if a and b else float("nan")


def quotes() -> tuple[Quote, ...]:
    costs = [(TRAINING, name, cost) for name, cost in cadd_paper.TRAINING.items()]
    costs += [(SAMPLING, _setting(k), cost) for k, cost in cadd_paper.SAMPLING.items()]
    return tuple(
        Quote(
            {"of": of, "setting": setting},
            {"tokens_per_second": cost.tokens_per_second, "memory": 1000 * cost.gigabytes},
        )
        for of, setting, cost in costs
    )


FIGURE = Figure(
    "cadd-table4",
    "CADD, Table 4",
    "What latents cost",
    "In training nothing to speak of; in sampling one draw costs as much as masked diffusion, and K draws K times that.",
    (
        Column("tokens_per_second", "tokens/s ↑", 0),
        Column("time", "time of a step, as a multiple ↓", 3),
        Column("memory", "memory, MB ↓", 1),
    ),
    lines,
    values,
    verdicts,
    (Chart("sampling, by draws", "setting", ("time", "memory"), where={"of": SAMPLING}, kind="bars"),),
    quotes(),
    lambda lab: wanted(lab, ("cadd",)),
    notes=(
        "One network, timed in turn in one process, each round in another order; medians over rounds, with intervals by "
        "bootstrap over rounds. The time of a step is a multiple of MDM's in training and of K = 1 in sampling. "
        f"“{AGAIN}” is the same work a second time: so much is chance.",
        "A training step is forward, backward and AdamW; a token of sampling is one position in one step. Memory is what "
        "tensors take at most beside weights and the optimiser's state: on a CPU those that operators make, on a GPU the "
        "allocator's.",
        "1,417 tokens a second at K = 4 is as the paper prints it. It calls the cost linear, which would be 11,800.",
    ),
    counted="rounds",
)  # fmt: skip
