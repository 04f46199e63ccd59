"""Stage 0: tune (or, at nano scale, train from scratch) the unguided demasker that everything starts from.

    accelerate launch recipes/train_base.py --config recipes/configs/nano-base.yaml

The loss is LLaDA's: mask every token with probability t, predict the masked ones, weigh by 1/t.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import torch
from accelerate import Accelerator

from crocodil.autoencoder import Corruption, at_level, corrupt
from crocodil.bundle import open_demasker, save_unguided
from crocodil.demasker.llada import LLaDAConfig
from crocodil.demasker.loss import Losses
from crocodil.demasker.masking import MaskedTexts, MaskingConfig
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.errors import one_line_errors
from crocodil.fresh import DemaskerShape, fresh_demasker
from crocodil.joint import compile_blocks, origin_of_demasker
from crocodil.metrics.cost import demasker_flops
from crocodil.metrics.likelihood import score_levels
from crocodil.text.data import DataConfig, Texts
from crocodil.text.vocabulary import Vocabulary, train_bpe
from crocodil.text.windows import Sample, pack
from crocodil.training.accelerators import accelerator, leave
from crocodil.training.ahead import ahead
from crocodil.training.config import parse_arguments
from crocodil.training.deal import deal, turns
from crocodil.training.engine import Engine
from crocodil.training.limits import check_batch, check_rows
from crocodil.training.loop import LoopConfig
from crocodil.training.placement import is_taken_apart
from crocodil.training.randomness import generator
from crocodil.training.ranks import gather, rank_and_world, total
from crocodil.training.run import Run, require_room
from crocodil.training.run_lock import run_lock
from crocodil.training.start import find_start

VALIDATION_LEVELS = (0.1, 0.5, 0.9)
WEIGHTS = ("start",)
"""A resumed run has its weights from the checkpoint, so it does not matter where they came from. What else a model
brings is compared by its origin."""


@dataclass(frozen=True)
class BaseRecipe(LoopConfig):
    """Everything that says what is trained. Where it runs is said in launch/."""

    run: str = "runs/base"
    """Folder of checkpoints, metrics and the export."""
    start: str | None = None
    """A LLaDA checkpoint folder to tune, with its tokenizer; without it a demasker of `shape` is trained from scratch."""
    shape: DemaskerShape = field(default_factory=DemaskerShape)
    data: DataConfig = field(default_factory=DataConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    row_tokens: int = 16384
    """Tokens of a micro-batch: whole texts are packed into rows of at most this many."""
    recompute: bool = False
    """Activation checkpointing, block by block."""
    compile: bool = False
    """torch.compile of the blocks; the first steps are slow."""
    prefetch: bool = True
    """Prepare the texts of the next step while this one computes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rows(self)


def main() -> None:
    arguments = parse_arguments(BaseRecipe, None, __doc__ or "")
    config = arguments.config
    ranks = accelerator(config)
    with run_lock(Path(config.run)):
        train(config, ranks, arguments.resume)
    leave(ranks)


