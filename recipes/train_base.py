"""Stage 0: tune (or, at nano scale, train from scratch) the unguided demasker that everything starts from.

    accelerate launch recipes/train_base.py --config recipes/configs/nano-base.yaml

The loss is LLaDA's: mask every token with probability t, predict the masked ones, weigh by 1/t.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from crocodil.autoencoder import Corruption, at_level, corrupt
from crocodil.bundle import open_demasker, save_unguided
from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.demasker.loss import Losses
from crocodil.demasker.masking import MaskedTexts, MaskingConfig
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.errors import CrocodilError, one_line_errors
from crocodil.metrics.cost import demasker_flops
from crocodil.metrics.likelihood import score_levels
from crocodil.text.data import DataConfig, load_split, windows_of
from crocodil.text.vocabulary import Vocabulary, train_bpe
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
from crocodil.training.start import find_start
from crocodil.training.throughput import Throughput, peak_flops

VALIDATION_LEVELS = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class DemaskerShape:
    """Sizes of a demasker that is trained from scratch; the rest of LLaDA's config is as released."""

    d_model: int = 192
    n_layers: int = 4
    n_heads: int = 4
    mlp_hidden_size: int = 576
    rope_theta: float = 1000.0
    vocabulary: int = 2048
    """Rows of the table; a byte-level BPE of this size is trained on the training texts."""

    def __post_init__(self) -> None:
        require_at_least(1, self, *(f.name for f in fields(self)), section="shape.")
        if self.d_model % (2 * self.n_heads):  # rotary positions turn pairs of a head's channels
            raise CrocodilError(
                f"shape: d_model {self.d_model} must be a multiple of 2 · n_heads {self.n_heads}"
            )


