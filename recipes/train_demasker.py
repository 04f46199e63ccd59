"""Train encoder and guided demasker together (CRoCoDiL Alg. 1, App. C): first the encoder, then everything.

    accelerate launch recipes/train_demasker.py --config recipes/configs/nano.yaml

What can be set is in `crocodil/joint.py`. Ctrl-C saves a checkpoint; the same command with --resume goes on from it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from accelerate import Accelerator

from crocodil import adapters
from crocodil.attention import Segments
from crocodil.autoencoder import Autoencoder, Batch, at_level, corrupt
from crocodil.bundle import save_autoencoder
from crocodil.demasker.loss import Losses
from crocodil.errors import one_line_errors
from crocodil.export import export
from crocodil.joint import DemaskerRecipe, as_built, build, compile_blocks, family, origin
from crocodil.metrics.cost import demasker_flops, encoder_flops
from crocodil.metrics.likelihood import score_levels
from crocodil.metrics.reconstruction import cer
from crocodil.registers.geometry import RegisterNoise
from crocodil.sampler.demask import demask
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
from crocodil.training.randomness import draw_seed, generator
from crocodil.training.ranks import broadcast, gather, rank_and_world, total
from crocodil.training.run import Run, require_room
from crocodil.training.run_lock import run_lock
from crocodil.training.start import find_start

VALIDATION_LEVELS = (0.5, 1.0)
WEIGHTS = ("demasker", "encoder", "start")
"""A resumed run has its weights from the checkpoint, so it does not matter where they came from. What else a model
brings, and what lies under adapters, is compared by its `origin`."""


def main() -> None:
    arguments = parse_arguments(DemaskerRecipe, None, __doc__ or "")
    config = arguments.config
    ranks = accelerator(config)
    run = Path(config.run)
    with run_lock(run):
        done = train(config, ranks, arguments.resume)
    leave(ranks)
    if done and config.lora is not None and ranks.is_main_process:
        export(run / "adapters", run / "export", config.export_dtype, replace=True)
        print(f"merged into {run / 'export'}", file=sys.stderr)


def train(config: DemaskerRecipe, ranks: Accelerator, resume: str | None) -> bool:
    """Returns whether all steps are done."""
    torch.manual_seed(config.seed)

    check_batch(config.batch_size, ranks.num_processes)

    # Model and texts.
    module, vocabulary = build(config, mapped=config.lora is not None or is_taken_apart(ranks))
    base = None
    if config.lora is not None:
        if ranks.is_main_process:
            base = adapters.base_of(
                module, model=config.start, demasker=config.demasker, encoder=config.encoder
            )
        base = broadcast(base)
        narrow = torch.bfloat16 if ranks.mixed_precision == "bf16" else torch.float32
        adapters.inject(module, config.lora, config.seed, narrow)
    is_fixed = (lambda name: not adapters.trainable(name)) if config.lora else (lambda name: False)
    record, source = as_built(config, module), origin(module, vocabulary, base)
    llada, K, D = module.demasker.llada, module.encoder.K, module.encoder.D
    llada.recompute = config.recompute
    if config.recompute:
        module.encoder.recompute()
    if config.compile:
        compile_blocks([*llada.blocks, *module.encoder.backbone.layers])
    windows, held_out = Texts(config.data).windows(vocabulary, config.seed)
    validation = [held_out.sample(int(i), 0) for i in held_out.order(0)[: config.validation_texts]]
    steps_per_epoch = windows.batches(config.batch_size)

    order = lru_cache(maxsize=2)(windows.order)
    exact = replace(config.corruption, register_noise=RegisterNoise(cosine=1.0))

    # What a step learns from, the same whatever the ranks: a pure function of (seed, step).
    def prepare(step: int) -> tuple[list[int], list[Batch]]:
        # 1. The texts, packed into rows and dealt out.
        epoch, batch = divmod(step, steps_per_epoch)
        chosen = order(epoch)[batch * config.batch_size : (batch + 1) * config.batch_size]
        samples = [windows.sample(int(i), epoch) for i in chosen]
        rows = deal(pack([s.length for s in samples], config.row_tokens), ranks.num_processes)

        # 2. Corrupt this rank's share: t, mask, k, noise.
        draw = partial(generator, config.seed, epoch)
        corruption = config.corruption if step >= config.noise_from else exact
        return [s.id for s in samples], [
            corrupt([samples[i] for i in row], vocabulary, draw, corruption, K, D)
            for row in rows[ranks.process_index]
        ]

    start = find_start(config, resume, windows.tokens.digest, WEIGHTS, source)
    with Run(config, ranks, start, windows.tokens.digest, origin=source) as run:
        run.say(f"{len(windows):,} training windows, {len(held_out):,} held out, from step {start.step}")
        stages = [
            (min(config.encoder_steps, config.steps), lambda name: family(name) == "guide"),
            (config.steps, lambda name: True),
        ]
        for stage, (until, belongs) in enumerate(stages):
            if run.start.step >= until and stage < len(stages) - 1:
                continue
            # A stage is entered from a checkpoint, with an engine of its own (docs/training.md).
            run.beat(run.start.step, "building the engine")
            engine = Engine(
                ranks,
                module,
                config.optimiser,
                config.steps,
                trainable=lambda name, belongs=belongs: belongs(name) and not is_fixed(name),
                ema=config.ema,
                family=family,
                fixed=is_fixed,
            )
            if run.start.checkpoint is not None:
                engine.load(run.start.checkpoint, stage_changed=stage != run.start.stage)
            require_room(config, engine)

            for step, (ids, batches) in ahead(prepare, range(run.start.step, until), config.prefetch):
                run.beat(step, "forward and backward")
                if config.lora is not None and config.lora.dropout:
                    # PEFT draws from the process-wide generator
                    torch.manual_seed(draw_seed(config.seed, step, ranks.process_index, "dropout"))
                sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
                for losses in engine.accumulate(batches, config.batch_size, step, run.guard.ceiling):
                    sums += torch.stack([losses.total.detach(), losses.accuracy_B.sum()])

                # 3. Step.
                run.beat(step, "update")
                update = engine.update()
                loss, top1, *work = total([*sums.tolist(), *cost(module, batches)], ranks.device)

                # 4. Tell.
                step += 1
                values = {"stage": stage, "loss": loss / config.batch_size, "top1": top1 / config.batch_size}
                run.did(step, values, update, engine, work, ids, always=step == until)

                # 5. Validate by masking level, and write a few texts through registers.
                if run.due(step, config.validate_every):
                    with run.aside(step, "validation") as aside, engine.averaged() as averaged:
                        mine = validate(averaged, validation, vocabulary, config)
                    if not aside.failed:
                        run.measured(step, levels([one for of_rank in gather(mine) for one in of_rank]))
                if run.due(step, config.sample_every):
                    with run.aside(step, "samples"), engine.whole() as averaged, ranks.autocast():
                        if ranks.is_main_process:
                            reconstruct(averaged, validation[: config.samples], vocabulary, config, step)

                # 6. Save.
                if run.save(engine, step, stage, must=step == until):
                    return False
            if until < config.steps:
                engine.close()

        # run.start: a run that had gone further than `steps` now says has done what it has done
        trained = {"recipe": "train_demasker", "steps": run.start.step, "config": record}
        window = max(config.data.lengths)
        if base is None:
            dtype = getattr(torch, config.export_dtype)
            run.export(engine, lambda out, m: save_autoencoder(out, m, vocabulary, window, dtype, trained))
        else:
            run.export(
                engine,
                lambda out, m: adapters.save_adapters(out, m, vocabulary, window, base, trained),
                name="adapters",
            )
    return True


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


@torch.no_grad()
def validate(
    module: Autoencoder, samples: list[Sample], vocabulary: Vocabulary, config: DemaskerRecipe
) -> list[tuple[float, int, Losses]]:
    """This rank's share of the held-out texts at every level, unguided and guided; no collective."""
    device = next(module.parameters()).device
    draw = partial(generator, config.seed, 0)
    rows = pack([s.length for s in samples], config.row_tokens)
    rank, ranks = rank_and_world()
    records = []
    for row, counts in turns(len(rows), ranks)[rank]:
        texts = [samples[i] for i in rows[row]]
        for k in (0, module.encoder.K):
            for t in VALIDATION_LEVELS:
                losses = module(at_level(texts, vocabulary, draw, t, k, module.encoder.D).to(device))
                if counts:
                    records.append((t, k, Losses(*(tensor.cpu() for tensor in losses))))
    return records


