"""The demasker of images: what it sees, what it is asked, and that it learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crocodil.cadd.forward import add_noise
from crocodil.cadd.latents import LatentConfig
from crocodil.cadd.loss import Estimate, Objective
from crocodil.cadd.sampler import LatentSpace, sample
from crocodil.demasker.masking import MaskingConfig
from crocodil.errors import CrocodilError
from crocodil.images.data import Images, PixelSpace
from crocodil.images.unet import (
    PRESETS,
    MaskedImages,
    PixelDemasker,
    UNetShape,
    at_level,
    corrupt,
    fresh_unet,
    noise_of,
)
from crocodil.training.randomness import generator

SPACE = PixelSpace(2, 4, 4, 5)
TINY = UNetShape(width=6, channels=(8, 8), layers=1, attention=(2,), head=4, groups=4)
MASKING = MaskingConfig(all_mask=0.0, t_min=0.1)
draw = partial(generator, 0, 0)


def pictures(n: int = 6, space: PixelSpace = SPACE, seed: int = 0) -> Images:
    shape = (n, space.C, space.H, space.W)
    ids = torch.randint(0, space.V, shape, generator=torch.Generator().manual_seed(seed))
    return Images(ids.to(torch.uint8), space.V, "random")


def knowing(latents: LatentConfig | None = None, objective: Objective | None = None) -> PixelDemasker:
    """A demasker whose every weight counts, as after some training."""
    demasker = fresh_unet(SPACE, TINY, latents, objective)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in demasker.unet.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=noise)
    return demasker.eval()


def levelled(t: float, rows: Sequence[int] = range(6)) -> MaskedImages:
    return at_level(pictures(), rows, draw, t)


KINDS = pytest.mark.parametrize("latents", [None, LatentConfig()], ids=["plain", "latents"])


def test_an_image_has_the_same_corruption_in_every_batch() -> None:
    images = pictures()
    together = corrupt(images, [3, 1, 5], draw, MASKING, augmentation=1.0)
    alone = corrupt(images, [5], draw, MASKING, augmentation=1.0)
    for name in ("ids_BN", "is_masked_BN", "t_B"):
        assert torch.equal(getattr(together, name)[2:], getattr(alone, name))
    assert together.seeds[2:] == alone.seeds
    assert len(set(together.seeds)) == 3 and len(set(together.t_B.tolist())) == 3
    other_epoch = corrupt(images, [5], partial(generator, 0, 1), MASKING)
    assert other_epoch.t_B != alone.t_B and other_epoch.seeds != alone.seeds


def test_pixels_are_the_levels_in_order_and_masked_ones_show_the_mask() -> None:
    images = pictures()
    batch = corrupt(images, [2, 0], draw, MASKING)
    assert batch.ids_BN.dtype == torch.int64 and batch.t_B.dtype == torch.float32
    assert torch.equal(batch.ids_BN, images.ids[[2, 0]].flatten(1).long())
    assert (batch.visible_BN == SPACE.mask_id).equal(batch.is_masked_BN)
    assert torch.equal(batch.visible_BN[~batch.is_masked_BN], batch.ids_BN[~batch.is_masked_BN])


def test_augmentation_moves_the_pixels_of_training_alone() -> None:
    images, rows = pictures(40), range(40)
    still, moved = (corrupt(images, rows, draw, MASKING, augmentation=p) for p in (0.0, 1.0))
    share = (still.ids_BN != moved.ids_BN).any(1).float().mean()
    assert 0.7 < share <= 1
    assert torch.equal(still.t_B, moved.t_B) and torch.equal(still.is_masked_BN, moved.is_masked_BN)
    assert torch.equal(at_level(images, rows, draw, 0.5).ids_BN, still.ids_BN)


def test_masking_goes_by_the_level() -> None:
    assert levelled(1.0).is_masked_BN.all() and not levelled(0.0).is_masked_BN.any()
    many = at_level(pictures(200), range(200), draw, 0.3)
    error = 4 * math.sqrt(0.3 * 0.7 / many.is_masked_BN.numel())
    assert many.is_masked_BN.float().mean() == pytest.approx(0.3, abs=error)


@KINDS
def test_a_fresh_one_finds_every_level_as_likely(latents: LatentConfig | None) -> None:
    """ADM's start: the output is zero. So the loss is that of guessing."""
    batch = levelled(1.0)
    losses = fresh_unet(SPACE, TINY, latents)(batch)
    assert losses.total.item() / 6 == pytest.approx(math.log(SPACE.V), rel=1e-6)
    assert losses.texts == 6 and losses.masked_B.tolist() == [SPACE.N] * 6


