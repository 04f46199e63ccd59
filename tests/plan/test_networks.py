"""Which networks a plan is about: released ones by name, folders by their config.json, everything else refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import crocodil
from crocodil import adapters
from crocodil.adapters import LoraSettings
from crocodil.autoencoder import Autoencoder
from crocodil.demasker.llada import LLaDAConfig
from crocodil.errors import CrocodilError
from crocodil.joint import DemaskerRecipe, EncoderShape, build, family
from crocodil.plan.networks import networks, weights_of
from crocodil.plan.released import DEMASKERS, ENCODERS, LLADA_8B, qwen3_embedding
from crocodil.registers.encoder import fresh_encoder

BASE, QWEN = "GSAI-ML/LLaDA-8B-Base", "Qwen/Qwen3-Embedding-0.6B"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "llada"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan must never fetch anything."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan has asked the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


def test_the_released_networks_have_the_known_sizes() -> None:
    """llada_and_qwen.md: 8,015,581,184 in 291 tensors, 595,776,512 in 310."""
    found = networks(DemaskerRecipe(demasker=BASE, encoder=QWEN))
    assert found.parameters("demasker.llada.") == 8_015_581_184
    assert sum(w.name.startswith("demasker.llada.") for w in found.weights) == 291
    assert found.own_table == 595_776_512
    assert sum(w.name.startswith("encoder.backbone.") for w in found.weights) == 310
    assert found.parameters("encoder.backbone.") == 595_776_512 - (151_669 - 126_464) * 1024
    # START, END, P and 127 suffix embeddings besides
    assert found.parameters() == found.parameters("demasker.llada.") + found.parameters(
        "encoder.backbone."
    ) + (2 * 4096 + 4096 * 1024 + 127 * 1024)


def test_names_may_be_pinned_and_the_instruct_model_is_of_the_same_size() -> None:
    for name in (*DEMASKERS, f"{BASE}@1a2b3c"):
        assert networks(DemaskerRecipe(demasker=name, encoder=f"{QWEN}@main")).llada == LLADA_8B
    assert set(ENCODERS) == {QWEN}


def test_the_released_config_is_the_one_that_a_checkpoint_has() -> None:
    """Every field but the sizes is as in a checkpoint of the released layout."""
    config = json.loads((FIXTURES / "base-seed0" / "config.json").read_text("utf-8"))
    small = LLaDAConfig.from_dict(config)
    for name in ("rope_full_precision", "weight_tying", "rms_norm_eps"):
        assert getattr(LLADA_8B, name) == getattr(small, name)
    assert qwen3_embedding().vocab_size == 151_669
    assert qwen3_embedding(10).vocab_size == 10


def test_folders_are_read_by_their_config_alone(tmp_path: Path, tiny_bundle: Path) -> None:
    """A LLaDA folder, an export and an encoder's folder, without their weights."""
    for source in (FIXTURES / "base-seed0", tiny_bundle):
        folder = tmp_path / source.name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        found = networks(DemaskerRecipe(demasker=str(folder), encoder=str(tiny_bundle / "encoder"), K=4))
        assert found.encoder.vocab_size == found.llada.vocab_size
        assert found.encoder.hidden_size == 24
        assert found.own_table is not None


def test_an_encoder_from_scratch_is_the_one_that_is_trained(tiny_bundle: Path) -> None:
    shape = EncoderShape(24, 2, 4, 2, 40)
    found = networks(DemaskerRecipe(demasker=str(tiny_bundle), encoder_shape=shape, K=4))
    real = fresh_encoder(
        found.llada.vocab_size, 4, 0, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, rope_theta=1000.0,
    )  # fmt: skip
    assert found.parameters("encoder.") == sum(p.numel() for p in real.parameters())
    assert found.own_table is None


@pytest.mark.parametrize("grow_to", [None, 256])
def test_a_start_decides_the_sizes(grow_to: int | None) -> None:
    config = DemaskerRecipe(start="bundled", grow_to=grow_to, K=2)
    found = networks(config)
    real, _ = build(config)
    assert {w.name: w.shape for w in found.weights} == {n: tuple(p.shape) for n, p in real.named_parameters()}
    assert found.config.K == (grow_to or 128)
    assert found.parameters() == sum(p.numel() for p in crocodil.load().autoencoder.parameters()) + (
        0 if grow_to is None else 128 * real.encoder.D
    )


def test_adapters_are_counted_as_they_are_put_in(make_autoencoder: Callable[..., Autoencoder]) -> None:
    for lora in (LoraSettings(rank=3), LoraSettings(rank=2, demasker=(), encoder=("q_proj", "down_proj"))):
        counted = weights_of(make_autoencoder(), lora)
        module = make_autoencoder()
        adapters.inject(module, lora, 0)
        named = {
            name.replace(".base_layer", "").replace(".default.", "."): parameter
            for name, parameter in module.named_parameters()
        }
        assert {w.name: w.shape for w in counted} == {n: tuple(p.shape) for n, p in named.items()}
        for weight in counted:
            assert weight.trains(1) == named[weight.name].requires_grad, weight.name
            assert weight.trains(0) == (weight.trains(1) and family(weight.name) == "guide"), weight.name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"demasker": "someone/else-8B"}, r"demasker: someone/else-8B is no folder .* GSAI-ML/LLaDA-8B-Base"),
        ({"demasker": BASE, "encoder": "someone/encoder"}, r"encoder: someone/encoder is no folder"),
        ({"start": "someone/model"}, r"start: someone/model is no folder here, and a plan downloads nothing"),
        ({"start": str(FIXTURES)}, r"holds no crocodil model"),
        ({"demasker": str(FIXTURES)}, r"config\.json is missing"),
        ({"demasker": BASE, "encoder": str(FIXTURES / "base-seed0")}, r"model_type is 'llada'"),
    ],
)
def test_what_is_not_here_is_said_in_a_line(changes: dict[str, str], said: str) -> None:
    with pytest.raises(CrocodilError, match=said):
        networks(replace(DemaskerRecipe(), **changes))
