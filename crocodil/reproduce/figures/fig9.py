"""Fig. 9: how near the denoised registers are to the clean ones, against the noise level."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce.figure import Chart, Column, Figure, Line, Row, agrees, one, pick
from crocodil.reproduce.lab import MAIN, Lab
from crocodil.reproduce.measures.judging import average
from crocodil.reproduce.measures.registers import Denoised

NOTHING = "nothing"
WIDE = 0.75
"""Share of the levels that the verdict takes for a wide range."""
RECIPE = "accelerate launch recipes/train_denoiser.py --config recipes/configs/"
RECIPES = {"unconditional": "nano_denoiser", "conditional": "nano_denoiser_conditional"}


def shares(lab: Lab, visible: Sequence[float]) -> list[float | None]:
    """What a denoiser sees of the text, for the denoisers that the model has: None is the unconditional one."""
    denoisers = lab.model(MAIN).denoisers
    found: list[float | None] = [] if denoisers.unconditional is None else [None]
    return found + ([] if denoisers.conditional is None else list(visible))


def most(lab: Lab, share: float | None) -> int:
    """Registers that the denoiser makes."""
    denoisers = lab.model(MAIN).denoisers
    trained = denoisers.unconditional if share is None else denoisers.conditional
    assert trained is not None
    return trained.config.K


def seen(share: float | None) -> str:
    """The label of a share."""
    return NOTHING if share is None else f"{100 * share:g}%"


def lines(lab: Lab) -> list[Line]:
    config, length = lab.config.fig9, lab.model(MAIN).window
    return [
        Line(
            {"k": k, "sees": seen(share), "s": s},
            [Denoised(length, part, s, share, k) for part in lab.parts(config.windows, length)],
        )
        for share in shares(lab, config.visible)
        for k in dict.fromkeys(min(k, most(lab, share)) for k in config.ks)
        for s in sorted(set(config.levels))
    ]


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    return {"psnr": average(lab, line.tasks, "psnr")}


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    found = []
    for k in dict.fromkeys(row.labels["k"] for row in rows):
        without = pick(rows, k=k, sees=NOTHING)
        for label in dict.fromkeys(row.labels["sees"] for row in pick(rows, k=k)):
            if label == NOTHING or not without:
                continue
            pairs = [(b, a) for a in without if (b := one(rows, k=k, sees=label, s=a.labels["s"]))]
            above = [
                f"{a.labels['s']:g}" for b, a in pairs if b.values["psnr"].value > a.values["psnr"].value
            ]
            told = f"k = {k}, {label} of the text seen: PSNR is higher than without at {len(above)} of {len(pairs)} s"
            if 0 < len(above) < len(pairs):
                told += f" ({', '.join(above)})"
            found.append(agrees(len(above) >= WIDE * len(pairs), told, told))
    return found


def missing(lab: Lab) -> list[str]:
    denoisers = lab.model(MAIN).denoisers
    return [
        f"The model has no {kind} denoiser: give one with --denoiser, or train one, as with `{RECIPE}{name}.yaml`."
        for kind, name in RECIPES.items()
        if getattr(denoisers, kind) is None
    ]


FIGURE = Figure(
    "fig9",
    "Figure 9",
    "Denoised registers against the noise level",
    "The conditional denoiser has the higher PSNR over a wide range of noise levels.",
    (Column("psnr", "PSNR, dB ↑", 2),),
    lines,
    values,
    verdicts,
    (Chart("by base time s", "s", ("psnr",), ("k", "sees")),),
    missing=missing,
    notes=(
        "s = 0 is clean and 1 is noise; groups of registers are offset as in training. 0 dB is what predicting zero "
        "everywhere gives.",
    ),
)
