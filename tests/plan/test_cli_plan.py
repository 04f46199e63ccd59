"""`crocodil plan`: a picture for people, one document for programs, an exit code of 0 whatever fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from crocodil.cli import main
from crocodil.plan.planner import Memory
from crocodil.plan.terminal import PARTS, bar

ROOT = Path(__file__).parents[2]
PRESET = str(ROOT / "recipes/configs/llada-8b.yaml")


def test_the_first_line_says_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    for gpu, row, said in (("h200", 16384, "Fits: "), ("a100-40", 65536, "DOES NOT FIT: ")):
        assert main(["plan", "--config", PRESET, "--gpus", "16", "--gpu", gpu, f"row_tokens={row}"]) == 0
        out = capsys.readouterr().out
        assert out.splitlines()[0].startswith(said)
        assert "8,015,581,184" in out and "569,966,592" in out and "595,776,512" in out
        for word in (
            "stage 1",
            "stage 2",
            "weights",
            "optimiser",
            "activations, encoder",
            "hours",
            "a checkpoint",
        ):
            assert word in out, word
        assert ("It fits with any of" in out) == (said != "Fits: ")


def test_one_gpu_is_plain_and_adapters_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    lora = str(ROOT / "recipes/configs/llada-8b-lora.yaml")
    assert main(["plan", "--config", lora, "--gpus", "1", "--gpu", "a100-80", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["place"]["launch"] == "ddp"
    assert found["llada_parameters"] == 8_015_581_184 and found["adapter_parameters"] > 1e6
    assert found["fits"]


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config", PRESET, "--gpus", "64", "--launch", "zero2", "--texts", "12000000", "--json"]
    assert (
        main([*words, "--mfu", "0.3", "--gpus-per-node", "4", "--between", "25", "--mean-length", "1300"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["place"]["launch"] == "zero2" and found["place"]["between"] == 25e9
    assert [stage["number"] for stage in found["stages"]] == [1, 2]
    for stage in found["stages"]:
        peak = stage["moments"][stage["peak"]]
        assert peak["total"] == sum(peak[name] for name in PARTS)
        assert stage["total"] == stage["moments"][stage["fullest"]]["total"]
        assert stage["total"] == max(moment["total"] for moment in stage["moments"].values())
    assert found["fits"] == (
        max(stage["total"] for stage in found["stages"]) <= found["place"]["card"]["memory"]
    )
    assert found["epochs"] == pytest.approx(found["texts"] / 12e6)
    assert found["headline"].startswith("Fits" if found["fits"] else "DOES NOT FIT")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "8"], "--config"),
        (["--config", PRESET], "--gpus"),
        (["--config", PRESET, "--gpus", "8", "--gpu", "v100"], "invalid choice: 'v100'"),
        (["--config", PRESET, "--gpus", "8", "row_token=1"], "did you mean 'row_tokens'"),
        (["--config", PRESET, "--gpus", "8", "demasker=nowhere"], "demasker: nowhere is no folder here"),
        (["--config", PRESET, "--gpus", "3"], "must be a multiple of the 3 ranks"),
        (["--config", "nowhere.yaml", "--gpus", "8"], "no such configuration file"),
        (
            ["--config", PRESET, "--gpus", "8", "encoder=null", "lora.rank=8"],
            "an encoder from scratch is in no file",
        ),
        (
            ["--config", PRESET, "--gpus", "8", "lora.rank=1025"],
            "lora.rank is 1025, which makes nothing smaller",
        ),
        (
            ["--config", PRESET, "--gpus", "8", "start=bundled", "grow_to=64"],
            "of 128 registers does not grow to 64",
        ),
        (
            ["--config", PRESET, "--gpus", "8", "start=bundled", "grow_to=1073741824"],
            "must be a power of two",
        ),
        (["--config", PRESET, "--gpus", "8", "grow_to=256"], "grow_to grows the model at start"),
        (["--config", PRESET, "--gpus", "8", "data.held_out=5"], "data.held_out is 5"),
        (["--config", PRESET, "--gpus", "8", "data.short_fraction=7"], "data.short_fraction is 7"),
        (["--config", PRESET, "--gpus", "8", "corruption.nested_dropout.hide_all=.nan"], "hide_all nan"),
        (
            ["--config", PRESET, "--gpus", "8", "K=1099511627776"],
            "must be a power of two (1, 2, 4, …, 65,536)",
        ),
        (
            ["--config", PRESET, "--gpus", "8", "suffix_from=99999999999999999999999"],
            "a number beyond 64 bits",
        ),
        (
            ["--config", PRESET, "--gpus", "8", "suffix_from=4294967296"],
            "suffix_from must be a whole number from 1",
        ),
        (["--config", "recipes/configs/cadd-nano.yaml", "--gpus", "8"], "plan knows what train_demasker.py"),
        (["--config", PRESET, "--gpus", "8", "--mfu", "0"], "mfu 0.0 must be from 0.0001 to 1"),
        (["--config", PRESET, "--gpus", "8", "--mfu", "1e-320", "--json"], "must be from 0.0001 to 1"),
        (
            ["--config", PRESET, "--gpus", "8", "--mean-length", "100000"],
            "mean length is 100000, windows have",
        ),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err and len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99, 1.0, 1.4, 3.0])
def test_a_bar_ends_at_the_card_and_is_red_behind_it(share: float) -> None:
    card, width = 80e9, 60
    parts = dict.fromkeys(PARTS, share * card / len(PARTS))
    text = bar(Memory(**parts), card, width)
    inside, over = text.plain.split("│")
    assert len(text.plain) == width + 1
    assert len(inside) == round(width / max(1.0, share))
    assert set(over) <= {"▓"} and bool(over) == (share > 1)
    red = [span for span in text.spans if "red" in str(span.style) and span.end > span.start]
    assert sum(span.end - span.start for span in red) == len(over)
    with (console := Console(width=80, color_system="truecolor")).capture() as captured:
        console.print(text)
    assert captured.get().strip()
