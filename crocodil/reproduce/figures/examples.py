"""Texts to look at, as Fig. 5 and 13 to 18: reconstructions by NFE and by k, a way between two texts, and new ones."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate, mean
from crocodil.registers.geometry import group_ends
from crocodil.reproduce import paper
from crocodil.reproduce.figure import Column, Figure, Label, Line, Passage, Quote, Row
from crocodil.reproduce.figures.fig6 import METHODS
from crocodil.reproduce.lab import MAIN, Lab
from crocodil.reproduce.measures.decoding import Mixed, Reconstructed
from crocodil.reproduce.measures.writing import Written, refuse

BY_NFE, BY_K, BETWEEN, NEW = "by NFE", "by k", "between two", "out of noise"


def lines(lab: Lab) -> list[Line]:
    config, model = lab.config.examples, lab.model(MAIN)
    length = min(config.length, model.window)
    there = sum(end - start for start, end in lab.parts(max(2, config.texts), length))
    part = (0, min(config.texts, there))
    found = []

    def add(what: str, setting: Label, *tasks: Reconstructed | Mixed | Written) -> None:
        found.append(Line({"what": what, "setting": setting}, tasks))

    for nfe in config.nfes:
        add(BY_NFE, nfe, Reconstructed(length, part, model.K, length, nfe))
    for k in group_ends(model.K):
        add(BY_K, k, Reconstructed(length, part, k, length, min(config.nfe, length)))
    for alpha in lab.config.fig8.alphas if there > 1 else ():
        add(BETWEEN, alpha, Mixed(length, (0, 1), model.K, alpha, min(config.nfe, length)))
    synthesis, k = lab.config.synthesis, lab.config.fig11.k
    for method in METHODS if refuse(model, k) is None else METHODS[:1]:
        given = None if method == "mdm" else k
        add(
            NEW,
            method,
            Written(
                part, method, config.nfe, length, given, None, "low_confidence", synthesis.temperature,
                synthesis.latent_steps, synthesis.refresh_steps, length if synthesis.fill else 0, lab.config.seed,
            ),
        )  # fmt: skip
    return found


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    if not isinstance(line.tasks[0], Reconstructed):
        return {}
    return {"cer": mean(lab.result(line.tasks[0]).values["cer"])}


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    return []


def passages(lab: Lab, lines: Sequence[Line]) -> list[Passage]:
    found = []
    for line in lines:
        task, values = line.tasks[0], lab.result(line.tasks[0]).values
        what, setting = str(line.labels["what"]), line.labels["setting"]
        name = {BY_NFE: "NFE {}", BY_K: "k = {}", BETWEEN: "α = {}", NEW: "{}"}[what].format(
            f"{setting:g}" if isinstance(setting, float) else setting
        )
        for at, text in enumerate(values["texts"]):
            reference = values["references"][at] if isinstance(task, Reconstructed) else None
            group = what if isinstance(task, Mixed) else f"{what}, text {at + 1}"
            label = f"{name}, CER {values['cer'][at]:.3f}" if reference is not None else name
            found.append(Passage(group, label, text, reference))
    return found


FIGURE = Figure(
    "examples",
    "Figures 5, 13 – 18",
    "Texts to look at",
    "Reconstructions are nearly perfect at few NFE; texts out of noise read like programs.",
    (Column("cer", "CER ↓"),),
    lines,
    values,
    verdicts,
    quotes=tuple(
        Quote({"what": BY_NFE, "setting": nfe}, {"cer": cer}) for nfe, cer in paper.FIGURE_5.items()
    ),
    passages=passages,
)