def test_its_weights_are_drawn_from_the_seed_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = fresh_unet(SPACE, TINY, LatentConfig(), seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    same, other = (fresh_unet(SPACE, TINY, LatentConfig(), seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["table.weight"], other["table.weight"])


def test_the_baseline_has_the_same_weights() -> None:
    with_, without = (fresh_unet(SPACE, TINY, latents).state_dict() for latents in (LatentConfig(), None))
    assert with_.keys() == without.keys()
    assert all(torch.equal(with_[name], without[name]) for name in with_)


class Echo(nn.Module):
    """In place of a U-Net with E = V: the embeddings come back as logits."""

    def forward(self, image: Tensor, timesteps: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.image, self.timesteps = image, timesteps
        return (image,)


def test_pixels_keep_their_places_on_the_way_through_the_network() -> None:
    demasker = fresh_unet(SPACE, replace(TINY, width=SPACE.V))
    demasker.unet = echo = Echo()
    ids = pictures(3).ids.flatten(1).long()
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    logits = demasker.logits(ids, everywhere, None, 0.25)
    assert torch.equal(logits, demasker.table(ids).flatten(0, 1))
    assert echo.timesteps.tolist() == [250.0] * 3
    # the channels of a pixel lie side by side in its place
    assert torch.equal(echo.image[1, SPACE.V :, 2, 3], demasker.table(pictures(3).ids[1, 1, 2, 3].long()))


@torch.no_grad()
def by_hand(demasker: PixelDemasker, batch: MaskedImages, weighting: str) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 20 pixel by pixel: the loss, the logits and the targets of masked pixels."""
    z_BNE = None
    if demasker.latents is not None:
        clean = demasker.latents.clean(demasker.table(batch.ids_BN))
        noised = add_noise(
            clean, batch.t_B[:, None].expand(batch.ids_BN.shape), noise_of(batch, clean), "flow"
        )
        z_BNE = torch.where(batch.is_masked_BN[..., None], noised, clean)
    total, all_logits, all_targets = torch.zeros(()), [], []
    for b in range(len(batch.ids_BN)):
        one, t = slice(b, b + 1), float(batch.t_B[b])
        rows = batch.is_masked_BN[one]
        z = None if z_BNE is None else z_BNE[one]
        logits, targets = demasker.logits(batch.visible_BN[one], rows, z, t), batch.ids_BN[one][rows]
        weight = 1 / SPACE.N / (t if weighting == "inverse_t" else 1)
        total = total + weight * F.cross_entropy(logits, targets, reduction="sum")
        all_logits.append(logits)
        all_targets.append(targets)
    return total, torch.cat(all_logits), torch.cat(all_targets)


@KINDS
@pytest.mark.parametrize("weighting", ["one", "inverse_t"])
def test_the_loss_is_the_cross_entropy_of_masked_pixels(latents: LatentConfig | None, weighting: Any) -> None:
    """By `logits`, image by image: training and sampling ask the network the same, and no image sees another."""
    demasker = knowing(latents, Objective(weighting))
    batch = corrupt(pictures(), range(6), draw, MASKING)
    losses = demasker(batch)
    total, logits, targets = by_hand(demasker, batch, weighting)
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-5)
    assert logits.shape == (int(batch.is_masked_BN.sum()), SPACE.V)
    entropy = F.cross_entropy(logits, targets, reduction="none").split(batch.is_masked_BN.sum(1).tolist())
    assert losses.entropy_B.tolist() == pytest.approx([float(part.mean()) for part in entropy], rel=1e-4)
    correct = (logits.argmax(1) == targets).float().split(batch.is_masked_BN.sum(1).tolist())
    assert losses.accuracy_B.tolist() == pytest.approx([float(part.mean()) for part in correct])


@pytest.mark.parametrize("how", ["soft", "hard"])
def test_the_squared_error_is_of_the_estimate_s_latent(how: Estimate) -> None:
    objective = Objective("one", squared=how, share=0.7)
    demasker, batch = knowing(LatentConfig(), objective), levelled(0.6)
    assert demasker.latents is not None
    total, logits, targets = by_hand(demasker, batch, "one")
    table = demasker.clean_table()
    assert table.shape == (SPACE.V, TINY.width)
    guess = table[logits.argmax(1)] if how == "hard" else logits.softmax(1) @ table
    squares = (guess - table[targets]).square().sum(1) / demasker.latents.rho**2
    expected = total + 0.7 * squares.sum() / SPACE.N
    assert demasker(batch).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_is_under_a_mask_is_seen_through_its_latent_alone() -> None:
    batch, changed = levelled(0.5), levelled(0.5)
    ids = torch.where(batch.is_masked_BN, (batch.ids_BN + 1) % SPACE.V, batch.ids_BN)
    changed = replace(batch, ids_BN=ids)
    seen: dict[str, list[Tensor]] = {}
    for name, latents in (("plain", None), ("latents", LatentConfig())):
        demasker = knowing(latents)
        run = demasker._run

        def listen(tokens: Tensor, t: Tensor, name: str = name, run: Any = run) -> Tensor:
            seen.setdefault(name, []).append(tokens.detach())
            return run(tokens, t)

        demasker._run = listen  # type: ignore[method-assign]
        demasker(batch)
        demasker(changed)
    assert torch.equal(*seen["plain"])
    differs = (seen["latents"][0] != seen["latents"][1]).any(2)
    assert torch.equal(differs, batch.is_masked_BN)


def test_at_level_1_a_latent_is_noise_and_says_nothing() -> None:
    batch = levelled(1.0)
    changed = replace(batch, ids_BN=(batch.ids_BN + 1) % SPACE.V)
    demasker = knowing(LatentConfig())
    clean = torch.zeros(6, SPACE.N, TINY.width)
    everywhere = batch.is_masked_BN
    expected = demasker.logits(batch.visible_BN, everywhere, noise_of(batch, clean), 1.0).log_softmax(1)
    for one in (batch, changed):
        targets = one.ids_BN.flatten()
        wanted = -expected.gather(1, targets[:, None]).sum() / SPACE.N
        assert demasker(one).total.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_noise_is_of_the_image_s_seed() -> None:
    batch, like = levelled(0.5), torch.zeros(6, SPACE.N, TINY.width)
    noise = noise_of(batch, like)
    backwards = replace(batch, seeds=batch.seeds[::-1])
    assert torch.equal(noise_of(backwards, like), noise.flip(0))
    assert noise.std() == pytest.approx(1, abs=0.1) and noise.mean() == pytest.approx(0, abs=0.1)
    assert knowing(LatentConfig())(batch).total != knowing(LatentConfig())(backwards).total
    assert knowing()(batch).total == knowing()(backwards).total  # nothing is noised there


def test_the_level_is_seen() -> None:
    demasker, ids = knowing(), levelled(1.0).visible_BN
    one, other = (demasker.logits(ids, ids == SPACE.mask_id, None, t) for t in (0.2, 0.9))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("fusion", ["add", "reweight", "concat"])
def test_every_weight_learns(fusion: Any) -> None:
    demasker = knowing(LatentConfig(fusion=fusion), Objective(squared="soft"))
    demasker(levelled(0.5)).total.backward()
    silent = [name for name, weight in demasker.named_parameters() if weight.grad is None]
    assert not silent and all(bool(w.grad.isfinite().all()) for w in demasker.parameters())  # type: ignore[union-attr]
    assert demasker.table.weight.grad is not None and demasker.table.weight.grad[SPACE.mask_id].any()


def test_an_image_without_masked_pixels_costs_nothing() -> None:
    demasker = knowing(LatentConfig(), Objective(squared="soft"))
    losses = demasker(levelled(0.0))
    losses.total.backward()
    assert losses.total == 0 and losses.entropy_B.tolist() == [0.0] * 6 and losses.texts == 6


def test_under_autocast_the_loss_is_float32() -> None:
    demasker, batch = knowing(LatentConfig()), levelled(0.7)
    with torch.autocast("cpu", torch.bfloat16):
        losses = demasker(batch)
    assert losses.total.dtype == torch.float32
    assert losses.total.item() == pytest.approx(demasker(batch).total.item(), rel=0.05)


@pytest.mark.parametrize("name", ["cifar10", "imagenet32"])
def test_presets_of_32_pixels_have_their_size(name: str) -> None:
    """149.6 million weights, at which nothing is computed here."""
    with torch.device("meta"):
        demasker = PixelDemasker(PixelSpace(3, 32, 32, 256), PRESETS[name])
        logits = demasker._run(torch.zeros(2, 3 * 32 * 32, 96), torch.zeros(2))
    assert logits.shape == (2, 3072, 256)
    assert sum(weight.numel() for weight in demasker.parameters()) == 149_659_488


def test_the_preset_of_digits_is_small() -> None:
    with torch.device("meta"):
        demasker = PixelDemasker(PixelSpace(1, 8, 8, 17), PRESETS["digits-nano"])
    assert sum(weight.numel() for weight in demasker.parameters()) == 520_721


def test_layers_that_are_kept_together_are_there() -> None:
    demasker = fresh_unet(SPACE, TINY)
    names = {type(module).__name__ for module in demasker.modules()}
    assert set(demasker._no_split_modules) <= names


@KINDS
def test_it_learns_two_images_and_draws_them(latents: LatentConfig | None) -> None:
    """A chessboard and its negative: one pixel tells all others."""
    space = PixelSpace(1, 4, 4, 2)
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    images = Images(torch.stack([board, 1 - board])[:, None].to(torch.uint8), 2, "boards")
    shape = UNetShape(width=4, channels=(16,), layers=1, attention=(), head=8, groups=4)
    demasker = fresh_unet(space, shape, latents)
    optimiser = torch.optim.Adam(demasker.parameters(), lr=1e-2)
    for step in range(60):
        # each of the 16 has draws of its own: here an image of the batch is what elsewhere is one of the data
        many = Images(images.ids.repeat(8, 1, 1, 1), 2, "boards")
        batch = corrupt(many, range(16), partial(generator, 0, step), MASKING)
        losses = demasker(batch)
        optimiser.zero_grad()
        (losses.total / losses.texts).backward()
        optimiser.step()
    done = sample(
        demasker.eval().logits,
        torch.full((12, space.N), space.mask_id),
        space.mask_id,
        steps=32,
        generators=[torch.Generator().manual_seed(i) for i in range(12)],
        temperature=0.5,
        latents=None if demasker.latents is None else LatentSpace(demasker.clean_table(), "flow"),
    )
    boards = images.ids.flatten(1).tolist()
    drawn = [boards.index(ids) if ids in boards else None for ids in done.ids.tolist()]
    assert sum(which is not None for which in drawn) >= 10
    assert {0, 1} <= set(drawn)


def test_shapes_that_do_not_fit_are_refused() -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(CrocodilError, match=match) as caught:
            PixelDemasker(SPACE, replace(TINY, **changes))
        assert "\n" not in str(caught.value)

    refused("multiples of groups, 3", groups=3)
    refused("multiples of 8, not 4 x 4", channels=(8, 8, 8, 8))
    refused("no level has side 3", attention=(3,))
    refused("unet.head 3 does not divide 8 channels", head=3)
    refused("unet.width", width=0)
    refused("unet.dropout", dropout=1.0)
    with pytest.raises(CrocodilError, match="wants latents, not null"):
        PixelDemasker(SPACE, TINY, None, Objective(squared="soft"))
