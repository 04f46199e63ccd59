"""A demasker with latents: what it sees, what it does not depend on, and its host at the limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from crocodil.attention import Segments
from crocodil.cadd.demasker import AugmentedDemasker, noise_of, seeded
from crocodil.cadd.latents import Fusion, LatentConfig, TokenLatents
from crocodil.cadd.loss import Objective
from crocodil.demasker.guided import GuideConfig, GuidedDemasker
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.masking import MaskedTexts
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.errors import CrocodilError

LENGTHS, LEVELS, SEEDS = (6, 9, 1, 12), (0.5, 0.3, 1.0, 0.9), (11, 22, 33, 44)
K, D = 4, 24
MakeLLaDA = Callable[..., LLaDA]


def augmented(
    host: UnguidedDemasker | GuidedDemasker, objective: Objective | None = None, **config: Any
) -> AugmentedDemasker:
    sizes = host.llada.config
    latents = TokenLatents(LatentConfig(**config), sizes.vocab_size, sizes.d_model)
    return AugmentedDemasker(host, latents.initialise(host.llada.model.transformer.wte.weight), objective)


def guided(llada: LLaDA) -> GuidedDemasker:
    return GuidedDemasker(llada, GuideConfig(K, D)).initialise(torch.Generator().manual_seed(0))


@pytest.fixture
def texts(tiny_vocabulary) -> MaskedTexts:  # type: ignore[no-untyped-def]
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (sum(LENGTHS),), generator=draws)
    is_masked = torch.rand(len(ids), generator=draws) < 0.5
    return MaskedTexts(
        ids, is_masked, torch.tensor(LEVELS), Segments.of(LENGTHS), tiny_vocabulary.mask_id, SEEDS
    )


def chosen(texts: MaskedTexts, which: list[int]) -> MaskedTexts:
    """These of the texts, in this order."""
    lengths = texts.segments.lengths
    ids, masks = texts.ids_T.split(lengths), texts.is_masked_T.split(lengths)
    assert texts.seeds is not None
    return MaskedTexts(
        torch.cat([ids[i] for i in which]),
        torch.cat([masks[i] for i in which]),
        texts.t_B[which],
        Segments.of([lengths[i] for i in which]),
        texts.mask_id,
        tuple(texts.seeds[i] for i in which),
    )


def latents_seen(demasker: AugmentedDemasker, texts: MaskedTexts) -> torch.Tensor:
    """z (T, E) as it goes into the fusion."""
    seen: list[torch.Tensor] = []
    assert demasker.latents is not None
    fuse = demasker.latents.fuse
    demasker.latents.fuse = lambda tokens, z, t: (seen.append(z), fuse(tokens, z, t))[1]  # type: ignore[method-assign]
    with torch.no_grad():
        demasker(texts)
    demasker.latents.fuse = fuse  # type: ignore[method-assign]
    return seen[0]


@pytest.mark.parametrize("fusion", ["add", "reweight", "concat"])
@pytest.mark.parametrize("squared", [None, "soft"])
def test_packing_batches_and_order_change_nothing_of_a_text_s_loss(
    squared: Any, fusion: Fusion, make_llada: MakeLLaDA, texts: MaskedTexts
) -> None:
    demasker = augmented(UnguidedDemasker(make_llada()), Objective(squared=squared), fusion=fusion)
    whole = demasker(texts)
    gradient = torch.autograd.grad(whole.total, demasker.llada.model.transformer.wte.weight)[0]
    alone = [demasker(chosen(texts, [i])) for i in range(4)]
    for i, one in enumerate(alone):
        assert one.entropy_B.item() == pytest.approx(whole.entropy_B[i].item(), rel=2e-5)
    total = sum(one.total for one in alone)
    assert total.item() == pytest.approx(whole.total.item(), rel=2e-5)
    other = torch.autograd.grad(total, demasker.llada.model.transformer.wte.weight)[0]
    assert (gradient - other).norm() < 2e-5 * gradient.norm()
    order = [2, 0, 3, 1]
    shuffled = demasker(chosen(texts, order))
    assert shuffled.total.item() == pytest.approx(whole.total.item(), rel=2e-5)
    assert torch.allclose(shuffled.entropy_B, whole.entropy_B[order], rtol=2e-5)


@torch.no_grad()
def test_noise_depends_on_the_seed_alone(make_llada: MakeLLaDA, texts: MaskedTexts) -> None:
    demasker = augmented(UnguidedDemasker(make_llada()))
    z = latents_seen(demasker, texts).split(LENGTHS)
    noise = noise_of(texts, torch.zeros(sum(LENGTHS), 32)).split(LENGTHS)
    # not on neighbours
    for i, part in enumerate(latents_seen(demasker, chosen(texts, [3, 1])).split([LENGTHS[3], LENGTHS[1]])):
        assert torch.equal(part, z[(3, 1)[i]])
    # nor on what is masked, nor on what the text says
    other = replace(texts, is_masked_T=~texts.is_masked_T, ids_T=texts.ids_T.flip(0))
    assert torch.equal(torch.cat(noise), noise_of(other, torch.zeros(sum(LENGTHS), 32)))
    # but on the seed: a new one for the second text changes it and no other
    moved = latents_seen(demasker, replace(texts, seeds=(11, 23, 33, 44))).split(LENGTHS)
    for i in range(4):
        assert torch.equal(moved[i], z[i]) == (i != 1)
    # a text of another length begins alike
    longer = chosen(texts, [3])
    assert torch.equal(
        noise_of(replace(longer, seeds=(22,)), torch.zeros(12, 32))[:9],
        noise_of(texts, torch.zeros(28, 32))[6:15],
    )


@torch.no_grad()
def test_visible_tokens_have_clean_latents_and_masked_ones_eq_11(
    make_llada: MakeLLaDA, texts: MaskedTexts
) -> None:
    demasker = augmented(UnguidedDemasker(make_llada()), rho=2.0)
    z, mask = latents_seen(demasker, texts), texts.is_masked_T
    rows = demasker.llada.embed(texts.ids_T)
    clean = 2.0 * rows / rows.norm(dim=1, keepdim=True)
    assert torch.allclose(z[~mask], clean[~mask], atol=1e-6)
    t = torch.cat([torch.full((n, 1), level) for n, level in zip(LENGTHS, LEVELS, strict=True)])
    noised = (1 - t) * clean + t * noise_of(texts, clean)
    assert torch.allclose(z[mask], noised[mask], atol=1e-6)
    assert torch.allclose(demasker.clean_table()[texts.ids_T], clean, atol=1e-6)


def test_noise_is_standard_and_differs_between_positions(texts: MaskedTexts) -> None:
    noise = noise_of(texts, torch.zeros(sum(LENGTHS), 4000))
    assert abs(float(noise.mean())) < 0.015 and abs(float(noise.var()) - 1) < 0.02
    similarity = F.normalize(noise, dim=1) @ F.normalize(noise, dim=1).T
    assert float((similarity - torch.eye(len(noise))).abs().max()) < 0.1


def test_seeds_come_from_the_text_s_own_generator(texts: MaskedTexts) -> None:
    def of(numbers: tuple[int, ...]) -> tuple[int, ...] | None:
        return seeded(texts, (torch.Generator().manual_seed(n) for n in numbers)).seeds

    first = of((1, 2, 3, 4))
    assert first is not None and len(set(first)) == 4 and all(0 <= seed < 2**62 for seed in first)
    assert of((4, 3, 2, 1)) == first[::-1] and of((1, 2, 3, 4)) == first


@pytest.mark.parametrize("fusion", ["add", "reweight", "concat"])
def test_without_registers_a_guided_host_is_the_unguided_one(
    fusion: Fusion, make_llada: MakeLLaDA, texts: MaskedTexts
) -> None:
    plain = augmented(UnguidedDemasker(make_llada()), fusion=fusion)
    behind = augmented(guided(make_llada()), fusion=fusion)
    none = torch.zeros(0, D)
    for found in (behind(texts), behind(texts, none, [0, 0, 0, 0])):
        assert torch.equal(found.total, plain(texts).total)
        assert torch.equal(found.entropy_B, plain(texts).entropy_B)


@torch.no_grad()
def test_registers_reach_their_own_text_alone(make_llada: MakeLLaDA, texts: MaskedTexts) -> None:
    demasker = augmented(guided(make_llada()))
    registers = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    with_them = demasker(texts, registers, [2, 0, 0, 3])
    without = demasker(texts)
    changed = (with_them.entropy_B - without.entropy_B).abs() > 1e-3
    assert changed.tolist() == [True, False, False, True]
    alone = demasker(chosen(texts, [3]), registers[2:], [3])
    assert alone.entropy_B[0].item() == pytest.approx(with_them.entropy_B[3].item(), rel=2e-5)


@pytest.mark.parametrize("fusion", ["add", "reweight", "concat"])
@torch.no_grad()
def test_logits_are_what_the_loss_is_made_of(
    fusion: Fusion, make_llada: MakeLLaDA, texts: MaskedTexts
) -> None:
    """Text by text, and in batches of texts with a level each; with registers and without."""
    registers = torch.randn(2, D, generator=torch.Generator().manual_seed(0))
    for host, z_kD in ((UnguidedDemasker(make_llada()), None), (guided(make_llada()), registers)):
        demasker = augmented(host, Objective("inverse_t"), fusion=fusion)
        which, z = [0, 1, 3], latents_seen(demasker, texts).split(LENGTHS)
        for i in which:
            one = chosen(texts, [i])
            found = demasker(one) if z_kD is None else demasker(one, z_kD, [2])
            logits = demasker.logits(
                one.visible_T[None],
                one.is_masked_T[None],
                None if z_kD is None else z_kD[None],
                z[i][None],
                LEVELS[i],
            )
            entropy = F.cross_entropy(logits, one.ids_T[one.is_masked_T], reduction="none")
            assert found.entropy_B[0].item() == pytest.approx(float(entropy.mean()), rel=2e-5)
            assert found.total.item() == pytest.approx(
                float(entropy.sum()) / LENGTHS[i] / LEVELS[i], rel=2e-5
            )


@torch.no_grad()
def test_logits_of_a_batch_are_those_of_each_text_at_its_level(make_llada: MakeLLaDA) -> None:
    demasker = augmented(guided(make_llada()), fusion="reweight")
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (3, 7), generator=draws)
    rows = torch.rand(3, 7, generator=draws) < 0.5
    z, registers = torch.randn(3, 7, 32, generator=draws), torch.randn(3, 2, D, generator=draws)
    levels = torch.tensor([0.2, 0.5, 0.9])
    whole = demasker.logits(ids, rows, registers, z, levels)
    parts = [
        demasker.logits(ids[i : i + 1], rows[i : i + 1], registers[i : i + 1], z[i : i + 1], t)
        for i, t in enumerate(levels.tolist())
    ]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)
    alike = demasker.logits(ids, rows, registers, z, 0.5)
    assert torch.allclose(alike, demasker.logits(ids, rows, registers, z, torch.full((3,), 0.5)))


@torch.no_grad()
def test_as_latents_fade_it_is_its_host(make_llada: MakeLLaDA, texts: MaskedTexts) -> None:
    host = UnguidedDemasker(make_llada())
    fading = [augmented(host, Objective("inverse_t"), gain=gain)(texts).total for gain in (1, 1e-4, 1e-30)]
    wanted = host(texts).total
    assert abs(fading[0] - wanted) > 1e-2 * wanted
    assert abs(fading[1] - wanted) < 1e-3 * wanted
    assert torch.equal(fading[2], wanted)


@torch.no_grad()
def test_without_latents_it_is_its_host_and_wants_no_seeds(make_llada: MakeLLaDA, texts: MaskedTexts) -> None:
    unseeded = replace(texts, seeds=None)
    registers, k = torch.randn(5, D, generator=torch.Generator().manual_seed(0)), [2, 0, 0, 3]
    for host, given in ((UnguidedDemasker(make_llada()), ()), (guided(make_llada()), (registers, k))):
        demasker = AugmentedDemasker(host, None, Objective("inverse_t"))
        assert torch.equal(demasker(unseeded, *given).total, host(unseeded, *given).total)
        ids, rows = texts.visible_T[None], texts.is_masked_T[None]
        assert torch.equal(demasker.logits(ids, rows, None), host.logits(ids, rows, None))


def test_the_weight_is_one_unless_it_is_one_over_t(make_llada: MakeLLaDA, texts: MaskedTexts) -> None:
    host = UnguidedDemasker(make_llada())
    for i in range(4):
        text = chosen(texts, [i])
        one, inverse = (augmented(host, Objective(weight))(text).total for weight in ("one", "inverse_t"))
        assert one.item() == pytest.approx(LEVELS[i] * inverse.item(), rel=1e-5)


@pytest.mark.parametrize("fusion", ["add", "reweight", "concat"])
def test_every_parameter_learns_and_finite_things_only(
    fusion: Fusion, make_llada: MakeLLaDA, texts: MaskedTexts
) -> None:
    demasker = augmented(guided(make_llada()), fusion=fusion)
    demasker(
        texts, torch.randn(5, D, generator=torch.Generator().manual_seed(0)), [2, 0, 0, 3]
    ).total.backward()
    for name, parameter in demasker.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_texts_without_seeds_are_refused(make_llada: MakeLLaDA, texts: MaskedTexts) -> None:
    with pytest.raises(CrocodilError, match="these texts have no seeds, .* use `seeded`"):
        augmented(UnguidedDemasker(make_llada()))(replace(texts, seeds=None))


def test_golden_losses_of_three_steps(make_llada: MakeLLaDA, texts: MaskedTexts) -> None:
    for objective, wanted in GOLDEN.items():
        demasker = augmented(UnguidedDemasker(make_llada()), objective)
        optimiser = torch.optim.AdamW(demasker.parameters(), lr=1e-2, weight_decay=0.1)
        found = []
        for step in range(3):
            loss = demasker(replace(texts, seeds=tuple(seed + step for seed in SEEDS))).total / 4
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        assert found == pytest.approx(wanted, rel=2e-4)


GOLDEN = {
    Objective(): [4.091800212860107, 3.043379783630371, 2.5325405597686768],
    Objective("inverse_t", squared="soft", share=0.5): [
        7.351332187652588,
        6.074370861053467,
        4.984933853149414,
    ],
}
