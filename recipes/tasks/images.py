"""CADD on images: pixels are tokens, the network is a U-Net; otherwise as on texts."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from crocodil.augmented import CaddRecipe
from crocodil.demasker.loss import Losses
from crocodil.errors import CrocodilError
from crocodil.images.data import check_augmentation, load_split
from crocodil.images.grid import save_grid
from crocodil.images.unet import MaskedImages, PixelDemasker, at_level, corrupt, fresh_unet
from crocodil.images.weights import generate_images, save_pixels
from crocodil.training.deal import deal, turns
from crocodil.training.randomness import generator
from crocodil.training.ranks import rank_and_world

VALIDATION_LEVELS = (0.1, 0.5, 0.9)


class ImageTask:
    """Images, and a demasker of their pixels."""

    unit = "pixels"

    def __init__(self, config: CaddRecipe, ranks: Accelerator) -> None:
        assert config.images is not None
        self._config, self._ranks = config, ranks
        split = load_split(config.images)
        self._train, held_out = split.train, split.held_out or split.train
        if len(self._train) < config.batch_size:
            raise CrocodilError(
                f"{config.images.source} gives {len(self._train):,} training images, a batch wants "
                f"{config.batch_size:,}; lower batch_size"
            )
        space = self._train.space
        check_augmentation(space.H, space.W, config.images.augmentation)
        self.origin = {
            "space": asdict(space)
        }  # the rest that a checkpoint's weights depend on is in the configuration
        self.module = fresh_unet(space, config.unet, config.latents, config.objective, config.seed)
        self._held_out, self._validation = held_out, list(range(min(config.validation_texts, len(held_out))))
        self.digest = self._train.digest
        self.told = f"{len(self._train):,} training images, "
        self.told += (
            f"{len(held_out):,} held out" if split.held_out else "none held out: validation is on them"
        )
        self._flops = self._forward_flops()

    def prepare(self, step: int) -> tuple[list[int], list[MaskedImages]]:
        """What a step learns from, the same whatever the ranks: a pure function of (seed, step)."""
        config, n = self._config, len(self._train)
        # 1. The images, in rows as texts are, and dealt out.
        per_epoch = n // config.batch_size
        epoch, batch = divmod(step, per_epoch)
        order = torch.randperm(n, generator=generator(config.seed, epoch, 0, "order"))
        chosen = order[batch * config.batch_size : (batch + 1) * config.batch_size].tolist()
        size = max(1, config.row_tokens // self._train.space.N)
        rows = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        mine = deal([list(row) for row in rows], self._ranks.num_processes)[self._ranks.process_index]

        # 2. Corrupt this rank's share: augmentation, t, mask, seeds of the latents' noise.
        draw, masking = partial(generator, config.seed, epoch), config.corruption.masking
        assert config.images is not None
        return chosen, [corrupt(self._train, row, draw, masking, config.images.augmentation) for row in mine]

    def cost(self, batches: list[MaskedImages]) -> tuple[int, float]:
        """Pixels, and FLOPs of forward and backward (three forwards), of these micro-batches."""
        images = sum(len(batch.ids_BN) for batch in batches)
        return images * self._train.space.N, 3 * images * self._flops

    @torch.no_grad()
    def validate(self, module: PixelDemasker) -> list[tuple[float, int, Losses]]:
        """This rank's share of the held-out images at every level; no collective."""
        device = next(module.parameters()).device
        draw = partial(generator, self._config.seed, 0)
        size = max(1, self._config.row_tokens // self._train.space.N)
        rows = [self._validation[start : start + size] for start in range(0, len(self._validation), size)]
        rank, ranks = rank_and_world()
        records = []
        for row, counts in turns(len(rows), ranks)[rank]:
            for t in VALIDATION_LEVELS:
                losses = module(at_level(self._held_out, rows[row], draw, t).to(device))
                if counts:
                    records.append((t, 0, Losses(*(tensor.cpu() for tensor in losses))))
        return records

    def write(self, module: PixelDemasker, step: int) -> None:
        """New images out of noise (Alg. 2), as a picture samples-STEP.png."""
        config = self._config
        made = generate_images(module, config.samples, nfe=config.sample_nfe, seed=config.seed)
        save_grid(Path(config.run) / f"samples-{step:08}.png", made.pixels)

    def export(self, folder: Path, module: PixelDemasker, steps: int) -> None:
        """A model folder."""
        config = self._config
        trained = {"recipe": "train_cadd", "steps": steps, "config": asdict(config)}
        save_pixels(folder, module, getattr(torch, config.export_dtype), trained)

    @torch.no_grad()
    def _forward_flops(self) -> float:
        """Of one image, counted by torch."""
        batch = at_level(self._train, [0], partial(generator, 0, 0), 0.5)
        with FlopCounterMode(display=False) as counter:
            self.module(batch)
        return float(counter.get_total_flops())
