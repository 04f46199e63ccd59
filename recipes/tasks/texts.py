"""CADD on texts: what a step learns from, how it is judged, and what comes out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from accelerate import Accelerator

from crocodil.augmented import Augmented, CaddRecipe, build, origin
from crocodil.autoencoder import Batch, at_level, corrupt
from crocodil.bundle import save_autoencoder, save_unguided
from crocodil.cadd.demasker import seeded
from crocodil.cadd.sampler import LatentSpace, sample
from crocodil.demasker.causal import anneal
from crocodil.demasker.loss import Losses
from crocodil.joint import compile_blocks
from crocodil.metrics.cost import demasker_flops, encoder_flops
from crocodil.text.data import Texts
from crocodil.text.windows import Sample, pack
from crocodil.training.deal import deal, turns
from crocodil.training.placement import is_taken_apart
from crocodil.training.randomness import generator
from crocodil.training.ranks import rank_and_world

VALIDATION_LEVELS = (0.1, 0.5, 0.9)


class TextTask:
    """Windows of texts, and a demasker for them."""

    unit = "tokens"

    def __init__(self, config: CaddRecipe, ranks: Accelerator) -> None:
        self._config, self._ranks = config, ranks
        texts = Texts(config.data)
        mapped = is_taken_apart(ranks) and not config.registers
        self.module, self._vocabulary = build(config, texts, mapped)
        encoder, llada = self.module.encoder, self.module.demasker.llada
        self._K, self._D = (encoder.K, encoder.D) if encoder is not None else (0, 0)
        llada.recompute = config.recompute
        if config.compile:
            compile_blocks(llada.blocks)
        self._windows, held_out = texts.windows(self._vocabulary, config.seed)
        self._validation = [held_out.sample(int(i), 0) for i in held_out.order(0)[: config.validation_texts]]
        self._order = lru_cache(maxsize=2)(self._windows.order)
        self.digest = self._windows.tokens.digest
        self.origin = origin(self.module, self._vocabulary, config.keeps_encoder)
        self.told = f"{len(self._windows):,} training windows, {len(held_out):,} held out"

    def prepare(self, step: int) -> tuple[list[int], list[Batch]]:
        """What a step learns from, the same whatever the ranks: a pure function of (seed, step)."""
        config, windows = self._config, self._windows
        # 1. The texts, packed into rows and dealt out.
        epoch, batch = divmod(step, windows.batches(config.batch_size))
        chosen = self._order(epoch)[batch * config.batch_size : (batch + 1) * config.batch_size]
        samples = [windows.sample(int(i), epoch) for i in chosen]
        rows = deal(pack([s.length for s in samples], config.row_tokens), self._ranks.num_processes)

        # 2. Corrupt this rank's share: t, mask, seeds of the latents' noise; k and noise of registers.
        draw = partial(generator, config.seed, epoch)
        mine = [[samples[i] for i in row] for row in rows[self._ranks.process_index]]
        return [s.id for s in samples], [self._corrupted(texts, draw, step) for texts in mine]

    def _corrupted(self, samples: list[Sample], draw: partial[torch.Generator], step: int) -> Batch:
        config = self._config
        batch = corrupt(samples, self._vocabulary, draw, config.corruption, self._K, self._D)
        texts = seeded(batch.texts, (draw(one.id, "latents") for one in samples))
        if step < config.anneal_steps:
            share = step / config.anneal_steps
            texts = anneal(texts, share, (draw(one.id, f"attention {step}") for one in samples))
        return replace(batch, texts=texts)

    def cost(self, batches: list[Batch]) -> tuple[int, float]:
        """Window tokens, and FLOPs of forward and backward (three forwards), of these micro-batches."""
        tokens, flops = 0, 0.0
        for batch in batches:
            lengths = batch.texts.segments.lengths
            prefixes = [k + 2 if k else 0 for k in batch.k]
            tokens += sum(lengths)
            scored = int(batch.texts.is_masked_T.sum())
            flops += 3 * demasker_flops(self.module.demasker.llada.config, lengths, prefixes, scored)
            if self.module.encoder is not None:
                shown = [max(k, 1) for k in batch.k]
                flops += 3 * encoder_flops(self.module.encoder.backbone.config, batch.clean.lengths, shown)
        return tokens, flops

    @torch.no_grad()
    def validate(self, module: Augmented) -> list[tuple[float, int, Losses]]:
        """This rank's share of the held-out texts at every level, with all registers or none; no collective."""
        device = next(module.parameters()).device
        draw = partial(generator, self._config.seed, 0)
        rows = pack([s.length for s in self._validation], self._config.row_tokens)
        rank, ranks = rank_and_world()
        records = []
        for row, counts in turns(len(rows), ranks)[rank]:
            texts = [self._validation[i] for i in rows[row]]
            for k in sorted({0, self._K}):
                for t in VALIDATION_LEVELS:
                    batch = at_level(texts, self._vocabulary, draw, t, k, self._D)
                    noised = seeded(batch.texts, (draw(one.id, "latents") for one in texts))
                    losses = module(replace(batch, texts=noised).to(device))
                    if counts:
                        records.append((t, k, Losses(*(tensor.cpu() for tensor in losses))))
        return records

    @torch.no_grad()
    def write(self, module: Augmented, step: int) -> None:
        """New texts out of noise (Alg. 2), without registers, appended to samples.jsonl."""
        config, vocabulary, demasker = self._config, self._vocabulary, module.demasker
        latents = demasker.latents
        space = None if latents is None else LatentSpace(demasker.clean_table(), latents.config.schedule)
        shape = (config.samples, max(config.data.lengths))
        done = sample(
            lambda ids, rows, z, t: demasker.logits(ids, rows, None, z, t)[:, : vocabulary.size],
            torch.full(shape, vocabulary.mask_id, device=next(module.parameters()).device),
            vocabulary.mask_id,
            steps=config.sample_nfe,
            generators=[generator(config.seed, 0, i, "samples") for i in range(config.samples)],
            latents=space,
        )
        with open(Path(config.run) / "samples.jsonl", "a", encoding="utf-8") as lines:
            for ids in done.ids.tolist():
                lines.write(json.dumps({"step": step, "text": vocabulary.decode(ids)}) + "\n")

    def export(self, folder: Path, module: Augmented, steps: int) -> None:
        """A model folder, of the kind that the model at `init` was."""
        config = self._config
        trained = {"recipe": "train_cadd", "steps": steps, "config": asdict(config)}
        dtype, latents = getattr(torch, config.export_dtype), module.demasker.latents
        if module.autoencoder is None:
            save_unguided(folder, module.demasker.llada, self._vocabulary, dtype, latents, trained)
        else:
            window = max(config.data.lengths)
            save_autoencoder(
                folder, module.autoencoder, self._vocabulary, window, dtype, trained, latents,
                keep_encoder=config.keeps_encoder,
            )  # fmt: skip
