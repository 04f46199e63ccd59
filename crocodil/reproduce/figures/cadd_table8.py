"""CADD Table 8: how a token's embedding and its latent become one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from crocodil.reproduce import cadd_paper
from crocodil.reproduce.cadd_models import named, steps_told, wanted
from crocodil.reproduce.figure import Chart, Figure, Line, Row
from crocodil.reproduce.figures.cadd_fig3 import COLUMNS, NOTES, as_good, values
from crocodil.reproduce.lab import Lab
from crocodil.reproduce.measures.chains import chains, originals

MODELS = {"mdm_small": "none (MDM)", "reference": "add", "concat": "concat", "reweight": "reweight"}
SMALL = "Small models that differ in this alone, trained alike; the paper does not say at how many steps T it measured."


def lines(
    lab: Lab, steps: int, label: str, models: Mapping[str, str], printed: Mapping[str, float]
) -> list[Line]:
    return [
        Line(
            {label: models[name], "T": steps},
            [*chains(lab, name, steps, int(name != "mdm_small")), *originals(lab, name)],
            {"mauve": printed[models[name]]} if models[name] in printed else {},
        )
        for name in named(lab, list(models))
    ]  # fmt: skip


def verdicts(lab: Lab, rows: Sequence[Row], label: str, models: Mapping[str, str]) -> list[str]:
    """That MAUVE does not depend on it, as the paper has it."""
    latents = [row for row in rows if row.values and row.labels[label] != MODELS["mdm_small"]]
    names = [str(row.labels[label]) for row in latents]
    found = [
        as_good(f"{label} {a}", one, b, other)
        for (a, one), (b, other) in combinations(zip(names, latents, strict=True), 2)
    ]
    return [*filter(None, found), *steps_told(lab, list(models))]


def figure(
    name: str,
    place: str,
    title: str,
    finding: str,
    label: str,
    models: Mapping[str, str],
    printed: Mapping[str, float],
    notes: tuple[str, ...] = (),
) -> Figure:
    """Table 8 or 9."""
    steps: Callable[[Lab], int] = lambda lab: getattr(lab.config, name.replace("-", "_")).steps  # noqa: E731
    return Figure(
        name,
        place,
        title,
        finding,
        COLUMNS,
        lambda lab: lines(lab, steps(lab), label, models, printed),
        values,
        lambda lab, rows: verdicts(lab, rows, label, models),
        (Chart(title.lower(), label, ("mauve", "gen_ppl", "token_entropy"), kind="bars"),),
        missing=lambda lab: wanted(lab, list(models)),
        notes=(SMALL, *notes, *NOTES),
    )


FIGURE = figure(
    "cadd-table8",
    "CADD, Table 8",
    "Fusion of embedding and latent",
    "Adding, concatenating and reweighting are about equally good.",
    "fusion",
    MODELS,
    {fusion: mauve for fusion, (mauve, _) in cadd_paper.TABLE_8.items()},
    (
        "The paper's entropies are "
        + ", ".join(f"{entropy} ({fusion})" for fusion, (_, entropy) in cadd_paper.TABLE_8.items())
        + ", of other tokens than ours.",
    ),
)
