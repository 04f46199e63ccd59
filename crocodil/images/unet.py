"""A U-Net that demasks images: pixels are tokens, with a latent at every masked one or without (CADD §5.2, App. B.2).

Shape letters: B images, C channels, H rows, W columns, N = C·H·W pixels in that order, R masked ones, E width of an
embedding and of a latent, V levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crocodil.cadd.forward import add_noise
from crocodil.cadd.latents import LatentConfig, TokenLatents
from crocodil.cadd.loss import Objective, estimate
from crocodil.demasker.loss import Losses, Score, per_text
from crocodil.demasker.masking import MaskingConfig, draw_level, mask
from crocodil.errors import CrocodilError, require_number, require_whole
from crocodil.images.data import Images, PixelSpace, augment
from crocodil.text.rows import optional

Draw = Callable[[int, str], torch.Generator]
"""(number of the image, purpose) → generator: every draw belongs to its image, whatever batch or rank it lands in."""

TIMESTEPS = 1000
"""What t is multiplied by before the U-Net's sinusoids, which are made for steps 0…999."""


@dataclass(frozen=True)
class UNetShape:
    """Sizes of a U-Net; one level for each of `channels`, each of half the side of the one before."""

    width: int = 32
    """E. The channels of a pixel are laid side by side, so the U-Net sees C·E."""
    channels: tuple[int, ...] = (32, 48)
    layers: int = 1
    """Residual blocks of a level on the way down; the way up has one more."""
    attention: tuple[int, ...] = (4,)
    """Sides in pixels at which there is self-attention. The middle always has one."""
    head: int = 16
    """Channels of an attention head."""
    groups: int = 8
    """Of every group norm."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "layers", "head", "groups"):
            require_whole(f"unet.{name}", getattr(self, name), 1)
        require_number("unet.dropout", self.dropout, 0, 0.99)
        for name in ("channels", "attention"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or any(type(one) is not int for one in value):
                raise CrocodilError(f"unet.{name} is {value!r}: give whole numbers")
        if not self.channels or any(c < 1 or c % self.groups for c in self.channels):
            raise CrocodilError(
                f"unet.channels is {list(self.channels)}: give multiples of groups, {self.groups}"
            )

    def sides(self, space: PixelSpace) -> list[int]:
        """Side in pixels of every level.

        Raises:
            CrocodilError: the images do not fit.
        """
        halvings = len(self.channels) - 1
        if space.H % 2**halvings or space.W % 2**halvings:
            raise CrocodilError(
                f"unet.channels has {halvings + 1} levels, so sides of images must be multiples of {2**halvings}, not "
                f"{space.H} x {space.W}"
            )
        sides = [space.H >> level for level in range(halvings + 1)]
        if missing := set(self.attention) - set(sides):
            raise CrocodilError(
                f"unet.attention: no level has side {min(missing)}, only {sides} have been made"
            )
        attending = [c for c, side in zip(self.channels, sides, strict=True) if side in self.attention]
        if odd := [c for c in (*attending, self.channels[-1]) if c % self.head]:
            raise CrocodilError(
                f"unet.head {self.head} does not divide {odd[0]} channels, which have self-attention"
            )
        return sides


PRESETS: Mapping[str, UNetShape] = {
    "digits-nano": UNetShape(),
    "cifar10": UNetShape(
        width=96, channels=(288, 384, 384), layers=5, attention=(16,), head=64, groups=32, dropout=0.4
    ),
    "imagenet32": UNetShape(
        width=96, channels=(288, 384, 384), layers=5, attention=(16,), head=64, groups=32, dropout=0.0
    ),
}
"""`cifar10` has the sizes of MDM-Prime's public code (`model_discrete`), which CADD B.2 refers to. Neither paper's sizes
for ImageNet-32 are known to us: `imagenet32` is the same without dropout."""


@dataclass(frozen=True)
class MaskedImages:
    """Images with some pixels masked: what a demasker sees and what it is asked."""

    ids_BN: Tensor
    """Clean levels, int64."""
    is_masked_BN: Tensor
    """True where the demasker sees the mask instead."""
    t_B: Tensor
    """Masking level of each image, float32."""
    seeds: tuple[int, ...]
    """One for each image, for the noise of its latents, which is drawn where the network is."""
    mask_id: int

    @property
    def visible_BN(self) -> Tensor:
        """x_t: the levels with the mask token where masked."""
        return torch.where(self.is_masked_BN, self.mask_id, self.ids_BN)

    def to(self, device: torch.device | str) -> MaskedImages:
        return MaskedImages(
            self.ids_BN.to(device),
            self.is_masked_BN.to(device),
            self.t_B.to(device),
            self.seeds,
            self.mask_id,
        )


def corrupt(
    images: Images, rows: Sequence[int], draw: Draw, masking: MaskingConfig, augmentation: float = 0.0
) -> MaskedImages:
    """Draw the augmentation, t, the mask and the seed of each of these images, each by itself (Alg. 1)."""
    clean = [augment(images.ids[row], draw(row, "augmentation"), augmentation) for row in rows]
    levels = [draw_level(draw(row, "t"), masking) for row in rows]
    return _masked(images.space, clean, rows, draw, levels)


def at_level(images: Images, rows: Sequence[int], draw: Draw, t: float) -> MaskedImages:
    """A batch for evaluation: every image masked at level t, nothing flipped."""
    return _masked(images.space, [images.ids[row] for row in rows], rows, draw, [t] * len(rows))


def _masked(
    space: PixelSpace, clean: Sequence[Tensor], rows: Sequence[int], draw: Draw, levels: Sequence[float]
) -> MaskedImages:
    return MaskedImages(
        torch.stack(list(clean)).flatten(1).long(),
        torch.stack([mask(space.N, t, draw(row, "mask")) for row, t in zip(rows, levels, strict=True)]),
        torch.tensor(levels, dtype=torch.float32),
        tuple(int(torch.randint(2**62, (), generator=draw(row, "latents"))) for row in rows),
        space.mask_id,
    )


class PixelDemasker(nn.Module):
    """Pixels to logits of all pixels: one table of levels for all of them, latents where there are any, a U-Net.

    The U-Net is that of `diffusers`. It halves and doubles sides by convolutions, where ADM (Dhariwal & Nichol 2021) has
    residual blocks, and MDM-Prime means and copies; and it knows t, which MDM-Prime keeps from its network.
    """

    def __init__(
        self,
        space: PixelSpace,
        shape: UNetShape,
        latents: TokenLatents | None = None,
        objective: Objective | None = None,
    ) -> None:
        """
        Args:
            latents: None for plain masked diffusion, the baseline on the same path.

        Raises:
            CrocodilError: the images do not fit the shape, or the objective compares latents that there are none of.
        """
        super().__init__()
        self.space, self.shape = space, shape
        self.table = nn.Embedding(space.V + 1, shape.width)
        self.unet = _unet(space, shape)
        self.latents = latents
        self.objective = objective or Objective()
        if latents is None and self.objective.squared is not None:
            raise CrocodilError("objective.squared compares latents: it wants latents, not null")
        # what an engine that shards layer by layer (FSDP) keeps together
        self._no_split_modules = ["ResnetBlock2D", "Attention"]

    def clean_table(self) -> Tensor:
        """Clean latents of all levels, (V, E)."""
        assert self.latents is not None
        # by the module and not its weight, so that an engine that shards weights gathers them
        return self.latents.clean(self.table(torch.arange(self.space.V, device=self.table.weight.device)))

    def forward(self, batch: MaskedImages) -> Losses:
        """Algorithm 1: noise the latents of masked pixels, predict the pixels (Eq. 20)."""
        is_masked, lengths = batch.is_masked_BN, [batch.ids_BN.shape[1]] * len(batch.ids_BN)
        z0_BNE = None
        if self.latents is None:
            tokens_BNE = self.table(batch.visible_BN)
        else:
            # one lookup of both, so that a sharded table is gathered once
            tokens_BNE, clean_BNE = self.table(torch.cat([batch.visible_BN, batch.ids_BN])).chunk(2)
            z0_BNE = self.latents.clean(clean_BNE)
            t_BN = batch.t_B[:, None].expand(is_masked.shape)
            noised_BNE = add_noise(z0_BNE, t_BN, noise_of(batch, z0_BNE), self.latents.config.schedule)
            z_BNE = torch.where(is_masked[..., None], noised_BNE, z0_BNE)
            tokens_BNE = self.latents.fuse(tokens_BNE, z_BNE, t_BN)
        found = self._score(
            self._run(tokens_BNE, batch.t_B)[is_masked],
            batch.ids_BN[is_masked],
            None if z0_BNE is None else z0_BNE[is_masked],
            self.objective.weights(is_masked.flatten(), lengths, batch.t_B),
        )
        return per_text(found, is_masked.flatten(), lengths)

    def logits(self, ids_BN: Tensor, rows_BN: Tensor, z_BNE: Tensor | None, t: float | Tensor) -> Tensor:
        """Logits (R, V) at the R pixels where `rows_BN` is True, in row-major order: a `Predict` of the sampler.

        Args:
            ids_BN: levels, masked ones already replaced by the mask token.
            z_BNE: latents, clean under visible pixels; None where the demasker has none.
            t: masking level, of all images or of each, (B,).
        """
        t_B = torch.as_tensor(t, dtype=torch.float32, device=ids_BN.device).expand(len(ids_BN))
        tokens_BNE = self.table(ids_BN)
        if self.latents is not None:
            assert z_BNE is not None
            tokens_BNE = self.latents.fuse(tokens_BNE, z_BNE, t_B[:, None].expand(ids_BN.shape))
        return self._run(tokens_BNE, t_B)[rows_BN]

    def _run(self, tokens_BNE: Tensor, t_B: Tensor) -> Tensor:
        """Logits of all pixels, (B, N, V)."""
        C, H, W, V = self.space.C, self.space.H, self.space.W, self.space.V
        image = tokens_BNE.unflatten(1, (C, H, W)).permute(0, 1, 4, 2, 3).flatten(1, 2)  # (B, C·E, H, W)
        found = self.unet(image, TIMESTEPS * t_B, return_dict=False)[0]  # (B, C·V, H, W)
        return found.unflatten(1, (C, V)).permute(0, 1, 3, 4, 2).flatten(1, 3)

    def _score(
        self, logits_RV: Tensor, targets_R: Tensor, clean_RE: Tensor | None, weights_R: Tensor
    ) -> Score:
        """Σ weight · (CE + share · ‖ẑ₀ − z₀‖²/ρ²) of R masked pixels."""
        logits_RV = logits_RV.float()
        entropy_R = F.cross_entropy(logits_RV, targets_R, reduction="none")
        total = (entropy_R * weights_R).sum()
        if self.objective.squared is not None:
            assert self.latents is not None and clean_RE is not None
            guess_RE = estimate(logits_RV, self.clean_table(), self.objective.squared)
            squares_R = (guess_RE.float() - clean_RE.float()).square().sum(dim=1)
            total = total + self.objective.share / self.latents.rho**2 * (squares_R * weights_R).sum()
        return Score(total, entropy_R.detach(), logits_RV.argmax(dim=1) == targets_R)


def fresh_unet(
    space: PixelSpace,
    shape: UNetShape,
    latents: LatentConfig | None = None,
    objective: Objective | None = None,
    seed: int = 0,
) -> PixelDemasker:
    """A demasker of these sizes, its weights drawn from `seed`. It knows nothing yet: every level is as likely.

    As in ADM, every residual branch and the output begin at zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = None if latents is None else TokenLatents(latents, space.V, shape.width)
        demasker = PixelDemasker(space, shape, made, objective)
    for module in demasker.unet.modules():
        last = {"ResnetBlock2D": "conv2", "Attention": "to_out.0", "UNet2DModel": "conv_out"}
        if name := last.get(type(module).__name__):
            for parameter in module.get_submodule(name).parameters():
                nn.init.zeros_(parameter)
    if demasker.latents is not None:
        demasker.latents.initialise(demasker.table.weight)
    return demasker


def noise_of(batch: MaskedImages, like_BNE: Tensor) -> Tensor:
    """ε at every pixel, (B, N, E), of each image from its own seed; not of what is masked, nor of other images."""
    device, shape = like_BNE.device, like_BNE.shape[1:]
    parts = [
        torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)
        for seed in batch.seeds
    ]
    return torch.stack(parts).to(like_BNE.dtype)


def _unet(space: PixelSpace, shape: UNetShape) -> nn.Module:
    sides = shape.sides(space)
    diffusers = optional("diffusers", "diffusers")  # here, because it takes seconds
    kinds = ["Attn" if side in shape.attention else "" for side in sides]
    return diffusers.UNet2DModel(
        sample_size=(space.H, space.W),
        in_channels=space.C * shape.width,
        out_channels=space.C * space.V,
        block_out_channels=shape.channels,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        layers_per_block=shape.layers,
        attention_head_dim=shape.head,
        norm_num_groups=shape.groups,
        # said twice, because the attention in the middle has no norm otherwise
        attn_norm_num_groups=shape.groups,
        resnet_time_scale_shift="scale_shift",
        dropout=shape.dropout,
    )
