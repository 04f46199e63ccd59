"""Colours for the steps of a demasking: early is deep, late is light."""

from __future__ import annotations

# Lightness rises evenly, so that the order also shows without colour.
_ANCHORS = ((56, 74, 138), (35, 112, 142), (31, 154, 137), (108, 192, 104), (190, 212, 92), (247, 226, 146))


def step_colour(step: int, steps: int) -> str:
    """#rrggbb of step 1 … steps."""
    at = (step - 1) / max(1, steps - 1) * (len(_ANCHORS) - 1)
    index = min(int(at), len(_ANCHORS) - 2)
    mixed = (a + (at - index) * (b - a) for a, b in zip(_ANCHORS[index], _ANCHORS[index + 1], strict=True))
    return "#" + "".join(f"{round(channel):02x}" for channel in mixed)


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on a colour (WCAG contrast)."""
    light = _luminance(colour)
    return "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"


def _luminance(colour: str) -> float:
    linear = []
    for at in (1, 3, 5):
        channel = int(colour[at : at + 2], 16) / 255
        linear.append(channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
