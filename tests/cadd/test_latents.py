"""Latents of tokens: their norm, how they enter the network, and how long their noise can be read."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from crocodil.cadd.forward import add_noise
from crocodil.cadd.latents import Fusion, LatentConfig, TokenLatents
from crocodil.errors import CrocodilError

V, E = 300, 24


def table(scale: float = 0.02, rows: int = V, width: int = E) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0)) * scale


def latents(rows: int = V, width: int = E, **config: Any) -> TokenLatents:
    return TokenLatents(LatentConfig(**config), rows, width)


def test_a_clean_latent_has_norm_rho_whatever_the_norm_of_its_row() -> None:
    rows = table() * torch.logspace(-3, 3, V)[:, None]
    for rho in (None, 1, 7.5):
        found = latents(rho=rho).clean(rows)
        wanted = math.sqrt(2 * math.log(V)) if rho is None else rho
        assert torch.allclose(found.norm(dim=-1), torch.tensor(float(wanted)))
        assert torch.allclose(found / wanted, rows / rows.norm(dim=-1, keepdim=True), atol=1e-6)
        assert torch.allclose(latents(rho=rho).clean(1000 * rows), found, atol=1e-5)


def test_its_norm_is_computed_in_float32_and_its_type_is_the_row_s() -> None:
    rows = table().bfloat16()
    found = latents().clean(rows)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, latents().clean(rows.float()).bfloat16())


def test_the_gain_is_the_table_s_rms_unless_it_is_named() -> None:
    rows = table()
    rms = math.sqrt(float(rows.square().mean()))
    found = latents().initialise(rows)
    assert found.gain == pytest.approx(rms)
    assert latents(gain=0.3).initialise(rows).gain == 0.3
    # so noise is as large as an embedding
    assert float((found.gain * torch.randn(100, E)).square().mean().sqrt()) == pytest.approx(rms, rel=0.2)


def test_what_is_settled_is_the_same_latents() -> None:
    found = latents(fusion="reweight", schedule="vp").initialise(table())
    assert found.settled == LatentConfig(math.sqrt(2 * math.log(V)), found.gain, "vp", "reweight")
    again = TokenLatents(found.settled, V, E)
    assert (again.rho, again.gain, again.settled) == (found.rho, found.gain, found.settled)


def test_the_fusions_are_their_formulas() -> None:
    tokens, z = torch.randn(2, 6, E, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.0, 0.2, 0.2, 0.7, 1.0, 1.0])
    add = latents(gain=0.3).fuse(tokens, z, t)
    assert torch.allclose(add, tokens + 0.3 * z)
    alpha = (1 - t)[:, None]
    reweight = latents(gain=0.3, fusion="reweight").fuse(tokens, z, t)
    assert torch.allclose(reweight, alpha * tokens + (1 - alpha) * 0.3 * z, atol=1e-6)
    assert torch.equal(reweight[0], tokens[0]) and torch.allclose(reweight[-1], 0.3 * z[-1])
    concat = latents(gain=0.3, fusion="concat")
    assert concat.merge is not None and concat.merge.weight.shape == (E, 2 * E)
    wanted = torch.cat([tokens, 0.3 * z], dim=-1) @ concat.merge.weight.T
    assert torch.allclose(concat.fuse(tokens, z, t), wanted, atol=1e-6)


def test_concat_begins_as_add() -> None:
    tokens, z = torch.randn(2, 6, E, generator=torch.Generator().manual_seed(1))
    t = torch.rand(6)
    add, concat = (latents(fusion=fusion).initialise(table()) for fusion in ("add", "concat"))
    assert torch.allclose(concat.fuse(tokens, z, t), add.fuse(tokens, z, t), atol=1e-6)
    assert [name for name, _ in concat.named_parameters()] == ["merge.weight"]


@pytest.mark.parametrize("fusion", ["add", "reweight", "concat"])
def test_latents_of_another_type_do_not_change_that_of_the_network(fusion: Fusion) -> None:
    fused = latents(fusion=fusion).bfloat16().fuse(table().bfloat16(), table(), torch.full((V,), 0.5))
    assert fused.dtype == torch.bfloat16


def recovered(rho: float | None, t: float, rows: int = 4096, width: int = 1024, tokens: int = 300) -> float:
    """How often the nearest row of a random table is the one that was noised to t."""
    draws = torch.Generator().manual_seed(2)
    clean = latents(rows, width, rho=rho).clean(table(rows=rows, width=width))
    ids = torch.randint(rows, (tokens,), generator=draws)
    epsilon = torch.randn(tokens, width, generator=draws)
    z = add_noise(clean[ids], torch.full((tokens,), t), epsilon, "flow")
    # the nearest to z/(1 − t); all rows are equally long, so that is the largest product
    return float(((z @ clean.T).argmax(dim=1) == ids).float().mean())


def test_at_norm_root_e_the_nearest_row_is_nearly_always_the_token_even_at_level_08() -> None:
    for t in (0.1, 0.3, 0.5, 0.7, 0.8):
        assert recovered(math.sqrt(1024), t) > 0.99
    assert recovered(math.sqrt(1024), 0.95) < 0.5


def test_at_the_default_norm_it_is_clear_at_03_ambiguous_at_05_and_gone_at_08() -> None:
    """The largest of V noises is near √(2 ln V) t, the signal √(2 ln V) (1 − t): they meet at one half."""
    assert recovered(None, 0.3) > 0.97
    assert 0.2 < recovered(None, 0.5) < 0.8
    assert recovered(None, 0.6) < 0.25
    assert recovered(None, 0.8) < 0.02


def test_with_raw_embeddings_noise_drowns_them_at_once() -> None:
    """Rows of standard deviation 0.02 at width 1024 have norm 0.64."""
    assert recovered(0.02 * math.sqrt(1024), 0.3) < 0.05


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fusion": "sum"}, "fusion 'sum' is not one of add, reweight, concat"),
        ({"schedule": "cosine"}, "schedule 'cosine' is not one of flow, vp"),
        ({"rho": 0}, "rho is 0, not a positive number"),
        ({"rho": -1.5}, "rho is -1.5"),
        ({"rho": math.nan}, "rho is nan"),
        ({"gain": math.inf}, "gain is inf"),
        ({"gain": True}, "gain is True"),
        ({"gain": "rms"}, "gain is 'rms'"),
    ],
)
def test_configurations_that_cannot_be_are_refused_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CrocodilError, match=message) as caught:
        LatentConfig(**config)
    assert "\n" not in str(caught.value)
