"""A picture of many images side by side."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from torch import Tensor

from crocodil.atomic import write_atomically
from crocodil.errors import CrocodilError

MARGIN = 2
LINE = 0xD0
"""Grey level of the margins: an image ends visibly, black or white, on a white page too."""
SIDE = 64
"""Small images are enlarged to about this many pixels."""


def grid(images: Tensor, columns: int | None = None, scale: int | None = None) -> bytes:
    """A PNG with the images row by row; every pixel becomes a square, nothing is smoothed.

    Args:
        images: (B, C, H, W) in [0, 1], C 1 or 3.
        columns: images of a row; about as many as rows if left out.
        scale: side of a pixel's square; of the size that makes images about SIDE pixels high if left out.

    Raises:
        CrocodilError: no images, or no grey or RGB ones.
    """
    from PIL import Image

    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise CrocodilError(
            f"a picture wants images (B, C, H, W) of 1 or 3 channels, not {tuple(images.shape)}"
        )
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = scale or max(1, round(SIDE / images.shape[2]))
    levels = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    levels = levels.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    B, C, H, W = levels.shape
    columns = min(columns, B)
    rows = math.ceil(B / columns)
    # places that stay empty are white
    canvas = torch.full((C, rows * (H + MARGIN) + MARGIN, columns * (W + MARGIN) + MARGIN), 255).to(
        torch.uint8
    )
    for number, image in enumerate(levels):
        y, x = (number // columns) * (H + MARGIN), (number % columns) * (W + MARGIN)
        canvas[:, y : y + H + 2 * MARGIN, x : x + W + 2 * MARGIN] = LINE
        canvas[:, y + MARGIN : y + MARGIN + H, x + MARGIN : x + MARGIN + W] = image
    picture = canvas[0] if C == 1 else canvas.permute(1, 2, 0)
    out = io.BytesIO()
    Image.fromarray(picture.contiguous().numpy()).save(out, "PNG")
    return out.getvalue()


def save_grid(path: Path, images: Tensor, columns: int | None = None, scale: int | None = None) -> None:
    """Write `grid` of these images to a file, which appears whole or not at all."""
    write_atomically(path, grid(images, columns, scale))
