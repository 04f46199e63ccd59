"""Fig. 11: what changes with the number of registers, the time of the refresh, and the block offsets."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.reproduce.figure import Chart, Figure, Label, Line, Row, agrees, apart, one, pick, too_near
from crocodil.reproduce.figures.fig6 import COLUMNS, NOTES, references, values
from crocodil.reproduce.lab import DENOISER, MAIN, Lab
from crocodil.reproduce.measures.judging import Judged
from crocodil.reproduce.measures.writing import refuse, written

REGISTERS, REFRESH, OFFSETS = "registers", "refresh", "offsets"
VARIANTS = {"offsets": "on", "no_offsets": "off"}
RECIPE = "accelerate launch recipes/train_denoiser.py --config recipes/configs/nano-denoiser-offsets.yaml"


def named(lab: Lab) -> bool:
    """Whether there is a denoiser with offsets and one without."""
    return all(getattr(lab.config.ablations, name) is not None for name in VARIANTS)


def lines(lab: Lab) -> list[Line]:
    config, model = lab.config.fig11, lab.model(MAIN)
    found: list[Line] = []

    def add(ablation: str, setting: Label, method: str, k: int, **options: object) -> None:
        texts = written(lab, method, config.nfe, config.length, k, remasking=config.remasking, **options)  # type: ignore[arg-type]
        labels: dict[str, Label] = {"ablation": ablation, "setting": setting}
        found.append(Line(labels, [*map(Judged, texts), *references(lab, config.length)]))

    for k in sorted(set(config.ks)):
        if refuse(model, k) is None:
            add(REGISTERS, k, "conthendisc", k)
    for alpha in sorted(set(config.refreshes)):
        if refuse(model, config.k) is None:
            if alpha:
                add(REFRESH, alpha, "conwithindisc", config.k, refresh=(alpha,))
            else:  # nothing stands there yet that could be looked at: the paper's @0 is ConThenDisc
                add(REFRESH, 0.0, "conthendisc", config.k)
    for name, setting in VARIANTS.items() if named(lab) else ():
        add(OFFSETS, setting, "conthendisc", config.k, model=DENOISER + name)
    return found


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    rows = [row for row in rows if row.values]
    found = []
    registers, refresh = pick(rows, ablation=REGISTERS), pick(rows, ablation=REFRESH)
    if len(registers) > 1:
        best = min(registers, key=lambda row: row.values["gen_ppl"].value).labels["setting"]
        most = registers[-1]
        told = f"Gen-PPL is lowest at {best} registers and {most.values['gen_ppl'].value:.1f} at {most.labels['setting']}"
        found.append(agrees(best != most.labels["setting"], told, told))
    if len(refresh) > 1:
        highest = max(refresh, key=lambda row: row.values["mauve"].value)
        lowest = min(refresh, key=lambda row: row.values["gen_ppl"].value).labels["setting"]
        middle = one(refresh, setting=0.5)
        first = highest.labels["setting"]
        told = f"of the refreshes, MAUVE is highest at α = {first:g} and Gen-PPL lowest at α = {lowest:g}"
        if middle and middle is not highest and not apart(highest.values["mauve"], middle.values["mauve"]):
            found.append(too_near(told))
        else:
            found.append(agrees(first == 0.5, told, told))
    on, off = (one(rows, ablation=OFFSETS, setting=setting) for setting in ("on", "off"))
    if on and off:
        more = on.values["mauve"].value - off.values["mauve"].value
        told = f"offsets change MAUVE by {more:+.2f} (the paper: about +0.03) and Gen-PPL from "
        told += f"{off.values['gen_ppl'].value:.1f} to {on.values['gen_ppl'].value:.1f}"
        near = not apart(on.values["mauve"], off.values["mauve"])
        found.append(too_near(told) if near else agrees(more > 0, told, told))
    return found


def missing(lab: Lab) -> list[str]:
    found = []
    why = refuse(lab.model(MAIN), lab.config.fig11.k)
    if why:
        found.append(f"Registers and refresh are left out: {why}.")
    if not named(lab):
        found.append(
            "The offsets want a denoiser trained with them and one trained without: set ablations.offsets and "
            f"ablations.no_offsets. `{RECIPE}` trains the first, with `largest_offset=0` the second."
        )
    return found


def chart(ablation: str, title: str, kind: str, log_x: bool = False) -> Chart:
    return Chart(
        title, "setting", ("gen_ppl", "mauve", "token_entropy"), where={"ablation": ablation}, log_x=log_x,
        log_y=("gen_ppl",), kind=kind, x_heading=title,  # type: ignore[arg-type]
    )  # fmt: skip


FIGURE = Figure(
    "fig11",
    "Figure 11",
    "Ablations: number of registers, time of the refresh, block offsets",
    "More registers than 8 do not help and may harm; one refresh midway is best; offsets are worth about 0.03 MAUVE.",
    COLUMNS,
    lines,
    values,
    verdicts,
    (
        chart(REGISTERS, "number of registers, ConThenDisc", "curves", log_x=True),
        chart(REFRESH, "fraction of the steps before the refresh", "curves"),
        chart(OFFSETS, "block offsets, ConThenDisc", "bars"),
    ),
    missing=missing,
    notes=(
        *NOTES,
        "The two denoisers of the offsets are small ones of eight registers that differ in this alone.",
    ),
)
