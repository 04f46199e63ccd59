"""New texts by latents of tokens, of the bundled models."""

from __future__ import annotations

import json
from typing import Any

import pytest

import crocodil
from crocodil.bundle import BUNDLED
from crocodil.cli import main
from crocodil.denoiser.weights import Denoisers
from crocodil.errors import CrocodilError
from crocodil.model import Model

SHORT: dict[str, Any] = {"length": 24, "nfe": 6}


@pytest.fixture(scope="module")
def cadd() -> Model:
    return crocodil.load("bundled/cadd")


@pytest.fixture(scope="module")
def both() -> Model:
    """Registers and latents, over the encoder of the bundled model, whose denoisers it takes."""
    return crocodil.load("bundled/cadd_ablations/both", denoisers=sorted((BUNDLED / "denoiser").iterdir()))


@pytest.fixture(scope="module")
def nano_unconditional() -> Model:
    """The bundled model without its conditional denoiser."""
    model = crocodil.load()
    model.__dict__["denoisers"] = Denoisers(model.denoisers.unconditional, None)
    return model


def written(model: Model, n: int = 1, **options: Any) -> list[str]:
    return [one.text for one in model.generate(n, **{**SHORT, **options})]


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("estimate", ["hard", "soft", "drawn"])
def test_a_text_is_that_of_its_seed_in_any_batch(cadd: Model, draws: int, estimate: str) -> None:
    options = {"method": "cadd", "draws": draws, "estimate": estimate}
    texts = written(cadd, 3, seed=7, **options)
    assert len(set(texts)) == 3 and texts == written(cadd, 3, seed=7, **options)
    assert written(cadd, seed=9, **options) == texts[2:]


@pytest.mark.parametrize("remasking", ["ancestral", "random", "low_confidence", "entropy"])
@pytest.mark.parametrize("corrector", [0.0, 0.5])
def test_every_way_keeps_the_prompt_and_ends(cadd: Model, remasking: str, corrector: float) -> None:
    prompt = "def f(x):"
    (one,) = cadd.generate(method="cadd", remasking=remasking, corrector=corrector, prompt=prompt, **SHORT)
    assert one.text.startswith(prompt) and 1 <= one.nfe <= 6 and one.registers_kD is None


def test_there_may_be_more_steps_than_positions(cadd: Model) -> None:
    (one,) = cadd.generate(method="cadd", length=8, nfe=40)
    assert 8 < one.nfe <= 40


def test_each_draw_is_an_evaluation_of_every_step(cadd: Model) -> None:
    once, thrice = (
        cadd.generate(method="cadd", corrector=0.1, draws=draws, min_length=24, **SHORT)[0].nfe
        for draws in (1, 3)
    )
    assert thrice == 3 * once


def test_a_model_that_was_trained_with_latents_is_shown_them(both: Model) -> None:
    options = {"method": "conthendisc", "latent_steps": 4, "k": 8}
    usual = written(both, **options)
    assert usual == written(both, draws=1, **options) != written(both, draws=0, **options)


def test_registers_and_latents_each_change_what_is_written(both: Model) -> None:
    options = {"latent_steps": 4, "remasking": "ancestral"}
    texts = [
        *written(both, method="conthendisc", k=8, **options),
        *written(both, method="conthendisc", k=8, draws=0, **options),
        *written(both, method="cadd", **options),
        *written(both, method="mdm", draws=0, **options),
    ]
    assert len(set(texts)) == 4


def test_latents_that_are_left_out_are_asked_about(cadd: Model) -> None:
    with pytest.raises(
        CrocodilError, match="trained with token latents, and mdm shows it none: .*bundled/mdm"
    ):
        written(cadd, method="mdm")
    assert written(cadd, method="mdm", draws=0)


def test_latents_of_a_model_that_has_none_are_refused() -> None:
    with pytest.raises(CrocodilError, match="was not trained with token latents.*train_cadd.py"):
        written(crocodil.load("bundled/mdm"), method="cadd")
    with pytest.raises(CrocodilError, match="was not trained with token latents"):
        written(crocodil.load(), method="conthendisc", draws=2, latent_steps=2)


def test_a_chain_asks_for_the_denoisers_of_all_its_steps(nano_unconditional: Model) -> None:
    """A window of one position takes LLaDA's sampler one step, in which nothing is drawn anew, and a chain as many as
    it is told to."""
    options = {"method": "conwithindisc", "length": 1, "nfe": 4, "latent_steps": 2}
    assert written(nano_unconditional, **options) is not None
    with pytest.raises(CrocodilError, match="has no conditional denoiser"):
        written(nano_unconditional, remasking="ancestral", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimate": "firm"}, "estimate = 'firm': choose one of hard, soft, drawn"),
        ({"draws": -1}, "draws"),
        ({"draws": 1.5}, "draws"),
        ({"draws": 99_999_999}, "draws is 99,999,999; give at most 1,000"),
        ({"corrector": -0.1}, "corrector"),
        ({"corrector": float("nan")}, "corrector"),
        ({"remasking": "any"}, "remasking = 'any'"),
        ({"block_size": 8}, "block_size and renoise belong to LLaDA's sampler"),
        ({"renoise": True}, "block_size and renoise belong to LLaDA's sampler"),
        ({"temperature": -1.0}, "temperature"),
        ({"nfe": 0}, "nfe"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(cadd: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CrocodilError, match=message) as refusal:
        written(cadd, method="cadd", **options)
    assert "\n" not in str(refusal.value)


def test_the_command_line_writes_what_python_writes(cadd: Model, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (
        "generate --method cadd --draws 3 --estimate soft --nfe 6 --length 24 -n 2 --seed 5 --json".split()
    )
    assert main(asked) in (0, None)
    said = json.loads(capsys.readouterr().out)
    texts = [one["text"] for one in said["items"]]
    assert texts == written(cadd, 2, method="cadd", draws=3, estimate="soft", seed=5)
