"""Train encoder and guided demasker together (CRoCoDiL Alg. 1, App. C): first the encoder, then everything.

    accelerate launch recipes/train_demasker.py --config recipes/configs/nano.yaml

Ctrl-C saves a checkpoint; the same command with --resume goes on from it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from crocodil.autoencoder import Autoencoder, Batch, Corruption, at_level, corrupt
from crocodil.bundle import load_autoencoder, open_demasker, save_autoencoder
from crocodil.demasker.guided import GuideConfig, GuidedDemasker, Layout
from crocodil.demasker.loss import Losses
from crocodil.errors import CrocodilError, one_line_errors
from crocodil.metrics.cost import demasker_flops, encoder_flops
from crocodil.metrics.likelihood import score_levels
from crocodil.registers.encoder import Scale, fresh_encoder
from crocodil.registers.geometry import RegisterNoise, check_count
from crocodil.registers.released import open_encoder
from crocodil.text.data import DataConfig, load_split, windows_of
from crocodil.text.vocabulary import Vocabulary
from crocodil.text.windows import Sample, pack
from crocodil.training.accelerators import accelerator, leave
from crocodil.training.checkpoints import checkpoint_name, prune, publishing
from crocodil.training.config import flat, parse_arguments, save_config
from crocodil.training.deal import deal
from crocodil.training.engine import Engine
from crocodil.training.limits import check_batch, check_loop, check_rows, require_at_least
from crocodil.training.log import MetricsLog, Progress
from crocodil.training.optimisation import OptimiserConfig
from crocodil.training.randomness import generator
from crocodil.training.ranks import gather, total
from crocodil.training.run_lock import run_lock
from crocodil.training.signals import StopRequest
from crocodil.training.start import Start, find_start
from crocodil.training.throughput import Throughput, peak_flops

VALIDATION_LEVELS = (0.5, 1.0)


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder that is trained from scratch; a Qwen3 otherwise."""

    hidden_size: int = 192
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    intermediate_size: int = 576
    rope_theta: float = 1000.0

    def __post_init__(self) -> None:
        require_at_least(1, self, *(f.name for f in fields(self)), section="encoder_shape.")
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        # rotary positions turn pairs of a head's channels
        if self.hidden_size % (2 * heads) or heads % groups:
            raise CrocodilError(
                f"encoder_shape: hidden_size {self.hidden_size} must be a multiple of 2 · num_attention_heads {heads}, "
                f"and that of num_key_value_heads {groups}"
            )


@dataclass(frozen=True)
class DemaskerRecipe:
    """Everything that says what is trained. Where it runs is said in launch/."""

    run: str = "runs/demasker"
    """Folder of checkpoints, metrics and the export."""
    demasker: str = "runs/base/export"
    """The unguided demasker: an export of train_base.py, or a LLaDA checkpoint folder with its tokenizer."""
    encoder: str | None = None
    """A Qwen3-Embedding folder or hub id; its table is re-embedded for the demasker's vocabulary. Without it an
    encoder of `encoder_shape` is trained from scratch."""
    start: str | None = None
    """A trained model to go on from (weights only), `bundled` for the shipped one. It replaces the two above and the
    fields from `encoder_shape` to `suffix_from` below: those are ignored, and training.json has the model's own."""
    grow_to: int | None = None
    """More registers than the model at `start` has, a power of two."""
    encoder_shape: EncoderShape = field(default_factory=EncoderShape)
    K: int = 128
    """Registers, a power of two."""
    layout: Layout = "anchored"
    local_pairs: tuple[int, ...] | None = None
    scale: Scale = "sqrt_d"
    suffix_from: int | None = None
    """RoPE position of the second register whatever the text's length, so that registers look back over the same
    distances; the longest window less 1 is a good one. None numbers on after the text, as Qwen3 does."""
    data: DataConfig = field(default_factory=DataConfig)
    corruption: Corruption = field(default_factory=Corruption)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    noise_from: int = 0
    """Registers are exact before this step: a small model finds them sooner (docs/experiments.md). 0 is the paper."""
    encoder_steps: int = 4000
    """Optimiser steps of the first stage, in which LLaDA's own weights are frozen."""
    steps: int = 70_000
    """Optimiser steps of all stages; 3 epochs of 12 M programs at 512 a step."""
    batch_size: int = 512
    """Texts of a global batch, over all ranks and micro-batches."""
    row_tokens: int = 16384
    """Window tokens of a micro-batch: whole texts are packed into rows of at most this many."""
    ema: float = 0.0
    precision: Literal["auto", "bf16", "no"] = "auto"
    """`auto` is bf16 on a GPU that has it, `no` is float32."""
    recompute: bool = False
    """Activation checkpointing, block by block."""
    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    seed: int = 0
    log_every: int = 20
    validate_every: int = 500
    validation_texts: int = 64
    save_every: int = 500
    keep: int = 2
    tracker: Literal["tensorboard", "wandb"] | None = None
    """`tensorboard` or `wandb`, through accelerate; metrics.jsonl is always written."""

    def __post_init__(self) -> None:
        check_loop(self)
        check_rows(self)
        require_at_least(0, self, "noise_from", "encoder_steps")
        check_count(self.K)
        if self.suffix_from is not None:
            require_at_least(1, self, "suffix_from")


