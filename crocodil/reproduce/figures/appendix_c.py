"""App. C: what nested dropout and the scaling of registers are good for."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate
from crocodil.registers.geometry import group_ends
from crocodil.reproduce.figure import Chart, Column, Figure, Line, Row, agrees, one
from crocodil.reproduce.lab import Lab
from crocodil.reproduce.measures.masked_tokens import MaskedTokens, cross_entropy, top1

VARIANTS = {
    "reference": "as in the paper",
    "no_nested_dropout": "without nested dropout",
    "layer_norm": "LayerNorm instead of √D scaling",
}
RECIPE = "accelerate launch recipes/train_demasker.py --config recipes/configs/nano_ablation.yaml"
CHANGES = {
    "reference": "",
    "no_nested_dropout": " corruption.nested_dropout.draw=off",
    "layer_norm": " scale=layer_norm",
}


def lines(lab: Lab) -> list[Line]:
    config, found = lab.config.appendix_c, []
    for name, label in VARIANTS.items():
        if getattr(lab.config.ablations, name) is None:
            continue
        model = lab.model(name)
        for k in group_ends(model.K):
            parts = lab.parts(config.windows, model.window, name)
            tasks = [MaskedTokens(model.window, part, config.t, k, 0.0, name) for part in parts]
            found.append(Line({"model": label, "k": k}, tasks))
    return found


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    return {"cross_entropy": cross_entropy(lab, line.tasks), "top1": top1(lab, line.tasks)}


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    found = []
    most = max((int(row.labels["k"]) for row in rows), default=0)
    nested, without = VARIANTS["reference"], VARIANTS["no_nested_dropout"]
    both = [one(rows, model=name, k=most) for name in (nested, without)]
    few = [one(rows, model=name, k=max(1, most // 4)) for name in (nested, without)]
    if all(both) and all(few):
        a, b = (row.values["top1"].value for row in both if row)
        c, d = (row.values["top1"].value for row in few if row)
        told = (
            f"with all {most} registers top-1 is {a:.1%} with nested dropout and {b:.1%} without, with a quarter of them "
            f"{c:.1%} and {d:.1%}"
        )
        found.append(agrees(abs(a - b) < 0.1 and c > d, told, told))
    scaled = one(rows, model=VARIANTS["layer_norm"], k=most)
    if scaled and both[0]:
        found.append(
            f"LayerNorm in place of √D scaling: top-1 {scaled.values['top1'].value:.1%} where scaling has "
            f"{both[0].values['top1'].value:.1%}; the paper gives no number."
        )
    return found


def missing(lab: Lab) -> list[str]:
    return [
        f"{label[0].upper()}{label[1:]}: set ablations.{name}, which `{RECIPE}{CHANGES[name]}` trains."
        for name, label in VARIANTS.items()
        if getattr(lab.config.ablations, name) is None
    ]


FIGURE = Figure(
    "appendix-c",
    "App. C",
    "Without nested dropout, and with LayerNorm",
    "Removing nested dropout has a limited effect on reconstruction but harms generation; LayerNorm wants calibration.",
    (Column("cross_entropy", "cross-entropy, nats ↓"), Column("top1", "top-1 ↑", 1, percent=True)),
    lines,
    values,
    verdicts,
    (
        Chart(
            "by number of registers, all tokens masked",
            "k",
            ("cross_entropy", "top1"),
            ("model",),
            log_x=True,
        ),
    ),
    missing=missing,
    notes=(
        "Small models that differ in this alone. What the paper says of generation is not measured here.",
    ),
)
