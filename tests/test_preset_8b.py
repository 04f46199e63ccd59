"""The paper's model as recipes/configs/llada-8b.yaml has it: built without memory, and every tensor accounted for."""

from __future__ import annotations

from pathlib import Path

import pytest

from crocodil.autoencoder import Autoencoder
from crocodil.joint import DemaskerRecipe, blueprint, family
from crocodil.plan.launches import LAUNCHES
from crocodil.plan.networks import FAMILIES, Networks, networks
from crocodil.plan.planner import Place, plan
from crocodil.plan.released import LLADA_8B, qwen3_embedding
from crocodil.training.config import load_config
from crocodil.training.optimisation import parameter_groups

PRESET = Path(__file__).parents[1] / "recipes/configs/llada-8b.yaml"
LLADA, ENCODER = "demasker.llada.model.transformer.", "encoder.backbone."


@pytest.fixture(scope="module")
def config() -> DemaskerRecipe:
    return load_config(DemaskerRecipe, str(PRESET))


@pytest.fixture(scope="module")
def module(config: DemaskerRecipe) -> Autoencoder:
    return blueprint(config, LLADA_8B, qwen3_embedding(LLADA_8B.vocab_size))


@pytest.fixture(scope="module")
def of(config: DemaskerRecipe) -> Networks:
    return networks(config)


def shapes(module: Autoencoder) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def test_it_says_what_the_paper_says(config: DemaskerRecipe) -> None:
    assert config.demasker.partition("@")[0] == "GSAI-ML/LLaDA-8B-Base"
    assert config.encoder is not None and config.encoder.partition("@")[0] == "Qwen/Qwen3-Embedding-0.6B"
    assert (config.K, config.scale, config.layout) == (128, "sqrt_d", "anchored")
    assert (config.encoder_steps, config.batch_size) == (4000, 512)
    assert (config.optimiser.lr, config.optimiser.weight_decay) == (2.5e-5, 0.1)
    assert config.corruption.masking.all_mask == 0.25 and config.corruption.masking.t_min == 0.001
    assert (
        config.corruption.register_noise.cosine == 0.8 and config.corruption.nested_dropout.draw == "groups"
    )
    assert config.data.lengths == (256, 512, 1024, 2048, 4096)
    assert config.lora is None and config.start is None
    assert config.steps * config.batch_size == pytest.approx(3 * 12e6, rel=0.01)


def test_llada_has_the_released_tensors(module: Autoencoder) -> None:
    """llada_and_qwen.md 1.3: 291 tensors = 32 · 9 + 3, their names and shapes."""
    wanted: dict[str, tuple[int, ...]] = {
        f"{LLADA}{table}.weight": (126464, 4096) for table in ("wte", "ff_out")
    }
    wanted[f"{LLADA}ln_f.weight"] = (4096,)
    for i in range(32):
        block = f"{LLADA}blocks.{i}."
        square = dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), (4096, 4096))
        mlp = {"ff_proj": (12288, 4096), "up_proj": (12288, 4096), "ff_out": (4096, 12288)}
        norms = dict.fromkeys(("attn_norm", "ff_norm"), (4096,))
        wanted |= {f"{block}{name}.weight": shape for name, shape in (square | mlp | norms).items()}
    found = {name: shape for name, shape in shapes(module).items() if name.startswith("demasker.llada.")}
    assert found == wanted
    assert len(found) == 291
    assert sum(p.numel() for p in module.demasker.llada.parameters()) == 8_015_581_184


def test_the_encoder_has_the_released_tensors_and_the_demasker_s_rows(module: Autoencoder) -> None:
    """llada_and_qwen.md 5.1: 310 tensors = 28 · 11 + 2, flat keys, heads wider than the stream."""
    wanted = {f"{ENCODER}embed_tokens.weight": (126464, 1024), f"{ENCODER}norm.weight": (1024,)}
    for i in range(28):
        layer = {
            "self_attn.q_proj": (2048, 1024), "self_attn.k_proj": (1024, 1024), "self_attn.v_proj": (1024, 1024),
            "self_attn.o_proj": (1024, 2048), "self_attn.q_norm": (128,), "self_attn.k_norm": (128,),
            "mlp.gate_proj": (3072, 1024), "mlp.up_proj": (3072, 1024), "mlp.down_proj": (1024, 3072),
            "input_layernorm": (1024,), "post_attention_layernorm": (1024,),
        }  # fmt: skip
        wanted |= {f"{ENCODER}layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    found = {name: shape for name, shape in shapes(module).items() if name.startswith(ENCODER)}
    assert found == wanted
    assert len(found) == 310


def test_nothing_else_trains_but_registers_and_their_way_in(module: Autoencoder) -> None:
    others = {n: s for n, s in shapes(module).items() if not n.startswith((ENCODER, "demasker.llada."))}
    assert others == {
        "encoder.suffix": (127, 1024),
        "demasker.boundaries": (2, 4096),
        "demasker.projection.weight": (4096, 1024),
    }
    assert all(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("gpus", [8, 16, 64])
@pytest.mark.parametrize("launch", ["zero3", "zero2", "fsdp2"])
def test_pieces_of_every_parameter_add_up(launch: str, gpus: int, of: Networks) -> None:
    pieces = LAUNCHES[launch].pieces(of.weights, gpus)
    assert pieces.keys() == {w.name for w in of.weights}
    for weight in of.weights:
        assert len(pieces[weight.name]) == gpus and sum(pieces[weight.name]) == weight.numel, weight.name
    if launch == "zero3":  # and no rank has more than its share, but for rounding
        assert (
            max(sum(p[rank] for p in pieces.values()) for rank in range(gpus)) < of.parameters() / gpus + 1000
        )


def test_every_tensor_begins_to_train_in_exactly_one_stage(module: Autoencoder, of: Networks) -> None:
    """ "guide" trains from step 0 and "llada" from encoder_steps; no group of the optimiser has some of both."""
    families = {name: family(name) for name in shapes(module)}
    assert set(families.values()) == set(FAMILIES) == {"guide", "llada"}
    assert {n for n, f in families.items() if f == "llada"} == {
        n for n in families if n.startswith("demasker.llada.")
    }
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module.named_parameters(), 0.1, family)
    grouped = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(families)
    for group in groups:
        assert len({families[names[id(parameter)]] for parameter in group["params"]}) == 1
    guide, everything = of.trained(0), of.trained(1)
    assert [w.name for w in guide] == [n for n, f in families.items() if f == "guide"]
    assert len(everything) == len(families) == 291 + 310 + 3


def test_it_fits_sixteen_h100(of: Networks) -> None:
    """The place that its comment and the documentation name."""
    found = plan(of, Place(16, "h100"))
    assert found.fits
    assert found.parameters == 8_589_880_320
