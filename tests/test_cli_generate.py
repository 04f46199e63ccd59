"""`crocodil generate` and `crocodil vary`: what they print where, and that bad input costs nothing."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import crocodil
from crocodil.cli import main
from crocodil.cli.arguments import METHODS, parse
from crocodil.denoiser.dit import Denoiser, DenoiserConfig
from crocodil.denoiser.weights import TrainedDenoiser, save_denoiser
from crocodil.model import Model, load
from crocodil.synthesis import METHODS as ALL_METHODS
from crocodil.synthesis import generate, vary

FEW = ("--nfe", 4, "--latent-steps", 2)
COUNTS = ("seed", "nfe", "nfe_paper", "nfe_wall", "seconds")


def write_denoisers(folder: Path, model: Model, seed: int = 0) -> None:
    """One of each kind, of random weights, with its output open."""
    for kind in ("unconditional", "conditional"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            conditional = kind == "conditional"
            denoiser = Denoiser(DenoiserConfig(model.K, model.D, 16, 1, 2, conditional=conditional))
            torch.nn.init.normal_(denoiser.write.weight)
        (folder / kind).mkdir(parents=True)
        save_denoiser(folder / kind, TrainedDenoiser(denoiser, model.fingerprint, 0.2))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> str:
    """A model of random weights with its denoisers: K = 4, windows of 32 tokens."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_bundle, folder)
    write_denoisers(folder / "denoiser", load(tiny_bundle, "cpu"))
    return str(folder)


@pytest.fixture(scope="module")
def model(bundle: str) -> Model:
    return load(bundle, "cpu")


@pytest.fixture
def run(bundle: str, capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[int, str, str]]:
    """`run("generate", …)` gives the exit code, stdout and stderr."""

    def call(verb: str, *words: object) -> tuple[int, str, str]:
        code = main([verb, *map(str, words), *([] if "--model" in words else ["--model", bundle])])
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "program.py"
    file.write_text("def area(side):\n", "utf-8")
    return file


@pytest.fixture
def terminal(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """stdout and stderr are one, with colours."""
    for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True)


def document(result: tuple[int, str, str]) -> Any:
    """The one JSON document on stdout."""
    code, out, _ = result
    assert code == 0
    return json.loads(out)


# --- generate ---


@pytest.mark.parametrize("method", [name for name in METHODS if name != "cadd"])
def test_json_has_an_item_for_each_text(method: str, run: Run, bundle: str, model: Model) -> None:
    found = document(
        run("generate", "--method", method, *FEW, "--refresh-steps", 2, "-n", 8, "--seed", 7, "--json")
    )
    assert list(found) == ["model", "method", "items"]
    assert (found["model"], found["method"]) == (bundle, method)
    assert [item["seed"] for item in found["items"]] == list(range(7, 15))
    made = model.generate(8, method=method, nfe=4, latent_steps=2, refresh_steps=2, seed=7)
    for item, one in zip(found["items"], made, strict=True):
        assert list(item) == ["text", *COUNTS]
        assert (item["text"], item["nfe"], item["nfe_paper"]) == (one.text, one.nfe, one.nfe_paper)
        assert item["nfe_wall"] >= item["nfe"] and item["seconds"] > 0


def test_a_seed_gives_its_text_however_many_are_written(run: Run) -> None:
    many = document(run("generate", *FEW, "-n", 5, "--seed", 3, "--json"))["items"]
    (one,) = document(run("generate", *FEW, "--seed", 5, "--json"))["items"]
    assert one["text"] == many[2]["text"] and len({item["text"] for item in many}) > 1


def test_every_option_reaches_the_model(run: Run, model: Model) -> None:
    words = ["--length", 20, "--min-length", 8, "--k", 2, "--refresh", 0.25, 0.5, "--refresh-steps", 3]
    words += ["--guidance", 2, "--block-size", 10, "--temperature", 0.7]
    (item,) = document(run("generate", *FEW, *words, "--json"))["items"]
    (one,) = model.generate(
        nfe=4, latent_steps=2, length=20, min_length=8, k=2, refresh=(0.25, 0.5), refresh_steps=3, guidance=2,
        block_size=10, temperature=0.7,
    )  # fmt: skip
    assert (item["text"], item["nfe_paper"]) == (one.text, one.nfe_paper)


