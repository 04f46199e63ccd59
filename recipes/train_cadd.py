"""Train a demasker that sees a noisy latent at every masked token (CADD Alg. 1), from scratch or from a trained demasker.

    accelerate launch recipes/train_cadd.py --config recipes/configs/cadd-nano.yaml

What can be set is in `crocodil/augmented.py`; what a step learns from is in `recipes/tasks/`, for texts and for images.
Ctrl-C saves a checkpoint; the same command with --resume goes on from it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from crocodil.augmented import CaddRecipe
from crocodil.demasker.loss import Losses
from crocodil.errors import one_line_errors
from crocodil.metrics.likelihood import score_levels
from crocodil.training.accelerators import accelerator, leave
from crocodil.training.ahead import ahead
from crocodil.training.config import parse_arguments
from crocodil.training.engine import Engine
from crocodil.training.limits import check_batch
from crocodil.training.randomness import draw_seed
from crocodil.training.ranks import gather, total
from crocodil.training.run import Run, require_room
from crocodil.training.run_lock import run_lock
from crocodil.training.start import find_start
from recipes.tasks.images import ImageTask
from recipes.tasks.texts import VALIDATION_LEVELS, TextTask


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

    # What is learned, and from what.
    task = TextTask(config, ranks) if config.images is None else ImageTask(config, ranks)

    # Engine, and where it goes on. The model at `init` may have moved; another one is refused.
    start = find_start(config, resume, task.digest, ("init",), task.origin)
    with Run(config, ranks, start, task.digest, task.unit, task.origin) as run:
        run.beat(start.step, "building the engine")
        is_fixed = lambda name: name.startswith("encoder.") and not config.train_encoder  # noqa: E731
        engine = Engine(
            ranks,
            task.module,
            config.optimiser,
            config.steps,
            trainable=lambda name: not is_fixed(name),
            ema=config.ema,
            fixed=is_fixed,
        )
        if start.checkpoint is not None:
            engine.load(start.checkpoint)
        require_room(config, engine)
        run.say(f"{task.told}, from step {start.step}")
        for step, (ids, batches) in ahead(task.prepare, range(start.step, config.steps), config.prefetch):
            # 1 and 2 are the task's: the samples of a step, dealt out, and their corruption.
            run.beat(step, "forward and backward")
            if config.images is not None and config.unet.dropout:
                # the U-Net draws from the process-wide generator
                torch.manual_seed(draw_seed(config.seed, step, ranks.process_index, "dropout"))
            sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
            for losses in engine.accumulate(batches, config.batch_size, step, run.guard.ceiling):
                sums += torch.stack([losses.total.detach(), losses.accuracy_B.sum()])

            # 3. Step.
            run.beat(step, "update")
            update = engine.update()
            loss, top1, *work = total([*sums.tolist(), *task.cost(batches)], ranks.device)

            # 4. Tell.
            step += 1
            values = {"loss": loss / config.batch_size, "top1": top1 / config.batch_size}
            run.did(step, values, update, engine, work, ids)

            # 5. Validate by masking level, and write a few samples.
            if run.due(step, config.validate_every):
                with run.aside(step, "validation") as aside, engine.averaged() as averaged:
                    mine = task.validate(averaged)
                if not aside.failed:
                    run.measured(step, levels([one for of_rank in gather(mine) for one in of_rank]))
            if run.due(step, config.sample_every):
                with run.aside(step, "samples"), engine.whole() as averaged, ranks.autocast():
                    if ranks.is_main_process:
                        task.write(averaged, step)

            # 6. Save.
            if run.save(engine, step):
                return

        run.export(engine, lambda folder, module: task.export(folder, module, run.start.step))


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


if __name__ == "__main__":
    with one_line_errors():
        main()
