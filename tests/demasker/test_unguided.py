"""The unguided demasker over packed texts is LLaDA on each text alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from crocodil.attention import Segments
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.masking import MaskedTexts
from crocodil.demasker.unguided import UnguidedDemasker

LENGTHS = (6, 9, 1, 9)


@pytest.fixture
def demasker(make_llada: Callable[..., LLaDA]) -> UnguidedDemasker:
    return UnguidedDemasker(make_llada())


@pytest.fixture
def texts(tiny_vocabulary) -> MaskedTexts:  # type: ignore[no-untyped-def]
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (sum(LENGTHS),), generator=draws)
    is_masked = torch.rand(len(ids), generator=draws) < 0.5
    return MaskedTexts(
        ids, is_masked, torch.tensor([0.5, 0.3, 1.0, 0.9]), Segments.of(LENGTHS), tiny_vocabulary.mask_id
    )


@torch.no_grad()
def test_packed_states_are_those_of_each_text(demasker: UnguidedDemasker, texts: MaskedTexts) -> None:
    states = demasker.hidden(texts.visible_T, texts.segments).split(LENGTHS)
    for state, ids in zip(states, texts.visible_T.split(LENGTHS), strict=True):
        assert torch.allclose(state, demasker.llada.hidden(ids[None])[0], atol=2e-5)


@torch.no_grad()
def test_the_loss_is_the_mean_over_texts_of_masked_cross_entropy_over_n_t(
    demasker: UnguidedDemasker, texts: MaskedTexts
) -> None:
    losses = demasker(texts)
    total = 0.0
    for i, (seen, ids, mask) in enumerate(
        zip(*(x.split(LENGTHS) for x in (texts.visible_T, texts.ids_T, texts.is_masked_T)), strict=True)
    ):
        log_p = demasker.llada(seen[None])[0].log_softmax(-1)
        entropy = -log_p[torch.arange(len(ids)), ids][mask]
        total += float(entropy.sum() / (len(ids) * texts.t_B[i]))
        if mask.any():
            assert losses.entropy_B[i].item() == pytest.approx(entropy.mean().item(), rel=1e-5)
            right = (log_p.argmax(-1) == ids)[mask].float().mean()
            assert losses.accuracy_B[i].item() == pytest.approx(right.item())
    assert losses.total.item() == pytest.approx(total, rel=1e-5)
    assert losses.texts == 4 and losses.masked_B.sum() == texts.is_masked_T.sum()


def test_splitting_a_batch_changes_neither_loss_nor_gradient(
    demasker: UnguidedDemasker, texts: MaskedTexts
) -> None:
    demasker(texts).total.backward()
    whole = [parameter.grad.clone() for parameter in demasker.parameters()]
    demasker.zero_grad()
    at = 0
    for i, n in enumerate(LENGTHS):
        part = slice(at, at + n)
        at += n
        demasker(
            MaskedTexts(
                texts.ids_T[part],
                texts.is_masked_T[part],
                texts.t_B[i : i + 1],
                Segments.of([n]),
                texts.mask_id,
            )
        ).total.backward()
    for parameter, gradient in zip(demasker.parameters(), whole, strict=True):
        assert (parameter.grad - gradient).norm() < 1e-5 * gradient.norm()
