"""Where a run begins: at nothing, or at a checkpoint of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crocodil.errors import CrocodilError
from crocodil.training.checkpoints import latest, require_complete
from crocodil.training.config import NEWEST, flat
from crocodil.training.engine import STATE
from crocodil.training.loop import MAY_CHANGE
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
    losses: tuple[float, ...] = ()
    """The last ones, for the guard."""


def find_start(config: Any, resume: str | None, corpus: str, may_change: Sequence[str] = ()) -> Start:
    """Decide before anything is written; collective.

    Args:
        config: of the run; `run` is its folder. What it says must be what the checkpoint was trained with, but for
            what may change, which is told.
        resume: None, `newest` (a warning says so where there is none and the run begins at nothing), or the path of
            one checkpoint.
        corpus: digest of the training texts: the order of samples, and so the meaning of a step, depends on them.
        may_change: fields beyond `MAY_CHANGE`, and sections with a dot, in which a resumed run may differ.

    Raises:
        CrocodilError: a new run would mix with an old one, the checkpoint is damaged, or texts or settings are not
            those it was trained with.
    """
    run = Path(config.run)
    if resume is None:
        if found := broadcast(next(iter(sorted(run.glob("step-*"))), None)):
            raise CrocodilError(
                f"{run} holds checkpoints ({found.name}, …); go on with --resume, or give another run="
            )
        return Start(None)
    if resume == NEWEST:
        checkpoint = latest(run)
        if checkpoint is None:
            _tell(f"{run}: no complete checkpoint to resume from; the run begins at step 0")
            return Start(None)
    else:
        checkpoint = Path(resume)
        require_complete(checkpoint)
    values = load_values(checkpoint, STATE.format(rank=0))
    trained_on = values.get("corpus")
    if trained_on != corpus:
        raise CrocodilError(
            f"{checkpoint} was trained on other texts ({trained_on}) than data.source gives now ({corpus}), or on "
            "another task; give what the run began with, or begin a new one from the trained weights with start="
        )
    _compare(checkpoint, values.get("config", {}), flat(config), (*MAY_CHANGE, *may_change))
    return Start(checkpoint, int(values["step"]), int(values["stage"]), tuple(values.get("losses", ())))


def _compare(
    checkpoint: Path, before: Mapping[str, Any], now: Mapping[str, Any], may_change: Sequence[str]
) -> None:
    """Tell what is different where it may be; refuse where it may not."""
    different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    free = [
        key
        for key in different
        if any(key == one or one[-1] == "." and key.startswith(one) for one in may_change)
    ]
    shown = {key: f"{key} was {before.get(key)}, is {now.get(key)}" for key in different}
    if fixed := [shown[key] for key in different if key not in free]:
        raise CrocodilError(
            f"{checkpoint}: {'; '.join(fixed)}. A run goes on with what it began with: give that, or begin a new run "
            "from the trained weights with start="
        )
    if free:
        _tell(
            f"{checkpoint}: going on with other settings: {'; '.join(shown[key] for key in free if key != 'run')}"
        )


def _tell(message: str) -> None:
    if rank_and_world()[0] == 0:
        _log.warning(message)
