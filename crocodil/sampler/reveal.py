"""Which positions are revealed next, and which token each of them gets.

B batch, N text positions, S demasking steps, R rows of logits (one per position asked for), V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crocodil.errors import CrocodilError

CHUNK = 512  # tokens per chunk of the two-level draw: divides LLaDA's 126,464 rows (247 chunks)
# float32 logits looked at together, so that a draw never copies a whole batch's: few launches on a GPU, what
# a cache holds on a CPU
GPU_LOGITS, CPU_LOGITS = 1 << 26, 1 << 20


@dataclass(frozen=True)
class Plan:
    """What every row does in every step; a row that is complete before the others has count and t 0."""

    block_BS: Tensor
    """The block a row works on."""
    count_BS: Tensor
    """Tokens it reveals."""
    t_BS: Tensor
    """Masking level of that block after the step; 0 when the block is complete."""


def plan(slots_B: Tensor, nfe: int, block_size: int) -> Plan:
    """Spread `nfe` steps over each row's blocks, and a block's tokens over its steps, as evenly as possible.

    Rows are planned independently of one another, so that a row's text never depends on its neighbours. A row
    has ceil(slots / block_size) blocks; only the last may be short, and its share of steps is by its length.
    No step is without a token to reveal: a row with fewer slots than `nfe` is complete earlier.

    Args:
        slots_B: positions to fill per row.
        nfe: steps in all; at least the number of blocks of every row.
        block_size: slots per block, at least 1.
    """
    full_B = slots_B // block_size
    rest_B = slots_B % block_size
    steps_B = slots_B.clamp(max=nfe)

    last_B = (steps_B * rest_B / slots_B.clamp(min=1)).round().long()
    at_least_B = torch.maximum((rest_B > 0).long(), steps_B - full_B * block_size)
    last_B = last_B.clamp(at_least_B, torch.minimum(rest_B, steps_B - full_B))

    blocks = int((full_B + (rest_B > 0)).max())
    block_K = torch.arange(blocks, device=slots_B.device)
    steps_BK = _share((steps_B - last_B)[:, None], full_B[:, None].clamp(min=1), block_K)
    steps_BK = torch.where(block_K < full_B[:, None], steps_BK, 0)
    steps_BK = torch.where(block_K == full_B[:, None], last_B[:, None], steps_BK)
    ends_BK = steps_BK.cumsum(1)

    step_BS = torch.arange(nfe, device=slots_B.device).expand(len(slots_B), nfe).contiguous()
    block_BS = torch.searchsorted(ends_BK, step_BS, right=True).clamp(max=blocks - 1)
    steps_in_block_BS = steps_BK.gather(1, block_BS).clamp(min=1)
    slots_in_block_BS = torch.where(block_BS < full_B[:, None], block_size, rest_B[:, None])
    done_BS = step_BS - (ends_BK - steps_BK).gather(1, block_BS)  # steps this block has already had
    active_BS = step_BS < steps_B[:, None]
    count_BS = torch.where(active_BS, _share(slots_in_block_BS, steps_in_block_BS, done_BS), 0)
    t_BS = torch.where(active_BS, 1 - (done_BS + 1) / steps_in_block_BS, 0.0)
    return Plan(block_BS, count_BS, t_BS)


def choose(score_BN: Tensor, candidate_BN: Tensor, count_B: Tensor) -> Tensor:
    """The `count` best-scored candidates of each row, by one sort; ties go to the earlier position.

    Args:
        score_BN: confidence (`low_confidence`) or uniform noise (`random`).
        candidate_BN: positions that may be chosen.
        count_B: how many per row.

    Returns:
        (B, N) bool.
    """
    score_BN = score_BN.masked_fill(~candidate_BN, -math.inf)
    order_BN = score_BN.argsort(dim=1, descending=True, stable=True)
    rank_BN = torch.empty_like(order_BN)
    rank_BN.scatter_(1, order_BN, torch.arange(order_BN.shape[1], device=order_BN.device).expand_as(order_BN))
    return (rank_BN < count_B[:, None]) & candidate_BN


class Drawn(NamedTuple):
    """One token per row of logits, with the model's probability of it at temperature 1 (float32)."""

    ids_R: Tensor
    confidence_R: Tensor


