from __future__ import annotations

from pathlib import Path

import pytest

from crocodil.errors import CrocodilError, one_line_errors
from crocodil.training.config import NEWEST
from crocodil.training.start import Start, find_start


def test_a_first_launch_may_carry_resume_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_start(tmp_path, NEWEST, "texts") == Start(None)
    assert "no complete checkpoint to resume from; the run begins at step 0" in caplog.text
    caplog.clear()
    assert find_start(tmp_path, None, "texts") == Start(None)
    assert not caplog.text


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "step-00000003").mkdir()
    with pytest.raises(CrocodilError, match="holds checkpoints"):
        find_start(tmp_path, None, "texts")


@pytest.mark.parametrize(
    "error", [CrocodilError("first\nsecond"), FileExistsError(17, "File exists", "runs/x")]
)
def test_bad_input_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, one_line_errors():
        raise error
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("crocodil: ")
