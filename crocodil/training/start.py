"""Where a run begins: at nothing, or at a checkpoint of its own."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crocodil.errors import CrocodilError
from crocodil.training.checkpoints import (
    beyond,
    checkpoint_name,
    checkpoint_step,
    is_same,
    latest,
    require_complete,
    together,
)
from crocodil.training.config import CONFIG, NEWEST, flat, load_config
from crocodil.training.engine import STATE
from crocodil.training.log import METRICS, SAMPLES
from crocodil.training.loop import MAY_CHANGE
from crocodil.training.ranks import broadcast, rank_and_world
from crocodil.training.state import load_values

EXPORTS = ("export", "adapters")
"""What a run writes at its end."""
_SHOWN = 3
"""Differences that a message names."""
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
    abandoned: tuple[str, ...] = ()
    """What is in the run's folder and comes after this checkpoint: others, and exports. `Run` sets it aside."""


def find_start(
    config: Any,
    resume: str | None,
    corpus: str,
    may_change: Sequence[str] = (),
    origin: Mapping[str, Any] | None = None,
) -> Start:
    """Decide before anything is written; collective.

    Args:
        config: of the run; `run` is its folder. What it says must be what the checkpoint was trained with, but for
            what may change, which is told.
        resume: None, `newest` (a warning says so where there is none and the run begins at nothing), or the path of
            one checkpoint, of which there may be later ones.
        corpus: digest of the training texts: the order of samples, and so the meaning of a step, depends on them.
        may_change: fields beyond `MAY_CHANGE`, and sections with a dot, in which a resumed run may differ.
        origin: what else the checkpoint's weights depend on and do not hold, as `Run` wrote it (see `check_origin`).

    Raises:
        CrocodilError: a new run would mix with an old one, the checkpoint is damaged (of several, all of them), or
            texts, settings or origin are not those it was trained with.
    """
    run = Path(config.run)
    checkpoint = None
    if resume == NEWEST:
        checkpoint = latest(run)
    elif resume is not None:
        checkpoint = Path(resume)
        require_complete(checkpoint)
    if checkpoint is None:
        with together(f"begin in {run}"):
            _refuse_mixing(config, resumed=resume is not None)
        if resume is not None:
            _tell(f"{run}: no complete checkpoint to resume from; the run begins at step 0")
        return Start(None)
    with together(f"resume from {checkpoint}"):
        start = _read(checkpoint, config, corpus, may_change, origin)
    if resume == NEWEST:
        return start
    later = beyond(run, checkpoint, start.step)
    if later or not is_same(checkpoint.parent, run):
        later += [name for name in EXPORTS if os.path.lexists(run / name)]
    return replace(start, abandoned=tuple(broadcast(later)))


def _refuse_mixing(config: Any, resumed: bool) -> None:
    """A run that begins at nothing must find nothing of another one, or of anybody else."""
    run = Path(config.run)
    if not resumed and (found := sorted(run.glob("step-*"))):
        raise CrocodilError(
            f"{run} holds checkpoints ({found[0].name}, …); go on with --resume, or give another run="
        )
    # with --resume, what was told may be of a run that was stopped before its first checkpoint
    for name in EXPORTS if resumed else (*EXPORTS, METRICS, SAMPLES):
        if os.path.lexists(run / name):
            raise CrocodilError(
                f"{run} holds {name} and no checkpoint to go on from; move that away, or give another run="
            )
    if os.path.lexists(file := run / CONFIG):
        try:
            load_config(type(config), str(file))
        except CrocodilError as error:
            raise CrocodilError(
                f"{run} holds a {CONFIG} that is of no run of this recipe ({error}); move it away, or give another run="
            ) from None