def draw(logits_RV: Tensor, temperature: float, uniforms_R: Tensor | None, mask_id: int) -> Drawn:
    """One token per row: the likeliest at temperature 0, else a draw from softmax(logits / temperature).

    The draw inverts the cumulative distribution with one uniform number per row: the chunk of the vocabulary
    first, then the token in it. Nothing of vocabulary size is ever float64, as the official Gumbel noise is.
    The mask token is never drawn, but its mass stays in the confidence, as in the official sampler, so that
    positions are revealed in the official order.

    Args:
        logits_RV: any floating dtype; not modified.
        temperature: 0 or positive.
        uniforms_R: numbers in [0, 1), float64; None will do at temperature 0.
        mask_id: its column is left out (a head without that column is fine).

    Raises:
        CrocodilError: a row's largest logit is infinite or not a number.
    """
    rows = max(1, (GPU_LOGITS if logits_RV.is_cuda else CPU_LOGITS) // logits_RV.shape[1])
    starts = range(0, max(1, len(logits_RV)), rows)
    parts = [
        _draw(
            logits_RV[start : start + rows],
            temperature,
            None if uniforms_R is None else uniforms_R[start : start + rows],
            mask_id,
        )
        for start in starts
    ]
    return Drawn(torch.cat([part.ids_R for part in parts]), torch.cat([part.confidence_R for part in parts]))


def _draw(logits_RV: Tensor, temperature: float, uniforms_R: Tensor | None, mask_id: int) -> Drawn:
    """`draw` on few rows. C chunks of c tokens cover the vocabulary; what is beyond it weighs nothing."""
    rows, vocabulary = logits_RV.shape
    chunks = -(-vocabulary // CHUNK)
    width = -(-vocabulary // chunks)
    scores_RW = logits_RV.new_full((rows, chunks * width), -math.inf, dtype=torch.float32)
    scores_RW[:, :vocabulary] = logits_RV
    probability_RW = scores_RW.softmax(dim=1)
    if mask_id < vocabulary:
        scores_RW[:, mask_id] = -math.inf

    scores_RCc = scores_RW.view(rows, chunks, width)
    best_RC = scores_RCc.amax(dim=2)
    best_R = best_RC.amax(dim=1)
    if not bool(best_R.isfinite().all()):
        raise CrocodilError(
            "the demasker gave logits that are infinite or not a number in "
            f"{int((~best_R.isfinite()).sum())} of {rows} rows: check its weights and the registers"
        )
    every_R = torch.arange(rows, device=logits_RV.device)
    if temperature == 0:
        # chunk by chunk as well: torch's own argmax over a long row costs more than the softmax
        chunk_R = best_RC.argmax(dim=1)
        ids_R = chunk_R * width + scores_RCc[every_R, chunk_R].argmax(dim=1)
    else:
        assert uniforms_R is not None
        scores_RW -= best_R[:, None]
        # a temperature beyond float32's range would divide 0 by 0, or infinity by infinity
        scores_RW /= min(max(temperature, torch.finfo(torch.float32).tiny), torch.finfo(torch.float32).max)
        ids_R = _invert(scores_RW.softmax(dim=1).view(rows, chunks, width), uniforms_R)
    return Drawn(ids_R, probability_RW[every_R, ids_R])


def _invert(weights_RCc: Tensor, uniforms_R: Tensor) -> Tensor:
    """The index, over chunks and tokens, at which the cumulative weight first exceeds uniform · total."""
    chunk_ends_RC = weights_RCc.sum(dim=2).double().cumsum(dim=1)
    target_R1 = uniforms_R[:, None].double() * chunk_ends_RC[:, -1:]
    chunk_R1 = torch.searchsorted(chunk_ends_RC, _below_end(target_R1, chunk_ends_RC), right=True)

    before_R1 = torch.where(chunk_R1 > 0, chunk_ends_RC.gather(1, (chunk_R1 - 1).clamp(min=0)), 0.0)
    every_R = torch.arange(len(weights_RCc), device=weights_RCc.device)
    ends_Rc = weights_RCc[every_R, chunk_R1[:, 0]].double().cumsum(dim=1)
    inside_R1 = torch.searchsorted(ends_Rc, _below_end(target_R1 - before_R1, ends_Rc), right=True)
    return (chunk_R1 * weights_RCc.shape[2] + inside_R1)[:, 0]


def _below_end(target_R1: Tensor, ends_RC: Tensor) -> Tensor:
    """Rounding may push a target onto the end of its range, where only entries of weight zero are left."""
    end_R1 = ends_RC[:, -1:]
    return torch.minimum(target_R1, torch.nextafter(end_R1, torch.zeros_like(end_R1)))


def _share(total: Tensor, parts: Tensor | int, index: Tensor) -> Tensor:
    """The `index`-th of `parts` whole shares of `total` that differ by at most one, larger ones first."""
    return total // parts + (index < total % parts)
