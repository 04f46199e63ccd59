"""Block-wise demasking around any `predict` (LLaDA's semi-autoregressive sampler; CRoCoDiL Alg. 2, 3 and 6).

B batch, N text positions, S steps, R positions whose logits are asked for, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crocodil.errors import CrocodilError
from crocodil.sampler.reveal import choose, draw, plan

Predict = Callable[[Tensor, Tensor], Tensor]
"""(ids_BN, rows_BN) to logits (R, V) at the positions where the bool rows_BN is True, in row-major order."""


@dataclass(frozen=True)
class Step:
    """The state after one step, for pictures and for refreshing registers on the way."""

    number: int
    """Steps done, 1 … total."""
    total: int
    """Steps of this run."""
    ids_BN: Tensor
    """Tokens, the mask token where still masked."""
    is_masked_BN: Tensor
    """What is still masked."""


@dataclass(frozen=True)
class Demasked:
    """A finished text."""

    ids: Tensor
    """(B, N) tokens without any mask."""
    nfe: int
    """Calls of `predict` really made."""
    steps: Tensor
    """(B, N) the step, from 0, that revealed each token; −1 where it was given."""


@torch.no_grad()
def demask(
    predict: Predict,
    x_BN: Tensor,
    mask_id: int,
    *,
    nfe: int,
    block_size: int | None = None,
    temperature: float = 0.0,
    remasking: Literal["low_confidence", "random"] = "low_confidence",
    renoise: bool = False,
    eos_id: int | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Demasked:
    """Fill every masked position of `x` in `nfe` steps, block after block.

    Blocks are cut from the ordered list of a row's masked positions: the first `block_size` of them are the
    first block, wherever they stand. For a prompt and its continuation these are LLaDA's blocks; for
    infilling, a block may reach over given tokens. The last block may be short. `nfe` is the total: blocks
    get their shares of it as evenly as possible, and a block's tokens are spread evenly over its steps.

    A step reveals the most confident predictions (`low_confidence`) or random ones (`random`), and what is
    revealed stays. With `renoise`, a step is the literal x_t = Forward(x̂0, t) of Alg. 2, 3 and 6 instead:
    every masked position of the block is filled in, then each of its slots is masked anew with probability t;
    `remasking` has no say.

    With greedy draws, `low_confidence`, block_size dividing the slots and the blocks dividing `nfe`, the
    tokens are those of LLaDA's official sampler, as long as that one never predicts the mask.

    Args:
        predict: the demasker; see `Predict`. It is asked only for positions of the current block.
        x_BN: token ids; `mask_id` wherever a token is wanted, in any pattern; every other token is kept.
        mask_id: the mask token. It is never predicted.
        nfe: steps, between the number of blocks and the number of slots of the longest row. A row with fewer
            slots is complete earlier.
        block_size: slots per block; None takes all of them as one block.
        temperature: 0 takes the likeliest token, else tokens are drawn from softmax(logits / temperature).
        remasking: how the positions of a step are chosen.
        renoise: mask the estimate anew instead of keeping what is revealed. Fewer calls than `nfe` are made
            when chance leaves nothing masked.
        eos_id: a row that is complete up to this token needs no more steps: what is still masked behind it becomes
            this token too. The text before it is what it would have been. Not with `renoise`, which takes tokens back.
        generator: where random numbers come from: one for the batch (None is torch's own), or one per row,
            with which a row's text does not depend on its neighbours. Greedy `low_confidence` draws none.
        on_step: called after every step.

    Raises:
        CrocodilError: before any call of `predict` if the numbers do not fit; later if logits are not finite.
    """
    slot_BN = x_BN == mask_id
    slots_B = slot_BN.sum(dim=1).cpu()
    block_size = check(slots_B, mask_id, nfe, block_size, temperature, remasking)
    if renoise and eos_id is not None:
        raise CrocodilError("renoise masks texts anew that an early end takes for complete: leave out eos_id")
    numbers = _Numbers(generator, slot_BN)
    spread = plan(slots_B, nfe, block_size)
    block_BS, count_BS, t_BS = (
        part.to(x_BN.device) for part in (spread.block_BS, spread.count_BS, spread.t_BS)
    )
    block_BN = ((slot_BN.cumsum(dim=1) - 1) // block_size).masked_fill(~slot_BN, -1)

    ids_BN, steps_BN, calls = x_BN, torch.full_like(x_BN, -1), 0
    for step in range(nfe):
        # 1. the masked positions of each row's current block
        in_block_BN = block_BN == block_BS[:, step, None]
        rows_BN = in_block_BN & (ids_BN == mask_id)
        if remasking == "random" and not renoise:
            # chance does not look at predictions, so only what it reveals has to be predicted
            rows_BN = choose(numbers.draw(), rows_BN, count_BS[:, step])

        # 2. predict a token at each of them
        estimate_BN, confidence_BN = ids_BN, torch.zeros(x_BN.shape, device=x_BN.device)
        uniforms_BN = numbers.draw() if temperature > 0 else None
        at = rows_BN.nonzero(as_tuple=True)
        if len(at[0]):
            logits_RV = predict(ids_BN, rows_BN)
            calls += 1
            if logits_RV.ndim != 2 or len(logits_RV) != len(at[0]):
                raise CrocodilError(
                    f"predict gave logits of shape {tuple(logits_RV.shape)} for {len(at[0])} positions: "
                    "wanted (R, V), one row per True in rows_BN"
                )
            uniforms_R = None if uniforms_BN is None else uniforms_BN[at]
            drawn = draw(logits_RV, temperature, uniforms_R, mask_id)
            estimate_BN = ids_BN.index_put(at, drawn.ids_R.to(ids_BN.dtype))
            confidence_BN[at] = drawn.confidence_R

        # 3. keep a few of the predictions, or mask the whole estimate anew
        if renoise:
            hidden_BN = in_block_BN & (numbers.draw() < t_BS[:, step, None])
            revealed_BN = rows_BN & ~hidden_BN
            ids_BN = estimate_BN.masked_fill(hidden_BN, mask_id)
        else:
            revealed_BN = choose(confidence_BN, rows_BN, count_BS[:, step])
            ids_BN = torch.where(revealed_BN, estimate_BN, ids_BN)
        steps_BN = steps_BN.masked_fill(revealed_BN, step)

        # 4. a text that has reached its end is complete
        if eos_id is not None:
            is_masked_BN = ids_BN == mask_id
            ended_B = ((ids_BN == eos_id) & (is_masked_BN.cumsum(dim=1) == 0)).any(dim=1)
            tail_BN = is_masked_BN & ended_B[:, None]
            ids_BN, steps_BN = ids_BN.masked_fill(tail_BN, eos_id), steps_BN.masked_fill(tail_BN, step)
        if on_step is not None:
            on_step(Step(step + 1, nfe, ids_BN, ids_BN == mask_id))
        if eos_id is not None and not bool((ids_BN == mask_id).any()):
            break
    return Demasked(ids_BN, calls, steps_BN)


class _Numbers:
    """Uniform numbers in [0, 1), float64: as many for a row as it has slots, however it is padded."""

    def __init__(
        self, generator: torch.Generator | Sequence[torch.Generator] | None, slot_BN: Tensor
    ) -> None:
        self.slot_BN = slot_BN
        if generator is None or isinstance(generator, torch.Generator):
            self.sources = [(generator, int(slot_BN.sum()))]
        else:
            self.sources = list(zip(generator, slot_BN.sum(dim=1).tolist(), strict=False))
            if len(generator) != len(slot_BN):
                raise CrocodilError(
                    f"{len(generator)} generators for {len(slot_BN)} rows: give one per row or one for all"
                )

    def draw(self) -> Tensor:
        """(B, N), 0 where there is no slot."""
        out_BN = torch.zeros(self.slot_BN.shape, dtype=torch.float64, device=self.slot_BN.device)
        out_BN[self.slot_BN] = torch.cat(
            [
                torch.rand(
                    count, generator=source, dtype=torch.float64, device=source.device if source else None
                )
                for source, count in self.sources
            ]
        ).to(out_BN.device)
        return out_BN


def check(
    slots_B: Tensor, mask_id: int, nfe: int, block_size: int | None, temperature: float, remasking: str
) -> int:
    """Refuse what `demask` cannot do with rows of so many slots; returns the block size.

    Raises:
        CrocodilError: numbers that do not fit.
    """
    most = int(slots_B.max()) if len(slots_B) else 0
    if most == 0:
        raise CrocodilError(f"nothing to fill in: no position holds the mask token {mask_id}")
    if block_size is not None and block_size < 1:
        raise CrocodilError(f"block_size = {block_size}: a block needs at least one position")
    block_size = most if block_size is None else min(block_size, most)
    blocks = -(-most // block_size)
    if nfe < blocks:
        raise CrocodilError(
            f"nfe = {nfe} is less than the {blocks} blocks of {block_size} positions: "
            "ask for more steps or for larger blocks"
        )
    if nfe > most:
        raise CrocodilError(
            f"nfe = {nfe} is more than the {most} positions to fill in: ask for at most {most}"
        )
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise CrocodilError(
            f"temperature = {temperature}: it must be 0 (the likeliest token) or a positive number"
        )
    if remasking not in ("low_confidence", "random"):
        raise CrocodilError(f"remasking = {remasking!r}: choose low_confidence or random")
    return block_size