def _read(
    checkpoint: Path, config: Any, corpus: str, may_change: Sequence[str], origin: Mapping[str, Any] | None
) -> Start:
    """What a whole checkpoint says, if this run may go on from it."""
    values = read_values(checkpoint)
    trained_on = values.get("corpus")
    if trained_on != corpus:
        raise CrocodilError(
            f"{checkpoint} was trained on other texts ({trained_on}) than data.source gives now ({corpus}), or on "
            "another task; give what the run began with, or begin a new one from the trained weights (start=, init=)"
        )
    _compare(
        checkpoint,
        values.get("config", {}),
        flat(config),
        flat(type(config)()),
        (*MAY_CHANGE, *may_change),
    )
    if origin:
        check_origin(checkpoint, values.get("origin", {}), origin)
    return Start(checkpoint, values["step"], values["stage"], tuple(values.get("losses", [])))


def read_values(checkpoint: Path) -> dict[str, Any]:
    """What a whole checkpoint says beside its tensors.

    Raises:
        CrocodilError: no run writes that, or its name is of another step.
    """
    values = load_values(checkpoint, STATE.format(rank=0))
    step, stage, losses = values.get("step", -1), values.get("stage", -1), values.get("losses", [])
    odd = [
        name for name, count in {"step": step, "stage": stage}.items() if type(count) is not int or count < 0
    ]
    odd += [name for name in ("config", "origin") if not isinstance(values.get(name, {}), dict)]
    if not isinstance(losses, list) or any(type(loss) not in (int, float) for loss in losses):
        odd.append("losses")
    if odd:
        raise CrocodilError(f"{checkpoint}: {odd[0]} is not as a run writes it; choose another checkpoint")
    named = step
    with suppress(CrocodilError):  # a copy may have a name of its own
        named = checkpoint_step(checkpoint)
    if named != step:
        raise CrocodilError(
            f"{checkpoint} holds step {step}; give it back its name, {checkpoint_name(step)}, or move it away"
        )
    return values


def check_origin(checkpoint: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse another model than the one whose weights a checkpoint holds.

    Args:
        before: `origin` of the checkpoint's values. An earlier version may not name everything, which is not compared,
            or nothing, which is told.
        now: of the model that is here.

    Raises:
        CrocodilError: they differ; it names where.
    """
    if not before:
        _tell(
            f"{checkpoint} does not say which model it belongs to, as an earlier version wrote it; it is taken to be the "
            "one that the configuration names now"
        )
    now = json.loads(json.dumps(now))  # as it comes back from a file
    different = [name for name in now if name in before and before[name] != now[name]]
    if different:
        shown = _some([f"{name} was {before[name]}, is {now[name]}" for name in different])
        raise CrocodilError(
            f"{checkpoint} belongs to another model than the configuration names now: {shown}; put back what start, "
            "demasker or encoder named when the run began"
        )


def _compare(
    checkpoint: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    defaults: Mapping[str, Any],
    may_change: Sequence[str],
) -> None:
    """Tell what is different where it may be; refuse where it may not. A checkpoint of an earlier version does not have
    every field: there it was trained with the default."""
    before = {**{key: value for key, value in defaults.items() if _is_new(key, before)}, **before}
    different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    free = [
        key
        for key in different
        if any(key == one or one[-1] == "." and key.startswith(one) for one in may_change)
    ]
    shown = {key: f"{key} was {before.get(key)}, is {now.get(key)}" for key in different}
    if fixed := [shown[key] for key in different if key not in free]:
        raise CrocodilError(
            f"{checkpoint}: {_some(fixed)}. A run goes on with what it began with: give that, or begin a new run "
            "from the trained weights (start=, init=)"
        )
    if free:
        _tell(
            f"{checkpoint}: going on with other settings: {'; '.join(shown[key] for key in free if key != 'run')}"
        )


def _is_new(key: str, before: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says nothing of a field, be it a section that was null or one that is now."""
    sections = [key.rsplit(".", i)[0] for i in range(key.count(".") + 1)]
    return not any(one in before for one in sections) and not any(
        other.startswith(f"{key}.") for other in before
    )


def _some(differences: Sequence[str]) -> str:
    """A few of many: another recipe's checkpoint differs in everything."""
    more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return "; ".join(f"{one:.300}" for one in differences[:_SHOWN]) + more


def _tell(message: str) -> None:
    if rank_and_world()[0] == 0:
        _log.warning(message)
