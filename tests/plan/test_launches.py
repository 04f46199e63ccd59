"""What engines keep, make room for and send: exact counts, DeepSpeed's own settings, and real engines on two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from crocodil.errors import CrocodilError
from crocodil.joint import family
from crocodil.plan.activations import (
    Learning,
    demasker_kept,
    encoder_kept,
    layer_at_work,
    llada_layer,
    loss_at_work,
    qwen3_layer,
)
from crocodil.plan.launches import (
    LAUNCHES,
    Buckets,
    Ddp,
    Fsdp2,
    Job,
    Launch,
    Zero2,
    Zero3,
    check_bits,
)
from crocodil.plan.networks import Weight, weights_of
from crocodil.training.engine import Engine
from crocodil.training.optimisation import OptimiserConfig, build_optimiser, parameter_groups
from tests.plan.engine_memory import LORA, RESULT, WIDTHS
from tests.plan.live import K, encoder_config, llada_config, network, row_of

ROOT = Path(__file__).parents[2]
LENGTHS = [64] * 8
SMALL = Buckets(reduce=300_000, live=600_000, persistent=1000)
SMALL_LAUNCHES: dict[str, Launch] = {
    "zero3": Zero3(buckets=SMALL),
    "zero2": Zero2(SMALL),
    "ddp": Ddp(),
    "fsdp2": Fsdp2(),
    "zero3_offload": Zero3(True, SMALL),
}


def job_of(stage: int = 1, lora: bool = False) -> Job:
    module = network(llada_config(**WIDTHS["llada"]), encoder_config(**WIDTHS["encoder"]))
    return Job(weights_of(module, LORA if lora else None), stage, 2, 2)


@pytest.mark.parametrize("name", LAUNCHES)
@pytest.mark.parametrize("gpus", [2, 7, 16])
def test_pieces_of_every_parameter_add_up_to_it(name: str, gpus: int) -> None:
    job = job_of()
    pieces = LAUNCHES[name].pieces(job.weights, gpus)
    for weight in job.weights:
        assert len(pieces[weight.name]) == gpus
        assert sum(pieces[weight.name]) == weight.numel * (gpus if name == "ddp" else 1), weight.name


def test_zero2_cuts_the_groups_that_the_optimiser_has() -> None:
    module = network(llada_config(), encoder_config())
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module.named_parameters(), 0.1, family)
    wanted = [[names[id(parameter)] for parameter in group["params"]] for group in groups]
    assert [[w.name for w in group] for group in Zero2().groups(weights_of(module, None))] == wanted


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.parametrize("stage", [0, 1])
def test_one_process_holds_what_is_counted(stage: int, accelerator: Accelerator) -> None:
    """Weights, gradients, moments and the average of a real engine, byte by byte."""
    module = network(llada_config(), encoder_config())
    learns = lambda name: stage == 1 or family(name) == "guide"  # noqa: E731
    engine = Engine(accelerator, module, OptimiserConfig(), 10, trainable=learns, ema=0.9, family=family)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    engine.optimiser.step()
    states = Ddp().states(Job(weights_of(module, None), stage, 1, 1, bf16=False, average=True))
    moments = [m for state in engine.optimiser.state.values() for m in state.values() if m.numel() > 1]
    assert engine.ema is not None
    assert states.weights == sum(p.nbytes for p in module.parameters())
    assert states.gradients == sum(p.grad.nbytes for p in module.parameters() if p.grad is not None)
    assert states.optimiser == sum(moment.nbytes for moment in moments)
    assert states.average == sum(value.nbytes for value in engine.ema.average.values())


def test_eight_bit_moments_take_what_is_counted() -> None:
    pytest.importorskip("bitsandbytes")
    named = [(f"demasker.{n}", torch.nn.Parameter(torch.randn(n, 77))) for n in (10, 100)]
    optimiser = build_optimiser(named, OptimiserConfig(bits=8))
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    held = sum(
        value.nbytes
        for state in optimiser.state.values()
        for name, value in state.items()
        if torch.is_tensor(value) and not name.startswith("qmap")  # one table of codes for all
    )
    weights = [Weight(name, tuple(parameter.shape), 0) for name, parameter in named]
    assert Ddp().states(Job(weights, 1, 1, bits=8)).optimiser == held


def test_what_the_training_refuses_is_refused() -> None:
    check_bits("ddp", 8)
    with pytest.raises(CrocodilError, match=r"optimiser\.bits=8 .* --launch ddp"):
        check_bits("zero2", 8)


def test_there_is_a_launch_file_for_each() -> None:
    for name in LAUNCHES:
        assert (ROOT / "launch" / ("ddp8.yaml" if name == "ddp" else f"{name}.yaml")).is_file()


@pytest.mark.deepspeed
def test_deepspeed_has_the_sizes_that_are_assumed() -> None:
    """Its defaults are ours, and no file of launch/ changes them, nor the type that gradients are summed in."""
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    ours = Buckets()
    for name in ("zero2", "zero3", "zero3_offload"):
        settings = json.loads((ROOT / f"launch/deepspeed/{name}.json").read_text("utf-8"))
        assert settings["data_types"]["grad_accum_dtype"] == "fp32"
        zero = DeepSpeedZeroConfig(**settings["zero_optimization"])
        assert zero.overlap_comm and zero.contiguous_gradients and zero.reduce_scatter
        assert (zero.reduce_bucket_size, zero.max_live_parameters) == (ours.reduce, ours.live)
        assert (zero.sub_group_size, zero.param_persistence_threshold) == (ours.sub_group, ours.persistent)
        assert zero.stage == (2 if name == "zero2" else 3)


def launch_file(name: str, folder: Path) -> Path:
    """The launch file for two CPU ranks, with buckets as small as the network is."""
    if name == "ddp":
        return ROOT / "launch/cpu2.yaml"
    made = folder / f"{name}.yaml"
    if name == "fsdp2":
        text = (ROOT / "launch/fsdp2.yaml").read_text("utf-8").replace("num_processes: 8", "num_processes: 2")
        made.write_text(text)
        return made
    settings = json.loads((ROOT / f"launch/deepspeed/{name}.json").read_text("utf-8"))
    settings["bf16"] = {"enabled": True}
    zero = settings["zero_optimization"]
    zero["reduce_bucket_size"] = SMALL.reduce
    if zero["stage"] == 3:
        live = {"stage3_max_live_parameters": SMALL.live, "stage3_max_reuse_distance": SMALL.live}
        zero |= live | {
            "stage3_param_persistence_threshold": SMALL.persistent,
            "stage3_prefetch_bucket_size": 30_000,
        }
    if name == "zero3_offload":
        zero["offload_optimizer"]["pin_memory"] = False
    (folder / "settings.json").write_text(json.dumps(settings))
    text = (ROOT / "launch/zero3_cpu2.yaml").read_text("utf-8")
    made.write_text(text.replace("launch/deepspeed/zero3_cpu.json", str(folder / "settings.json")))
    return made


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.parametrize(
    ("name", "stage", "lora"),
    [(name, stage, False) for name in LAUNCHES for stage in (0, 1)]
    + [(name, 1, True) for name in ("zero3", "ddp", "fsdp2")],
)  # fmt: skip
def test_two_ranks_take_what_the_plan_says(name: str, stage: int, lora: bool, tmp_path: Path) -> None:
    """Two micro-batches of bf16 with recomputation, on two CPU ranks: what stays to a batch, the peak to a tenth.

    A CPU rank has one memory, so what an engine keeps on the host is there too.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    asked = {"run": str(tmp_path / "run"), "stage": stage, "lora": lora, "lengths": LENGTHS, "micro_steps": 2}
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    done = subprocess.run(
        [*command, str(launch_file(name, tmp_path)), "tests/plan/engine_memory.py", json.dumps(asked)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    told = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    assert told, done.stderr[-3000:]
    found = json.loads(told[0].removeprefix(RESULT))

    launch, job = SMALL_LAUNCHES[name], job_of(stage, lora)
    states, buffers, precision = launch.states(job), launch.buffers(job), launch.precision(True, lora)
    llada, qwen = llada_config(**WIDTHS["llada"]), encoder_config(**WIDTHS["encoder"])
    row, reads, writes = row_of(LENGTHS, K), Learning(True), Learning(stage == 1)
    if lora:
        reads, writes = Learning(False, LORA.encoder, LORA.rank), Learning(False, LORA.demasker, LORA.rank)
    reading = encoder_kept(row, qwen, precision, reads, True)
    kept = reading + demasker_kept(row, llada, precision, writes, True)
    block = layer_at_work(row.positions, llada_layer(llada), precision, writes, True)
    loss = loss_at_work(row, llada, precision, writes.weights, True, writes, "cpu")
    encoder = layer_at_work(row.clean, qwen3_layer(qwen), precision, reads, True)
    stays = states.weights + states.gradients + states.optimiser + states.host
    peak = stays + max(
        kept + loss + buffers.forward,
        kept + block + (buffers.backward if stage == 1 else buffers.forward),
        reading + encoder + buffers.backward,
    )
    assert peak == pytest.approx(found["peak"], rel=0.1)
    # between steps: sums of gradients and a bucket under ZeRO-3, the reducer's buckets under plain data parallel
    gradients = {"zero3": states.gradients + 2 * SMALL.reduce, "zero3_offload": 2 * SMALL.reduce,
                 "ddp": states.gradients / 2}  # fmt: skip
    between = states.weights + states.optimiser + states.host + gradients.get(name, 0)
    assert between == pytest.approx(found["between"], rel=0.001, abs=50_000)  # FSDP2 holds on to a batch
