"""`crocodil passk`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crocodil.cli import main

PROBLEM = {
    "task_id": "one/0",
    "prompt": "def one():\n",
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}


def run(*words: object) -> int:
    return main(["passk", *map(str, words)])


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps(PROBLEM) + "\n")
    return file


def test_samples_are_run_kept_and_gone_on_from(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--problems", problems, "--samples", 2, "--nfe", 2, "--seconds", 20, "--out", tmp_path / "out"]
    assert run(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["k"] for row in found["pass_at"]] == [1, 2] and sum(found["outcomes"].values()) == 2
    assert found["model"] == "bundled" and found["isolations"]
    kept = (tmp_path / "out" / "samples.jsonl").read_text("utf-8")
    assert run(*words) == 0
    assert "pass@k over 1 problems" in capsys.readouterr().out
    assert (tmp_path / "out" / "samples.jsonl").read_text("utf-8") == kept


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--problems", "/no/such.jsonl"], "/no/such.jsonl"),
        (["--samples", "2", "--k", "4"], "pass@4"),
        (["--seconds", "0"], "seconds"),
        (["--out", ""], "--out"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], says: str, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if "--problems" in words else ["--problems", problems]
    assert run(*given, *words) == 2
    told = capsys.readouterr()
    assert (
        told.err.startswith("crocodil: ") and says in told.err and told.err.count("\n") == 1 and not told.out
    )
