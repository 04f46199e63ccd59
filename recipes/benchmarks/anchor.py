"""What our demasking step is compared with: the official sampler's shape, or the official file itself.

`plain_generate` and `gumbel` are our own lines after a description of LLaDA's sampler: logits at every position, a
full softmax to read one value a row, float64 noise over the whole vocabulary, and a Python loop over the rows.

B batch, N positions, S steps, V vocabulary.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crocodil.errors import CrocodilError


@dataclass(frozen=True)
class Anchor:
    """A sampler to compare with; both functions have the signatures of the official file."""

    name: str
    generate: Callable[..., Tensor]
    """(model, prompt, *, steps, gen_length, block_length, temperature, remasking, mask_id) to tokens."""
    add_noise: Callable[[Tensor, float], Tensor]
    """(logits, temperature) to scores whose argmax is the draw."""
    path: str | None = None
    """The user's file, where there is one."""


def gumbel(logits: Tensor, temperature: float) -> Tensor:
    """The Gumbel-max draw in float64, the temperature on the noise; logits themselves at temperature 0."""
    if temperature == 0:
        return logits
    uniforms = torch.rand(logits.shape, dtype=torch.float64, device=logits.device)
    return logits.double().exp() / (-uniforms.log()) ** temperature


def draw(anchor: Anchor, logits_RV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Token and confidence of every row: the middle of the official step."""
    ids_R = anchor.add_noise(logits_RV, temperature).argmax(dim=-1)
    return ids_R, logits_RV.softmax(dim=-1).gather(-1, ids_R[:, None])[:, 0]


def spread(masked_B: Tensor, steps: int) -> Tensor:
    """Tokens that each step reveals (B, steps): even shares, the remainder in the first steps."""
    return masked_B[:, None] // steps + (
        torch.arange(steps, device=masked_B.device) < masked_B[:, None] % steps
    )


@torch.no_grad()
def plain_generate(
    model: Callable[[Tensor], Any],
    prompt: Tensor,
    *,
    steps: int,
    gen_length: int,
    block_length: int,
    temperature: float,
    remasking: str,
    mask_id: int,
) -> Tensor:
    """Fill `gen_length` positions behind the prompt (B, ·), block after block.

    Args:
        model: ids (B, N) to an object with `.logits` (B, N, V).
        steps: in all; the blocks divide it, and `block_length` divides `gen_length`.
        remasking: `low_confidence`, the only kind that is compared.
    """
    if remasking != "low_confidence":
        raise ValueError(f"the plain sampler knows low_confidence alone, not {remasking}")
    B, start = prompt.shape
    blocks = gen_length // block_length
    x_BN = torch.full((B, start + gen_length), mask_id, dtype=torch.long, device=prompt.device)
    x_BN[:, :start] = prompt
    for end in range(start + block_length, start + gen_length + 1, block_length):
        count_BS = spread((x_BN[:, end - block_length : end] == mask_id).sum(dim=1), steps // blocks)
        for step in range(steps // blocks):
            is_masked_BN = x_BN == mask_id
            logits_BNV = model(x_BN).logits
            guess_BN = gumbel(logits_BNV, temperature).argmax(dim=-1)
            confidence_BN = logits_BNV.softmax(dim=-1).gather(-1, guess_BN[..., None])[..., 0]
            confidence_BN[:, end:] = -math.inf
            confidence_BN = torch.where(is_masked_BN, confidence_BN, -math.inf)
            for row in range(B):
                surest = confidence_BN[row].topk(int(count_BS[row, step])).indices
                x_BN[row, surest] = guess_BN[row, surest]
    return x_BN


PLAIN = Anchor("our own step of the official sampler's shape", plain_generate, gumbel)


def load_official(path: str | Path) -> Anchor:
    """The user's own copy of LLaDA's generate.py. Its code is run.

    Raises:
        CrocodilError: no such file, it cannot be imported, or it lacks `generate` or `add_gumbel_noise`.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise CrocodilError(f"{file} does not exist; give your copy of generate.py of LLaDA's repository")
    spec = importlib.util.spec_from_file_location("official_generate", file)
    if spec is None or spec.loader is None:
        raise CrocodilError(f"{file} is no Python file; give your copy of generate.py of LLaDA's repository")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        generate, add_noise = module.generate, module.add_gumbel_noise
    except Exception as error:  # whatever the file does
        raise CrocodilError(
            f"{file} cannot be used as LLaDA's generate.py ({type(error).__name__}: {error}); fetch it again"
        ) from error
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return Anchor(f"{file.name}, sha256 {digest}", generate, add_noise, str(file))


def open_anchor(official: str | None) -> Anchor:
    """The user's file where one is named, else our own lines."""
    return PLAIN if official is None else load_official(official)
