from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from crocodil.errors import CrocodilError, one_line_errors
from crocodil.training.checkpoints import checkpoint_name, publishing
from crocodil.training.config import NEWEST, flat
from crocodil.training.engine import STATE
from crocodil.training.loop import LoopConfig
from crocodil.training.optimisation import OptimiserConfig
from crocodil.training.start import Start, find_start
from crocodil.training.state import save_values


def test_a_first_launch_may_carry_resume_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = LoopConfig(run=str(tmp_path))
    assert find_start(config, NEWEST, "texts") == Start(None)
    assert "no complete checkpoint to resume from; the run begins at step 0" in caplog.text
    caplog.clear()
    assert find_start(config, None, "texts") == Start(None)
    assert not caplog.text


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "step-00000003").mkdir()
    with pytest.raises(CrocodilError, match="holds checkpoints"):
        find_start(LoopConfig(run=str(tmp_path)), None, "texts")


@pytest.mark.parametrize(
    "error", [CrocodilError("first\nsecond"), FileExistsError(17, "File exists", "runs/x")]
)
def test_bad_input_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, one_line_errors():
        raise error
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("crocodil: ")


@dataclass(frozen=True)
class Inner:
    source: str = "texts"
    cache: str = "runs/corpus"


@dataclass(frozen=True)
class Config(LoopConfig):
    K: int = 4
    data: Inner = field(default_factory=Inner)
    start: str | None = None


def saved(run: Path, config: Config) -> Path:
    """A checkpoint of step 7 that says what it was trained with, as a run writes it."""
    with publishing(run, checkpoint_name(7)) as directory:
        values = {"step": 7, "stage": 1, "corpus": "texts", "config": flat(config), "losses": [2.0, 1.5]}
        save_values(directory, values, STATE.format(rank=0))
    return run / checkpoint_name(7)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, None),
        ({"steps": 2000}, None),
        ({"optimiser": OptimiserConfig(lr=1e-6, warmup_steps=3)}, None),
        ({"save_every": 7, "log_every": 1, "keep": 5}, None),
        ({"precision": "no", "spike": 0.0}, None),
        ({"data": Inner(cache="elsewhere")}, None),
        ({"start": "moved/export"}, None),
        ({"K": 8}, "K was 4, is 8"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch_size": 256}, "batch_size was 512, is 256"),
        ({"data": Inner("others")}, "data.source was texts, is others"),
        ({"K": 8, "steps": 2000}, "K was 4, is 8"),
    ],
)
def test_a_resumed_run_differs_only_where_it_may(
    changes: dict[str, Any], refused: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = Config(run=str(tmp_path))
    checkpoint = saved(tmp_path, before)
    now = replace(before, **changes)
    if refused is None:
        assert find_start(now, NEWEST, "texts", ("start",)) == Start(checkpoint, 7, 1, (2.0, 1.5))
        assert ("going on with other settings" in caplog.text) == bool(changes)
    else:
        with pytest.raises(CrocodilError, match=re.escape(refused)) as refusal:
            find_start(now, NEWEST, "texts", ("start",))
        assert "steps was" not in str(refusal.value) and "start=" in str(refusal.value)


def test_other_texts_are_refused(tmp_path: Path) -> None:
    config = Config(run=str(tmp_path))
    saved(tmp_path, config)
    with pytest.raises(CrocodilError, match="trained on other texts"):
        find_start(config, NEWEST, "other texts")
