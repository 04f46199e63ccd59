"""One file for each figure or table of the papers."""

from __future__ import annotations

from crocodil.reproduce.figure import Figure
from crocodil.reproduce.figures import (
    appendix_b,
    appendix_c,
    cadd_both,
    cadd_fig3,
    cadd_fig4,
    cadd_fig5,
    cadd_fig6,
    cadd_table1,
    cadd_table4,
    cadd_table5,
    cadd_table7,
    cadd_table8,
    cadd_table9,
    cadd_table10,
    cadd_table12,
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
        cadd_fig3, cadd_fig4, cadd_table1, cadd_table4, cadd_table5, cadd_table7, cadd_fig5, cadd_fig6, cadd_table8,
        cadd_table9, cadd_table10, cadd_table12, cadd_both,
    )
}  # fmt: skip
"""In the order of the report."""
