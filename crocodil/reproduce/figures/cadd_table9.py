"""CADD Table 9: how latents become noise, by flow matching or variance preserving."""

from __future__ import annotations

from crocodil.reproduce import cadd_paper
from crocodil.reproduce.figures.cadd_table8 import figure

FIGURE = figure(
    "cadd-table9",
    "CADD, Table 9",
    "Schedule of latents",
    "On texts, flow matching and the variance-preserving schedule are equally good.",
    "schedule",
    {"reference": "flow", "vp": "vp"},
    {schedule: mauve for schedule, (mauve, _) in cadd_paper.TABLE_9.items()},
    (
        "On CIFAR-10 the paper has an FID of "
        + " and ".join(f"{fid} ({schedule})" for schedule, (_, fid) in cadd_paper.TABLE_9.items())
        + "; ours are of texts alone.",
    ),
)
