"""The sampler gives the tokens of LLaDA's official sampler: float32, greedy, low confidence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crocodil.demasker.weights import load_llada
from crocodil.sampler.demask import demask

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures" / "llada").iterdir())
SETTINGS = {  # nfe, length, block size
    "g_pure": (16, 16, 16),
    "g_parallel": (8, 16, 16),
    "g_uneven": (6, 16, 16),
    "g_blocks": (16, 16, 4),
    "g_blocks_parallel": (8, 16, 8),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("folder", FIXTURES, ids=lambda folder: folder.name)
def test_the_tokens_are_the_official_ones(folder: Path, setting: str) -> None:
    nfe, length, block_size = SETTINGS[setting]
    reference = load_file(folder / "reference.safetensors")
    model = load_llada(folder, dtype=torch.float32)
    prompt, prompt_mask = reference["generate/prompt"], reference["generate/prompt_mask"]
    mask_id = model.config.mask_token_id
    x = torch.cat([prompt, torch.full((len(prompt), length), mask_id)], dim=1)
    attend = torch.cat([prompt_mask, torch.ones(len(prompt), length, dtype=prompt_mask.dtype)], dim=1)

    result = demask(
        lambda ids, rows: model.head(model.hidden(ids, attend=attend)[rows]),
        x,
        mask_id,
        nfe=nfe,
        block_size=block_size,
    )

    assert torch.equal(result.ids, reference[f"generate/{setting}"])
    assert result.nfe == nfe