def levels(records: list[tuple[float, int, Losses]]) -> dict[str, float]:
    """Cross-entropy and top-1 by masking level and number of registers, of what all ranks have found."""
    ks = sorted({k for _, k, _ in records})
    of = lambda t, k: [one for at, registers, one in records if (at, registers) == (t, k)]  # noqa: E731
    values = {}
    for score in score_levels(of, VALIDATION_LEVELS, ks):
        values[f"cross_entropy@t={score.t},k={score.k}"] = score.cross_entropy
        values[f"top1@t={score.t},k={score.k}"] = score.top1
    return values


@torch.no_grad()
def reconstruct(
    module: Autoencoder, samples: list[Sample], vocabulary: Vocabulary, config: DemaskerRecipe, step: int
) -> None:
    """Held-out texts through all registers and back, appended to samples.jsonl."""
    device = next(module.parameters()).device
    K, written = module.encoder.K, []
    for sample in samples:
        text_ids = torch.tensor(sample.text_ids, device=device)
        z_KD = module.encoder(text_ids, Segments.of([len(text_ids)], device), [K])
        canvas = torch.full((1, sample.length), vocabulary.mask_id, device=device)
        guided = lambda ids, rows, z=z_KD: module.demasker.logits(ids, rows, z[None])[:, : vocabulary.size]  # noqa: E731
        ids = demask(guided, canvas, vocabulary.mask_id, nfe=min(config.sample_nfe, sample.length)).ids[0]
        text, back = vocabulary.decode(sample.text_ids), vocabulary.decode(ids.tolist())
        written.append({"step": step, "cer": cer(back, text), "text": text, "reconstruction": back})
    with open(Path(config.run) / "samples.jsonl", "a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(one) + "\n" for one in written)


if __name__ == "__main__":
    with one_line_errors():
        main()
