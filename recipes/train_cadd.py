"""Train a demasker that sees a noisy latent at every masked token (CADD Alg. 1), from scratch or from a trained demasker.

    accelerate launch recipes/train_cadd.py --config recipes/configs/cadd-nano.yaml

What can be set is in `crocodil/augmented.py`. Ctrl-C saves a checkpoint; the same command with --resume goes on from it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from accelerate import Accelerator

from crocodil.augmented import Augmented, CaddRecipe, build
from crocodil.autoencoder import Batch, at_level, corrupt
from crocodil.bundle import save_autoencoder, save_unguided
from crocodil.cadd.demasker import seeded
from crocodil.cadd.sampler import LatentSpace, sample
from crocodil.demasker.loss import Losses
from crocodil.errors import one_line_errors
from crocodil.joint import compile_blocks
from crocodil.metrics.cost import demasker_flops, encoder_flops
from crocodil.metrics.likelihood import score_levels
from crocodil.text.data import Texts
from crocodil.text.vocabulary import Vocabulary
from crocodil.text.windows import Sample, pack
from crocodil.training.accelerators import accelerator, leave
from crocodil.training.ahead import ahead
from crocodil.training.config import parse_arguments
from crocodil.training.deal import deal, turns
from crocodil.training.engine import Engine
from crocodil.training.limits import check_batch
from crocodil.training.placement import is_taken_apart
from crocodil.training.randomness import generator
from crocodil.training.ranks import gather, rank_and_world, total
from crocodil.training.run import Run, require_room
from crocodil.training.run_lock import run_lock
from crocodil.training.start import find_start

VALIDATION_LEVELS = (0.1, 0.5, 0.9)


def main() -> None:
    arguments = parse_arguments(CaddRecipe, None, __doc__ or "")
    config = arguments.config
    ranks = accelerator(config)
    with run_lock(Path(config.run)):
        train(config, ranks, arguments.resume)
    leave(ranks)


def train(config: CaddRecipe, ranks: Accelerator, resume: str | None) -> None:
    torch.manual_seed(config.seed)

    check_batch(config.batch_size, ranks.num_processes)

    # Texts and model.
    texts = Texts(config.data)
    module, vocabulary = build(config, texts, mapped=is_taken_apart(ranks) and not config.registers)
    llada = module.demasker.llada
    K, D = (module.encoder.K, module.encoder.D) if module.encoder is not None else (0, 0)
    llada.recompute = config.recompute
    if config.compile:
        compile_blocks(llada.blocks)
    windows, held_out = texts.windows(vocabulary, config.seed)
    validation = [held_out.sample(int(i), 0) for i in held_out.order(0)[: config.validation_texts]]
    steps_per_epoch = windows.batches(config.batch_size)
    order = lru_cache(maxsize=2)(windows.order)

    # What a step learns from, the same whatever the ranks: a pure function of (seed, step).
    def prepare(step: int) -> tuple[list[int], list[Batch]]:
        # 1. The texts, packed into rows and dealt out.
        epoch, batch = divmod(step, steps_per_epoch)
        chosen = order(epoch)[batch * config.batch_size : (batch + 1) * config.batch_size]
        samples = [windows.sample(int(i), epoch) for i in chosen]
        rows = deal(pack([s.length for s in samples], config.row_tokens), ranks.num_processes)

        # 2. Corrupt this rank's share: t, mask, seeds of the latents' noise; k and noise of registers.
        draw = partial(generator, config.seed, epoch)
        batches = []
        for row in rows[ranks.process_index]:
            mine = [samples[i] for i in row]
            corrupted = corrupt(mine, vocabulary, draw, config.corruption, K, D)
            noised = seeded(corrupted.texts, (draw(one.id, "latents") for one in mine))
            batches.append(replace(corrupted, texts=noised))
        return [s.id for s in samples], batches

    # Engine, and where it goes on.
    # Weights that train are in the checkpoint, so it does not matter where they came from.
    from_checkpoint = () if config.registers and not config.train_encoder else ("init",)
    start = find_start(config, resume, windows.tokens.digest, from_checkpoint)
    with Run(config, ranks, start, windows.tokens.digest) as run:
        run.beat(start.step, "building the engine")
        is_fixed = lambda name: name.startswith("encoder.") and not config.train_encoder  # noqa: E731
        engine = Engine(
            ranks,
            module,
            config.optimiser,
            config.steps,
            trainable=lambda name: not is_fixed(name),
            ema=config.ema,
            fixed=is_fixed,
        )
        if start.checkpoint is not None:
            engine.load(start.checkpoint)
        require_room(config, engine)
        run.say(f"{len(windows):,} training windows, {len(held_out):,} held out, from step {start.step}")
        for step, (ids, batches) in ahead(prepare, range(start.step, config.steps), config.prefetch):
            run.beat(step, "forward and backward")
            sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
            for losses in engine.accumulate(batches, config.batch_size, step, run.guard.ceiling):
                sums += torch.stack([losses.total.detach(), losses.accuracy_B.sum()])

            # 3. Step.
            run.beat(step, "update")
            update = engine.update()
            loss, top1, *work = total([*sums.tolist(), *cost(module, batches)], ranks.device)

            # 4. Tell.
            step += 1
            values = {"loss": loss / config.batch_size, "top1": top1 / config.batch_size}
            run.did(step, values, update, engine, work, ids)

            # 5. Validate by masking level, and write a few texts.
            if run.due(step, config.validate_every):
                with run.aside(step, "validation") as aside, engine.averaged() as averaged:
                    mine = validate(averaged, validation, vocabulary, config)
                if not aside.failed:
                    run.measured(step, levels([one for of_rank in gather(mine) for one in of_rank]))
            if run.due(step, config.sample_every):
                with run.aside(step, "samples"), engine.whole() as averaged, ranks.autocast():
                    if ranks.is_main_process:
                        write(averaged, vocabulary, config, step)

            # 6. Save.
            if run.save(engine, step):
                return

        run.export(engine, lambda out, trained: export(out, trained, vocabulary, config))


def cost(module: Augmented, batches: list[Batch]) -> tuple[int, float]:
    """Window tokens, and FLOPs of forward and backward (three forwards), of these micro-batches."""
    tokens, flops = 0, 0.0
    for batch in batches:
        lengths = batch.texts.segments.lengths
        prefixes = [k + 2 if k else 0 for k in batch.k]
        tokens += sum(lengths)
        scored = int(batch.texts.is_masked_T.sum())
        flops += 3 * demasker_flops(module.demasker.llada.config, lengths, prefixes, scored)
        if module.encoder is not None:
            shown = [max(k, 1) for k in batch.k]
            flops += 3 * encoder_flops(module.encoder.backbone.config, batch.clean.lengths, shown)
    return tokens, flops


@torch.no_grad()
def validate(
    module: Augmented, samples: list[Sample], vocabulary: Vocabulary, config: CaddRecipe
) -> list[tuple[float, int, Losses]]:
    """This rank's share of the held-out texts at every level, with all registers or none; no collective."""
    device = next(module.parameters()).device
    draw = partial(generator, config.seed, 0)
    rows = pack([s.length for s in samples], config.row_tokens)
    rank, ranks = rank_and_world()
    K, D = (module.encoder.K, module.encoder.D) if module.encoder is not None else (0, 0)
    records = []
    for row, counts in turns(len(rows), ranks)[rank]:
        texts = [samples[i] for i in rows[row]]
        for k in sorted({0, K}):
            for t in VALIDATION_LEVELS:
                batch = at_level(texts, vocabulary, draw, t, k, D)
                noised = seeded(batch.texts, (draw(one.id, "latents") for one in texts))
                losses = module(replace(batch, texts=noised).to(device))
                if counts:
                    records.append((t, k, Losses(*(tensor.cpu() for tensor in losses))))
    return records


