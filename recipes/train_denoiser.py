"""Train a register denoiser (CRoCoDiL App. E): unconditional for ConThenDisc, conditional for ConWithinDisc.

    accelerate launch recipes/train_denoiser.py --config recipes/configs/nano-denoiser.yaml

Registers come out of a cache (cache_registers.py), or are encoded on the way. Ctrl-C saves a checkpoint; the same
command with --resume goes on from it.
"""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from crocodil.autoencoder import Draw
from crocodil.bundle import check_values
from crocodil.demasker.masking import mask
from crocodil.denoiser.dit import PRESETS, Denoiser, DenoiserConfig
from crocodil.denoiser.loss import DenoiserLoss, NoisyRegisters, draw_base_time, noisy
from crocodil.denoiser.schedule import offsets
from crocodil.denoiser.weights import TrainedDenoiser, load_denoiser, save_denoiser
from crocodil.errors import CrocodilError, one_line_errors
from crocodil.metrics.cost import denoiser_flops
from crocodil.model import Model, load
from crocodil.registers.cache import RegisterCache
from crocodil.registers.geometry import NestedDropout, check_count, draw_k
from crocodil.text.data import DataConfig, Texts
from crocodil.text.windows import Windows
from crocodil.training.accelerators import accelerator, leave
from crocodil.training.config import parse_arguments
from crocodil.training.engine import Engine
from crocodil.training.limits import check_batch, require_at_least
from crocodil.training.loop import LoopConfig
from crocodil.training.optimisation import OptimiserConfig
from crocodil.training.randomness import generator, permutation
from crocodil.training.ranks import total
from crocodil.training.run import Run, require_room
from crocodil.training.run_lock import run_lock
from crocodil.training.start import find_start