@dataclass(frozen=True)
class BaseRecipe:
    """Everything that says what is trained. Where it runs is said in launch/."""

    run: str = "runs/base"
    """Folder of checkpoints, metrics and the export."""
    start: str | None = None
    """A LLaDA checkpoint folder to tune, with its tokenizer; without it a demasker of `shape` is trained from scratch."""
    shape: DemaskerShape = field(default_factory=DemaskerShape)
    data: DataConfig = field(default_factory=DataConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    steps: int = 1000
    batch_size: int = 512
    """Texts of a global batch, over all ranks and micro-batches."""
    row_tokens: int = 16384
    """Tokens of a micro-batch: whole texts are packed into rows of at most this many."""
    ema: float = 0.0
    precision: Literal["auto", "bf16", "no"] = "auto"
    """`auto` is bf16 on a GPU that has it, `no` is float32."""
    recompute: bool = False
    """Activation checkpointing, block by block."""
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


def main() -> None:
    arguments = parse_arguments(BaseRecipe, None, __doc__ or "")
    config, run = arguments.config, Path(arguments.config.run)
    ranks = accelerator(config.run, config.precision, config.tracker)
    with run_lock(run):
        train(config, run, ranks, arguments.resume)
    leave(ranks)


def train(config: BaseRecipe, run: Path, ranks: Accelerator, resume: str | None) -> None:
    torch.manual_seed(config.seed)

    check_batch(config.batch_size, ranks.num_processes)

    # Texts and vocabulary.
    parts = load_split(config.data)
    if config.start is not None:
        model, vocabulary = open_demasker(config.start)
        model.allow(max(config.data.lengths))
    else:
        vocabulary = train_bpe((d.text for d in parts.train[::4]), config.shape.vocabulary)
        model = LLaDA(fresh_config(config.shape, vocabulary, max(config.data.lengths)))
        model.initialise(torch.Generator().manual_seed(config.seed))
    model.recompute = config.recompute
    windows, held_out = windows_of(parts, vocabulary, config.data, config.seed)
    del parts

    # Engine, and where it goes on.
    corpus = windows.tokens.digest
    start = find_start(run, resume, corpus)
    engine = Engine(ranks, UnguidedDemasker(model), config.optimiser, config.steps, ema=config.ema)
    if start.checkpoint is not None:
        engine.load(start.checkpoint)
    if ranks.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        save_config(config, run / "config.yaml")
    if config.tracker:
        ranks.init_trackers("crocodil", config=flat(config))

    corruption = Corruption(masking=config.masking)
    steps_per_epoch = windows.batches(config.batch_size)
    validation = [held_out.sample(int(i), 0) for i in held_out.order(0)[: config.validation_texts]]
    log = MetricsLog(run, start.step)
    peak = peak_flops(ranks.device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    throughput = Throughput(peak * ranks.num_processes)

    with StopRequest() as stop, Progress(config.steps, start.step) as progress:
        progress.say(f"{len(windows):,} training windows, {len(held_out):,} held out, from step {start.step}")
        for step in range(start.step, config.steps):
            # 1. The texts of this step, the same whatever the ranks: a pure function of (seed, step).
            epoch, batch = divmod(step, steps_per_epoch)
            order = windows.order(epoch) if batch == 0 or step == start.step else order  # noqa: F821
            chosen = order[batch * config.batch_size : (batch + 1) * config.batch_size]
            samples = [windows.sample(int(i), epoch) for i in chosen]
            rows = deal(pack([s.length for s in samples], config.row_tokens), ranks.num_processes)

            # 2. Corrupt this rank's share, forward and backward.
            draw = partial(generator, config.seed, epoch)
            batches = [
                corrupt([samples[i] for i in row], vocabulary, draw, corruption, K=0, D=0).texts
                for row in rows[ranks.process_index]
            ]
            summed = torch.zeros((), dtype=torch.float64, device=ranks.device)
            for losses in engine.accumulate(batches, config.batch_size, step):
                summed += losses.total.detach()

            # 3. Step.
            norm = engine.update()
            loss, tokens, flops = total([float(summed), *cost(model.config, batches)], ranks.device)
            throughput.add(int(tokens), flops)

            # 4. Tell.
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                interval = throughput.interval()
                values = {"loss": loss / config.batch_size, "grad_norm": norm, "lr": engine.rate}
                speed = {"tokens_per_second": interval.tokens_per_second, "mfu": interval.mfu}
                log.write(done, {**values, **speed})
                progress.report(done, values, interval)
                if config.tracker:
                    ranks.log({**values, **speed}, step=done)

            # 5. Validate by masking level.
            if done % config.validate_every == 0 or done == config.steps:
                with throughput.paused(), engine.averaged() as module:
                    values = validate(module, validation, vocabulary, config)
                log.write(done, values)
                progress.say("  ".join(f"{k} {v:.3f}" for k, v in values.items()))

            # 6. Save.
            asked = any(gather(stop.requested))
            if done % config.save_every == 0 or done == config.steps or asked:
                with throughput.paused(), publishing(run, checkpoint_name(done)) as directory:
                    engine.save(directory, done, 0, corpus)
                prune(run, config.keep)
            if asked:
                progress.say(f"stopped after step {done}; the same command with --resume goes on")
                return
        with engine.whole() as module, publishing(run, "export", replace=True) as directory:
            if ranks.is_main_process:
                save_unguided(directory, module.llada, vocabulary)
        progress.say(f"exported to {run / 'export'}")


def cost(config: LLaDAConfig, batches: list[MaskedTexts]) -> tuple[int, float]:
    """Window tokens, and FLOPs of forward and backward (three forwards), of these micro-batches."""
    lengths = [n for batch in batches for n in batch.segments.lengths]
    scored = sum(int(batch.is_masked_T.sum()) for batch in batches)
    return sum(lengths), 3 * demasker_flops(config, lengths, [0] * len(lengths), scored)


def validate(
    module: UnguidedDemasker, samples: list[Sample], vocabulary: Vocabulary, config: BaseRecipe
) -> dict[str, float]:
    """Cross-entropy and top-1 on held-out texts at three masking levels, by draws that never change."""
    device = next(module.parameters()).device
    draw = partial(generator, config.seed, 0)

    parts = [samples[i : i + 16] for i in range(0, len(samples), 16)]

    def losses_at(t: float, k: int) -> list[Losses]:
        return [module(at_level(part, vocabulary, draw, t, k, D=0).texts.to(device)) for part in parts]

    values = {}
    for score in score_levels(losses_at, VALIDATION_LEVELS, [0]):
        values[f"cross_entropy@{score.t}"] = score.cross_entropy
        values[f"top1@{score.t}"] = score.top1
    return values


def fresh_config(shape: DemaskerShape, vocabulary: Vocabulary, longest: int) -> LLaDAConfig:
    return LLaDAConfig(
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_heads,
        mlp_hidden_size=shape.mlp_hidden_size,
        vocab_size=vocabulary.size,
        embedding_size=vocabulary.size,
        max_sequence_length=longest,
        mask_token_id=vocabulary.mask_id,
        eos_token_id=vocabulary.eos_id,
        pad_token_id=vocabulary.eos_id,
        rope_theta=shape.rope_theta,
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
