"""How registers become noise: limits, offsets, and the published schedule where there are none."""

from __future__ import annotations

import pytest
import torch

from crocodil.denoiser.schedule import add_noise, offsets, signal, times
from crocodil.errors import CrocodilError


def test_the_schedule_falls_from_one_to_nearly_nothing() -> None:
    s = torch.linspace(0, 1, 2001, dtype=torch.float64)
    share = signal(s)
    assert share[0] == 1 and 0 < share[-1] < 1e-8
    assert (share.diff() <= 0).all() and (share.diff()[1:-2] < 0).all()
    assert torch.equal(signal(torch.tensor([-0.5, 1.5])), share[[0, -1]])


def test_the_schedule_is_diffusers_() -> None:
    diffusers = pytest.importorskip("diffusers")
    published = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    ours = signal((torch.arange(1000) + 1) / 1000)
    assert torch.allclose(ours.float(), published.alphas_cumprod, atol=1e-6)
    z, noise = torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    step = torch.tensor([0, 10, 500, 999])
    theirs = published.add_noise(z, noise, step)
    assert torch.allclose(add_noise(z, ((step + 1) / 1000)[:, None].expand(4, 3), noise), theirs, atol=1e-5)


def test_offsets_rise_group_by_group() -> None:
    assert offsets(1).tolist() == [0]
    assert offsets(8).tolist() == pytest.approx([0, 0.2 / 3, 0.4 / 3, 0.4 / 3, 0.2, 0.2, 0.2, 0.2])
    assert offsets(8, 0).tolist() == [0] * 8
    assert offsets(128)[-1] == pytest.approx(0.2) and len(offsets(128)) == 128
    for bad in (-0.1, 1.1):
        with pytest.raises(CrocodilError, match="offset"):
            offsets(8, bad)
    with pytest.raises(CrocodilError, match="power of two"):
        offsets(6)


def test_every_group_sees_every_noise_level() -> None:
    shift = offsets(8)
    s = times(torch.tensor([-0.2, 0.0, 0.5, 1.0]), shift)
    assert s[0].max() == 0 and s[-1].min() == 1
    assert s[1, 0] == 0 and s[1, -1] == pytest.approx(0.2)
    assert (s.diff(dim=1) >= 0).all()  # coarse registers are never behind the fine ones


def test_noise_keeps_the_norm_and_has_both_limits() -> None:
    draws = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, 1, 4, 4096, generator=draws).unbind(0)
    s = torch.tensor([[0.0, 0.3, 0.8, 1.0]])
    out = add_noise(z, s, noise)
    assert torch.equal(out[:, 0], z[:, 0])
    assert torch.allclose(out[:, 3], noise[:, 3], atol=1e-3)
    assert torch.allclose(out.square().mean(-1), torch.ones(1, 4), atol=0.05)
    cosine = torch.cosine_similarity(out, z, dim=-1)
    assert torch.allclose(cosine, signal(s).sqrt().float(), atol=0.03)
