"""CADD Table 1: images out of noise."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.cadd.sampler import Guess
from crocodil.reproduce import cadd_paper
from crocodil.reproduce.cadd_models import LABELS, named, steps_told, wanted
from crocodil.reproduce.figure import NOWHERE, Chart, Column, Figure, Label, Line, Quote, Row, Sheet
from crocodil.reproduce.figures.cadd_fig3 import beside
from crocodil.reproduce.lab import Lab
from crocodil.reproduce.measures.pictures import (
    DIGITS,
    DrawnImages,
    HeldOutImages,
    SeenImages,
    drawn,
    in_hexadecimal,
    pixels,
    possible,
    seen,
)

MODELS = ("digits_mdm", "digits_cadd")
REAL, SEEN = "held-out digits", "digits of training"
SHOWN = 14
"""Digits of a row of the picture."""


def there(lab: Lab) -> list[str]:
    """The models of digits that there are."""
    if not possible():
        return []
    return [name for name in named(lab, MODELS) if pixels(lab, name).space == DIGITS]


def methods(lab: Lab) -> dict[str, tuple[str, Guess]]:
    """What is compared, by its label: a model, with latents once for each estimate of them."""
    found: dict[str, tuple[str, Guess]] = {}
    for name in there(lab):
        if pixels(lab, name).latents is None:
            found[LABELS[name]] = name, "hard"  # of which there are none
        else:
            found |= {f"{LABELS[name]}, {how}": (name, how) for how in lab.config.cadd_table1.estimates}
    return found


def lines(lab: Lab) -> list[Line]:
    found: list[Line] = []
    for method, (name, estimate) in methods(lab).items():
        for nfe in sorted(set(lab.config.cadd_table1.nfes)):
            found.append(Line({"method": method, "NFE": nfe}, drawn(lab, name, nfe, estimate)))
    if found:
        found.append(Line({"method": REAL, "NFE": NOWHERE}, [HeldOutImages()]))
        found.append(Line({"method": SEEN, "NFE": NOWHERE}, [SeenImages(lab.config.cadd_table1.images)]))
    return found


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    mdm = {"method": LABELS["digits_mdm"]}
    found = [
        beside(rows, name, {"method": method}, mdm, "NFE")
        for method, (model, _) in methods(lab).items()
        if model == "digits_cadd"
        for name in ("fid", "inception_score")
    ]
    return [*filter(None, found), *steps_told(lab, MODELS, "images")]


def missing(lab: Lab) -> list[str]:
    if not possible():
        return ["Images are left out, as diffusers is not installed: `pip install crocodil[images]`."]
    others = [name for name in named(lab, MODELS) if name not in there(lab)]
    return wanted(lab, MODELS) + [
        f"{LABELS[name]} is left out: cadd.{name} is of other images, for which crocodil has no network that sees them."
        for name in others
    ]


def sheets(lab: Lab, lines: Sequence[Line]) -> list[Sheet]:
    """Held-out digits, and the first of each model at the most evaluations."""
    last = {line.labels["method"]: line for line in lines if line.labels["method"] != SEEN}
    rows = {}
    for method, line in sorted(last.items(), key=lambda one: one[0] != REAL):
        task = line.tasks[0]
        if (
            isinstance(task, DrawnImages | HeldOutImages)
            and (ids := lab.result(task).tensors.get("ids_BN")) is not None
        ):
            nfe = "" if method == REAL else f", NFE {line.labels['NFE']}"
            rows[f"{method}{nfe}"] = in_hexadecimal(ids[:SHOWN])
    return [Sheet("digits, the first of each", list(rows), list(rows.values()), DIGITS.W)] if rows else []


def quotes() -> tuple[Quote, ...]:
    found = []
    for method, scores in cadd_paper.TABLE_1.items():
        values = {"fid": scores.fid}
        if scores.inception_score is not None:
            values["inception_score"] = scores.inception_score
        labels: dict[str, Label] = {"method": method, "NFE": scores.nfe or NOWHERE}
        found.append(Quote(labels, values))
    others = {nfe: fid for nfe, fid in cadd_paper.TABLE_11.items() if nfe != cadd_paper.TABLE_1["CADD"].nfe}
    return (*found, *(Quote({"method": "CADD", "NFE": nfe}, {"fid": fid}) for nfe, fid in others.items()))


FIGURE = Figure(
    "cadd-table1",
    "CADD, Table 1",
    "Images out of noise",
    "On CIFAR-10, CADD has the lowest FID and the highest Inception score of all methods that it is compared with.",
    (
        Column("fid", "FID ↓", 2),
        Column("inception_score", "IS ↑", 2),
    ),
    lines,
    lambda lab, line: seen(lab, line.tasks),
    verdicts,
    (Chart("digits, by NFE", "NFE", ("fid", "inception_score"), ("method",), log_x=True),),
    quotes(),
    missing,
    notes=(
        "Ours are of scikit-learn's digits, 8 x 8 pixels of 17 levels, seen by a small classifier of them and not by "
        "Inception: they compare with one another alone. FID is the distance to all digits of training. It falls, and IS "
        "rises, with the number of images: of held-out digits there are fewer than are drawn; as many digits of training "
        "as are drawn are what no model can beat, as the classifier knows them by heart.",
    ),
    sheets=sheets,
    counted="images",
)
