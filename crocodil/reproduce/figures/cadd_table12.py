"""CADD Table 12: the latent of one token under another's mask, from clean to noise; and what ρ has to do with it."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate, mean
from crocodil.reproduce import cadd_paper
from crocodil.reproduce.cadd_models import named, steps_told, wanted
from crocodil.reproduce.figure import (
    JUDGED,
    NOWHERE,
    Chart,
    Column,
    Figure,
    Label,
    Line,
    Passage,
    Row,
    agrees,
    pick,
)
from crocodil.reproduce.figures.cadd_fig3 import NOTES
from crocodil.reproduce.lab import CADD, Lab
from crocodil.reproduce.measures.chains import chains, originals, quality
from crocodil.reproduce.measures.latents import PlantedToken, counted

REFERENCE = "reference"
MODELS = (REFERENCE, "rho_half", "rho_double", "rho_root_E")
OWN, OTHER, NEW = "its own latent", "another's latent", "texts out of noise"
HALF = 0.5
FEW = 0.1
"""What the verdict takes for hardly ever."""


def norm(lab: Lab, name: str) -> str:
    """ρ as a label."""
    augmented = lab.model(CADD + name).augmented
    assert augmented is not None and augmented.latents is not None
    return f"ρ = {augmented.latents.rho:.1f}"


def lines(lab: Lab) -> list[Line]:
    config, found = lab.config.cadd_table12, []
    for name in by_norm(lab):
        window = lab.model(CADD + name).window
        for of in (OWN, OTHER):
            for t in sorted(set(config.levels)):
                labels: dict[str, Label] = {"of": of, "ρ": norm(lab, name), "t": t}
                parts = lab.parts(config.windows, window, CADD + name)
                found.append(
                    Line(labels, [PlantedToken(window, part, t, of == OWN, CADD + name) for part in parts])
                )
    for name in by_norm(lab):
        labels = {"of": NEW, "ρ": norm(lab, name), "t": NOWHERE}
        found.append(Line(labels, [*chains(lab, name, config.steps, 1), *originals(lab, name)]))
    return found


def by_norm(lab: Lab) -> list[str]:
    """The models that there are, from small latents to large ones."""

    def rho(name: str) -> float:
        augmented = lab.model(CADD + name).augmented
        return augmented.latents.rho if augmented is not None and augmented.latents is not None else 0.0

    return sorted((name for name in named(lab, MODELS) if rho(name)), key=rho)


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    if line.labels["of"] == NEW:
        return quality(lab, line.tasks)
    found = {name: mean(counted(lab, line.tasks, name, "planted")) for name in ("nearest", "predicted")}
    if line.labels["of"] == OTHER:
        found["there"] = mean(counted(lab, line.tasks, "predicted", "there"))
    return found


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    found = []
    if REFERENCE in by_norm(lab):
        here = [row for row in pick(rows, **{"of": OTHER, "ρ": norm(lab, REFERENCE)}) if row.values]
        if len(here) > 1:
            first, last = here[0], here[-1]
            a, b = (row.values["predicted"].value for row in (first, last))
            told = (
                f"at {norm(lab, REFERENCE)} the token is predicted whose latent it is, and not the one that stood there, "
                f"in {100 * a:.0f} % at t = {first.labels['t']:g} and in {100 * b:.0f} % at t = {last.labels['t']:g}"
            )
            found.append(agrees(a > HALF and b < FEW, told, told))
    for of, name in ((OWN, "nearest"), (OTHER, "predicted")):
        lost_at = []
        for rho in dict.fromkeys(row.labels["ρ"] for row in rows):
            here = [row for row in pick(rows, **{"of": of, "ρ": rho}) if row.values]
            lost = next((row.labels["t"] for row in here if row.values[name].value < HALF), None)
            lost_at.append(f"{rho}: " + ("at no t" if lost is None else f"from t = {lost:g} on"))
        if lost_at:
            what = (
                "The nearest row is another token's"
                if name == "nearest"
                else "The network does not follow a latent"
            )
            found.append(f"{what} more often than not: {', '.join(lost_at)}.")
    written = [row for row in pick(rows, **{"of": NEW}) if row.values]
    if len(written) > 1:
        found.append(
            "Texts out of noise have a Gen-PPL of "
            + ", ".join(f"{row.values['gen_ppl'].value:.1f} ({row.labels['ρ']})" for row in written)
            + ", and an entropy of "
            + ", ".join(f"{row.values['token_entropy'].value:.2f}" for row in written)
            + ". The paper names no ρ."
        )
    return [*found, *steps_told(lab, MODELS)]


def passages(lab: Lab, lines: Sequence[Line]) -> list[Passage]:
    """What the reference predicts in a few programs, by t."""
    if REFERENCE not in by_norm(lab):
        return []
    here = [line for line in lines if line.labels["of"] == OTHER and line.labels["ρ"] == norm(lab, REFERENCE)]
    vocabulary = lab.model(CADD + REFERENCE).vocabulary
    say = lambda token: vocabulary.decode_bytes([token]).decode("utf-8", "replace")  # noqa: E731
    found: dict[int, list[str]] = {}
    for line in here:
        result = lab.result(line.tasks[0]).values if line.tasks else {}
        rows = list(zip(*(result.get(name, ()) for name in NAMES), strict=True))
        for at, (before, behind, there, planted, predicted) in enumerate(
            rows[: lab.config.cadd_table12.examples]
        ):
            head, tail = before.split("\n")[-1], behind.split("\n")[0]
            told = found.setdefault(
                at, [f"program   {head}⟦{say(there)}⟧{tail}", f"latent    {head}⟦{say(planted)}⟧{tail}"]
            )
            told.append(f"t = {line.labels['t']:<5g} {head}⟦{say(predicted)}⟧{tail}")
    return [
        Passage(f"a token and another's latent, program {at + 1}", "what is predicted, by t", "\n".join(told))
        for at, told in found.items()
    ]


NAMES = ("before", "behind", "there", "planted", "predicted")
PRINTED = ", ".join(f"“{token}” at {t:g}" for t, token in cadd_paper.TABLE_12.items())
FIGURE = Figure(
    "cadd-table12",
    "CADD, Table 12",
    "What a latent tells, by noise",
    "Up to t = 0.3 the token is predicted whose latent it is; then related words, and at t = 1 what is common.",
    (
        Column("nearest", "nearest row is the latent's token", 1, percent=True),
        Column("predicted", "prediction is the latent's token", 1, percent=True),
        Column("there", "prediction is what stood there", 1, percent=True),
        Column("mauve", "MAUVE ↑", 2),
        *JUDGED,
    ),
    lines,
    values,
    verdicts,
    (
        Chart("another token's latent under the mask", "t", ("predicted", "there"), ("ρ",), {"of": OTHER}),
        Chart("its own latent under the mask", "t", ("nearest", "predicted"), ("ρ",), {"of": OWN}),
        Chart("by ρ", "ρ", ("mauve", "gen_ppl", "token_entropy"), (), {"of": NEW}, kind="bars"),
    ),
    missing=lambda lab: wanted(lab, MODELS),
    passages=passages,
    notes=(
        "In every window one token is masked, all others are visible, and under the mask stands the latent of that "
        "token, or of another of the same text, noised to t with the same ε at every t. The nearest row of the embedding "
        "table knows nothing of the text around. One mask alone at a large t is rare in training and in sampling.",
        f"The paper's sentence is “A [MASK] sits on the mat” with the latent of “model”: {PRINTED}.",
        "Small models that differ in ρ alone, the norm of a clean latent; √(2 ln V) is the reference's.",
        *NOTES,
    ),
)  # fmt: skip
