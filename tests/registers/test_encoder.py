"""The register encoder against transformers' own attention, and what must have no influence on a register."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch

from crocodil.attention import Segments
from crocodil.errors import CrocodilError
from crocodil.registers.encoder import RegisterEncoder
from crocodil.text.vocabulary import Vocabulary

Make = Callable[..., RegisterEncoder]


@pytest.fixture(scope="module")
def texts(tiny_vocabulary: Vocabulary, programs: tuple[str, ...]) -> list[list[int]]:
    """Ids of five texts, two of one length, the last one empty."""
    ids = [tiny_vocabulary.encode(program) for program in programs]
    return [ids[0][:12], ids[1][:12], *ids[2:]]


def encode(
    encoder: RegisterEncoder, texts: Sequence[Sequence[int]], k: int | Sequence[int], **masked: torch.Tensor
) -> list[torch.Tensor]:
    """Registers (k, D) of each text, out of one packed row."""
    ks = [k] * len(texts) if isinstance(k, int) else list(k)
    ids_T = torch.tensor([i for ids in texts for i in ids], dtype=torch.long)
    return list(encoder(ids_T, Segments.of([len(ids) for ids in texts]), ks, **masked).split(ks))


def dense(
    encoder: RegisterEncoder, ids: Sequence[int], is_masked: torch.Tensor | None = None
) -> torch.Tensor:
    """All K registers by transformers' attention: the full sequence, and a causal mask that hides some positions."""
    backbone = copy.deepcopy(encoder.backbone)
    backbone.set_attn_implementation("sdpa")
    tokens = backbone.embed_tokens(torch.tensor([*ids, encoder.eos_id]))
    whole = torch.cat([tokens, encoder.suffix])[None]
    L = whole.shape[1]
    visible = torch.ones(L, L, dtype=torch.bool).tril()
    if is_masked is not None:
        visible[:, : len(ids)] &= ~is_masked
    positions = torch.arange(L)
    if encoder.suffix_from is not None:
        positions[len(ids) + 1 :] += encoder.suffix_from - len(ids) - 1
    bias = torch.zeros(L, L).masked_fill(~visible, torch.finfo(torch.float32).min)
    out = backbone(
        inputs_embeds=whole,
        attention_mask=bias[None, None],
        position_ids=positions[None],
        use_cache=False,
    ).last_hidden_state[0, len(ids) :]
    return out * (encoder.D**0.5 / out.norm(dim=-1, keepdim=True))


