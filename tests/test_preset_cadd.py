"""CADD's presets at the paper's sizes, built without memory."""

from __future__ import annotations

import pytest
import torch

from crocodil.augmented import CaddRecipe, blueprint
from crocodil.cadd.latents import TokenLatents
from crocodil.demasker.llada import LLaDAConfig
from crocodil.fresh import fresh_config
from crocodil.images.data import PixelSpace
from crocodil.images.unet import PRESETS, PixelDemasker
from crocodil.text.characters import character_vocabulary
from crocodil.training.config import load_config
from tests.recipes.tiny import ROOT

# Qwen2.5-Coder-7B's config.json.
QWEN = {
    "d_model": 3584, "n_layers": 28, "n_heads": 28, "n_kv_heads": 4, "mlp_hidden_size": 18944, "vocab_size": 152_064,
    "embedding_size": 152_064, "max_sequence_length": 32_768, "mask_token_id": 151_665, "eos_token_id": 151_643,
    "rope_theta": 1e6, "rms_norm_eps": 1e-6, "weight_tying": False, "include_qkv_bias": True, "shift": True,
}  # fmt: skip


def config(name: str) -> CaddRecipe:
    return load_config(CaddRecipe, ROOT / "recipes" / "configs" / f"{name}.yaml", [])


def count(module: torch.nn.Module) -> int:
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    return sum(parameter.numel() for parameter in module.parameters())


def sized(shape: dict[str, int | float], rows: int, longest: int) -> LLaDAConfig:
    return LLaDAConfig(
        **shape, n_kv_heads=shape["n_heads"], vocab_size=rows, embedding_size=rows, max_sequence_length=longest,
        mask_token_id=rows - 1, eos_token_id=rows - 2,
    )  # type: ignore[arg-type] # fmt: skip


@pytest.mark.parametrize(("name", "rows"), [("cadd-owt", 50_259), ("cadd-lm1b", 50_259), ("cadd-text8", 30)])
def test_text_has_the_paper_s_sizes(name: str, rows: int) -> None:
    """12 layers, 12 heads, width 768; with GPT-2's 50,257 tokens, BOS and mask about 168M parameters."""
    recipe = config(name)
    shape = {
        key: getattr(recipe.shape, key)
        for key in ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "rope_theta")
    }
    module = blueprint(recipe, sized(shape, rows, max(recipe.data.lengths)))
    table = 2 * rows * 768
    body = count(module) - table
    assert body == 12 * (4 * 768**2 + 3 * 768 * 2200 + 2 * 768) + 768
    if rows > 30:
        assert count(module) == pytest.approx(168e6, rel=0.02)
    assert module.demasker.latents is not None and module.demasker.latents.rho == pytest.approx(
        (2 * torch.tensor(rows).double().log()).sqrt().item()
    )


def test_letters_have_a_table_of_thirty_rows() -> None:
    recipe = config("cadd-text8")
    llada = fresh_config(recipe.shape, character_vocabulary(), 256)
    assert (llada.vocab_size, llada.embedding_size) == (30, 30)


@pytest.mark.parametrize("name", ["cadd-cifar10", "cadd-imagenet32"])
def test_images_are_built_as_mdm_prime_s(name: str) -> None:
    recipe, space = config(name), PixelSpace(3, 32, 32, 256)
    assert recipe.unet == PRESETS[name.removeprefix("cadd-")]
    assert recipe.latents is not None
    with torch.device("meta"):
        latents = TokenLatents(recipe.latents, space.V, recipe.unet.width)
        demasker = PixelDemasker(space, recipe.unet, latents, recipe.objective)
    assert demasker.unet.config.in_channels == 3 * 96 and demasker.unet.config.out_channels == 3 * 256
    assert 100e6 < count(demasker) < 400e6


def test_the_code_model_is_qwen_s_to_the_last_parameter() -> None:
    module = blueprint(config("cadd-code-7b"), LLaDAConfig.from_dict(QWEN))
    assert count(module) == 7_615_616_512
    assert config("cadd-code-7b").anneal_steps == 2000