def test_what_is_given_is_in_the_text(run: Run) -> None:
    given = [*FEW, "--refresh-steps", 2, "-n", 3, "--json"]
    for item in document(run("generate", "--prompt", "def f(x):\n", *given))["items"]:
        assert item["text"].startswith("def f(x):\n")
    for item in document(run("generate", "--template", '["x = [", 6, "]\\n"]', *given))["items"]:
        assert item["text"].startswith("x = [") and item["text"].endswith("]\n")


def test_a_denoiser_can_be_named_instead_of_the_models_own(run: Run, model: Model, tmp_path: Path) -> None:
    write_denoisers(tmp_path, model, seed=1)
    options = [*FEW, "--method", "conthendisc", "--temperature", 0, "--min-length", 30, "--json"]
    own = document(run("generate", *options, "-n", 4))["items"]
    other = document(run("generate", *options, "-n", 4, "--denoiser", tmp_path / "unconditional"))["items"]
    assert [item["text"] for item in own] != [item["text"] for item in other]
    code, out, err = run("generate", *FEW, "--denoiser", tmp_path / "unconditional")
    assert code == 0 and out and "no conditional" not in err, "the other one stays the model's own"


def test_one_text_is_printed_as_it_is_and_several_under_headings(run: Run, model: Model) -> None:
    first, second = model.generate(2, nfe=4, latent_steps=2, seed=7)
    assert run("generate", *FEW, "--seed", 7) == (0, first.text, "")
    code, out, _ = run("generate", *FEW, "--seed", 7, "-n", 2)
    counts = f"NFE {first.nfe} (paper's count {first.nfe_paper:.1f}, wall "
    assert code == 0 and out.startswith(f"==> text 1, seed 7, {counts}")
    assert f"\n{first.text}\n==> text 2, seed 8, " in out and out.endswith(second.text)


def test_a_terminal_sees_the_text_forming_and_then_every_text_headed(
    run: Run, model: Model, terminal: None
) -> None:
    code, out, _ = run("generate", *FEW, "--seed", 7)
    assert code == 0 and "step 4 of 4" in out and "◆" in out and "48;2;" in out
    assert "==> text 1, seed 7, NFE 4 (paper's count " in out and out.count("==>") == 1
    assert document(run("generate", *FEW, "--seed", 7, "--json"))["items"][0]["seed"] == 7


