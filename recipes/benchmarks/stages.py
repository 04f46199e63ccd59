"""P12: the first stage, in which LLaDA is frozen, against the joint step; and sampling while ZeRO-3 trains.

A frozen LLaDA still carries gradients back to the registers, but has no gradients of its own weights and no step of
the optimiser: forward and half of the backward stay.

Under ZeRO-3 every forward gathers the weights from all ranks. A sample wants many forwards, and can gather once
instead; this wants two ranks, so it is measured in a launch of its own (`gather_once.py`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipes.benchmarks.harness import (
    Bench,
    Benchmark,
    Pairs,
    Row,
    Skipped,
    Unequal,
    assert_close,
    compare,
    ratio_of_bytes,
)
from recipes.benchmarks.memory import ROOT, peak_bytes

if TYPE_CHECKING:
    from recipes.benchmarks.engines import Training

LOSS_APART, GRADIENT_APART = 1e-6, 1e-5
GATHERING = "sampling under ZeRO-3, two CPU ranks, gathered once"


def in_first_stage(name: str) -> bool:
    """What the first stage of `train_demasker.py` trains."""
    return not name.startswith("demasker.llada.")


def in_both_stages(name: str) -> bool:
    return True


def job(sizes: dict[str, Any], frozen: bool, device: str) -> Callable[[], object]:
    """What is run for its peak memory, in a process of its own; the moments of AdamW are there before."""
    from recipes.benchmarks.engines import sizes_of, training

    case = training(sizes_of(sizes), device, in_first_stage if frozen else in_both_stages)
    case.step()
    return case.step


def check(joint: Training, frozen: Training) -> None:
    """The same loss and the same gradients of what both train; nothing else has one, and a step leaves it as it is."""
    (joint_losses, joint_gradients), (frozen_losses, frozen_gradients) = joint.gradients(), frozen.gradients()
    assert_close("loss", joint_losses.total.detach(), frozen_losses.total.detach(), relative=LOSS_APART)
    if odd := {name for name in joint_gradients if in_first_stage(name)} ^ frozen_gradients.keys():
        raise Unequal(f"{sorted(odd)[0]} has a gradient in one stage only")
    for name, gradient in frozen_gradients.items():
        assert_close(f"gradient of {name}", joint_gradients[name], gradient, relative=GRADIENT_APART)
    before = {name: parameter.detach().clone() for name, parameter in frozen.engine.module.named_parameters()}
    frozen.step()
    for name, parameter in frozen.engine.module.named_parameters():
        if torch.equal(before[name], parameter) == in_first_stage(name):
            raise Unequal(f"a step of the first stage {'leaves' if in_first_stage(name) else 'moves'} {name}")


def why_not(device: torch.device) -> str | None:
    """What is missing to launch two ranks under ZeRO-3; None when nothing is."""
    if device.type != "cpu":
        return "it is one of CPU ranks; leave --device out"
    if importlib.util.find_spec("deepspeed") is None:
        return "deepspeed is not installed; pip install 'crocodil[deepspeed]'"
    if shutil.which("c++") is None and shutil.which("g++") is None:
        return "DeepSpeed wants a C++ compiler"
    return None


def launch(bench: Bench) -> Pairs:
    """Times of `gather_once.py`.

    Raises:
        RuntimeError: it failed, with the line that says why.
        Unequal: the two ways do not write the same.
    """
    asked = json.dumps({"sizes": asdict(bench.sizes.gathering), "pairs": bench.sizes.pairs})
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        # DeepSpeed looks for ninja there
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.accelerate_cli",
            "launch",
            "--config_file",
            "launch/zero3_cpu2.yaml",
            "recipes/benchmarks/gather_once.py",
            asked,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        said = [line for line in lines if "Unequal: " in line or "Error: " in line]
        cause = said[0] if said else f"exit code {done.returncode}"
        if "Unequal: " in cause:
            raise Unequal(cause.partition("Unequal: ")[2])
        raise RuntimeError(f"gather_once.py failed: {cause}")
    seconds = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"theirs"')))
    return Pairs(tuple(seconds["theirs"]), tuple(seconds["ours"]))


def measure(bench: Bench) -> Iterator[Row | Skipped]:
    from recipes.benchmarks.engines import training

    sizes = bench.sizes.training
    joint, frozen = training(sizes, bench.device), training(sizes, bench.device, in_first_stage)
    check(joint, frozen)
    name = "joint step over stage 1"
    yield compare(joint.step, frozen.step, bench).row(name, floor=1.35, aim=1.45, ideal=_ideal(joint))
    del joint, frozen

    def peak(frozen: bool) -> int:
        return peak_bytes(job, sizes=asdict(sizes), frozen=frozen, device=str(bench.device))

    yield ratio_of_bytes(name, theirs=[peak(False), peak(False)], ours=peak(True))

    if reason := why_not(bench.device):
        yield Skipped(GATHERING, reason)
    else:
        yield launch(bench).row(GATHERING)


def _ideal(joint: Training) -> float:
    """Three forwards of both, over three of the encoder and two of the demasker."""
    from recipes.benchmarks.engines import demasker_forward, encoder_forward

    module, batch = joint.engine.module, joint.batch
    demasker, encoder = demasker_forward(module.demasker, batch), encoder_forward(module, batch)
    return 3 * (demasker + encoder) / (2 * demasker + 3 * encoder)


BENCHMARK = Benchmark(
    "P12",
    "stage 1, and sampling while training",
    "the joint step; weights gathered anew at every forward",
    "loss within 1e-6, gradients within 1e-5, relative, of what stage 1 trains; the rest stays; the same tokens",
    measure,
)
