"""Table 1: the autoencoder at 256 tokens, by block size and NFE."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce import paper
from crocodil.reproduce.config import Table
from crocodil.reproduce.figure import Chart, Column, Figure, Line, Row, agrees, ordered, pick
from crocodil.reproduce.lab import MAIN, Lab
from crocodil.reproduce.measures.decoding import Real, Reconstructed
from crocodil.reproduce.measures.judging import Compared, Judged, average, perplexity

COLUMNS = (
    Column("gen_ppl", "Gen-PPL ↓", 2),
    Column("bert_score", "BERTScore F1 ↑"),
    Column("cer", "CER ↓"),
    Column("exact", "exact ↑", 0, percent=True),
    Column("token_accuracy", "token accuracy ↑"),
)
CHARTS = (
    Chart("by NFE, one curve for each block size", "NFE", ("cer", "bert_score", "gen_ppl"), ("block",), log_x=True),
)  # fmt: skip


def lines(lab: Lab, config: Table, table: int) -> list[Line]:
    """Block size × NFE, blocks as shares of the window as in the paper's table at `table` tokens."""
    model = lab.model(MAIN)
    k = config.k or model.K
    found = []
    for block, nfe in paper.rows(config.length, table=table):
        tasks = [
            Reconstructed(config.length, part, k, block, nfe)
            for part in lab.parts(config.windows, config.length)
        ]
        printed = paper.scores_at(block, nfe, config.length, table)
        found.append(
            Line(
                {"block": block, "NFE": nfe},
                [*map(Judged, tasks), *map(Compared, tasks)],
                printed._asdict() if printed else {},
            )
        )
    return found


def values(lab: Lab, line: Line) -> dict[str, Estimate]:
    judged = [task for task in line.tasks if isinstance(task, Judged)]
    compared = [task for task in line.tasks if isinstance(task, Compared)]
    texts = [task.of for task in judged]
    return {
        "gen_ppl": perplexity(lab, judged),
        "bert_score": average(lab, compared, "f1"),
        "cer": average(lab, texts, "cer"),
        "exact": average(lab, texts, "exact"),
        "token_accuracy": average(lab, texts, "token_accuracy"),
    }


def verdicts(config: Table, lab: Lab, rows: Sequence[Row]) -> list[str]:
    blocks = dict.fromkeys(row.labels["block"] for row in rows)
    falling = [ordered(pick(rows, block=block), "cer", up=False) for block in blocks]
    real = [Judged(Real(config.length, part)) for part in lab.parts(config.windows, config.length)]
    cer, ppl = rows[-1].values["cer"].value, rows[-1].values["gen_ppl"].value
    last = rows[-1].labels
    found = [
        agrees(
            all(falling),
            "within a block size, the error never rises with NFE",
            f"within {falling.count(False)} of {len(falling)} block sizes, the error rises with NFE somewhere",
        ),
        f"The judge gives the programs themselves a Gen-PPL of {perplexity(lab, real).value:.2f}; their "
        f"reconstructions in one block at NFE {last['NFE']} have {ppl:.2f} at a CER of {cer:.3f}.",
    ]
    model = lab.model(MAIN)
    if cer < 0.01 and config.length / (config.k or model.K) <= 4:
        found.append(
            f"Errors near 0 where the paper has 0.12: {config.k or model.K} registers of {model.D} numbers hold "
            f"{config.length / (config.k or model.K):g} tokens each here, so this tests the machinery and not how well "
            "an 8B model compresses."
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
        lambda lab, rows: partial(verdicts, config_of(lab))(lab, rows),
        CHARTS,
        notes=(
            "Blocks have the paper's share of the window. BERTScore and Gen-PPL are those of the scorer and judge named "
            "below: compare them within this page.",
        ),
    )


FIGURE = figure("table1", "Table 1", 256)
