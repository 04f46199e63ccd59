"""The one place that builds an Accelerator: the same recipe on one CPU, several CPU ranks, and GPUs."""

from __future__ import annotations

import gc
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
    cpu_ranks = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    sharded = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    # Several CPU ranks are DDP over gloo only when accelerate is told `cpu`; DeepSpeed, which `cpu` would switch off,
    # finds the CPU by itself and has to be told gloo.
    return Accelerator(
        cpu=cpu_ranks and not sharded,
        mixed_precision=precision,
        log_with=tracker,
        project_dir=run,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if cpu_ranks and sharded else [],
    )


def leave(accelerator: Accelerator) -> None:
    """End the trackers and the process group, at the end of a program.

    What still holds the group (DDP, and the accelerator that holds it) goes first. Otherwise gloo's threads live on while
    the interpreter goes down, and now and then one of them aborts a process whose work is done.
    """
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
