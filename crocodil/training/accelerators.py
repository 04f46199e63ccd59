"""The one place that builds an Accelerator: the same recipe on one CPU, several CPU ranks, and GPUs."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, InitProcessGroupKwargs


def accelerator(run: str, precision: str, tracker: str | None) -> Accelerator:
    """An Accelerator for this launch.

    Args:
        run: folder for trackers.
        precision: `no` (float32), `bf16`, or `auto`: bf16 on a GPU that has it.
        tracker: `tensorboard`, `wandb` or None.
    """
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    # several CPU ranks, DeepSpeed's too, find one another through gloo; on one rank there is no group to name
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    handlers = [InitProcessGroupKwargs(backend="gloo")] if several and not torch.cuda.is_available() else []
    return Accelerator(mixed_precision=precision, log_with=tracker, project_dir=run, kwargs_handlers=handlers)
