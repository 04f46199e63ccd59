"""Fig. 8: texts out of mixtures of the registers of two programs."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce.figure import JUDGED, Chart, Column, Figure, Line, Row, agrees, one, pick
from crocodil.reproduce.lab import MAIN, Lab
from crocodil.reproduce.measures.decoding import Mixed, Real
from crocodil.reproduce.measures.judging import Judged, average, judged, mauve, of_kind, real

STILL_HIGH, MODERATE = 0.8, 2.0
"""What the verdict takes for high quality midway: this share of the better end's MAUVE at least, and Gen-PPL at most
so many times that of the worse end."""


def lines(lab: Lab) -> list[Line]:
    config, model = lab.config.fig8, lab.model(MAIN)
    there = sum(end - start for start, end in lab.parts(2 * config.pairs, config.length)) // 2
    references = real(lab, 2 * there, config.length)
    found: list[Line] = []
    if not there:  # a pair takes two
        return found
    for k in dict.fromkeys(model.K if k is None else min(k, model.K) for k in config.ks):
        for alpha in sorted(set(config.alphas)):
            texts = [Mixed(config.length, part, k, alpha, config.nfe) for part in lab.parts(there)]
            found.append(Line({"k": k, "α": alpha}, [*map(Judged, texts), *references]))
    return found


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    made = of_kind(line.tasks, Mixed)
    texts = [task.of for task in made]
    found = {name: average(lab, texts, name) for name in ("cer_first", "cer_second")}
    return {"mauve": mauve(lab, made, of_kind(line.tasks, Real))} | judged(lab, made) | found


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    found = []
    for k in dict.fromkeys(row.labels["k"] for row in rows):
        here = pick(rows, k=k)
        middle, ends = one(here, α=0.5), [row for row in here if row.labels["α"] in (0.0, 1.0)]
        if middle and ends:
            mauves, ppls = (
                [row.values[name].value for row in (middle, *ends)] for name in ("mauve", "gen_ppl")
            )
            told = (
                f"k = {k}: midway MAUVE is {mauves[0]:.2f} and Gen-PPL {ppls[0]:.1f}, at the ends "
                f"{mauves[1]:.2f} and {mauves[-1]:.2f}, {ppls[1]:.1f} and {ppls[-1]:.1f}"
            )
            holds = mauves[0] > STILL_HIGH * max(mauves[1:]) and ppls[0] < MODERATE * max(ppls[1:])
            found.append(agrees(holds, told, told))
    return found


FIGURE = Figure(
    "fig8",
    "Figure 8",
    "Between two programs in register space",
    "Quality stays high all the way between two random programs, with a moderate rise of Gen-PPL in the middle.",
    (
        Column("mauve", "MAUVE ↑", 2),
        *JUDGED,
        Column("cer_first", "CER to the first", 2),
        Column("cer_second", "CER to the second", 2),
    ),
    lines,
    values,
    verdicts,
    (Chart("by the place α between the two", "α", ("mauve", "gen_ppl"), ("k",), log_y=("gen_ppl",)),),
    notes=(
        "Registers are mixed linearly and brought back to norm √D. The paper plots MAUVE and prints no "
        "number. The verdict asks midway for four fifths of the better end's MAUVE, and for at most twice the "
        "Gen-PPL of the worse end.",
    ),
)