def train(config: BaseRecipe, ranks: Accelerator, resume: str | None) -> None:
    torch.manual_seed(config.seed)

    check_batch(config.batch_size, ranks.num_processes)

    # Texts and vocabulary.
    texts = Texts(config.data)
    if config.start is not None:
        mapped = is_taken_apart(ranks)  # then every rank reads its own pieces
        model, vocabulary = open_demasker(config.start, None if mapped else torch.float32, mapped)
        model.allow(max(config.data.lengths))
    else:
        vocabulary = train_bpe(texts.sample(), config.shape.vocabulary)
        model = fresh_demasker(config.shape, vocabulary, max(config.data.lengths), config.seed)
    model.recompute = config.recompute
    if config.compile:
        compile_blocks(model.blocks)
    windows, held_out = texts.windows(vocabulary, config.seed)

    corruption = Corruption(masking=config.masking)
    steps_per_epoch = windows.batches(config.batch_size)
    validation = [held_out.sample(int(i), 0) for i in held_out.order(0)[: config.validation_texts]]
    order = lru_cache(maxsize=2)(windows.order)

    # What a step learns from, the same whatever the ranks: a pure function of (seed, step).
    def prepare(step: int) -> tuple[list[int], list[MaskedTexts]]:
        # 1. The texts, packed into rows and dealt out.
        epoch, batch = divmod(step, steps_per_epoch)
        chosen = order(epoch)[batch * config.batch_size : (batch + 1) * config.batch_size]
        samples = [windows.sample(int(i), epoch) for i in chosen]
        rows = deal(pack([s.length for s in samples], config.row_tokens), ranks.num_processes)

        # 2. Corrupt this rank's share.
        draw = partial(generator, config.seed, epoch)
        return [s.id for s in samples], [
            corrupt([samples[i] for i in row], vocabulary, draw, corruption, K=0, D=0).texts
            for row in rows[ranks.process_index]
        ]

    # Engine, and where it goes on.
    origin = origin_of_demasker(model, vocabulary)
    start = find_start(config, resume, windows.tokens.digest, WEIGHTS, origin)
    with Run(config, ranks, start, windows.tokens.digest, origin=origin) as run:
        run.beat(start.step, "building the engine")
        engine = Engine(ranks, UnguidedDemasker(model), config.optimiser, config.steps, ema=config.ema)
        if start.checkpoint is not None:
            engine.load(start.checkpoint)
        require_room(config, engine)
        run.say(f"{len(windows):,} training windows, {len(held_out):,} held out, from step {start.step}")
        for step, (ids, batches) in ahead(prepare, range(start.step, config.steps), config.prefetch):
            run.beat(step, "forward and backward")
            summed = torch.zeros((), dtype=torch.float64, device=ranks.device)
            for losses in engine.accumulate(batches, config.batch_size, step, run.guard.ceiling):
                summed += losses.total.detach()

            # 3. Step.
            run.beat(step, "update")
            update = engine.update()
            loss, *work = total([float(summed), *cost(model.config, batches)], ranks.device)

            # 4. Tell.
            step += 1
            run.did(step, {"loss": loss / config.batch_size}, update, engine, work, ids)

            # 5. Validate by masking level.
            if run.due(step, config.validate_every):
                with run.aside(step, "validation") as aside, engine.averaged() as module:
                    mine = validate(module, validation, vocabulary, config)
                if not aside.failed:
                    run.measured(step, levels([one for of_rank in gather(mine) for one in of_rank]))

            # 6. Save.
            if run.save(engine, step):
                return
        made = {"recipe": "train_base", "steps": run.start.step, "config": asdict(config)}
        run.export(engine, lambda out, module: save_unguided(out, module.llada, vocabulary, trained=made))


def cost(config: LLaDAConfig, batches: list[MaskedTexts]) -> tuple[int, float]:
    """Window tokens, and FLOPs of forward and backward (three forwards), of these micro-batches."""
    lengths = [n for batch in batches for n in batch.segments.lengths]
    scored = sum(int(batch.is_masked_T.sum()) for batch in batches)
    return sum(lengths), 3 * demasker_flops(config, lengths, [0] * len(lengths), scored)


@torch.no_grad()
def validate(
    module: UnguidedDemasker, samples: list[Sample], vocabulary: Vocabulary, config: BaseRecipe
) -> list[tuple[float, int, Losses]]:
    """This rank's share of the held-out texts at every level; no collective."""
    device = next(module.parameters()).device
    draw = partial(generator, config.seed, 0)
    rows = pack([s.length for s in samples], config.row_tokens)
    rank, ranks = rank_and_world()
    records = []
    for row, counts in turns(len(rows), ranks)[rank]:
        texts = [samples[i] for i in rows[row]]
        for k in (0,):
            for t in VALIDATION_LEVELS:
                losses = module(at_level(texts, vocabulary, draw, t, k, D=0).texts.to(device))
                if counts:
                    records.append((t, k, Losses(*(tensor.cpu() for tensor in losses))))
    return records


def levels(records: list[tuple[float, int, Losses]]) -> dict[str, float]:
    """Cross-entropy and top-1 by masking level, of what all ranks have found."""
    ks = sorted({k for _, k, _ in records})
    of = lambda t, k: [one for at, registers, one in records if (at, registers) == (t, k)]  # noqa: E731
    values = {}
    for score in score_levels(of, VALIDATION_LEVELS, ks):
        values[f"cross_entropy@{score.t}"] = score.cross_entropy
        values[f"top1@{score.t}"] = score.top1
    return values


if __name__ == "__main__":
    with one_line_errors():
        main()
