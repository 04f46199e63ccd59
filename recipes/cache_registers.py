"""Write the registers of a corpus to disk, to train a denoiser on (CRoCoDiL App. E).

    accelerate launch recipes/cache_registers.py --config recipes/configs/nano-registers.yaml

A run that was stopped goes on with the shards that are missing. --dry-run says how large and how long, and writes
nothing.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import Accelerator

from crocodil.errors import CrocodilError, one_line_errors
from crocodil.model import load
from crocodil.registers.cache import CacheSpec, CacheWriter, Dtype
from crocodil.text.data import DataConfig, Texts
from crocodil.text.windows import Windows
from crocodil.training.accelerators import accelerator, leave
from crocodil.training.checkpoints import together
from crocodil.training.config import parse_arguments
from crocodil.training.limits import check_path, require_at_least
from crocodil.training.loop import LoopConfig
from crocodil.training.ranks import broadcast, gather
from crocodil.training.run_lock import run_lock

TRIAL = 64
"""Windows that a dry run encodes to know how long they take."""


@dataclass(frozen=True)
class CacheRecipe:
    """Whose registers of which texts, and where they go."""

    out: str = "runs/registers"
    """Folder of the cache."""
    model: str = "bundled"
    """A trained model: a folder, a hub id, or `bundled`."""
    data: DataConfig = field(default_factory=DataConfig)
    """Its held-out files stay out of the cache too."""
    k: int | None = None
    """Registers kept of each window; all if left out."""
    dtype: Dtype = "float16"
    shard_samples: int = 8192
    """Windows of a file."""
    limit: int | None = None
    """At most so many windows, drawn at random."""
    seed: int = 0
    """Of the order and the cuts; the denoiser's recipe needs none of it."""
    dry_run: bool = False
    """Measure a few windows, say bytes and hours, write nothing."""

    def __post_init__(self) -> None:
        check_path("out", self.out)
        require_at_least(0, self, "seed")
        require_at_least(1, self, "shard_samples")
        for name in ("k", "limit"):
            if getattr(self, name) is not None:
                require_at_least(1, self, name)


def main() -> None:
    config = parse_arguments(CacheRecipe, None, __doc__ or "").config
    ranks = accelerator(LoopConfig(run=config.out, precision="no", timeout=0))
    with nullcontext() if config.dry_run else run_lock(Path(config.out)):
        cache(config, ranks)
    leave(ranks)


def cache(config: CacheRecipe, ranks: Accelerator) -> None:
    say = (lambda text: print(text, flush=True)) if ranks.is_main_process else (lambda text: None)

    # 1. Whose registers, and of which windows.
    model = load(config.model, device=ranks.device)
    K = model.K if config.k is None else config.k
    if not 1 <= K <= model.K:
        raise CrocodilError(f"k must be between 1 and {model.K}, the registers of this model, not {K}")
    say(f"reading the texts of {config.data.source}")
    windows, _ = Texts(config.data).windows(model.vocabulary, config.seed)
    order = [int(i) for i in windows.order(0)[: config.limit]]
    spec = CacheSpec(
        encoder=model.fingerprint,
        corpus=_digest(windows, config),
        samples=len(order),
        K=K,
        D=model.D,
        window=max(config.data.lengths),
        dtype=config.dtype,
        shard_samples=config.shard_samples,
    )
    size = f"{spec.bytes:,} bytes ({spec.bytes / 2**30:,.2f} GiB)"
    say(f"{spec.samples:,} windows in {spec.shards:,} shards, {size} in {config.out}")

    # 2. How long it will take.
    if config.dry_run:
        trial = [windows.sample(i, 0) for i in order[:TRIAL]]
        model.encode_ids([s.text_ids for s in trial], K)  # the first is slow
        began = time.perf_counter()
        model.encode_ids([s.text_ids for s in trial], K)
        seconds = (time.perf_counter() - began) / len(trial) * spec.samples / ranks.num_processes
        say(f"about {seconds / 3600:.2f} hours on {ranks.num_processes} processes; nothing was written")
        return

    # 3. The shards that are missing, dealt to the ranks.
    with together(f"begin {config.out}"):
        if ranks.is_main_process:  # before anybody else writes there, or it would be swept away
            CacheWriter(config.out, spec).sweep()
    writer = CacheWriter(config.out, spec)
    # one list for all: who looks later sees shards that another has written meanwhile
    missing = broadcast(writer.missing() if ranks.is_main_process else [])
    if missing and len(missing) < spec.shards:
        say(f"going on: {spec.shards - len(missing):,} shards are there")
    began = time.perf_counter()
    mine = missing[ranks.process_index :: ranks.num_processes]
    for done, shard in enumerate(mine, start=1):
        samples = [windows.sample(order[i], 0) for i in spec.samples_of(shard)]
        values = model.encode_ids([sample.text_ids for sample in samples], K)
        writer.write(shard, values, [sample.window(model.vocabulary) for sample in samples])
        left = (time.perf_counter() - began) / done * (len(mine) - done)
        say(f"shard {shard + 1:,} of {spec.shards:,}, {left / 60:,.1f} minutes left")

    # 4. All there?
    gather(None)
    if writer.missing():
        raise CrocodilError(
            f"{config.out}: shards {writer.missing()[:5]} are missing; run the same command again"
        )
    say(f"{config.out} is complete: {spec.samples:,} windows, encoder {spec.encoder}")


def _digest(windows: Windows, config: CacheRecipe) -> str:
    """Texts, cuts and order: all that says which window a sample is."""
    says = [windows.tokens.digest, asdict(config.data) | {"cache": None}, config.seed, config.limit]
    return hashlib.blake2b(repr(says).encode(), digest_size=8).hexdigest()


if __name__ == "__main__":
    with one_line_errors():
        main()
