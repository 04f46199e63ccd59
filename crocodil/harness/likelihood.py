"""log p(target | prefix) under a masked diffusion language model, by Monte Carlo; and whether greedy demasking writes it.

The estimate is LLaDA's (Nie et al. 2025, Eq. 6 and App. B.5): l of the target's L tokens are masked, l uniform on 1 … L,

    log p(y | x) = E[ L/l · Σ_masked log p(y_i | x, what is visible of y) ]

It is exact for a model whose predictions are the conditionals of one distribution, and else what that model's bound says.
The unguided demasker is asked (k = 0), in a window that ends with the target.

Shape letters: B draws, L tokens of the target, N window length, R masked positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from crocodil.errors import CrocodilError, require_whole
from crocodil.sampler.demask import Predict, Step, demask

DRAWS = 128
"""As LLaDA's evaluation takes them."""
BATCH = 16


@torch.no_grad()
def loglikelihood(
    predict: Predict,
    prefix: Sequence[int],
    target: Sequence[int],
    mask_id: int,
    *,
    draws: int = DRAWS,
    batch_size: int = BATCH,
    tail: int = 0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> float:
    """The estimate in nats, for all of the target. An empty target has 0.

    Args:
        predict: the demasker; see `sampler.demask.Predict`. Its logits are normalised over all their columns.
        draws: masks that are averaged. The numbers of masked tokens are spread evenly over 1 … L with one common offset,
            so each is uniform and all together vary little.
        batch_size: windows at a time; it changes no result beyond rounding.
        tail: masked positions behind the target that are not scored: what follows is open then, instead of nothing.
        generator: on the CPU.

    Raises:
        CrocodilError: no draws, or logits that are not finite.
    """
    require_whole("draws", draws, 1)
    require_whole("batch_size", batch_size, 1)
    L = len(target)
    if not L:
        return 0.0
    window_N = torch.tensor([*prefix, *target, *[mask_id] * tail], device=device)
    offset = torch.rand((), generator=generator, dtype=torch.float64) * L
    masked_B = (offset + torch.arange(draws, dtype=torch.float64) * L / draws).floor().long() % L + 1
    # a random order of the target's tokens for each draw, of which the first ones are masked
    order_BL = torch.rand(draws, L, generator=generator, dtype=torch.float64).argsort(dim=1).argsort(dim=1)
    is_masked_BL = (order_BL < masked_B[:, None]).to(device)
    total = 0.0
    for start in range(0, draws, batch_size):
        part_BL = is_masked_BL[start : start + batch_size]
        rows_BN = torch.zeros(len(part_BL), len(window_N), dtype=torch.bool, device=device)
        rows_BN[:, len(prefix) : len(prefix) + L] = part_BL
        ids_BN = window_N.expand_as(rows_BN).masked_fill(rows_BN, mask_id)
        logits_RV = predict(ids_BN, rows_BN)
        targets_R = window_N.expand_as(rows_BN)[rows_BN]
        nats_R = F.cross_entropy(logits_RV.float(), targets_R, reduction="none").double()
        weights_R = (L / part_BL.sum(1, keepdim=True).double()).expand_as(part_BL)[part_BL]
        total -= float((nats_R * weights_R).sum())
    if math.isnan(total):
        raise CrocodilError("the demasker gave logits that are not a number: check its weights")
    return total / draws


@torch.no_grad()
def is_greedy(
    predict: Predict,
    prefix: Sequence[int],
    target: Sequence[int],
    mask_id: int,
    *,
    tail: int = 0,
    device: torch.device | str = "cpu",
) -> bool:
    """Whether demasking token by token, the surest first and always the likeliest, writes the target behind the prefix.

    It ends with the first token that differs. With a `tail`, that is written too, so that nothing is forced.
    """
    if not target:
        return True
    at = slice(len(prefix), len(prefix) + len(target))
    wanted_L = torch.tensor(target, device=device)
    x_BN = torch.tensor([[*prefix, *[mask_id] * (len(target) + tail)]], device=device)

    def look(step: Step) -> None:
        is_written_L = ~step.is_masked_BN[0, at]
        if bool((step.ids_BN[0, at] != wanted_L)[is_written_L].any()):
            raise _Different

    try:
        demask(predict, x_BN, mask_id, nfe=len(target) + tail, on_step=look)
    except _Different:
        return False
    return True


class _Different(Exception):
    """A token that is not the target's."""
