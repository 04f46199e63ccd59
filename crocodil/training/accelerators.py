"""The one place that builds an Accelerator: the same recipe on one CPU, several CPU ranks, and GPUs."""

from __future__ import annotations

import gc
import os
import warnings
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    is_tensorboard_available,
    is_wandb_available,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from crocodil.errors import CrocodilError
from crocodil.training.loop import LoopConfig


def accelerator(config: LoopConfig) -> Accelerator:
    """An Accelerator for this launch.

    Raises:
        CrocodilError: the tracker is not installed, which accelerate would only warn of.
    """
    there = {None: True, "tensorboard": is_tensorboard_available(), "wandb": is_wandb_available()}
    if not there[config.tracker]:
        raise CrocodilError(
            f"tracker={config.tracker} needs {config.tracker}; pip install {config.tracker}, or leave tracker out"
        )
    precision = config.precision
    if precision == "auto":
        precision = (
            "bf16"
            if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
            else "no"
        )
    cpu_ranks = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    sharded = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    # the watchdog speaks first and says more; what it is not there for, the group ends
    patience = timedelta(minutes=2 * config.timeout) if config.timeout else timedelta(days=7)
    # Several CPU ranks are DDP over gloo only when accelerate is told `cpu`; DeepSpeed, which `cpu` would switch off,
    # finds the CPU by itself and has to be told gloo.
    if not torch.accelerator.is_available():
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # or it says in the middle of the log that it has found out
    group = InitProcessGroupKwargs(timeout=patience, **({"backend": "gloo"} if cpu_ranks and sharded else {}))
    # accelerate hands DDP this argument whatever is asked for, and torch would tell every rank that its name is old
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    made = Accelerator(
        cpu=cpu_ranks and not sharded,
        mixed_precision=precision,
        log_with=config.tracker,
        project_dir=config.run,
        # gradients live in the buckets that travel, and buffers are the same on every rank
        kwargs_handlers=[
            group,
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
        ],
    )
    if cpu_ranks and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate knows FSDP on accelerators only, though torch shards over gloo as well
        for state in (PartialState._shared_state, made.state._shared_state):
            state["distributed_type"] = DistributedType.FSDP
        made.state._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()
    if made.distributed_type == DistributedType.FSDP and precision == "bf16":
        # accelerate's own policy would round what goes in and out of each layer: angles, weights of the loss, the loss
        made.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return made


def leave(accelerator: Accelerator) -> None:
    """End the trackers and the process group, at the end of a program.

    What still holds the group (DDP, and the accelerator that holds it) goes first. Otherwise gloo's threads live on while
    the interpreter goes down, and now and then one of them aborts a process whose work is done.
    """
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
