"""The register denoiser: its size, what it looks at, and what must have no influence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from crocodil.denoiser.dit import PRESETS, Denoiser, DenoiserConfig, time_embedding
from crocodil.denoiser.loss import DenoiserLoss, draw_base_time, noisy
from crocodil.denoiser.schedule import offsets
from crocodil.errors import CrocodilError

CONFIG = DenoiserConfig(K=4, D=6, width=16, layers=2, heads=2)


def make(config: DenoiserConfig = CONFIG, open_doors: bool = True) -> Denoiser:
    """A random denoiser; with the output and cross-attention no longer zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = Denoiser(config)
        if open_doors:
            torch.nn.init.normal_(denoiser.write.weight)
            for block in denoiser.blocks:
                if config.conditional:
                    torch.nn.init.normal_(block.cross_out.weight)
    return denoiser.eval()


def registers(count: int = 3, K: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, K, 6, generator=torch.Generator().manual_seed(seed))


def test_the_paper_s_denoiser_has_400_m_parameters() -> None:
    with torch.device("meta"):
        plain = Denoiser(DenoiserConfig(K=128, D=1024, **PRESETS["pixart-400m"]))
        conditional = Denoiser(DenoiserConfig(K=128, D=1024, conditional=True, **PRESETS["pixart-400m"]))
    assert plain.config.layers == 28
    assert plain.parameters_in_all == pytest.approx(400e6, rel=0.05)
    # four more matrices in every block
    assert conditional.parameters_in_all - plain.parameters_in_all > 28 * 4 * 1088**2


def test_it_begins_by_predicting_nothing() -> None:
    assert (make(open_doors=False)(registers(), torch.rand(3, 4)) == 0).all()


@torch.no_grad()
def test_every_register_and_every_level_matters_to_every_register() -> None:
    denoiser, z, s = make(), registers(1), torch.full((1, 4), 0.5)
    before = denoiser(z, s)
    for j in range(4):
        moved = z.clone()
        moved[0, j] += 1
        assert ((denoiser(moved, s) - before).abs().amax(-1) > 1e-6).all()
        later = s.clone()
        later[0, j] = 0.9
        assert ((denoiser(z, later) - before).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def test_registers_have_places_and_samples_are_strangers() -> None:
    denoiser, z, s = make(), registers(), torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    out = denoiser(z, s)
    for i in range(3):
        assert torch.allclose(denoiser(z[i : i + 1], s[i : i + 1])[0], out[i], atol=1e-6)
    turned = denoiser(z.flip(1), s.flip(1)).flip(1)
    assert (turned - out).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("conditional", [False, True])
def test_levels_that_samples_share_are_theirs_one_by_one(conditional: bool) -> None:
    denoiser, z, s = make(replace(CONFIG, conditional=conditional)), registers(), torch.rand(4)
    condition = registers(seed=1) if conditional else None
    shared = denoiser(z, s.expand(3, -1), condition)
    assert torch.allclose(shared, denoiser(z, s.repeat(3, 1), condition), atol=1e-5)


@torch.no_grad()
def test_a_condition_matters_once_its_door_is_open() -> None:
    config = replace(CONFIG, conditional=True)
    z, s = registers(), torch.full((3, 4), 0.7)
    closed = make(config, open_doors=False)
    torch.nn.init.normal_(closed.write.weight)
    assert torch.equal(closed(z, s, registers(seed=1)), closed(z, s, registers(seed=2)))
    opened = make(config)
    assert (opened(z, s, registers(seed=1)) - opened(z, s, registers(seed=2))).abs().max() > 1e-3
    assert opened(z, s, registers(K=2)).shape == z.shape  # fewer registers may be known


def test_recomputed_blocks_give_the_same_gradients() -> None:
    plain, saving = make().train(), make().train()
    saving.recompute = True
    z, s = registers(), torch.rand(3, 4)
    for denoiser in (plain, saving):
        denoiser(z, s).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6), name


def test_wrong_shapes_are_refused() -> None:
    denoiser = make()
    for z, s in [
        (registers(K=5), torch.zeros(3, 5)),
        (registers(), torch.zeros(3)),
        (registers(), torch.zeros(3, 3)),
    ]:
        with pytest.raises(CrocodilError, match=r"wants \(B, k, 6\)"):
            denoiser(z, s)
    with pytest.raises(CrocodilError, match="unconditional"):
        denoiser(registers(), torch.zeros(3, 4), registers())
    with pytest.raises(CrocodilError, match="wants the registers"):
        make(replace(CONFIG, conditional=True))(registers(), torch.zeros(3, 4))
    with pytest.raises(CrocodilError, match="multiple of its 3 heads"):
        replace(CONFIG, heads=3)


def test_a_grown_denoiser_makes_the_first_registers_as_before() -> None:
    denoiser = make()
    z, s = registers(), torch.rand(3, 4)
    before = denoiser(z, s)
    denoiser.grow(8)
    assert torch.equal(denoiser(z, s), before)
    assert denoiser(registers(K=8), torch.rand(3, 8)).shape == (3, 8, 6)
    with pytest.raises(CrocodilError, match="does not shrink"):
        denoiser.grow(4)


def test_noise_levels_are_told_apart() -> None:
    s = torch.linspace(0, 1, 101)
    rows = torch.nn.functional.normalize(time_embedding(s), dim=-1)
    assert (rows @ rows.T - 2 * torch.eye(101)).max() < 0.999


def test_the_loss_is_the_mean_over_registers_summed_over_samples() -> None:
    z, shift = registers(), offsets(4)
    batch = noisy(z, torch.tensor([0.1, 0.5, 0.9]), shift, registers(seed=1))
    denoiser = make()
    errors = DenoiserLoss(denoiser)(batch)
    expected = (denoiser(batch.noisy_BKD, batch.s_BK) - z).square().mean(dim=(1, 2))
    assert errors.total.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    assert torch.allclose(errors.error_BK.mean(1), expected, atol=1e-6)
    one_by_one = sum(
        DenoiserLoss(denoiser)(
            noisy(z[i : i + 1], torch.tensor([b]), shift, registers(seed=1)[i : i + 1])
        ).total.item()
        for i, b in enumerate((0.1, 0.5, 0.9))
    )
    assert errors.total.item() == pytest.approx(one_by_one, rel=1e-5)


def test_base_times_fill_their_range() -> None:
    draws = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw_base_time(offsets(8), draws) for _ in range(4000)])
    assert -0.2 <= drawn.min() < -0.19 and 0.99 < drawn.max() <= 1
    assert drawn.mean().item() == pytest.approx(0.4, abs=0.02)


def test_it_learns_to_tell_two_texts_apart() -> None:
    """Two points, mixed with noise, are told apart again: what a denoiser is for."""
    z = registers(2)
    denoiser = make(open_doors=False).train()
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    draws, shift = torch.Generator().manual_seed(0), offsets(4)
    for _ in range(150):
        which = torch.randint(2, (32,), generator=draws)
        base = torch.rand(32, generator=draws) * 1.2 - 0.2
        batch = noisy(z[which], base, shift, torch.randn(32, 4, 6, generator=draws))
        loss = DenoiserLoss(denoiser)(batch).total / 32
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    test = noisy(z, torch.tensor([0.3, 0.3]), shift, torch.randn(2, 4, 6, generator=draws))
    assert DenoiserLoss(denoiser)(test).error_BK.max() < 0.2
