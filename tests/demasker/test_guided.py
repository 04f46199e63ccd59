"""The guided demasker: LLaDA itself without registers, and blind to the registers that are hidden."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from crocodil.attention import Segments
from crocodil.demasker.guided import GuideConfig, GuidedDemasker, Layout
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.masking import MaskedTexts
from crocodil.demasker.rotary import default_local_pairs
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.errors import CrocodilError

K, D, LAYOUTS = 8, 24, ("anchored", "contiguous")
MakeLLaDA = Callable[..., LLaDA]


def guided(
    make_llada: MakeLLaDA, layout: Layout = "anchored", pairs: tuple[int, ...] | None = None
) -> GuidedDemasker:
    demasker = GuidedDemasker(make_llada(), GuideConfig(K, D, layout, pairs))
    return demasker.initialise(torch.Generator().manual_seed(0))


def registers(count: int, seed: int = 0) -> torch.Tensor:
    """(count, D), each of norm √D."""
    z = torch.randn(count, D, generator=torch.Generator().manual_seed(seed))
    return z * (D**0.5 / z.norm(dim=-1, keepdim=True))


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


def dense(demasker: GuidedDemasker, ids: torch.Tensor, z_KD: torch.Tensor, k: int) -> torch.Tensor:
    """All K slots in the row at fixed places, those beyond k hidden by a dense mask; states at the text (N, E)."""
    llada, config = demasker.llada, demasker.config
    N, pairs = len(ids), llada.config.channels // 2
    start, end = demasker.boundaries
    x = torch.cat([start[None], z_KD @ demasker.projection.weight.T, end[None], llada.embed(ids)])
    turn = torch.zeros(K + 2 + N, pairs)
    for pair in range(pairs):
        frequency = llada.config.rope_theta ** (-pair / pairs)
        for slot in range(K + 2):
            where = -1 if config.layout == "anchored" else slot - (K + 2)
            turn[slot, pair] = frequency * (slot if pair in demasker.local_pairs else where)
        turn[K + 2 :, pair] = frequency * torch.arange(N)
    shown = torch.ones(K + 2 + N, dtype=torch.bool)
    shown[1 + k : 1 + K] = False
    visible = shown[None] | torch.eye(K + 2 + N, dtype=torch.bool)
    return llada.run(x[None], turn, None, visible[None, None])[0, K + 2 :]


def alike(left: torch.Tensor, right: torch.Tensor, tolerance: float = 2e-5) -> bool:
    return left.shape == right.shape and bool((left - right).abs().max() < tolerance)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_registers_it_is_llada_bit_for_bit(layout: Layout, make_llada: MakeLLaDA) -> None:
    demasker = guided(make_llada, layout)
    for ids in (tokens(1, 17), tokens(3, 17)):
        plain = demasker.llada(ids)
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        assert torch.equal(demasker.logits(ids, everywhere, None), plain.flatten(0, 1))
        none = registers(0).view(len(ids), 0, D)
        assert torch.equal(demasker.logits(ids, everywhere, none), plain.flatten(0, 1))
    lengths = (5, 9, 9, 3)
    ids, segments = tokens(sum(lengths)), Segments.of(lengths)
    unguided = UnguidedDemasker(demasker.llada).hidden(ids, segments)
    assert torch.equal(demasker.hidden(ids, segments, registers(0), [0] * 4), unguided)


@torch.no_grad()
@pytest.mark.parametrize("k", [0, 1, 3, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_registers_have_no_influence_and_shown_ones_keep_their_positions(
    layout: Layout, k: int, make_llada: MakeLLaDA
) -> None:
    demasker, ids = guided(make_llada, layout), tokens(11)
    ours = demasker.hidden(ids, Segments.of([11]), registers(K)[:k], [k])
    if k == 0:
        assert alike(ours, demasker.llada.hidden(ids[None])[0])
        return
    for seed in (1, 2):  # whatever the hidden ones hold
        z = torch.cat([registers(K)[:k], registers(K, seed)[k:]])
        assert alike(ours, dense(demasker, ids, z, k))


@torch.no_grad()
@pytest.mark.parametrize("pairs", [(), (1, 4), tuple(range(8))])
def test_the_local_pairs_can_be_chosen(pairs: tuple[int, ...], make_llada: MakeLLaDA) -> None:
    demasker, ids = guided(make_llada, pairs=pairs), tokens(11)
    assert demasker.local_pairs == pairs
    ours = demasker.hidden(ids, Segments.of([11]), registers(K)[:3], [3])
    assert alike(ours, dense(demasker, ids, registers(K), 3))


@torch.no_grad()
def test_order_of_registers_is_seen_through_the_local_pairs_alone_when_anchored(
    make_llada: MakeLLaDA,
) -> None:
    ids, z = tokens(11), registers(4)

    def change(demasker: GuidedDemasker) -> float:
        there = demasker.hidden(ids, Segments.of([11]), z, [4])
        back = demasker.hidden(ids, Segments.of([11]), z.flip(0), [4])
        return float((there - back).abs().max())

    assert change(guided(make_llada)) > 1e-2
    assert change(guided(make_llada, pairs=())) < 1e-5
    assert change(guided(make_llada, "contiguous", ())) > 1e-3


@torch.no_grad()
def test_registers_are_heard(make_llada: MakeLLaDA) -> None:
    demasker, ids = guided(make_llada), tokens(11)
    states = [demasker.hidden(ids, Segments.of([11]), registers(2, seed), [2]) for seed in (0, 1)]
    assert (states[0] - states[1]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packing_order_and_company_make_no_difference(layout: Layout, make_llada: MakeLLaDA) -> None:
    demasker = guided(make_llada, layout)
    lengths, ks = (6, 9, 4, 9), (2, 0, 8, 1)
    texts = [tokens(n, seed=i) for i, n in enumerate(lengths)]
    z = [registers(k, seed=i) for i, k in enumerate(ks)]

    def run(order: Sequence[int]) -> dict[int, torch.Tensor]:
        sizes = [lengths[i] for i in order]
        out = demasker.hidden(
            torch.cat([texts[i] for i in order]),
            Segments.of(sizes),
            torch.cat([z[i] for i in order]),
            [ks[i] for i in order],
        )
        return dict(zip(order, out.split(sizes), strict=True))

    together, other = run((0, 1, 2, 3)), run((3, 1, 0, 2))
    for i in range(4):
        assert alike(together[i], other[i]) and alike(together[i], run((i,))[i])


@torch.no_grad()
def test_logits_at_the_asked_positions_in_row_major_order(make_llada: MakeLLaDA) -> None:
    demasker, ids = guided(make_llada), tokens(3, 10)
    z = registers(6).view(3, 2, D)
    rows = torch.rand(3, 10, generator=torch.Generator().manual_seed(0)) < 0.4
    whole = demasker.logits(ids, torch.ones_like(rows), z).view(3, 10, -1)
    assert alike(demasker.logits(ids, rows, z), whole[rows])
    for row in range(3):
        assert alike(
            demasker.logits(ids[row : row + 1], rows[row : row + 1], z[row : row + 1]), whole[row][rows[row]]
        )


def test_boundaries_and_projected_registers_begin_at_the_scale_of_token_embeddings(
    make_llada: MakeLLaDA,
) -> None:
    demasker = GuidedDemasker(make_llada(d_model=128, n_heads=4), GuideConfig(K, D)).initialise()
    scale = demasker.llada.model.transformer.wte.weight.detach().square().mean().sqrt()
    for part in (demasker.boundaries, demasker.projection(registers(200))):
        assert part.detach().square().mean().sqrt() / scale == pytest.approx(1, abs=0.15)


def test_local_pairs_default_to_those_of_the_head_size(make_llada: MakeLLaDA) -> None:
    assert guided(make_llada).local_pairs == default_local_pairs(16)
    with pytest.raises(CrocodilError, match="must name rotary pairs 0…7"):
        guided(make_llada, pairs=(0, 8))


@pytest.mark.parametrize("freeze", [False, True])
def test_the_loss_is_eq_5_on_full_logits_and_so_is_its_gradient(freeze: bool, make_llada: MakeLLaDA) -> None:
    lengths, ks, t = (6, 9, 4), (2, 0, 8), torch.tensor([0.5, 0.25, 1.0])
    demasker = guided(make_llada)
    demasker.llada.requires_grad_(not freeze)
    ids, z = tokens(sum(lengths)), registers(10).requires_grad_()
    is_masked = torch.rand(len(ids), generator=torch.Generator().manual_seed(3)) < 0.5
    is_masked[-4:] = True
    texts = MaskedTexts(ids, is_masked, t, Segments.of(lengths), mask_id=258)
    losses = demasker(texts, z, ks)

    total = torch.zeros(())
    for text, mask, z_kD, level in zip(
        ids.split(lengths), is_masked.split(lengths), z.split(ks), t, strict=True
    ):
        logits = demasker.logits(
            text.masked_fill(mask, 258)[None], torch.ones(1, len(text), dtype=torch.bool), z_kD[None]
        )
        entropy = -logits.log_softmax(-1)[torch.arange(len(text)), text]
        total = total + (entropy * mask).sum() / level / len(text)
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-6)
    assert losses.texts == 3 and losses.masked_B.tolist() == [int(m.sum()) for m in is_masked.split(lengths)]

    trained = [z, *(p for p in demasker.parameters() if p.requires_grad)]
    assert len(trained) == (3 if freeze else 1 + len(list(demasker.parameters())))
    ours = torch.autograd.grad(losses.total, trained)
    theirs = torch.autograd.grad(total, trained)
    assert all((a - b).norm() < 1e-5 * b.norm() for a, b in zip(ours, theirs, strict=True))


def test_every_parameter_is_in_the_graph_when_no_register_shows(make_llada: MakeLLaDA) -> None:
    demasker, ids = guided(make_llada), tokens(6)
    texts = MaskedTexts(ids, torch.ones(6, dtype=torch.bool), torch.ones(1), Segments.of([6]), mask_id=258)
    demasker(texts, registers(0), [0]).total.backward()
    assert all(parameter.grad is not None for parameter in demasker.parameters())
    assert (demasker.boundaries.grad == 0).all() and (demasker.projection.weight.grad == 0).all()


@torch.no_grad()
def test_recomputation_changes_nothing(make_llada: MakeLLaDA) -> None:
    demasker, ids = guided(make_llada), tokens(15)
    gradients = []
    for recompute in (False, True):
        demasker.llada.recompute = recompute
        with torch.enable_grad():
            out = demasker.hidden(ids, Segments.of([6, 9]), registers(3), [2, 1])
            blocks = list(demasker.llada.model.transformer.blocks.parameters())
            gradients.append(torch.autograd.grad(out.square().sum(), blocks))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("shape", "k", "message"),
    [
        ((3, D), [1], "k names 1 texts, the batch has 2"),
        ((9, D), [9, 0], "between 0 and K = 8, not 0…9"),
        ((1, D), [2, -1], "not -1…2"),
        ((3, D), [1, 1], r"registers have shape \(3, 24\), wanted \(2, 24\)"),
        ((2, D + 1), [1, 1], r"shape \(2, 25\), wanted \(2, 24\): Σ k rows of the width"),
    ],
)
def test_registers_that_do_not_fit_are_refused(
    shape: tuple[int, int], k: list[int], message: str, make_llada: MakeLLaDA
) -> None:
    with pytest.raises(CrocodilError, match=message):
        guided(make_llada).hidden(tokens(8), Segments.of([4, 4]), torch.zeros(shape), k)
