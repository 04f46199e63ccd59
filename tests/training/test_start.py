from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from crocodil.errors import CrocodilError, one_line_errors
from crocodil.training.checkpoints import checkpoint_name, publishing
from crocodil.training.config import NEWEST, flat, save_config
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


@pytest.mark.parametrize("name", ["export", "adapters", "metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_new_run_takes_nobody_s_place(tmp_path: Path, name: str, kind: str) -> None:
    """Not even that of a finished run whose checkpoints are gone; only what it says before its first one is its own."""
    place = tmp_path / name
    {"file": place.touch, "link": lambda: place.symlink_to("nowhere"), "folder": place.mkdir}[kind]()
    told = name.endswith(".jsonl")
    for resume in (None,) if told else (None, NEWEST):
        with pytest.raises(CrocodilError, match=f"holds {name} and no checkpoint.*move that away, or give"):
            find_start(LoopConfig(run=str(tmp_path)), resume, "texts")
    if told:
        assert find_start(LoopConfig(run=str(tmp_path)), NEWEST, "texts") == Start(None)


@pytest.mark.parametrize("resume", [None, NEWEST])
def test_a_configuration_of_something_else_is_not_written_over(tmp_path: Path, resume: str | None) -> None:
    config = LoopConfig(run=str(tmp_path))
    for text in ("services: {web: 80}\n", "steps: many\n", "- a list\n", "\0", 9 * "["):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(
            CrocodilError, match="config.yaml that is of no run of this recipe .*move it away, or"
        ):
            find_start(config, resume, "texts")
    save_config(
        replace(config, steps=3), tmp_path / "config.yaml"
    )  # of a run that did not come to a checkpoint
    assert find_start(config, resume, "texts") == Start(None)


@pytest.mark.parametrize(
    "error", [CrocodilError("first\nsecond"), FileExistsError(17, "File exists", "runs/x")]
)
def test_bad_input_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, one_line_errors():
        raise error
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("crocodil: ")


@pytest.mark.parametrize("run", ["", " ", "runs/a\0b", "runs/\ud800", "runs/\udc80"])
def test_a_folder_that_is_none_is_refused(run: str) -> None:
    """An empty one would be the folder one is in."""
    with pytest.raises(CrocodilError, match="run is '.*; give a folder"):
        LoopConfig(run=run)


@pytest.mark.parametrize("timeout", [-1, 1e14, float("nan"), float("inf")])
def test_a_timeout_beyond_a_year_is_refused(timeout: float) -> None:
    with pytest.raises(
        CrocodilError, match="timeout is .*; give 0 for never, or minutes up to 525,600, a year"
    ):
        LoopConfig(timeout=timeout)


@dataclass(frozen=True)
class Inner:
    source: str = "texts"
    cache: str = "runs/corpus"


@dataclass(frozen=True)
class Config(LoopConfig):
    K: int = 4
    data: Inner = field(default_factory=Inner)
    start: str | None = None


def saved(run: Path, config: Config, /, **more: Any) -> Path:
    """A checkpoint of step 7 that says what it was trained with, as a run writes it."""
    with publishing(run, checkpoint_name(7)) as directory:
        values = {
            "step": 7,
            "stage": 1,
            "corpus": "texts",
            "config": flat(config),
            "losses": [2.0, 1.5],
        } | more
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


@pytest.mark.parametrize("missing", [("K",), ("data.cache", "K"), ("data.source", "data.cache")])
def test_a_checkpoint_of_a_version_without_a_field_had_its_default(
    missing: tuple[str, ...], tmp_path: Path
) -> None:
    before = Config(run=str(tmp_path))
    said = {key: value for key, value in flat(before).items() if key not in missing}
    checkpoint = saved(tmp_path, before, config=said)
    assert find_start(before, NEWEST, "texts").checkpoint == checkpoint
    now = replace(before, **({"K": 8} if "K" in missing else {"data": Inner("others")}))
    with pytest.raises(CrocodilError, match="K was 4, is 8|data.source was texts, is others"):
        find_start(now, NEWEST, "texts")


@dataclass(frozen=True)
class WithSection(LoopConfig):
    section: Inner | None = None


@pytest.mark.parametrize(("was", "now"), [(None, Inner()), (Inner(), None)])
def test_a_section_that_was_null_is_no_field_of_a_later_version(
    was: Inner | None, now: Inner | None, tmp_path: Path
) -> None:
    saved(tmp_path, WithSection(run=str(tmp_path), section=was))
    with pytest.raises(CrocodilError, match="section"):
        find_start(WithSection(run=str(tmp_path), section=now), NEWEST, "texts")


MODEL = {
    "vocabulary": "a1",
    "K": 4,
    "layout": "anchored",
    "pairs": (0, 1),
    "suffix_from": None,
    "base": "f00d",
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"pairs": [0, 1]}, None),
        ({"layout": "contiguous"}, "layout was anchored, is contiguous"),
        ({"suffix_from": 31}, "suffix_from was None, is 31"),
        ({"base": "beef", "K": 8}, "K was 4, is 8; base was f00d, is beef"),
        ({"settings of a later version": 3}, None),
    ],
)
def test_a_run_goes_on_with_the_model_it_began_with(
    change: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    config = Config(run=str(tmp_path))
    checkpoint = saved(tmp_path, config, origin=MODEL)
    if said is None:
        assert find_start(config, NEWEST, "texts", origin=MODEL | change).checkpoint == checkpoint
        return
    with pytest.raises(
        CrocodilError, match=f"{checkpoint} belongs to another model .*: {said}; put back"
    ) as refusal:
        find_start(config, NEWEST, "texts", origin=MODEL | change)
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_that_does_not_say_its_model_is_taken_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(run=str(tmp_path))
    checkpoint = saved(tmp_path, config)
    assert find_start(config, NEWEST, "texts").checkpoint == checkpoint and not caplog.text
    assert find_start(config, NEWEST, "texts", origin=MODEL).checkpoint == checkpoint
    assert "does not say which model it belongs to, as an earlier version wrote it" in caplog.text


def test_another_recipe_s_checkpoint_is_a_short_line(tmp_path: Path) -> None:
    config = Config(run=str(tmp_path))
    with publishing(tmp_path, checkpoint_name(7)) as directory:
        other = {f"field_{i}": 999 * "x" for i in range(200)}
        values = {"step": 7, "stage": 1, "corpus": "texts", "config": other}
        save_values(directory, values, STATE.format(rank=0))
    with pytest.raises(
        CrocodilError, match=r"field_0 was x+; .*; and \d+ more\. A run goes on with"
    ) as refusal:
        find_start(config, NEWEST, "texts")
    assert len(str(refusal.value)) < 1200


def test_damaged_checkpoints_are_no_reason_to_begin_anew(tmp_path: Path) -> None:
    """A passing fault of the disk, or a file that a program left there, would otherwise cost the run."""
    config = Config(run=str(tmp_path))
    (saved(tmp_path, config) / ".DS_Store").touch()
    with pytest.raises(
        CrocodilError, match=f"no checkpoint is whole \\({checkpoint_name(7)}: .DS_Store is not in"
    ):
        find_start(config, NEWEST, "texts")


@pytest.mark.parametrize(
    ("said", "refusal"),
    [
        ({"step": "7"}, "step is not as a run writes it"),
        ({"step": -1}, "step is not as a run writes it"),
        ({"stage": None}, "stage is not as a run writes it"),
        ({"config": [1]}, "config is not as a run writes it"),
        ({"origin": "here"}, "origin is not as a run writes it"),
        ({"losses": {"a": 1}}, "losses is not as a run writes it"),
        ({"losses": [1.0, "2"]}, "losses is not as a run writes it"),
        ({"step": 4}, "holds step 4; give it back its name, step-00000004, or move it away"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_checkpoint_that_says_what_none_says_is_refused(
    said: dict[str, Any], refusal: str, named: bool, tmp_path: Path
) -> None:
    config = Config(run=str(tmp_path))
    checkpoint = saved(tmp_path, config, **said)
    with pytest.raises(CrocodilError, match=f"{checkpoint}.*{refusal}"):
        find_start(config, str(checkpoint) if named else NEWEST, "texts", origin=MODEL)


def test_a_model_with_a_checkpoint_s_name_is_no_checkpoint(tmp_path: Path) -> None:
    config = Config(run=str(tmp_path))
    saved(tmp_path, config)
    with publishing(tmp_path, checkpoint_name(50)) as directory:
        (directory / "config.json").write_text("{}")
    with pytest.raises(CrocodilError, match="step-00000050: no readable state.*move it away"):
        find_start(config, NEWEST, "texts")


def test_a_checkpoint_that_is_gone_names_those_that_are_there(tmp_path: Path) -> None:
    config = Config(run=str(tmp_path))
    saved(tmp_path, config)
    with pytest.raises(CrocodilError, match="step-00000003: there is no such checkpoint.*step-00000007"):
        find_start(config, str(tmp_path / checkpoint_name(3)), "texts")


def test_a_copy_may_have_a_name_of_its_own(tmp_path: Path) -> None:
    config = Config(run=str(tmp_path / "run"))
    kept = tmp_path / "good one"
    saved(tmp_path, config).rename(kept)
    assert find_start(config, str(kept), "texts") == Start(kept, 7, 1, (2.0, 1.5))


def test_going_back_says_what_comes_after(tmp_path: Path) -> None:
    """Later checkpoints, whole or not, and what was exported; an older one from elsewhere also comes before its like."""
    config = Config(run=str(tmp_path))
    checkpoint = saved(tmp_path, config)
    kept = saved(tmp_path / "kept", config)
    (tmp_path / "export").mkdir()
    start = Start(checkpoint, 7, 1, (2.0, 1.5))
    assert find_start(config, str(checkpoint), "texts") == start
    (tmp_path / checkpoint_name(9)).mkdir()
    (tmp_path / checkpoint_name(3)).mkdir()
    assert find_start(config, str(checkpoint), "texts").abandoned == (checkpoint_name(9), "export")
    assert find_start(config, NEWEST, "texts") == start
    later = (checkpoint_name(7), checkpoint_name(9), "export")
    assert find_start(config, str(kept), "texts").abandoned == later


def test_other_texts_are_refused(tmp_path: Path) -> None:
    config = Config(run=str(tmp_path))
    saved(tmp_path, config)
    with pytest.raises(CrocodilError, match="trained on other texts"):
        find_start(config, NEWEST, "other texts")