def main() -> None:
    arguments = parse_arguments(DemaskerRecipe, None, __doc__ or "")
    config = arguments.config
    ranks = accelerator(config.run, config.precision, config.tracker)
    with run_lock(Path(config.run)):
        train(config, Path(config.run), ranks, arguments.resume)
    leave(ranks)


def train(config: DemaskerRecipe, run: Path, ranks: Accelerator, resume: str | None) -> None:
    torch.manual_seed(config.seed)

    check_batch(config.batch_size, ranks.num_processes)

    # Model and texts.
    module, vocabulary = build(config)
    record = as_built(config, module)
    llada, K, D = module.demasker.llada, module.encoder.K, module.encoder.D
    llada.recompute = config.recompute
    parts = load_split(config.data)
    windows, held_out = windows_of(parts, vocabulary, config.data, config.seed)
    del parts
    validation = [held_out.sample(int(i), 0) for i in held_out.order(0)[: config.validation_texts]]
    steps_per_epoch = windows.batches(config.batch_size)

    exact = replace(config.corruption, register_noise=RegisterNoise(cosine=1.0))

    # Where to go on.
    corpus = windows.tokens.digest
    start = find_start(run, resume, corpus)
    step = start.step
    if ranks.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        save_config(config, run / "config.yaml")
    if config.tracker:
        ranks.init_trackers("crocodil", config=flat(config))
    log = MetricsLog(run, step)
    peak = peak_flops(ranks.device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    throughput = Throughput(peak * ranks.num_processes)

    with StopRequest() as stop, Progress(config.steps, step) as progress:
        progress.say(f"{len(windows):,} training windows, {len(held_out):,} held out, from step {step}")
        stages = [
            (min(config.encoder_steps, config.steps), lambda name: family(name) == "guide"),
            (config.steps, lambda name: True),
        ]
        for stage, (until, trainable) in enumerate(stages):
            if step >= until and stage < len(stages) - 1:
                continue
            # A stage is entered from a checkpoint, with an engine of its own (docs/training.md).
            engine = Engine(ranks, module, config.optimiser, config.steps, trainable, config.ema, family)
            if start.checkpoint is not None:
                engine.load(start.checkpoint, stage_changed=stage != start.stage)
            order, order_epoch = windows.order(step // steps_per_epoch), step // steps_per_epoch

            while step < until:
                # 1. The texts of this step, the same whatever the ranks: a pure function of (seed, step).
                epoch, batch = divmod(step, steps_per_epoch)
                if epoch != order_epoch:
                    order, order_epoch = windows.order(epoch), epoch
                chosen = order[batch * config.batch_size : (batch + 1) * config.batch_size]
                samples = [windows.sample(int(i), epoch) for i in chosen]
                rows = deal(pack([s.length for s in samples], config.row_tokens), ranks.num_processes)

                # 2. Corrupt this rank's share (t, mask, k, noise), forward, backward.
                draw = partial(generator, config.seed, epoch)
                corruption = config.corruption if step >= config.noise_from else exact
                batches = [
                    corrupt([samples[i] for i in row], vocabulary, draw, corruption, K, D)
                    for row in rows[ranks.process_index]
                ]
                sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
                for losses in engine.accumulate(batches, config.batch_size, step):
                    sums += torch.stack([losses.total.detach(), losses.accuracy_B.sum()])

                # 3. Step.
                norm = engine.update()
                step += 1
                loss, top1, tokens, flops = total([*sums.tolist(), *cost(module, batches)], ranks.device)
                throughput.add(int(tokens), flops)

                # 4. Tell.
                if step % config.log_every == 0 or step == until:
                    interval = throughput.interval()
                    values = {"loss": loss / config.batch_size, "top1": top1 / config.batch_size}
                    values |= {"grad_norm": norm, "lr": engine.rate}
                    speed = {"tokens_per_second": interval.tokens_per_second, "mfu": interval.mfu}
                    log.write(step, {"stage": stage, **values, **speed})
                    progress.report(step, values, interval)
                    if config.tracker:
                        ranks.log({**values, **speed}, step=step)

                # 5. Validate by masking level.
                if step % config.validate_every == 0 or step == config.steps:
                    with throughput.paused(), engine.averaged() as averaged:
                        values = validate(averaged, validation, vocabulary, config)
                    log.write(step, values)
                    progress.say("  ".join(f"{name} {value:.3f}" for name, value in values.items()))

                # 6. Save.
                asked = any(gather(stop.requested))
                if step % config.save_every == 0 or step == until or asked:
                    with throughput.paused(), publishing(run, checkpoint_name(step)) as directory:
                        engine.save(directory, step, stage, corpus)
                    prune(run, config.keep)
                    start = Start(run / checkpoint_name(step), step, stage)
                if asked:
                    progress.say(f"stopped after step {step}; the same command with --resume goes on")
                    return
            if step < config.steps:
                engine.close()

        with engine.whole() as averaged, publishing(run, "export", replace=True) as directory:
            if ranks.is_main_process:
                save_autoencoder(
                    directory,
                    averaged,
                    vocabulary,
                    window=max(config.data.lengths),
                    dtype=getattr(torch, config.export_dtype),
                    trained={"recipe": "train_demasker", "steps": step, "config": record},
                )
        progress.say(f"exported to {run / 'export'}")


def family(name: str) -> str:
    """LLaDA's own weights begin to train in the second stage; encoder, START, END and P in the first."""
    return "llada" if name.startswith("demasker.llada.") else "guide"


def build(config: DemaskerRecipe) -> tuple[Autoencoder, Vocabulary]:
    """Encoder and demasker, released, trained before, or new."""
    if config.start is not None:
        module, vocabulary = load_autoencoder(config.start, noise=config.corruption.register_noise)
        module.demasker.llada.allow(max(config.data.lengths))
        if config.grow_to is not None:
            module.grow(config.grow_to)
        return module, vocabulary
    if config.grow_to is not None:
        raise CrocodilError("grow_to grows the model at start; a new one has as many registers as K says")
    llada, vocabulary = open_demasker(config.demasker)
    llada.allow(max(config.data.lengths))
    if config.encoder is not None:
        encoder = open_encoder(config.encoder, vocabulary, config.K, config.scale)
    else:
        encoder = fresh_encoder(
            vocabulary.size, config.K, vocabulary.eos_id, config.scale, **asdict(config.encoder_shape)
        )
    encoder.suffix_from = config.suffix_from
    guide = GuideConfig(config.K, encoder.D, config.layout, config.local_pairs)
    return Autoencoder(
        encoder, GuidedDemasker(llada, guide).initialise(), config.corruption.register_noise
    ), vocabulary


def as_built(config: DemaskerRecipe, module: Autoencoder) -> dict[str, Any]:
    """The configuration for the record: the model's own values in place of what a model at `start` or `encoder`
    came with."""
    encoder, demasker = module.encoder, module.demasker
    backbone = encoder.backbone.config
    sizes = {f.name: getattr(backbone, f.name, None) for f in fields(EncoderShape)}
    record = asdict(config) | {
        "encoder_shape": sizes | {"rope_theta": backbone.rope_parameters["rope_theta"]},
        "K": encoder.K,
        "layout": demasker.config.layout,
        "local_pairs": demasker.local_pairs,
        "scale": encoder.scale,
        "suffix_from": encoder.suffix_from,
    }
    return record | ({"demasker": None, "encoder": None} if config.start is not None else {})


def cost(module: Autoencoder, batches: list[Batch]) -> tuple[int, float]:
    """Window tokens, and FLOPs of forward and backward (three forwards), of these micro-batches."""
    tokens, flops = 0, 0.0
    for batch in batches:
        lengths = batch.texts.segments.lengths
        prefixes = [k + 2 if k else 0 for k in batch.k]
        tokens += sum(lengths)
        flops += demasker_flops(
            module.demasker.llada.config, lengths, prefixes, int(batch.texts.is_masked_T.sum())
        )
        flops += encoder_flops(
            module.encoder.backbone.config, batch.clean.lengths, [max(k, 1) for k in batch.k]
        )
    return tokens, 3 * flops


def validate(
    module: Autoencoder, samples: list[Sample], vocabulary: Vocabulary, config: DemaskerRecipe
) -> dict[str, float]:
    """Cross-entropy and top-1 on held-out texts by masking level, unguided and guided, by draws that never change."""
    device = next(module.parameters()).device
    draw = partial(generator, config.seed, 0)
    parts = [samples[i : i + 16] for i in range(0, len(samples), 16)]

    def losses_at(t: float, k: int) -> list[Losses]:
        return [module(at_level(part, vocabulary, draw, t, k, module.encoder.D).to(device)) for part in parts]

    values = {}
    for score in score_levels(losses_at, VALIDATION_LEVELS, [0, module.encoder.K]):
        values[f"cross_entropy@t={score.t},k={score.k}"] = score.cross_entropy
        values[f"top1@t={score.t},k={score.k}"] = score.top1
    return values


if __name__ == "__main__":
    with one_line_errors():
        main()
