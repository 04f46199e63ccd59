"""`crocodil reproduce`, as it is typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import crocodil
from crocodil.cli import main
from crocodil.reproduce.figures import FIGURES

NANO = Path(crocodil.__file__).parent / "models" / "nano"
SMALL = ["fig4.windows=2", "fig4.levels=[1.0]", "fig4.ks=[0, 8]", "part=1"]


def run(*words: str) -> int:
    return main(["reproduce", *words])


def test_the_list_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FIGURES)
    asked = "table1 fig4 fig6 fig7 fig8 fig9 fig11 table2 prdc appendix-b".split()
    assert set(asked) <= set(FIGURES)
    assert run("--list", "--json") == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == list(FIGURES)


def test_a_figure_of_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert run("fig4", *SMALL, "--out", out, "--markdown", str(tmp_path / "page.md")) == 0
    told = capsys.readouterr()
    assert "Figure 4" in told.out and "cross-entropy" in told.out and "preset nano" in told.err
    assert (tmp_path / "page.md").read_text("utf-8").startswith("# Reproduction")
    kept = sorted((tmp_path / "out" / "measured").iterdir())
    assert run("fig4", *SMALL, "--out", out, "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["name"] == "fig4" and len(result["rows"]) == 2
    value = result["rows"][0]["values"]["cross_entropy"]
    assert value["low"] <= value["value"] <= value["high"] and value["n"] == 2
    assert sorted((tmp_path / "out" / "measured").iterdir()) == kept
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "") and "Figure 4" in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fgi4"], "did you mean fig4"),
        (["zzz"], "no figure 'zzz'"),
        ([], "name a figure"),
        (["fig4", "fig4.window=3"], "fig4.windows"),
        (["fig4", "--preset", "nanno"], "nanno"),
        (["fig4", "part=0"], "part"),
        (["fig4", "fig4.windows=0"], "windows"),
        (["fig4", "fig4.levels=[0.0]"], "levels"),
        (["table1", "table1.ks=[0]"], "table1.ks"),
        (["fig8", "fig8.nfe=999"], "nfe"),
        (["appendix-b", "fig12", "judge=/no/such/judge"], "judge"),
        (["fig11", "fig11.refreshes=[1.0]"], "fig11.refreshes"),
        (["fig4", "--model", "/no/such/model"], "/no/such/model"),
        (["fig4", "seed=99999999999999999999"], "seed"),
        (["prdc", "prdc.samples=5"], "prdc.samples"),
        (["fig11", "fig11.k=16"], "fig11: 16 registers are wanted of a denoiser that makes 8"),
        (["appendix-b", "appendix-b.draws=0"], "appendix_b.draws"),
        (["examples", "examples.texts=1000000"], "examples.texts"),
        (["table1", "--model", str(NANO.parent / "ablations" / "reference")], "table1: length must be"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, "--out", str(tmp_path / "out")) == 2
    told = capsys.readouterr()
    errors = [line for line in told.err.splitlines() if line.startswith("crocodil: ")]
    assert len(errors) == 1 and says in errors[0] and not told.out
    assert not (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("rank", "world"), [("x", "1"), ("", "1"), ("0", "0"), ("5", "2"), ("-1", "2"), ("0", "-1")]
)
def test_a_process_that_cannot_be_is_refused(
    rank: str, world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert run("fig4", "--out", str(tmp_path)) == 2
    told = capsys.readouterr().err
    assert ("RANK" in told or "WORLD_SIZE" in told) and told.count("\n") == 1


@pytest.mark.parametrize("page", ["page", ".md", "page.html", "out/page.md", "taken.md"])
def test_a_page_whose_name_is_not_free_is_refused(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    assert run("fig4", "--out", str(tmp_path / "out"), "--markdown", str(tmp_path / page)) == 2
    assert "--markdown" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_is_refused_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run("fig4", "--out", str(tmp_path / "file")) == 2
    assert run("fig4", "--out", str(tmp_path / "o"), "--markdown", str(tmp_path / "file" / "x.md")) == 2
    assert capsys.readouterr().err.count("crocodil: ") == 2


@pytest.mark.slow
def test_two_processes_under_accelerate(tmp_path: Path) -> None:
    """Launched as users launch it; the pieces are those of one process."""
    words = ["reproduce", "fig4", *SMALL, "--json", "--out"]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "crocodil"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = subprocess.run(
        [*launch, *words, str(tmp_path / "two")], env=environment, capture_output=True, text=True
    )
    one = subprocess.run(
        [sys.executable, "-m", "crocodil", *words, str(tmp_path / "one")],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    assert json.loads(both.stdout)[0]["rows"] == json.loads(one.stdout)[0]["rows"]
    names = [sorted(file.name for file in (tmp_path / n / "measured").iterdir()) for n in ("one", "two")]
    assert names[0] == names[1]
