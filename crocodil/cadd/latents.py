"""A continuous latent for every token: how it is made of the embedding table, and how it enters the network.

Scale decides what can be read in a latent. With raw embeddings of standard deviation 0.02 the noise drowns them at once;
with norm √E the nearest row of the table is the right one even at t = 0.8, so training reads answers that no sampler
will ever give it. Here z₀ = ρ · w/‖w‖, and at ρ = √(2 ln V) the noise of V rows reaches as far as the signal near
t = 0.5: the threshold, which docs/method.md measures.

Shape letters: T packed positions, R masked ones among them, E width, V rows of the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crocodil.cadd.forward import Schedule, check_schedule
from crocodil.errors import CrocodilError

Fusion = Literal["add", "reweight", "concat"]
"""How a token's embedding and its latent become one vector (CADD §4.3, App. C.3)."""

_LARGEST = 1e6
"""Of a scale. Beyond it float32 keeps nothing of what it is added to."""


@dataclass(frozen=True)
class LatentConfig:
    """The latents of a model, everything that its weights do not say."""

    rho: float | None = None
    """Norm of a clean latent; None takes √(2 ln V)."""
    gain: float | None = None
    """What a latent is multiplied by on its way into the network; None takes the table's RMS when training begins, so
    that noise is as large as an embedding."""
    schedule: Schedule = "flow"
    fusion: Fusion = "add"
    """`add`: w(x) + gain · z. `reweight`: α w(x) + (1 − α) gain · z. `concat`: a linear map of both."""

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if self.fusion not in get_args(Fusion):
            raise CrocodilError(
                f"latents: fusion {self.fusion!r} is not one of {', '.join(get_args(Fusion))}"
            )
        for name in ("rho", "gain"):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and 0 < value <= _LARGEST):
                raise CrocodilError(f"latents: {name} is {value!r}, not a positive number up to {_LARGEST:g}")


class TokenLatents(nn.Module):
    """Latents over one embedding table. It owns no table: whoever has one hands in rows of it."""

    def __init__(self, config: LatentConfig, rows: int, width: int) -> None:
        """
        Args:
            rows: V, tokens that there are.
            width: E of an embedding, and of a latent.
        """
        super().__init__()
        self.config = config
        self.rho = math.sqrt(2 * math.log(rows)) if config.rho is None else float(config.rho)
        self.gain = 1.0 if config.gain is None else float(config.gain)
        self.merge = nn.Linear(2 * width, width, bias=False) if config.fusion == "concat" else None

    def initialise(self, table_VE: Tensor) -> TokenLatents:
        """Take what the table says where the configuration leaves it open; `concat` begins as `add`."""
        if self.config.gain is None:
            self.gain = float(table_VE.detach().float().square().mean().sqrt())
        if self.merge is not None:
            with torch.no_grad():
                eye = torch.eye(table_VE.shape[1], device=table_VE.device)
                self.merge.weight.copy_(torch.cat([eye, eye], dim=1))
        return self

    @property
    def settled(self) -> LatentConfig:
        """The configuration with nothing left open."""
        return LatentConfig(self.rho, self.gain, self.config.schedule, self.config.fusion)

    def clean(self, rows_RE: Tensor) -> Tensor:
        """z₀ = ρ · w/‖w‖ of rows of the table, (…, E)."""
        return (self.rho * F.normalize(rows_RE.float(), dim=-1)).to(rows_RE.dtype)

    def fuse(self, tokens_TE: Tensor, z_TE: Tensor, t_T: Tensor) -> Tensor:
        """What the network sees of embeddings and latents, (…, E).

        Args:
            t_T: masking level of the text that each position belongs to.
        """
        z_TE = self.gain * z_TE.to(tokens_TE.dtype)
        if self.merge is not None:
            return self.merge(torch.cat([tokens_TE, z_TE], dim=-1))
        if self.config.fusion == "reweight":
            t_T1 = t_T[..., None].to(tokens_TE.dtype)
            return (1 - t_T1) * tokens_TE + t_T1 * z_TE
        return tokens_TE + z_TE
