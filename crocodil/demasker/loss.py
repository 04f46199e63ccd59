"""The loss of CRoCoDiL Eq. 5, which meets the vocabulary on masked positions only.

126,464 logits a position are the memory bill of this model, so the head runs over chunks of masked rows and forms its
gradients while a chunk's logits are still at hand: nothing of size R x V outlives its chunk, no logit is computed
twice, and under ZeRO-3 the sharded head is needed once, in the forward.

Shape letters: B texts, T packed text positions, R masked positions among them, E demasker width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

CHUNK_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits that exist at the same time: 132 rows of LLaDA's vocabulary on a CPU, 1,061 on a GPU, which wants more work
at once."""


class Score(NamedTuple):
    """What the head says of R masked positions."""

    total: torch.Tensor
    """Σ weight · cross-entropy, a scalar with gradient."""
    entropy_R: torch.Tensor
    """Cross-entropy in nats of every row, float32, no gradient."""
    correct_R: torch.Tensor
    """True where the most likely token is the target."""


class Losses(NamedTuple):
    """A sum over texts: whoever knows their global number divides once, so accumulation and ranks change nothing."""

    total: torch.Tensor
    """Σ_texts (1/n) Σ_masked CE / t, a scalar with gradient."""
    texts: torch.Tensor
    """Number of texts in the sum."""
    entropy_B: torch.Tensor
    """Mean cross-entropy of the masked positions of every text, in nats; 0 where nothing is masked."""
    accuracy_B: torch.Tensor
    """Top-1 accuracy over the masked positions of every text; 0 where nothing is masked."""
    masked_B: torch.Tensor
    """Number of masked positions of every text."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients are formed in the forward, chunk by chunk; backward only scales them."""

    @staticmethod
    def forward(ctx, hidden_RE, weight_VE, targets_R, weights_R, chunk, dtype):  # type: ignore[no-untyped-def]
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        rows = hidden_RE.shape[0]
        x = hidden_RE.to(dtype)
        matrix = weight_VE.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        entropy = torch.empty(rows, dtype=torch.float32, device=x.device)
        correct = torch.empty(rows, dtype=torch.bool, device=x.device)
        grad_hidden = torch.empty_like(hidden_RE) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32) if wants_weight else None
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, rows, chunk):
                part = slice(start, start + chunk)
                target = targets_R[part]
                logits = F.linear(x[part], matrix).float()
                correct[part] = logits.argmax(-1) == target
                # in place from here on: one chunk of logits is the only thing of its size
                log_z = logits.logsumexp(-1)
                entropy[part] = log_z - logits.gather(1, target[:, None])[:, 0]
                total += (entropy[part] * weights_R[part]).sum()
                if not (wants_hidden or wants_weight):
                    continue
                grad = logits.sub_(log_z[:, None]).exp_()
                grad.scatter_add_(1, target[:, None], grad.new_full((len(target), 1), -1.0))
                grad = grad.mul_(weights_R[part, None]).to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = (grad @ matrix).to(grad_hidden.dtype)
                if grad_weight is not None:
                    if dtype == torch.float32:
                        grad_weight.addmm_(grad.T, x[part])
                    else:
                        grad_weight += grad.T @ x[part]
                del logits, grad  # before the next chunk is made, not after
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VE.dtype
        ctx.mark_non_differentiable(entropy, correct)
        return total, entropy, correct

    @staticmethod
    def backward(ctx, grad_total, *_):  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * grad_total).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad_total).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None


def cross_entropy(
    hidden_RE: torch.Tensor,
    weight_VE: torch.Tensor,
    targets_R: torch.Tensor,
    weights_R: torch.Tensor,
    chunk: int | None = None,
) -> Score:
    """Σ weights · CE(hidden · weightᵀ, targets) without ever holding R x V logits.

    Args:
        hidden_RE: rows to classify, any float type; under autocast the products run in its type, sums in float32.
        weight_VE: output matrix.
        targets_R: int64 token ids.
        weights_R: float32 weight of each row's cross-entropy.
        chunk: rows whose logits exist at the same time; by `CHUNK_LOGITS` if left out.
    """
    device = hidden_RE.device.type
    if chunk is None:
        chunk = max(1, CHUNK_LOGITS.get(device, CHUNK_LOGITS["cuda"]) // len(weight_VE))
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_RE.dtype
    return Score(*_ChunkedCrossEntropy.apply(hidden_RE, weight_VE, targets_R, weights_R, chunk, dtype))


class VocabularyHead(nn.Linear):
    """The output matrix. Without targets it gives logits; with them, the loss.

    The loss is computed here, in the forward of the module that owns the matrix, so that an engine which shards
    parameters gathers it exactly when it is needed.
    """

    def forward(  # type: ignore[override]
        self,
        hidden: torch.Tensor,
        targets_R: torch.Tensor | None = None,
        weights_R: torch.Tensor | None = None,
    ) -> torch.Tensor | Score:
        if targets_R is None or weights_R is None:
            return F.linear(hidden, self.weight)
        return cross_entropy(hidden, self.weight, targets_R, weights_R)


def row_weights(is_masked_T: torch.Tensor, lengths: Sequence[int], t_B: torch.Tensor) -> torch.Tensor:
    """1 / (n t) for every masked position, in packed order: (R,) float32 (Eq. 5 with LLaDA's weight 1/t)."""
    n_B = torch.tensor(lengths, dtype=torch.float32, device=is_masked_T.device)
    return (1 / (n_B * t_B))[text_of(is_masked_T, lengths)]


def text_of(is_masked_T: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """The text (0…B-1) that each masked position belongs to: (R,) int64."""
    owner = torch.repeat_interleave(torch.tensor(lengths, device=is_masked_T.device))
    return owner[is_masked_T]


def per_text(score: Score, is_masked_T: torch.Tensor, lengths: Sequence[int]) -> Losses:
    """Gather what the head said of R positions into one record of B texts."""
    owner = text_of(is_masked_T, lengths)
    zeros = torch.zeros(len(lengths), device=owner.device)
    masked = zeros.index_add(0, owner, torch.ones_like(score.entropy_R))
    entropy = zeros.index_add(0, owner, score.entropy_R) / masked.clamp_min(1)
    accuracy = zeros.index_add(0, owner, score.correct_R.float()) / masked.clamp_min(1)
    number = torch.tensor(float(len(lengths)), device=owner.device)
    return Losses(score.total, number, entropy, accuracy, masked)