def test_a_report_shows_the_text_forming_and_all_texts(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    result = run("generate", *FEW, "-n", 3, "--seed", 7, "--min-length", 20, "--report", folder, "--json")
    texts = [item["text"] for item in document(result)["items"]]
    page = (folder / "index.html").read_text("utf-8")
    assert str(folder / "index.html") in result[2] and len(texts) == 3
    assert "Texts out of noise" in page and "registers drawn anew after step 2." in page
    assert page.count('<figure class="stage">') == 5 and page.count('<article class="card text"') == 3
    assert "text 3, seed 9" in page and "How a window was written" in page


@pytest.mark.parametrize("words", ["--method mdm", "--method alg3", "--prompt x=", "--nfe 1"])
def test_every_method_can_be_reported(words: str, run: Run, tmp_path: Path) -> None:
    options = [*FEW, "--refresh-steps", 1, *words.split(), "--report", tmp_path]
    assert run("generate", *options)[0] == 0 and (tmp_path / "index.html").is_file()


# --- vary ---


def test_at_strength_0_it_is_the_autoencoder(run: Run, program: Path) -> None:
    options = [program, "--k", 3, "--nfe", 8, "--json"]
    (item,) = document(run("vary", *options, "--strength", 0))["items"]
    (same,) = document(run("autoencode", *options))["items"]
    assert item["text"] == same["text"] and item["strength"] == 0 and item["nfe_paper"] == item["nfe"]


def test_every_strength_has_its_texts_in_order(run: Run, program: Path, bundle: str, model: Model) -> None:
    options = ["--strength", 0.2, 0.9, "-n", 2, "--seed", 5, "--temperature", 0.5, *FEW]
    found = document(run("vary", *options, program, "--json"))
    assert list(found) == ["model", "items"] and found["model"] == bundle
    assert [(i["strength"], i["seed"]) for i in found["items"]] == [(0.2, 5), (0.2, 6), (0.9, 5), (0.9, 6)]
    for item in found["items"]:
        assert list(item) == ["strength", "text", *COUNTS]
        one = model.vary(
            program.read_text(), item["strength"], nfe=4, latent_steps=2, temperature=0.5, seed=item["seed"]
        )[0]
        assert item["text"] == one.text
    code, out, err = run("vary", program, *options)
    assert (code, err) == (0, "") and "==> strength 0.9, text 2, seed 6, NFE " in out


def test_a_long_text_is_cut_on_demand(run: Run, program: Path) -> None:
    program.write_text("side = side * side\n" * 40)
    code, out, err = run("vary", program, *FEW)
    assert (code, out) == (2, "") and "--truncate" in err and err.count("\n") == 1
    assert run("vary", program, *FEW, "--truncate")[0] == 0


def test_stdin_is_a_text_too(run: Run, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with program.open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": stream}))
        (piped,) = document(run("vary", "-", *FEW, "--json"))["items"]
    (named,) = document(run("vary", program, *FEW, "--json"))["items"]
    assert piped["text"] == named["text"]


def test_a_terminal_sees_a_variation_forming(run: Run, program: Path, terminal: None) -> None:
    code, out, _ = run("vary", program, *FEW, "--strength", 0.5)
    assert code == 0 and "step 4 of 4" in out and "==> strength 0.5, text 1, seed 0, NFE 4 " in out


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "--method", "magic"], "invalid choice: 'magic'"),
        (["generate", "--template", "["], "'[' is no JSON list"),
        (["generate", "--template", "[" * 100_000], "is no JSON list"),
        (["generate", "--template", '"x"'], "is no JSON list"),
        (["generate", "--template", "[]"], "is no JSON list"),
        (["generate", "--template", '["x"]'], "is no JSON list"),
        (["generate", "--template", '["x", 0]'], "is no JSON list"),
        (["generate", "--template", '["x", 2.5, 1]'], "is no JSON list"),
        (["generate", "--template", '["x", true, 1]'], "is no JSON list"),
        (["generate", "--template", '["x", 1]', "--prompt", "x"], "not allowed with"),
        (["generate", "-n", "0"], "whole number from 1"),
        (["generate", "--nfe", "0"], "whole number from 1"),
        (["generate", "--nfe", "4,8"], "whole number from 1"),
        (["generate", "--length", "-3"], "whole number from 1"),
        (["generate", "--min-length", "x"], "whole number from 1"),
        (["generate", "--k", "0"], "whole number from 1"),
        (["generate", "--block-size", "0"], "whole number from 1"),
        (["generate", "--latent-steps", "0"], "whole number from 1"),
        (["generate", "--refresh-steps", "2.5"], "whole number from 1"),
        (["generate", "--seed", "a"], "invalid int value"),
        (["generate", "--refresh", "1"], "--refresh must be"),
        (["generate", "--refresh", "-0.1", "0.5"], "--refresh must be"),
        (["generate", "--refresh", "half"], "no list of numbers"),
        (["generate", "--guidance", "-1"], "no number from 0 on"),
        (["generate", "--temperature", "nan"], "no number from 0 on"),
        (["generate", "--temperature", "inf"], "no number from 0 on"),
        (["generate", "--report", __file__], "is no folder"),
        (["generate", "program.py"], "unrecognized arguments"),
        (["vary"], "the following arguments are required"),
        (["vary", "missing.py"], "missing.py does not exist"),
        (["vary", __file__, "--strength", "1.5"], "--strength must be"),
        (["vary", __file__, "--strength", "-1", "0"], "--strength must be"),
        (["vary", __file__, "--method", "mdm"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    run: Run, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(crocodil, "load")
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("crocodil: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("generate --k 5", "k must be at most 4"),
        ("generate --method mdm --k 2", "mdm uses no registers"),
        ("generate --method alg3 --refresh 0.5", "refresh belongs to"),
        ("generate --length 1000", "length must be"),
        ("generate --length 4 --prompt xxxxxxxxxx", "leaves no room"),
        ("generate --denoiser missing", "missing"),
        ("vary PROGRAM --k 5", "k must be at most 4"),
    ],
)
def test_what_only_the_model_knows_is_refused_before_a_text_is_written(
    run: Run, program: Path, words: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crocodil.synthesis._write", lambda *args: pytest.fail("a text is written"))
    code, out, err = run(*(str(program) if word == "PROGRAM" else word for word in words.split()))
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


# --- arguments ---


def test_the_defaults_are_those_of_python() -> None:
    assert tuple(ALL_METHODS) == METHODS
    for verb, function in {"generate": generate, "vary": vary}.items():
        args = vars(parse([verb, *(["x"] if verb == "vary" else [])]))
        for name, parameter in inspect.signature(function).parameters.items():
            if name in args and name not in ("model", "strength"):
                assert args[name] == parameter.default, name
    assert parse(["vary", "x"]).strength == (inspect.signature(vary).parameters["strength"].default,)
