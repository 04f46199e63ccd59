"""Fig. 7: masked-token prediction at 90 % masking with noise on the registers, trained with such noise and without."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce.figure import PREDICTED, Chart, Figure, Line, Row, agrees, one, pick
from crocodil.reproduce.lab import MAIN, Lab
from crocodil.reproduce.measures.masked_tokens import MaskedTokens, predicted

VARIANTS = {"reference": "trained with noise", "no_noise": "trained without noise"}
RECIPE = "accelerate launch recipes/train_demasker.py --config recipes/configs/nano-ablation.yaml"


def named(lab: Lab) -> list[str]:
    """The ablations that there are models of; both or none, since each is read beside the other."""
    both = all(getattr(lab.config.ablations, name) is not None for name in VARIANTS)
    return list(VARIANTS) if both else []


def lines(lab: Lab) -> list[Line]:
    config = lab.config.fig7
    found = []
    for name in (MAIN, *named(lab)):
        model = lab.model(name)
        for sigma in sorted(set(config.sigmas)):
            parts = lab.parts(config.windows, model.window, name)
            tasks = [MaskedTokens(model.window, part, config.t, model.K, sigma, name) for part in parts]
            found.append(Line({"model": VARIANTS.get(name, "the model"), "σ": sigma}, tasks))
    return found


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    return predicted(lab, line.tasks)


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    if not named(lab):
        return []
    noisy, exact = (pick(rows, model=name) for name in VARIANTS.values())
    wide = [row.labels["σ"] for row in noisy if float(row.labels["σ"]) >= 0.5]
    ahead = [
        a.values["top1"].value > b.values["top1"].value
        for sigma in wide
        if (a := one(noisy, σ=sigma)) and (b := one(exact, σ=sigma))
    ]
    found = []
    if ahead:
        told = f"trained with noise, top-1 is higher at {sum(ahead)} of {len(ahead)} values of σ from {wide[0]:g} on"
        found.append(agrees(all(ahead), told, told))
    clean = [one(rows, σ=0.0) for rows in (noisy, exact)]
    if all(clean):
        price, other = (row.values["top1"].value for row in clean if row)
        found.append(f"Exact registers give a top-1 of {price:.1%} to the one and {other:.1%} to the other.")
    return found


def missing(lab: Lab) -> list[str]:
    if named(lab):
        return []
    return [
        "The two curves of the paper want a model trained with register noise and one trained without: set "
        f"ablations.reference and ablations.no_noise. `{RECIPE}` trains the first, with "
        "`corruption.register_noise.cosine=1` the second."
    ]


FIGURE = Figure(
    "fig7",
    "Figure 7",
    "Noise on the registers, at 90 % masking",
    "Trained with register noise, prediction degrades gradually; trained without, much earlier and more sharply.",
    PREDICTED,
    lines,
    values,
    verdicts,
    (Chart("by register noise σ", "σ", ("cross_entropy", "top1"), ("model",)),),
    missing=missing,
    notes=(
        "The two that are compared are small models that differ in this alone; the model itself stands beside them.",
    ),
)
