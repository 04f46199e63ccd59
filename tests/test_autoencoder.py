"""Corridor 1: randomness belongs to the sample, and a text's loss does not depend on its company."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch

from crocodil.autoencoder import Autoencoder, Batch, Corruption, at_level, corrupt
from crocodil.demasker.masking import MaskingConfig
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.errors import CrocodilError
from crocodil.registers.geometry import NestedDropout, RegisterNoise
from crocodil.text.vocabulary import Vocabulary
from crocodil.text.windows import Sample
from crocodil.training.randomness import generator

K, D = 4, 24
DRAW = partial(generator, 3, 1)
MIXED = Corruption(MaskingConfig(0.25), NestedDropout(hide_all=0.3), RegisterNoise(0.8))
Make = Callable[..., Autoencoder]


@pytest.fixture(scope="module")
def samples(tiny_vocabulary: Vocabulary, programs: tuple[str, ...]) -> list[Sample]:
    """Ten texts, two of them empty, in windows of three lengths."""
    found = []
    for i in range(10):
        ids = tuple(tiny_vocabulary.encode(programs[i % 5])[: 20 - i])
        found.append(Sample(100 + i, ids, (24, 28, 32)[i % 3]))
    return found


@pytest.fixture
def prepare(tiny_vocabulary: Vocabulary) -> Callable[..., Batch]:
    def make(samples: Sequence[Sample], corruption: Corruption = MIXED, registers: int = K) -> Batch:
        return corrupt(samples, tiny_vocabulary, DRAW, corruption, registers, D)

    return make


Prepare = Callable[..., Batch]


def of_each(batch: Batch) -> list[tuple[object, ...]]:
    """Everything that was drawn for each text."""
    lengths = batch.texts.segments.lengths
    noise = [None] * len(batch.k) if batch.noise_kD is None else batch.noise_kD.split(list(batch.k))
    return [
        (ids.tolist(), mask.tolist(), float(t), clean.tolist(), k, None if n is None else n.tolist())
        for ids, mask, t, clean, k, n in zip(
            batch.texts.ids_T.split(lengths),
            batch.texts.is_masked_T.split(lengths),
            batch.texts.t_B,
            batch.clean_T.split(batch.clean.lengths),
            batch.k,
            noise,
            strict=True,
        )
    ]


def test_randomness_belongs_to_the_sample(samples: list[Sample], prepare: Prepare) -> None:
    together = of_each(prepare(samples))
    assert {0, K} <= {drawn[4] for drawn in together}
    torch.manual_seed(99)  # the process generator takes no part
    order = torch.randperm(len(samples)).tolist()
    assert of_each(prepare([samples[i] for i in order])) == [together[i] for i in order]
    assert [of_each(prepare([sample]))[0][:5] for sample in samples] == [drawn[:5] for drawn in together]
    assert of_each(prepare(samples[:4])) + of_each(prepare(samples[4:])) == together


def test_the_encoder_reads_the_clean_text_and_the_demasker_the_window(
    samples: list[Sample], prepare: Prepare, tiny_vocabulary: Vocabulary
) -> None:
    for sample, drawn in zip(samples, of_each(prepare(samples)), strict=True):
        window, mask, t, clean, _, _ = drawn
        assert tuple(clean) == sample.text_ids  # neither BOS nor EOS nor tail, and nothing masked
        assert window == sample.window(tiny_vocabulary) and len(mask) == sample.length
        assert t < 1 or all(mask)


def test_noise_has_the_asked_scale_and_none_is_none(samples: list[Sample], prepare: Prepare) -> None:
    many = [replace(samples[0], id=i) for i in range(200)]
    drawn = prepare(many, replace(MIXED, register_noise=RegisterNoise(0.8)))
    assert drawn.noise_kD.shape == (sum(drawn.k), D)
    assert drawn.noise_kD.std() == pytest.approx(0.75, rel=0.03)
    assert prepare(many, replace(MIXED, register_noise=RegisterNoise(1.0))).noise_kD is None
    hidden = replace(MIXED, nested_dropout=NestedDropout(hide_all=1.0))
    assert prepare(many, hidden).noise_kD is None and set(prepare(many, hidden).k) == {0}


def test_an_evaluation_batch_is_at_one_level(samples: list[Sample], tiny_vocabulary: Vocabulary) -> None:
    for t, k in ((1.0, K), (0.5, 2), (0.5, 0)):
        batch = at_level(samples, tiny_vocabulary, DRAW, t, k, D)
        assert set(batch.k) == {k} and batch.noise_kD is None and (batch.texts.t_B == t).all()
        assert batch.texts.is_masked_T.float().mean() == pytest.approx(t, abs=0.15)
    noisy = at_level(samples, tiny_vocabulary, DRAW, 0.5, 2, D, sigma=3.0)
    assert noisy.noise_kD.shape == (2 * len(samples), D)
    assert noisy.noise_kD.std() == pytest.approx(3.0, rel=0.1)
    assert at_level(samples, tiny_vocabulary, DRAW, 0.5, 0, D, sigma=3.0).noise_kD is None


@torch.no_grad()
def test_a_text_s_loss_does_not_depend_on_its_company(
    samples: list[Sample], prepare: Prepare, make_autoencoder: Make
) -> None:
    module = make_autoencoder()
    whole = module(prepare(samples))
    alone = [module(prepare([sample])) for sample in samples]
    assert whole.texts == len(samples)
    assert whole.total.item() == pytest.approx(sum(one.total.item() for one in alone), rel=1e-5)
    for i, one in enumerate(alone):
        assert whole.entropy_B[i].item() == pytest.approx(one.entropy_B.item(), rel=1e-5, abs=1e-6)
    order = [3, 9, 0, 5, 1, 8, 2, 7, 6, 4]
    shuffled = module(prepare([samples[i] for i in order]))
    assert shuffled.total.item() == pytest.approx(whole.total.item(), rel=1e-5)
    split = [module(prepare(part)).total.item() for part in (samples[:3], samples[3:4], samples[4:])]
    assert sum(split) == pytest.approx(whole.total.item(), rel=1e-5)


def test_splitting_a_batch_does_not_change_its_gradient(
    samples: list[Sample], prepare: Prepare, make_autoencoder: Make
) -> None:
    module = make_autoencoder()
    module(prepare(samples)).total.backward()
    whole = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    for part in (samples[5:], samples[:2], samples[2:5]):
        module(prepare(part)).total.backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad - whole[name]).norm() < 2e-5 * whole[name].norm(), name


@torch.no_grad()
def test_the_same_batch_gives_the_same_loss(
    samples: list[Sample], prepare: Prepare, make_autoencoder: Make
) -> None:
    module, batch = make_autoencoder(), prepare(samples)
    assert torch.equal(module(batch).total, module(batch).total)
    moved = batch.to("cpu")
    assert torch.equal(module(moved).total, module(batch).total)


@torch.no_grad()
def test_without_registers_it_is_the_unguided_loss(
    samples: list[Sample], prepare: Prepare, make_autoencoder: Make
) -> None:
    module = make_autoencoder()
    batch = prepare(samples, replace(MIXED, nested_dropout=NestedDropout(hide_all=1.0)))
    assert torch.equal(module(batch).total, UnguidedDemasker(module.demasker.llada)(batch.texts).total)


@torch.no_grad()
def test_noise_is_added_to_the_registers_and_renormalised_on_demand(
    samples: list[Sample], prepare: Prepare, make_autoencoder: Make
) -> None:
    """What reaches the demasker, seen by a stand-in for it."""
    seen: dict[bool, torch.Tensor] = {}
    batch = prepare(samples)
    for renormalise in (False, True):
        module = make_autoencoder(noise=RegisterNoise(0.8, renormalise))
        module.demasker.forward = lambda texts, z, k, r=renormalise: seen.update({r: z})
        module(batch)
    clean = make_autoencoder().encoder(batch.clean_T, batch.clean, [max(k, 1) for k in batch.k])
    shown = torch.cat([torch.full((max(k, 1),), k > 0) for k in batch.k])
    assert torch.allclose(seen[False], clean[shown] + batch.noise_kD, atol=1e-5)
    assert torch.allclose(seen[True].norm(dim=-1), torch.tensor(D**0.5))
    assert torch.allclose(torch.cosine_similarity(seen[True], seen[False]), torch.tensor(1.0))


def test_the_gradient_reaches_every_part(
    samples: list[Sample], prepare: Prepare, make_autoencoder: Make
) -> None:
    module = make_autoencoder()
    module(prepare(samples)).total.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.norm() > 0, name


def test_a_grown_model_takes_more_registers_and_moves_end_behind_them(
    samples: list[Sample], prepare: Prepare, make_autoencoder: Make
) -> None:
    small, grown = make_autoencoder(K=4), make_autoencoder(K=4)
    grown.grow(8)
    assert grown.demasker.config.K == grown.encoder.K == 8
    unguided = prepare(samples, Corruption(nested_dropout=NestedDropout(hide_all=1.0)))
    assert torch.equal(grown(unguided).total, small(unguided).total)
    whole = prepare(samples, Corruption(nested_dropout=NestedDropout(draw="off")), 8)
    assert set(whole.k) == {8}
    grown(whole).total.backward()
    assert (grown.encoder.suffix.grad.abs().sum(1) > 0).all()
    with pytest.raises(CrocodilError, match="between 1 and K = 4"):
        small(whole)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_hidden_registers_get_a_gradient_of_zero_and_no_engine_waits_for_one(
    k: int, samples: list[Sample], make_autoencoder: Make, tiny_vocabulary: Vocabulary
) -> None:
    module = make_autoencoder()
    module(at_level(samples, tiny_vocabulary, DRAW, 0.5, k, D)).total.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    suffix = module.encoder.suffix.grad.norm(dim=-1)
    assert (suffix[: max(k - 1, 0)] > 0).all() and (suffix[max(k - 1, 0) :] == 0).all()
    if k == 0:
        assert all((parameter.grad == 0).all() for parameter in module.encoder.parameters())


def test_it_trains_under_bf16_autocast(
    samples: list[Sample], prepare: Prepare, make_autoencoder: Make
) -> None:
    module, batch = make_autoencoder(), prepare(samples)
    exact = module(batch).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = module(batch).total
    rounded.backward()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


def test_a_few_steps_learn_a_batch_by_heart(
    samples: list[Sample], make_autoencoder: Make, tiny_vocabulary: Vocabulary
) -> None:
    """All masked, so what the demasker knows of a text it has from the registers."""
    module = make_autoencoder()
    batch = at_level(samples[:4], tiny_vocabulary, DRAW, 1.0, K, D)
    optimiser = torch.optim.AdamW(module.parameters(), lr=5e-3)
    for _ in range(60):
        losses = module(batch)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    guided, blind = module(batch), module(replace(batch, k=(0,) * 4))
    assert guided.entropy_B.mean() < 0.5 < blind.entropy_B.mean() - 0.5
