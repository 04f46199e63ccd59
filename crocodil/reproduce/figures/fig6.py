"""Fig. 6: texts out of noise against NFE: the unguided demasker, ConThenDisc and ConWithinDisc."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.errors import CrocodilError
from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce import paper
from crocodil.reproduce.config import Generation
from crocodil.reproduce.figure import (
    JUDGED,
    Chart,
    Column,
    Figure,
    Label,
    Line,
    Quote,
    Row,
    agrees,
    one,
    pick,
)
from crocodil.reproduce.lab import MAIN, Lab
from crocodil.reproduce.measures.decoding import Real
from crocodil.reproduce.measures.judging import Judged, average, judged, mauve, of_kind, real
from crocodil.reproduce.measures.writing import Written, refuse, written

METHODS = ("mdm", "conthendisc", "conwithindisc")
COLUMNS = (
    Column("mauve", "MAUVE ↑", 2),
    *JUDGED,
    Column("valid", "valid Python ↑", 0, percent=True),
    Column("nfe_paper", "NFE as the paper counts", 1),
    Column("nfe_wall", "NFE by wall time", 1),
)
NOTES = (
    "Gen-PPL alone is easily fooled: a text that repeats itself is easy to predict. Read it beside entropy (of the "
    "tokens within a text) and repetition (share of 4-grams that stood before).",
    "MAUVE wants thousands of texts. With few, and with a small judge, it tells collapse from variety and nothing finer: "
    "garbage of many different tokens is near 1.",
    "NFE is demasker evaluations. The paper's count adds the denoiser's evaluations by the ratio of parameters; wall "
    "time adds what they took on this machine, in units of a demasker evaluation.",
)
REAL = "held-out programs"


def lines(lab: Lab, config: Generation) -> list[Line]:
    if len(config.lengths) != len(config.ks):
        raise CrocodilError(
            f"lengths {list(config.lengths)} and ks {list(config.ks)} must be as many: one number of registers for each"
        )
    found = []
    for length, k in zip(config.lengths, config.ks, strict=True):
        methods = METHODS if refuse(lab.model(MAIN), k) is None else METHODS[:1]
        for method in methods:
            for nfe in sorted(set(config.nfes)):
                if nfe <= length:
                    texts = written(lab, method, nfe, length, k, remasking=config.remasking)
                    labels: dict[str, Label] = {"n": length, "K": k, "method": method, "NFE": nfe}
                    found.append(Line(labels, [*map(Judged, texts), *references(lab, length)]))
        found.append(Line({"n": length, "K": k, "method": REAL, "NFE": 0}, references(lab, length)))
    return found


def references(lab: Lab, length: int) -> list[Judged]:
    """Held-out programs of this length, up to four for each text that is written."""
    return real(lab, 4 * lab.config.synthesis.texts, length)


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    made, held_out = of_kind(line.tasks, Written), of_kind(line.tasks, Real)
    readings = made or held_out
    found = judged(lab, readings)
    if not found:
        return {}
    found["valid"] = average(lab, readings, "valid")
    if made:
        found["mauve"] = mauve(lab, made, held_out)
        for name in ("nfe_paper", "nfe_wall"):
            found[name] = average(lab, [task.of for task in made], name)
    return found


def verdicts(lab: Lab, rows: Sequence[Row]) -> list[str]:
    found = []
    sizes = dict.fromkeys((row.labels["n"], row.labels["K"]) for row in rows)
    for n, K in sizes:
        here = [row for row in pick(rows, n=n, K=K) if row.values]
        nfes = list(dict.fromkeys(row.labels["NFE"] for row in here if row.labels["method"] != REAL))
        for better, worse in (("conthendisc", "mdm"), ("conwithindisc", "conthendisc")):
            pairs = [
                (a, b)
                for nfe in nfes
                if (a := one(here, method=better, NFE=nfe)) and (b := one(here, method=worse, NFE=nfe))
            ]
            if pairs:
                mauve_wins = sum(a.values["mauve"].value > b.values["mauve"].value for a, b in pairs)
                ppl_wins = sum(a.values["gen_ppl"].value < b.values["gen_ppl"].value for a, b in pairs)
                counted = (
                    f"at n = {n}, {better} has the higher MAUVE at {mauve_wins} and the lower Gen-PPL at {ppl_wins} of "
                    f"{len(pairs)} NFE beside {worse}"
                )
                found.append(agrees(mauve_wins == ppl_wins == len(pairs), counted, counted))
        human = one(here, method=REAL)
        loops = [row for row in here if row.values["repetition"].value > 0.5]
        if human and loops:
            told = ", ".join(f"{row.labels['method']} at NFE {row.labels['NFE']}" for row in loops)
            found.append(
                f"Low Gen-PPL by repetition (more than half of the 4-grams; programs have "
                f"{human.values['repetition'].value:.2f}): n = {n}, {told}."
            )
    return found


def missing(lab: Lab, config: Generation) -> list[str]:
    told = (refuse(lab.model(MAIN), k) for k in config.ks)
    return [f"ConThenDisc and ConWithinDisc are left out: {why}." for why in dict.fromkeys(told) if why]


def figure(name: str, place: str, sizes: str, quotes: tuple[Quote, ...]) -> Figure:
    """Fig. 6 or 12."""
    config_of = lambda lab: getattr(lab.config, name)  # noqa: E731
    return Figure(
        name,
        place,
        f"Texts out of noise against NFE, {sizes} in the paper",
        "ConThenDisc is far better than the unguided model at every NFE, in MAUVE and in Gen-PPL; ConWithinDisc is "
        "better still, and at a thirteenth of the NFE as good as the unguided model.",
        COLUMNS,
        lambda lab: lines(lab, config_of(lab)),
        values,
        verdicts,
        (
            Chart("by NFE", "NFE", ("gen_ppl", "mauve", "token_entropy"), ("n", "method"), log_x=True,
                  log_y=("gen_ppl",)),
        ),
        quotes,
        lambda lab: missing(lab, config_of(lab)),
        notes=NOTES,
    )  # fmt: skip


QUOTES = tuple(
    Quote(
        {"n": point.length, "method": point.method, "NFE": point.nfe},
        {"mauve": point.mauve, "gen_ppl": point.gen_ppl},
    )
    for point in paper.GENERATION
)
FIGURE = figure("fig6", "Figure 6", "n = 512 and 1024", QUOTES)
