"""Ours: registers (CRoCoDiL) and latents (CADD) in one demasker, each alone, and neither."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce.cadd_models import steps_told, wanted
from crocodil.reproduce.figure import (
    JUDGED,
    NOWHERE,
    PREDICTED,
    Chart,
    Column,
    Figure,
    Label,
    Line,
    Row,
    apart,
    one,
    pick,
    too_near,
)
from crocodil.reproduce.figures.cadd_fig3 import NOTES, REAL, passages
from crocodil.reproduce.lab import CADD, Lab
from crocodil.reproduce.measures.chains import chains, originals, quality
from crocodil.reproduce.measures.latents import MaskedUnderBoth
from crocodil.reproduce.measures.masked_tokens import predicted

MODELS = ("registers_only", "both")
MASKED, NEW = "masked tokens", "texts out of noise"
NEITHER, REGISTERS, LATENTS, BOTH = "neither", "registers", "latents", "both"
SEES: dict[str, tuple[str, bool, bool]] = {
    NEITHER: ("registers_only", False, False),
    REGISTERS: ("registers_only", True, False),
    LATENTS: ("both", False, True),
    BOTH: ("both", True, True),
}
"""What is seen: by which model, with registers, with latents."""


def registers(lab: Lab, name: str) -> int:
    """Registers that are shown."""
    return min(lab.config.cadd_both.k, lab.model(CADD + name).K)


def refuse(lab: Lab, name: str) -> str | None:
    """Why a model writes nothing under registers out of noise, or None where it does."""
    model = lab.model(CADD + name)
    made = model.denoisers.unconditional
    if made is None:
        return f"{model.name} has no unconditional denoiser of its registers"
    if made.config.K < registers(lab, name):
        return f"its denoiser makes {made.config.K} registers"
    return None


def lines(lab: Lab) -> list[Line]:
    config = lab.config.cadd_both
    found: list[Line] = []
    there = {sees: how for sees, how in SEES.items() if lab.has(how[0])}
    for sees, (name, shows, latents) in there.items():
        window, shown = lab.model(CADD + name).window, registers(lab, name) if shows else 0
        for t in sorted(set(config.levels)):
            parts = lab.parts(config.windows, window, CADD + name)
            tasks = [MaskedUnderBoth(window, part, t, shown, latents, CADD + name) for part in parts]
            found.append(Line({"of": MASKED, "sees": sees, "t": t}, tasks))
    for sees, (name, shows, latents) in there.items():
        if not shows or refuse(lab, name) is None:
            k = registers(lab, name) if shows else None
            texts = chains(lab, name, config.steps, int(latents), k=k)
            labels: dict[str, Label] = {"of": NEW, "sees": sees, "t": NOWHERE}
            found.append(Line(labels, [*texts, *originals(lab, name)]))
    if there:
        name = next(iter(there.values()))[0]
        found.append(Line({"of": NEW, "sees": REAL, "t": NOWHERE}, originals(lab, name)))
    return found


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    return predicted(lab, line.tasks) if line.labels["of"] == MASKED else quality(lab, line.tasks)


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    found = []
    for other in (REGISTERS, LATENTS):
        pairs = [
            (row.values["top1"], rival.values["top1"])
            for row in pick(rows, of=MASKED, sees=BOTH)
            if (rival := one(rows, of=MASKED, sees=other, t=row.labels["t"]))
        ]
        if pairs:
            ahead = sum(a.value > b.value for a, b in pairs)
            clear = sum(a.value > b.value and apart(a, b) for a, b in pairs)
            found.append(
                f"Top-1 of masked tokens is higher with both than with {other} alone at {ahead} of {len(pairs)} levels, "
                f"outside of the intervals at {clear}."
            )
    written = {sees: one(rows, of=NEW, sees=sees) for sees in SEES}
    both = written.pop(BOTH)
    for other, row in written.items():
        if both and row and both.values and row.values:
            near = True
            told = []
            for name, heading, digits in (("mauve", "MAUVE", 2), ("gen_ppl", "Gen-PPL", 1)):
                a, b = both.values[name], row.values[name]
                near = near and not apart(a, b)
                told.append(f"{heading} {a.value:.{digits}f} beside {b.value:.{digits}f}")
            said = f"texts out of noise, both beside {other}: {', '.join(told)}"
            found.append(too_near(said) if near else f"{said[0].upper()}{said[1:]}.")
    return [*found, *steps_told(lab, MODELS)]


def missing(lab: Lab) -> list[str]:
    found = wanted(lab, MODELS)
    whys = (refuse(lab, name) for name in MODELS if lab.has(name))
    return found + [
        f"Texts under registers are left out: {why}. Those of the model itself fit as long as the encoder is the same."
        for why in dict.fromkeys(whys)
        if why
    ]


FIGURE = Figure(
    "cadd-both",
    "CRoCoDiL and CADD",
    "Registers and latents in one demasker",
    "Neither paper tries both. Registers tell what the whole text is, latents what each masked token may be.",
    (
        *PREDICTED,
        Column("mauve", "MAUVE ↑", 2),
        *JUDGED,
    ),
    lines,
    values,
    verdicts,
    (
        Chart("masked tokens by level t", "t", ("cross_entropy", "top1"), ("sees",), {"of": MASKED}),
        Chart("texts out of noise", "sees", ("mauve", "gen_ppl", "token_entropy"), (), {"of": NEW}, kind="bars"),
    ),
    missing=missing,
    passages=lambda lab, lines: passages(lab, lines, "sees"),
    notes=(
        "Both models go on from the bundled one, with its encoder, for as many steps: one with latents, one without. "
        "Registers of masked tokens are those of the text itself; of new texts, out of noise (ConThenDisc).",
        "A noised latent is made of the token that is asked for, so what is predicted under latents says nothing about "
        "likelihood: it says how much there is to read. Compare both with latents, and registers with neither.",
        *NOTES,
    ),
)  # fmt: skip
