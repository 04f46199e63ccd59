"""Fig. 12: texts out of noise against NFE, 256 tokens."""

from __future__ import annotations

from crocodil.reproduce.figures.fig6 import figure

FIGURE = figure("fig12", "Figure 12", "n = 256", ())