def close(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor], tolerance: float = 2e-5) -> bool:
    return all((a - b).abs().max() < tolerance for a, b in zip(left, right, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("K", [1, 2, 8])
def test_registers_are_the_states_at_eos_and_the_suffix(
    K: int, make_encoder: Make, texts: list[list[int]]
) -> None:
    encoder = make_encoder(K)
    assert close(encode(encoder, texts, K), [dense(encoder, ids) for ids in texts])


@torch.no_grad()
def test_the_suffix_may_stand_at_one_place_whatever_the_length(
    make_encoder: Make, texts: list[list[int]]
) -> None:
    after, fixed = make_encoder(8), make_encoder(8)
    fixed.suffix_from = 13  # straight after EOS for a text of 12 tokens
    masks = [torch.arange(len(ids)) % 3 == 0 for ids in texts]
    assert close(encode(fixed, texts, 8), [dense(fixed, ids) for ids in texts])
    assert close(
        encode(fixed, texts, 8, is_masked_T=torch.cat(masks)),
        [dense(fixed, ids, mask) for ids, mask in zip(texts, masks, strict=True)],
    )
    for ids, ours, plain in zip(texts, encode(fixed, texts, 8), encode(after, texts, 8), strict=True):
        assert close([ours[:1]], [plain[:1]])  # the summary is the sentence embedding either way
        assert close([ours], [plain]) == (len(ids) == 12)


@torch.no_grad()
def test_a_grown_encoder_writes_what_it_wrote_and_more(make_encoder: Make, texts: list[list[int]]) -> None:
    encoder = make_encoder(4)
    before = encode(encoder, texts, 4)
    encoder.grow(16)
    assert encoder.K == 16 and encoder.suffix.requires_grad
    assert close([z[:4] for z in encode(encoder, texts, 16)], before)
    assert close(encode(encoder, texts, 16), [dense(encoder, ids) for ids in texts])
    for K in (16, 8, 24):
        with pytest.raises(CrocodilError, match=r"does not grow to|power of two"):
            encoder.grow(K)
    with pytest.raises(CrocodilError, match="does not grow"):
        make_encoder(1).grow(2)


@torch.no_grad()
def test_fewer_registers_are_the_first_of_more(make_encoder: Make, texts: list[list[int]]) -> None:
    encoder = make_encoder(8)
    whole = encode(encoder, texts, 8)
    for k in (1, 3, 7):
        assert close(encode(encoder, texts, k), [z[:k] for z in whole])
    ks = [1, 8, 2, 5, 3]
    assert close(encode(encoder, texts, ks), [z[:k] for k, z in zip(ks, whole, strict=True)])


@torch.no_grad()
def test_a_text_s_registers_do_not_depend_on_its_company(make_encoder: Make, texts: list[list[int]]) -> None:
    encoder = make_encoder()
    together = encode(encoder, texts, 4)
    assert close(together, [encode(encoder, [ids], 4)[0] for ids in texts])
    assert close(together, encode(encoder, texts[::-1], 4)[::-1])
    others = [texts[0], *[[i + 1 for i in ids] for ids in texts[1:]]]
    assert close(encode(encoder, others, 4)[:1], together[:1], 1e-6)


@torch.no_grad()
def test_the_text_matters(make_encoder: Make, texts: list[list[int]]) -> None:
    first, second = encode(make_encoder(), texts[:2], 4)
    assert (first - second).norm(dim=-1).min() > 0.1


@torch.no_grad()
def test_every_register_has_norm_sqrt_d(make_encoder: Make, texts: list[list[int]]) -> None:
    encoder = make_encoder()
    assert encoder.register_norm == pytest.approx(24**0.5)
    for z in encode(encoder, texts, 4):
        assert torch.allclose(z.norm(dim=-1), torch.tensor(encoder.register_norm))


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_masked_positions_are_hidden_and_the_others_keep_their_places(
    share: float, make_encoder: Make, texts: list[list[int]]
) -> None:
    encoder = make_encoder()
    draws = torch.Generator().manual_seed(0)
    masks = [torch.rand(len(ids), generator=draws) < share for ids in texts]
    ours = encode(encoder, texts, 4, is_masked_T=torch.cat(masks))
    assert close(ours, [dense(encoder, ids, mask) for ids, mask in zip(texts, masks, strict=True)])
    # what stands under the mask has no influence at all
    changed = [
        torch.where(
            mask, (torch.tensor(ids, dtype=torch.long) + 7) % 256, torch.tensor(ids, dtype=torch.long)
        )
        for ids, mask in zip(texts, masks, strict=True)
    ]
    again = encode(encoder, [ids.tolist() for ids in changed], 4, is_masked_T=torch.cat(masks))
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@torch.no_grad()
def test_hiding_is_not_cutting(make_encoder: Make, texts: list[list[int]]) -> None:
    """The same tokens closed up stand at other positions and give other registers."""
    encoder, ids = make_encoder(), texts[0]
    hole = torch.zeros(len(ids), dtype=torch.bool)
    hole[2:6] = True
    masked = encode(encoder, [ids], 4, is_masked_T=hole)
    assert not close(masked, encode(encoder, [ids[:2] + ids[6:]], 4), 1e-3)


@torch.no_grad()
def test_layer_norm_scale_is_the_ablation(make_encoder: Make, texts: list[list[int]]) -> None:
    plain, scaled = make_encoder(), make_encoder(scale="layer_norm")
    expected = [
        torch.nn.functional.layer_norm(z, (24,), eps=0) for z in encode(plain, texts, 4)
    ]  # the √D scaling before it makes no difference to a LayerNorm
    assert close(encode(scaled, texts, 4), expected, 1e-3)
    assert scaled.norm is not None
    scaled.norm.weight.mul_(2)
    scaled.norm.bias.add_(1)
    assert close(encode(scaled, texts, 4), [2 * z + 1 for z in expected], 2e-3)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_every_parameter_is_in_the_graph_and_hidden_suffixes_get_zero(
    k: int, make_encoder: Make, texts: list[list[int]]
) -> None:
    encoder = make_encoder()
    z = torch.cat(encode(encoder, texts, k))
    (z * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    rows = encoder.suffix.grad.norm(dim=-1)
    assert (rows[: k - 1] > 1e-6).all() and (rows[k - 1 :] == 0).all()


def test_the_row_of_eos_is_trained(make_encoder: Make) -> None:
    """Even where a config calls EOS the padding, whose row torch would leave as it is."""
    made = make_encoder()
    assert made.backbone.embed_tokens.weight[made.eos_id].norm() > 0.1
    made.backbone.embed_tokens.padding_idx = made.eos_id
    encoder = RegisterEncoder(made.backbone, 4, made.eos_id)
    (z,) = encode(encoder, [[]], 4)
    z.square()[:, 0].sum().backward()
    assert encoder.backbone.embed_tokens.weight.grad[made.eos_id].norm() > 1e-6


def test_suffix_embeddings_start_at_the_scale_of_the_table(make_encoder: Make) -> None:
    encoder = make_encoder()
    table = encoder.backbone.embed_tokens.weight.detach()
    assert encoder.suffix.detach().std() == pytest.approx(float(table.square().mean().sqrt()), rel=0.3)


@pytest.mark.parametrize("lengths", [(6, 6), (5, 7)])
def test_it_runs_under_bf16_autocast(lengths: tuple[int, int], make_encoder: Make) -> None:
    encoder = make_encoder()
    ids = torch.randint(0, 256, (12,), generator=torch.Generator().manual_seed(0))
    exact = encoder(ids, Segments.of(lengths), [2, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = encoder(ids, Segments.of(lengths), [2, 4])
    assert torch.cosine_similarity(exact, rounded.float()).min() > 0.99
    rounded.float().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("k", "message"),
    [
        ([1], "k names 1 texts, the batch has 2"),
        ([0, 1], "between 1 and K = 4, not 0…1"),
        ([1, 5], "not 1…5"),
    ],
)
def test_other_k_are_refused(k: list[int], message: str, make_encoder: Make) -> None:
    with pytest.raises(CrocodilError, match=message):
        make_encoder()(torch.zeros(4, dtype=torch.long), Segments.of([2, 2]), k)


@pytest.mark.parametrize("K", [0, 3, 12])
def test_other_numbers_of_registers_are_refused(K: int, make_encoder: Make) -> None:
    with pytest.raises(CrocodilError, match="power of two"):
        make_encoder(K)


def test_recomputed_layers_give_the_same_gradients_from_less_memory(
    make_encoder: Make, texts: list[list[int]]
) -> None:
    """What autograd keeps for the backward is counted in bytes."""
    grads, kept = [], []
    for recompute in (False, True):
        encoder = make_encoder()
        encoder.train()
        if recompute:
            encoder.recompute()
        held: dict[int, int] = {}

        def keep(tensor: torch.Tensor, held: dict[int, int] = held) -> torch.Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sum(z.square().sum() * (i + 1) for i, z in enumerate(encode(encoder, texts, 4)))
        # the sum of squares is fixed by the norm, so a direction is asked for
        loss = sum(z[:, 0].sum() for z in encode(encoder, texts, 4)) + 0 * loss
        loss.backward()
        kept.append(sum(held.values()))
        grads.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert kept[1] < 0.6 * kept[0]
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 10
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], rtol=1e-4, atol=1e-6), name
