"""Table 2: the autoencoder at 512 tokens."""

from __future__ import annotations

from crocodil.reproduce.figures.table1 import figure

FIGURE = figure("table2", "Table 2", 512)