def levels(records: list[tuple[float, int, Losses]]) -> dict[str, float]:
    """Cross-entropy and top-1 by masking level and number of registers, of what all ranks have found."""
    ks = sorted({k for _, k, _ in records})
    of = lambda t, k: [one for at, registers, one in records if (at, registers) == (t, k)]  # noqa: E731
    values = {}
    for score in score_levels(of, VALIDATION_LEVELS, ks):
        where = f"t={score.t}" + (f",k={score.k}" if len(ks) > 1 else "")
        values[f"cross_entropy@{where}"] = score.cross_entropy
        values[f"top1@{where}"] = score.top1
    return values


@torch.no_grad()
def write(module: Augmented, vocabulary: Vocabulary, config: CaddRecipe, step: int) -> None:
    """New texts out of noise (Alg. 2), without registers, appended to samples.jsonl."""
    demasker, length = module.demasker, max(config.data.lengths)
    device = next(module.parameters()).device
    latents = demasker.latents
    space = None if latents is None else LatentSpace(demasker.clean_table(), latents.config.schedule)
    canvas = torch.full((config.samples, length), vocabulary.mask_id, device=device)
    done = sample(
        lambda ids, rows, z, t: demasker.logits(ids, rows, None, z, t)[:, : vocabulary.size],
        canvas,
        vocabulary.mask_id,
        steps=config.sample_nfe,
        generators=[generator(config.seed, 0, i, "samples") for i in range(config.samples)],
        latents=space,
    )
    with open(Path(config.run) / "samples.jsonl", "a", encoding="utf-8") as lines:
        for ids in done.ids.tolist():
            lines.write(json.dumps({"step": step, "text": vocabulary.decode(ids)}) + "\n")


def export(folder: Path, module: Augmented, vocabulary: Vocabulary, config: CaddRecipe) -> None:
    """A model folder, of the kind that the model at `init` was."""
    trained = {"recipe": "train_cadd", "steps": config.steps, "config": asdict(config)}
    dtype, latents = getattr(torch, config.export_dtype), module.demasker.latents
    if module.autoencoder is None:
        save_unguided(folder, module.demasker.llada, vocabulary, dtype, latents, trained)
    else:
        window = max(config.data.lengths)
        save_autoencoder(folder, module.autoencoder, vocabulary, window, dtype, trained, latents)


if __name__ == "__main__":
    with one_line_errors():
        main()
