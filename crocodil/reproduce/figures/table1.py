"""Table 1: the autoencoder at 256 tokens, by block size and NFE."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce import paper
from crocodil.reproduce.config import Table
from crocodil.reproduce.figure import JUDGED, Chart, Column, Figure, Line, Row, agrees, one, pick, turns_back
from crocodil.reproduce.lab import MAIN, Lab
from crocodil.reproduce.measures.decoding import Reconstructed
from crocodil.reproduce.measures.judging import Compared, Judged, average, judged, of_kind, real

COLUMNS = (
    *JUDGED,
    Column("bert_score", "BERTScore F1 ↑"),
    Column("cer", "CER ↓"),
    Column("exact", "exact ↑", 0, percent=True),
    Column("token_accuracy", "token accuracy ↑"),
)
CHARTS = (
    Chart("by NFE, one curve for each block size", "NFE", ("cer", "bert_score", "gen_ppl"), ("k", "block"), log_x=True),
)  # fmt: skip


def lines(lab: Lab, config: Table, table: int) -> list[Line]:
    """Block size × NFE, blocks as shares of the window as in the paper's table at `table` tokens."""
    K = lab.model(MAIN).K
    parts = list(lab.parts(config.windows, config.length))
    originals = real(lab, config.windows, config.length)
    found = []
    for k in dict.fromkeys(K if k is None else min(k, K) for k in config.ks):
        for block, nfe in paper.rows(config.length, table=table):
            texts = [Reconstructed(config.length, part, k, block, nfe) for part in parts]
            printed = paper.scores_at(block, nfe, config.length, table) if k == K else None
            labels = {"k": k, "block": block, "NFE": nfe}
            tasks = [*map(Judged, texts), *map(Compared, texts), *originals]
            found.append(Line(labels, tasks, printed._asdict() if printed else {}))
    return found


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    readings = of_kind(line.tasks, Reconstructed)
    compared = [task for task in line.tasks if isinstance(task, Compared)]
    texts = [task.of for task in readings]
    found = {name: average(lab, texts, name) for name in ("cer", "exact", "token_accuracy")}
    return judged(lab, readings) | {"bert_score": average(lab, compared, "f1")} | found


def verdicts(config: Table, table: int, lab: Lab, rows: Sequence[Row]) -> list[str]:
    originals = judged(lab, real(lab, config.windows, config.length))
    found = [f"The judge gives the programs themselves a Gen-PPL of {originals['gen_ppl'].value:.1f}."]
    if config.length != table:
        found.insert(
            0,
            f"Windows of {config.length} tokens here, of {table} in the paper: blocks are scaled with them, NFE is not; "
            f"a step reveals {config.length / table:g} times as many tokens as in the paper's line beside it.",
        )
    K = lab.model(MAIN).K
    for k in dict.fromkeys(row.labels["k"] for row in rows):
        here = pick(rows, k=k)
        blocks = list(dict.fromkeys(row.labels["block"] for row in here))
        curves = [pick(here, block=block) for block in blocks]
        ends = [(curve[0].values["cer"], curve[-1].values["cer"]) for curve in curves]
        falls = sum(not turns_back(fewest, most, up=False) for fewest, most in ends)
        told = (
            f"k = {k}: most NFE give no larger an error than fewest in {falls} of {len(blocks)} block sizes"
        )
        found.append(agrees(falls == len(blocks), told, told))
        shared = set.intersection(*({row.labels["NFE"] for row in curve} for curve in curves))
        if len(blocks) > 1 and shared:
            nfe = min(shared)
            small, large = (one(curve, NFE=nfe) for curve in (curves[0], curves[-1]))
            assert small and large
            a, b = (row.values["cer"].value for row in (small, large))
            told = f"k = {k}, NFE {nfe}: blocks of {blocks[0]} have a CER of {a:.3f}, one of {blocks[-1]} {b:.3f}"
            found.append(
                agrees(not turns_back(small.values["cer"], large.values["cer"], up=False), told, told)
            )
        cer = here[-1].values["cer"].value
        if k == K and cer < 0.01:
            found.append(
                f"Errors near 0 where the paper has 0.12: {K} registers of {lab.model(MAIN).D} numbers hold "
                f"{config.length / K:.3g} tokens each here, so this tests the machinery and not how well an 8B model "
                "compresses."
            )
    return found


def figure(name: str, place: str, table: int) -> Figure:
    """Table 1 or 2."""
    config_of = lambda lab: getattr(lab.config, name)  # noqa: E731
    return Figure(
        name,
        place,
        f"The autoencoder by block size and NFE, {table} tokens in the paper",
        "Reconstruction is nearly perfect at few NFE, better with more of them and in larger blocks.",
        COLUMNS,
        lambda lab: lines(lab, config_of(lab), table),
        values,
        lambda lab, rows: verdicts(config_of(lab), table, lab, rows),
        CHARTS,
        notes=(
            "Blocks have the paper's share of the window, and its values stand beside all registers. BERTScore and "
            "Gen-PPL are those of the scorer and judge named on this page: compare them within it.",
            *(
                (
                    "CER above 1 beside a low Gen-PPL, and BERTScores that return, are as the paper prints them.",
                )
                if table == 512
                else ()
            ),
        ),
    )


FIGURE = figure("table1", "Table 1", 256)
