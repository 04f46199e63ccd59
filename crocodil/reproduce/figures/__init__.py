"""One file for each figure or table of the paper."""

from __future__ import annotations

from crocodil.reproduce.figure import Figure
from crocodil.reproduce.figures import (
    appendix_b,
    appendix_c,
    eq6,
    examples,
    fig4,
    fig6,
    fig7,
    fig8,
    fig9,
    fig11,
    fig12,
    prdc,
    table1,
    table2,
)

FIGURES: dict[str, Figure] = {
    module.FIGURE.name: module.FIGURE
    for module in (
        table1, table2, fig4, fig6, fig12, fig7, fig8, fig9, prdc, fig11, appendix_b, eq6, appendix_c, examples,
    )
}  # fmt: skip
"""In the order of the report."""
