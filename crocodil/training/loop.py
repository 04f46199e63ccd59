"""What every training recipe may be told about its loop; each adds what it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from crocodil.errors import CrocodilError
from crocodil.training.limits import check_path, require_at_least
from crocodil.training.optimisation import OptimiserConfig

MAY_CHANGE = (
    "run", "optimiser.", "steps", "ema", "precision", "recompute", "compile", "row_tokens", "micro_batch",
    "export_dtype", "log_every", "validate_every", "validation_texts", "sample_every", "samples", "sample_nfe",
    "save_every", "keep", "tracker", "spike", "max_skipped", "timeout", "data.cache", "cache", "prefetch",
)  # fmt: skip
"""Fields, and sections with a dot, in which a resumed run may differ: none changes what the steps done so far meant."""

YEAR = 365 * 24 * 60
"""Minutes; torch's timeouts end somewhere beyond."""


@dataclass(frozen=True)
class LoopConfig:
    """Optimiser steps, their safety, and what is told of them. Where it runs is said in launch/."""

    run: str = "runs/run"
    """Folder of checkpoints, metrics and the export."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    steps: int = 1000
    """Optimiser steps of the whole run."""
    batch_size: int = 512
    """Texts of a global batch, over all ranks and micro-batches."""
    ema: float = 0.0
    """Decay of the average of the weights that is validated and exported; 0 for none."""
    precision: Literal["auto", "bf16", "no"] = "auto"
    """`auto` is bf16 on a GPU that has it, `no` is float32."""
    seed: int = 0
    log_every: int = 20
    validate_every: int = 500
    validation_texts: int = 64
    save_every: int = 500
    """Steps between checkpoints: the most that a kill can cost."""
    keep: int = 2
    """Checkpoints that stay."""
    spike: float = 10.0
    """A step whose loss is so many times the median of the last 100 is dropped, as one without a finite loss or gradient
    is; 0 for never."""
    max_skipped: int = 5
    """So many dropped steps in a row end the run."""
    timeout: float = 30.0
    """Minutes without any progress after which the run says where it hangs and ends, up to a year; 0 for never."""
    tracker: Literal["tensorboard", "wandb"] | None = None
    """`tensorboard` or `wandb`, through accelerate; metrics.jsonl is always written."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "steps", "batch_size", "keep", "validation_texts", "max_skipped")
        require_at_least(1, self, "log_every", "validate_every", "save_every")
        check_path("run", self.run)
        if not 0 <= self.timeout <= YEAR:
            raise CrocodilError(
                f"timeout is {self.timeout}; give 0 for never, or minutes up to {YEAR:,}, a year"
            )
        if not 0 <= self.seed < 2**63:  # torch takes 64 bits
            raise CrocodilError(f"seed is {self.seed}; give 0 or more, below 2**63")
        if not 0 <= self.ema < 1:
            raise CrocodilError(f"ema is {self.ema}; give 0 for none, or a decay below 1")
        if self.spike and not self.spike > 1:
            raise CrocodilError(f"spike is {self.spike}; give 0 for never, or more than 1 times the median")
