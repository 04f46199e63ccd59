"""Where a run begins: at nothing, or at a checkpoint of its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from crocodil.errors import CrocodilError
from crocodil.training.checkpoints import latest, require_complete
from crocodil.training.config import NEWEST
from crocodil.training.engine import STATE
from crocodil.training.ranks import broadcast, rank_and_world
from crocodil.training.state import load_values

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A checkpoint to load, or None, and what has been done by then."""

    checkpoint: Path | None
    step: int = 0
    """Optimiser steps done."""
    stage: int = -1
    """The stage in which the checkpoint was saved."""


def find_start(run: Path, resume: str | None, corpus: str) -> Start:
    """Decide before anything is written; collective.

    Args:
        run: the run's folder.
        resume: None, `newest` (a warning says so where there is none and the run begins at nothing), or the path of
            one checkpoint.
        corpus: digest of the training texts: the order of samples, and so the meaning of a step, depends on them.

    Raises:
        CrocodilError: a new run would mix with an old one, the checkpoint is damaged, or the texts are not those
            it was trained on.
    """
    if resume is None:
        if found := broadcast(next(iter(sorted(run.glob("step-*"))), None)):
            raise CrocodilError(
                f"{run} holds checkpoints ({found.name}, …); go on with --resume, or give another run="
            )
        return Start(None)
    checkpoint = latest(run) if resume == NEWEST else Path(resume)
    if checkpoint is None:
        if rank_and_world()[0] == 0:
            _log.warning("%s: no complete checkpoint to resume from; the run begins at step 0", run)
        return Start(None)
    require_complete(checkpoint)
    values = load_values(checkpoint, STATE.format(rank=0))
    trained_on = values.get("corpus")
    if trained_on != corpus:
        raise CrocodilError(
            f"{checkpoint} was trained on other texts ({trained_on}) than data.source gives now ({corpus}), or on "
            "another task; give what the run began with, or begin a new one from the trained weights with start="
        )
    return Start(checkpoint, int(values["step"]), int(values["stage"]))
