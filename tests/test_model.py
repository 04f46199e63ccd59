"""The face: texts to registers and back, and what is said when that cannot be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import crocodil
import crocodil.model
from crocodil import CrocodilError, Registers
from crocodil.autoencoder import Autoencoder
from crocodil.model import Model, load
from crocodil.text.vocabulary import Vocabulary

TEXTS = ["def area(side):\n", "x = {'side': 3}", "", "for number in range(10):"]
LONG = "number = 1\n" * 40


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return load(tiny_bundle, "cpu")


@pytest.fixture(scope="module")
def registers(model: Model) -> Registers:
    return model.encode(TEXTS)


# --- encode ---


def test_registers_of_each_text_are_those_of_the_text_alone(model: Model, registers: Registers) -> None:
    assert registers.values_WKD.shape == (4, 4, 24) and registers.windows == (1, 1, 1, 1)
    assert registers.values_WKD.dtype == torch.float32 and not registers.values_WKD.requires_grad
    assert torch.allclose(registers.values_WKD.norm(dim=-1), torch.tensor(24**0.5))
    for i, text in enumerate(TEXTS):
        assert torch.allclose(model.encode(text).values_WKD, registers[i].values_WKD, atol=2e-5)
    assert torch.allclose(model.encode(TEXTS[::-1]).values_WKD.flip(0), registers.values_WKD, atol=2e-5)
    assert len(model.encode([])) == 0


def test_rows_of_the_encoder_may_be_of_any_size(
    model: Model, registers: Registers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for capacity in (1, 20, 35):
        monkeypatch.setattr(crocodil.model, "ROW_TOKENS", capacity)
        assert torch.allclose(model.encode(TEXTS).values_WKD, registers.values_WKD, atol=2e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_fewer_registers_are_the_first_of_more(k: int, model: Model, registers: Registers) -> None:
    assert torch.allclose(model.encode(TEXTS, k).values_WKD, registers.first(k).values_WKD, atol=2e-5)


def test_long_texts_are_refused_cut_or_split(model: Model) -> None:
    with pytest.raises(
        CrocodilError, match=r"440 characters is longer than the window of 32 tokens \(30 of text\); "
    ):
        model.encode(["x", LONG])
    whole = model.encode([LONG, "x"], split=True)
    assert whole.windows[0] > 1 and whole.windows[1] == 1
    beginning = model.encode(LONG, truncate=True)
    assert beginning.windows == (1,)
    assert torch.allclose(beginning.values_WKD[0], whole.values_WKD[0], atol=2e-5)
    fits = model.vocabulary.decode(model.vocabulary.encode(LONG)[:30])
    assert model.encode(fits).windows == model.encode(fits, split=True).windows == (1,)
    with pytest.raises(CrocodilError, match="choose one"):
        model.encode("x", truncate=True, split=True)


def test_a_huge_text_is_refused_without_reading_it_all(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    encoder = model.vocabulary._encoder

    class Watched:
        def encode(self, text: str, **options: Any) -> Any:
            read.append(len(text))
            return encoder.encode(text, **options)

    monkeypatch.setattr(model.vocabulary, "_encoder", Watched())
    with pytest.raises(CrocodilError, match="longer than the window"):
        model.encode("x = 1\n" * 1_000_000)
    assert sum(read) < 20_000


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (3, "a string or a list of strings, not int"),
        (None, "not NoneType"),
        (b"x", "not bytes"),
        ([b"x"], "a text must be str, not bytes"),
        (["x", None], "not NoneType"),
        ([["x"]], "not list"),
        ("a\ud800b", "character 1 of the text is a lone surrogate"),
        (["x", "\udfff"], "lone surrogate"),
    ],
)
def test_what_is_no_text_is_refused(texts: Any, message: str, model: Model) -> None:
    with pytest.raises(CrocodilError, match=message) as error:
        model.encode(texts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("k", [0, -1, 5, 2.0, "2", True])
def test_k_out_of_range_is_refused(k: Any, model: Model) -> None:
    with pytest.raises(CrocodilError, match="k must be a whole number between 1 and 4"):
        model.encode("x", k)


# --- decode ---


@pytest.mark.parametrize("options", [{}, {"nfe": 4, "block_size": 8}, {"length": 48}])
def test_a_batch_decodes_as_each_text_alone(
    options: dict[str, Any], model: Model, registers: Registers
) -> None:
    together = model.decode(registers, **options)
    assert len(together) == 4 and len(set(together)) > 1
    assert together == [model.decode(registers[i], **options)[0] for i in range(4)]


@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"remasking": "random"}, {"renoise": True, "temperature": 1.0}]
)
def test_a_window_s_draws_depend_on_its_place_and_the_seed_alone(
    options: dict[str, Any], model: Model, registers: Registers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(registers: Registers, seed: int = 5) -> list[str]:
        return model.decode(registers, seed=seed, nfe=4, **options)

    drawn = decode(registers)
    assert decode(registers) == drawn
    assert decode(registers, seed=6) != drawn
    assert [decode(registers[i])[0] for i in range(4)] == drawn
    others = replace(registers, values_WKD=torch.cat([registers.values_WKD[:2], registers.values_WKD[:2]]))
    assert decode(others)[:2] == drawn[:2]
    monkeypatch.setattr(crocodil.model, "ROW_TOKENS", 64)  # two windows at a time
    assert decode(registers) == drawn


def test_the_demasker_is_asked_nfe_times_for_all_windows(model: Model, registers: Registers) -> None:
    steps = []
    for nfe in (1, 7):
        steps.clear()
        model.decode(registers, nfe=nfe, on_step=steps.append)
        assert len(steps) == nfe
        assert steps[0].ids_BN.shape == (4, 32) and not steps[-1].is_masked_BN.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.interpolate("a", "b", 0.5), "alphas must be several numbers"),
        (lambda model: model.interpolate("a", "b", ["x"]), "alphas must be several numbers"),
        (lambda model: model.interpolate("a", "b", [1e300]), "has no direction"),
        (lambda model: model.interpolate(["a", "c"], ["b", "d"]), "give two strings"),
        (lambda model: crocodil.load(5), "a model is a name or a folder, not 5"),
        (lambda model: crocodil.load(device="banana"), "no device 'banana' here"),
        (
            lambda model: crocodil.load(dtype="int8"),
            "dtype = 'int8': it is one of bfloat16, float16, float32",
        ),
        (lambda model: crocodil.load(dtype=torch.float16), "dtype = torch.float16: it is one of"),
        (lambda model: crocodil.encode("x", model="bundled"), "model must be a loaded model"),
    ],
)
def test_calls_that_mean_nothing_are_refused_in_one_line(
    call: Callable[[Model], object], message: str, model: Model
) -> None:
    with pytest.raises(CrocodilError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_windows_of_one_text_are_joined(model: Model) -> None:
    registers = model.encode([LONG, "x"], split=True)
    texts = model.decode(registers, nfe=4)
    windows = replace(registers, windows=(1,) * len(registers.values_WKD))
    alone = model.decode(windows, nfe=4)
    assert texts == ["".join(alone[:-1]), alone[-1]]
    assert model.autoencode([LONG, "x"], nfe=4) == texts
    assert model.autoencode(LONG, truncate=True, nfe=4) == model.decode(
        model.encode(LONG, truncate=True), nfe=4
    )


def test_text_ends_at_the_first_eos(
    model: Model, registers: Registers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a demasker that knows a text and its tail by heart."""
    vocabulary = model.vocabulary
    known = [vocabulary.bos_id, *vocabulary.encode("side"), vocabulary.eos_id, *vocabulary.encode("beyond")]
    known = torch.tensor(known + [vocabulary.eos_id] * (32 - len(known)))

    def logits(ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(known.expand(len(ids), 32)[rows], vocabulary.size) * 50.0

    monkeypatch.setattr(model.autoencoder.demasker, "logits", logits)
    assert model.decode(registers, nfe=3) == ["side"] * 4
    known[1] = vocabulary.eos_id
    assert model.decode(registers, nfe=3) == [""] * 4  # as an empty text comes back


def test_spare_rows_of_the_table_are_never_predicted(
    model: Model, registers: Registers, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = model.vocabulary.size
    assert model.autoencoder.demasker.llada.config.embedding_size > spare
    plain = model.autoencoder.demasker.logits

    def tempted(ids: torch.Tensor, rows: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        logits = plain(ids, rows, z)
        logits[:, spare:] += 100
        return logits

    before = model.decode(registers, nfe=4)
    monkeypatch.setattr(model.autoencoder.demasker, "logits", tempted)
    assert model.decode(registers, nfe=4) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nfe": 3, "block_size": 8}, "nfe = 3 is less than the 4 blocks of 8 positions"),
        ({"nfe": 33}, "nfe = 33 is more than the 32 positions"),
        ({"nfe": 0}, "nfe = 0 is less than the 1 blocks"),
        ({"nfe": -4}, "nfe = -4"),
        ({"nfe": 2.5}, "nfe must be a whole number, not 2.5"),
        ({"nfe": None}, "nfe must be a whole number, not None"),
        ({"block_size": 0}, "block_size = 0"),
        ({"block_size": "8"}, "block_size must be a whole number, not '8'"),
        ({"length": 0}, "length must be a whole number between 1 and 64, not 0"),
        ({"length": 65}, "between 1 and 64, not 65"),
        ({"length": 16.0}, "not 16.0"),
        ({"temperature": -1}, "temperature = -1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": "hot"}, "temperature = 'hot'"),
        ({"temperature": None}, "temperature = None"),
        ({"remasking": "best"}, "remasking = 'best'"),
        ({"seed": 0.5}, "seed must be a whole number"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_computed(
    options: dict[str, Any], message: str, model: Model, registers: Registers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> torch.Tensor:
        raise AssertionError("the demasker was asked")

    monkeypatch.setattr(model.autoencoder.demasker, "logits", unreachable)
    with pytest.raises(CrocodilError, match=message) as error:
        model.decode(registers, **options)
    assert "\n" not in str(error.value)


def test_registers_that_are_not_this_model_s_are_refused(
    model: Model,
    registers: Registers,
    make_autoencoder: Callable[..., Autoencoder],
    tiny_vocabulary: Vocabulary,
) -> None:
    other = Model(make_autoencoder(seed=1), tiny_vocabulary, 32)
    assert other.fingerprint != model.fingerprint
    wide = torch.randn(2, 4, 48)
    for wrong, message in (
        (other.encode("x"), f"written by another encoder \\({other.fingerprint}\\) than this model's"),
        (Registers(wide, (1, 1), model.fingerprint), "registers have width 48, this model's are 24 wide"),
        (Registers(torch.randn(2, 8, 24), (1, 1), model.fingerprint), "k = 8, this model takes 1 to 4"),
        (Registers(torch.randn(2, 0, 24), (1, 1), model.fingerprint), "k = 0"),
        (registers.values_WKD, "decode wants Registers, as encode gives them, not Tensor"),
        ("x", "not str"),
    ):
        with pytest.raises(CrocodilError, match=message) as error:
            model.decode(wrong)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    with pytest.raises(CrocodilError, match="NaN or infinity"):
        replace(registers, values_WKD=registers.values_WKD * float("nan"))


def test_registers_of_16_bit_and_of_other_norms_are_decoded_as_they_are(
    model: Model, registers: Registers
) -> None:
    half = replace(registers, values_WKD=registers.values_WKD.half())
    whole = replace(half, values_WKD=half.values_WKD.float())
    assert model.decode(half, nfe=4) == model.decode(whole, nfe=4)
    stretched = replace(registers, values_WKD=registers.values_WKD * 1.25)
    assert model.decode(stretched.normalised(), nfe=4) == model.decode(registers, nfe=4)


def test_registers_travel_through_a_file(model: Model, registers: Registers, tmp_path: Path) -> None:
    registers.save(tmp_path / "registers.safetensors")
    again = Registers.load(tmp_path / "registers.safetensors")
    assert model.decode(again, nfe=4) == model.decode(registers, nfe=4)


# --- the rest of the face ---


def test_the_fingerprint_is_of_weights_and_vocabulary(
    model: Model, tiny_bundle: Path, make_autoencoder: Callable[..., Autoencoder], tiny_vocabulary: Vocabulary
) -> None:
    assert load(tiny_bundle, "cpu").fingerprint == model.fingerprint and len(model.fingerprint) == 16
    changed = make_autoencoder()
    assert Model(changed, tiny_vocabulary, 32).fingerprint == model.fingerprint
    with torch.no_grad():
        changed.encoder.suffix[0, 0] += 1e-3
    assert Model(changed, tiny_vocabulary, 32).fingerprint != model.fingerprint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_may_be_held_in_another_dtype(dtype: str) -> None:
    text = "def double(x):\n    return 2 * x\n"
    whole, narrow = load("bundled", "cpu"), load("bundled", "cpu", dtype=dtype)
    kind = getattr(torch, dtype)
    assert {parameter.dtype for parameter in narrow.autoencoder.parameters()} == {kind}
    # rotary angles of 16 bits would turn far positions by anything
    assert {buffer.dtype for buffer in narrow.autoencoder.buffers()} == {torch.float32}
    registers = narrow.encode(text)
    assert registers.values_WKD.dtype == torch.float32
    assert torch.allclose(registers.values_WKD.norm(dim=-1), torch.tensor(narrow.D**0.5), rtol=0.01)
    close = torch.cosine_similarity(registers.values_WKD, whole.encode(text).values_WKD, dim=-1)
    assert close.min() > 0.999
    # the same model to others: their registers and denoisers are its own
    assert narrow.fingerprint == whole.fingerprint
    assert narrow.decode(registers, nfe=8) == whole.decode(registers, nfe=8) == [text]
    assert narrow.decode(whole.encode(text), nfe=8) == [text]
    assert len(narrow.generate(1, nfe=2, latent_steps=2)) == 1


def test_float32_is_what_a_model_is_held_in_where_nobody_says(model: Model) -> None:
    assert {parameter.dtype for parameter in load("bundled", "cpu").autoencoder.parameters()} == {
        torch.float32
    }
    assert {parameter.dtype for parameter in model.autoencoder.parameters()} == {torch.float32}


def test_interpolation_starts_at_one_text_and_ends_at_the_other(model: Model) -> None:
    a, b = TEXTS[0], TEXTS[1]
    way = model.interpolate(a, b, nfe=8)
    assert len(way) == 5
    assert way[0] == model.autoencode(a, nfe=8)[0] and way[-1] == model.autoencode(b, nfe=8)[0]
    assert model.interpolate(a, b, (0.0, 1.0), k=2, nfe=8)[1] == model.autoencode(b, 2, nfe=8)[0]


def test_nul_bytes_and_specials_in_a_text_are_text(model: Model) -> None:
    for text in ("a\0b", "<|endoftext|>", "<|mdm_mask|>", "\ufeff\r\n", "\0"):
        assert len(model.encode(text)) == 1
        assert model.vocabulary.decode(model.vocabulary.encode(text)) == text


def test_the_functions_use_the_model_that_is_given(model: Model, registers: Registers) -> None:
    assert torch.equal(crocodil.encode(TEXTS, 2, model=model).values_WKD, model.encode(TEXTS, 2).values_WKD)
    assert crocodil.decode(registers, model=model, nfe=4) == model.decode(registers, nfe=4)
    assert crocodil.autoencode(TEXTS, model=model, nfe=4) == model.autoencode(TEXTS, nfe=4)
    assert crocodil.interpolate("x", "y", (0.5,), model=model) == model.interpolate("x", "y", (0.5,))
    assert len(crocodil.encode(LONG, split=True, model=model).windows) == 1


def test_and_the_bundled_one_where_none_is(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    crocodil._default.cache_clear()
    asked: list[str] = []
    monkeypatch.setattr(crocodil, "load", lambda name="bundled", device=None: asked.append(name) or model)
    assert len(crocodil.encode("x")) == 1 and len(crocodil.encode("y")) == 1
    assert asked == ["bundled"]  # and once only
    crocodil._default.cache_clear()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CrocodilError, match="holds no crocodil model"):
        crocodil.load(str(tmp_path))


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, crocodil; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(crocodil.__file__).parents[1]).returncode == 0
    )
