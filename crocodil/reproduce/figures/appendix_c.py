"""App. C: what nested dropout and the scaling of registers are good for."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate
from crocodil.registers.geometry import group_ends
from crocodil.reproduce.figure import JUDGED, PREDICTED, Chart, Figure, Line, Row, agrees, one, pick
from crocodil.reproduce.lab import Lab
from crocodil.reproduce.measures.judging import Judged, judged
from crocodil.reproduce.measures.masked_tokens import MaskedTokens, predicted
from crocodil.reproduce.measures.writing import written

MASKED, NEW = "masked tokens", "texts out of noise"
VARIANTS = {
    "reference": "as in the paper",
    "no_nested_dropout": "without nested dropout",
    "layer_norm": "LayerNorm instead of √D scaling",
}
RECIPE = "accelerate launch recipes/train_demasker.py --config recipes/configs/nano-ablation.yaml"
DENOISER_RECIPE = (
    "accelerate launch recipes/train_denoiser.py --config recipes/configs/nano-denoiser-ablation.yaml"
)
CHANGES = {
    "reference": "",
    "no_nested_dropout": " corruption.nested_dropout.draw=off",
    "layer_norm": " scale=layer_norm",
}


def named(lab: Lab) -> list[str]:
    """The variants that there are models of."""
    return [name for name in VARIANTS if getattr(lab.config.ablations, name) is not None]


def generating(lab: Lab) -> list[str]:
    """Those with a denoiser of their own, the reference and another at least."""
    found = [name for name in named(lab) if lab.model(name).denoisers.unconditional is not None]
    return found if "reference" in found and len(found) > 1 else []


def lines(lab: Lab) -> list[Line]:
    config, found = lab.config.appendix_c, []
    for name in named(lab):
        model = lab.model(name)
        for k in group_ends(model.K):
            parts = lab.parts(config.windows, model.window, name)
            tasks = [MaskedTokens(model.window, part, config.t, k, 0.0, name) for part in parts]
            found.append(Line({"of": MASKED, "model": VARIANTS[name], "k": k}, tasks))
    for name in generating(lab):
        model = lab.model(name)
        nfe = min(config.nfe, model.window)
        texts = written(lab, "conthendisc", nfe, model.window, model.K, model=name)
        found.append(Line({"of": NEW, "model": VARIANTS[name], "k": model.K}, [*map(Judged, texts)]))
    return found


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    if line.labels["of"] == MASKED:
        return predicted(lab, line.tasks)
    return judged(lab, [task for task in line.tasks if isinstance(task, Judged)])


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    found = []
    masked, new = pick(rows, of=MASKED), [row for row in pick(rows, of=NEW) if row.values]
    most = max((int(row.labels["k"]) for row in masked), default=0)
    nested, without = VARIANTS["reference"], VARIANTS["no_nested_dropout"]
    both = [one(masked, model=name, k=most) for name in (nested, without)]
    few = [one(masked, model=name, k=max(1, most // 4)) for name in (nested, without)]
    if all(both) and all(few):
        a, b = (row.values["top1"].value for row in both if row)
        c, d = (row.values["top1"].value for row in few if row)
        told = (
            f"with all {most} registers top-1 is {a:.1%} with nested dropout and {b:.1%} without, with a quarter of "
            f"them {c:.1%} and {d:.1%}"
        )
        found.append(agrees(abs(a - b) < LIMITED and c > d, told, told))
    drawn = [one(new, model=name) for name in (nested, without)]
    if all(drawn):
        a, b = (row.values["gen_ppl"].value for row in drawn if row)
        c, d = (row.values["token_entropy"].value for row in drawn if row)
        told = (
            f"texts out of noise have a Gen-PPL of {a:.1f} with nested dropout and {b:.1f} without, at entropies of "
            f"{c:.2f} and {d:.2f}"
        )
        found.append(agrees(b > a, told, told))
    scaled = one(masked, model=VARIANTS["layer_norm"], k=most)
    if scaled and both[0]:
        found.append(
            f"LayerNorm in place of √D scaling: top-1 {scaled.values['top1'].value:.1%} where scaling has "
            f"{both[0].values['top1'].value:.1%}; the paper gives no number."
        )
    return found


def missing(lab: Lab) -> list[str]:
    found = [
        f"{label[0].upper()}{label[1:]}: set ablations.{name}, which `{RECIPE}{CHANGES[name]}` trains."
        for name, label in VARIANTS.items()
        if name not in named(lab)
    ]
    if not generating(lab):
        found.append(
            "Texts out of noise want denoisers of both models, in their folders' denoiser/unconditional: "
            f"`{DENOISER_RECIPE}` trains one."
        )
    return found


LIMITED = 0.1
"""What the verdict takes for a limited effect on top-1."""

FIGURE = Figure(
    "appendix-c",
    "App. C",
    "Without nested dropout, and with LayerNorm",
    "Removing nested dropout has a limited effect on reconstruction but harms generation; LayerNorm wants calibration.",
    (
        *PREDICTED,
        *JUDGED,
    ),
    lines,
    values,
    verdicts,
    (
        Chart(
            "masked tokens by number of registers, all tokens masked",
            "k",
            ("cross_entropy", "top1"),
            ("model",),
            {"of": MASKED},
            log_x=True,
        ),
        Chart("texts out of noise", "model", ("gen_ppl", "token_entropy"), (), {"of": NEW}, kind="bars"),
    ),
    missing=missing,
    notes=(
        "Small models that differ in this alone. Texts out of noise are ConThenDisc's with all registers, as long as "
        "these models' windows; each model has a denoiser of its own, trained alike.",
    ),
)