VALIDATION_TIMES = (0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class DenoiserRecipe(LoopConfig):
    """Everything that says what is trained. Where it runs is said in launch/."""

    run: str = "runs/denoiser"
    """Folder of checkpoints, metrics and the export."""
    model: str = "bundled"
    """Whose registers: a trained model's folder, a hub id, or `bundled`."""
    cache: str | None = None
    """A cache of that model's registers. Without it they are encoded on the way, from `data`."""
    data: DataConfig = field(default_factory=DataConfig)
    """Texts; beside a cache, only the held-out ones are used, for validation."""
    conditional: bool = False
    """Look at the encoding of a partly masked text, masked with probability r ~ U(0, 1)."""
    start: str | None = None
    """A trained denoiser to go on from (weights only). An unconditional one may become conditional: its
    cross-attention begins closed."""
    preset: Literal["tiny", "nano", "pixart-400m"] = "pixart-400m"
    """Width, layers and heads of a new denoiser."""
    k: int | None = None
    """Registers that it makes, a power of two; all of the model's, or all of those at `start`, if left out. More than
    at `start` let that denoiser grow."""
    nested_dropout: NestedDropout = field(default_factory=lambda: NestedDropout(draw="off"))
    """How many registers, the first ones, a step trains. With `groups` the denoiser learns to make any number."""
    largest_offset: float = 0.2
    """Δ_max: how much more the last group of registers is noised than the first."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=1e-4, weight_decay=0.0))
    steps: int = 200_000
    batch_size: int = 256
    """Windows of a global batch, over all ranks and micro-batches."""
    micro_batch: int = 32
    """Windows of a micro-batch."""
    ema: float = 0.9999
    recompute: bool = False
    """Activation checkpointing, block by block."""
    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    validate_every: int = 1000
    save_every: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "micro_batch")
        if self.k is not None:
            check_count(self.k)
        offsets(1, self.largest_offset)  # refuses what is no offset
        if self.nested_dropout.hide_all:
            raise CrocodilError(
                "nested_dropout.hide_all: a denoiser of no registers learns nothing; set it to 0"
            )


def main() -> None:
    arguments = parse_arguments(DenoiserRecipe, None, __doc__ or "")
    config = arguments.config
    ranks = accelerator(config)
    with run_lock(Path(config.run)):
        train(config, ranks, arguments.resume)
    leave(ranks)


def train(config: DenoiserRecipe, ranks: Accelerator, resume: str | None) -> None:
    torch.manual_seed(config.seed)

    check_batch(config.batch_size, ranks.num_processes)

    # Denoiser, and whose registers it learns.
    model = load(config.model, device=ranks.device)
    trained = build(config, model)
    K, offsets_K = trained.config.K, trained.offsets_K
    trained.denoiser.recompute = config.recompute

    # Registers.
    cache = None if config.cache is None else RegisterCache(config.cache, model.fingerprint)
    if cache is not None and cache.spec.K < K:
        raise CrocodilError(
            f"{config.cache} holds {cache.spec.K} registers of a window, this denoiser makes {K}; set k to "
            f"{cache.spec.K} or less, or cache more"
        )
    if ranks.is_main_process:
        print(f"reading the texts of {config.data.source}", file=sys.stderr, flush=True)
    windows, held_out = Texts(config.data).windows(model.vocabulary, config.seed)
    source = OnTheWay(windows, model) if cache is None else Cached(cache)
    if len(source) < config.batch_size:
        raise CrocodilError(
            f"there are {len(source)} windows, a batch wants {config.batch_size}; lower batch_size"
        )
    steps_per_epoch = len(source) // config.batch_size

    # Engine, and where it goes on.
    task = digest_of(source, trained, config)
    start = find_start(config, resume, task, may_change(config))
    validation = validation_batches(held_out, model, trained, config)
    engine = Engine(ranks, DenoiserLoss(trained.denoiser), config.optimiser, config.steps, ema=config.ema)
    if start.checkpoint is not None:
        engine.load(start.checkpoint)

    with Run(config, ranks, start, task, unit="registers") as run:
        require_room(config, engine)
        millions = trained.denoiser.parameters_in_all / 1e6
        run.say(
            f"{millions:,.1f} M parameters, {K} registers of {len(source):,} windows, from step {start.step}"
        )
        for step in range(start.step, config.steps):
            # 1. The windows of this step, the same whatever the ranks: a pure function of (seed, step).
            epoch, batch = divmod(step, steps_per_epoch)
            if batch == 0 or step == start.step:
                order = permutation(config.seed, epoch, len(source))
            chosen = order[batch * config.batch_size : (batch + 1) * config.batch_size]
            mine = chosen[ranks.process_index :: ranks.num_processes]

            run.beat(step, "forward and backward")
            # 2. Registers of this rank's share; noise them (τ, ε; r and mask), forward, backward.
            draw = partial(generator, config.seed, epoch)
            k = draw_k(K, config.nested_dropout, draw(batch, "k"))
            batches = []
            for at in range(0, len(mine), config.micro_batch):
                samples = mine[at : at + config.micro_batch]
                clean_BKD = source.registers(samples, epoch, k)
                texts = [source.window(i, epoch) for i in samples] if config.conditional else []
                condition = condition_of(model, texts, samples, draw, k) if texts else None
                batches.append(noised(clean_BKD, samples, draw, offsets_K[:k], condition))
            summed = torch.zeros((), dtype=torch.float64, device=ranks.device)
            for errors in engine.accumulate(batches, config.batch_size, step, run.guard.ceiling):
                summed += errors.total.detach()

            # 3. Step.
            run.beat(step, "update")
            update = engine.update()
            flops = 3 * denoiser_flops(trained.config, len(mine), k)
            loss, *work = total([float(summed), float(len(mine) * k), flops], ranks.device)

            # 4. Tell.
            step += 1
            run.did(step, {"loss": loss / config.batch_size}, update, engine, work, chosen)

            # 5. Validate by noise level.
            if run.due(step, config.validate_every):
                with run.aside(step, "validation"), engine.averaged() as module:
                    run.measured(step, validate(module, validation))

            # 6. Save.
            if run.save(engine, step):
                return

        def write(directory: Path, module: DenoiserLoss) -> None:
            said = asdict(config) | ({"preset": None} if config.start is not None else {})
            record = {"recipe": "train_denoiser", "steps": run.start.step, "config": said}
            whole, dtype = replace(trained, denoiser=module.denoiser), getattr(torch, config.export_dtype)
            check_values(whole.denoiser, dtype)
            save_denoiser(directory, whole, dtype, record)

        run.export(engine, write)


def build(config: DenoiserRecipe, model: Model) -> TrainedDenoiser:
    """A new denoiser for this model's registers, or one to go on from."""
    if config.k is not None and config.k > model.K:
        raise CrocodilError(f"k is {config.k}; this model has {model.K} registers")
    any_k = config.nested_dropout.draw != "off"
    if config.start is None:
        K = model.K if config.k is None else config.k
        sizes = DenoiserConfig(K=K, D=model.D, conditional=config.conditional, **PRESETS[config.preset])
        return TrainedDenoiser(Denoiser(sizes), model.fingerprint, config.largest_offset, any_k)
    found = load_denoiser(config.start)
    if found.encoder != model.fingerprint:
        raise CrocodilError(
            f"{config.start} makes registers of encoder {found.encoder}, the model is {model.fingerprint}; "
            "give the model it was trained for"
        )
    if found.config.conditional and not config.conditional:
        raise CrocodilError(f"{config.start} is conditional; set conditional: true, or start from another")
    denoiser = Denoiser(replace(found.config, conditional=config.conditional))
    denoiser.load_state_dict(
        found.denoiser.state_dict(), strict=found.config.conditional == config.conditional
    )
    if config.k is not None:
        denoiser.grow(config.k)
    return replace(found, denoiser=denoiser, largest_offset=config.largest_offset, any_k=any_k)


def digest_of(source: Cached | OnTheWay, trained: TrainedDenoiser, config: DenoiserRecipe) -> str:
    """What a run may not change on its way: whose registers of which windows, in which order, and what is asked."""
    says = [source.digest, trained.encoder, trained.config, trained.largest_offset]
    says += [config.seed, config.batch_size, config.nested_dropout]
    return hashlib.blake2b(repr(says).encode(), digest_size=8).hexdigest()


def may_change(config: DenoiserRecipe) -> tuple[str, ...]:
    """Fields that the digest answers for. Of `data` it knows the texts; without a cache it is the training that cuts them
    into windows."""
    cuts = {"lengths", "short_fraction"} if config.cache is None else set()
    data = [f"data.{one.name}" for one in fields(DataConfig) if one.name not in cuts]
    return ("model", "cache", "start", *data)


class Cached:
    """Registers out of a cache."""

    def __init__(self, cache: RegisterCache) -> None:
        self.cache = cache
        self.digest = cache.spec.digest

    def __len__(self) -> int:
        return len(self.cache)

    def registers(self, samples: list[int], epoch: int, K: int) -> torch.Tensor:
        return self.cache.read(samples, K)

    def window(self, sample: int, epoch: int) -> list[int]:
        return self.cache.window(sample)


class OnTheWay:
    """Registers encoded when they are wanted; every epoch cuts its windows anew."""

    def __init__(self, windows: Windows, model: Model) -> None:
        self.windows, self.model = windows, model
        self.digest = windows.tokens.digest

    def __len__(self) -> int:
        return len(self.windows)

    def registers(self, samples: list[int], epoch: int, K: int) -> torch.Tensor:
        texts = [self.windows.sample(i, epoch).text_ids for i in samples]
        return self.model.encode_ids(texts, K)

    def window(self, sample: int, epoch: int) -> list[int]:
        return self.windows.sample(sample, epoch).window(self.model.vocabulary)


def noised(
    clean_BKD: torch.Tensor,
    samples: list[int],
    draw: Draw,
    offsets_K: torch.Tensor,
    condition_BKD: torch.Tensor | None,
) -> NoisyRegisters:
    """Registers at the base times, and with the noise, that belong to these samples."""
    base_B = torch.tensor([draw_base_time(offsets_K, draw(i, "s")) for i in samples], dtype=torch.float64)
    noise = [torch.randn(clean_BKD.shape[1:], generator=draw(i, "noise")) for i in samples]
    return noisy(clean_BKD, base_B, offsets_K, torch.stack(noise), condition_BKD)


def condition_of(
    model: Model, windows: list[list[int]], samples: list[int], draw: Draw, K: int
) -> torch.Tensor:
    """h(x^(r)): registers of the windows, each masked with its own probability r ~ U(0, 1) (App. E)."""
    out = torch.empty(len(windows), K, model.D)
    for length in {len(window) for window in windows}:
        rows = [i for i, window in enumerate(windows) if len(window) == length]
        ids_BN = torch.tensor([windows[i] for i in rows], device=model.device)
        masks = []
        for i in rows:
            r = float(torch.rand((), generator=draw(samples[i], "r"), dtype=torch.float64))
            masks.append(mask(length, r, draw(samples[i], "mask")))
        out[rows] = model.encode_partial(ids_BN, torch.stack(masks).to(model.device), K).cpu()
    return out


def validation_batches(
    held_out: Windows, model: Model, trained: TrainedDenoiser, config: DenoiserRecipe
) -> dict[float, list[NoisyRegisters]]:
    """Held-out registers at fixed base times, by draws that never change."""
    draw = partial(generator, config.seed, 0)
    K, offsets_K = trained.config.K, trained.offsets_K
    samples = [int(i) for i in held_out.order(0)[: config.validation_texts]]
    found: dict[float, list[NoisyRegisters]] = {}
    for at in range(0, len(samples), config.micro_batch):
        part = samples[at : at + config.micro_batch]
        texts = [held_out.sample(i, 0) for i in part]
        clean_BKD = model.encode_ids([text.text_ids for text in texts], K)
        condition = None
        if config.conditional:
            condition = condition_of(model, [t.window(model.vocabulary) for t in texts], part, draw, K)
        noise = torch.stack([torch.randn(clean_BKD.shape[1:], generator=draw(i, "noise")) for i in part])
        for s in VALIDATION_TIMES:
            base_B = torch.full((len(part),), s, dtype=torch.float64)
            found.setdefault(s, []).append(noisy(clean_BKD, base_B, offsets_K, noise, condition))
    return found


def validate(module: DenoiserLoss, batches: dict[float, list[NoisyRegisters]]) -> dict[str, float]:
    """PSNR of the predicted registers by base time (Fig. 9), in dB: coordinates have unit variance, so the peak is 1."""
    device = next(module.parameters()).device
    values = {}
    with torch.no_grad():
        for s, parts in batches.items():
            error = torch.cat([module(part.to(device)).error_BK.mean(dim=1) for part in parts])
            values[f"psnr@s={s}"] = -10 * math.log10(max(float(error.mean()), 1e-12))
    return values


if __name__ == "__main__":
    with one_line_errors():
        main()
