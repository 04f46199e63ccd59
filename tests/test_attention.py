"""Attention over packed rows equals attention over each text alone, by an oracle in float64."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.attention.varlen as varlen

from crocodil.attention import Segments, attend

HEADS, C = 4, 8
LENGTHS = [(5, 5, 5), (3, 7, 1, 7), (9,), (4, 0, 6)]


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Softmax attention (N, H, C) of one text, written out in float64; `visible` (N, N)."""
    q, k, v = q.double(), k.double(), v.double()
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hqk,khc->qhc", scores.masked_fill(~visible, -math.inf).softmax(-1), v)


def oracle(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: tuple[int, ...], causal: bool
) -> torch.Tensor:
    parts = []
    for one_q, one_k, one_v in zip(*(x[0].split(lengths) for x in (q, k, v)), strict=True):
        everything = torch.ones(len(one_q), len(one_q), dtype=torch.bool)
        parts.append(alone(one_q, one_k, one_v, everything.tril() if causal else everything))
    return torch.cat(parts)[None]


def qkv(total: int, kv_heads: int = HEADS, seed: int = 0) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, total, heads, C, generator=draws).requires_grad_()
        for heads in (HEADS, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed_is_each_text_alone_and_so_is_its_gradient(
    lengths: tuple[int, ...], kv_heads: int, causal: bool
) -> None:
    inputs = qkv(sum(lengths), kv_heads)
    ours = attend(*inputs, Segments.of(lengths), causal=causal)
    theirs = oracle(*inputs, lengths, causal)
    assert ours.shape == inputs[0].shape
    assert (ours - theirs).abs().max() < 1e-6
    towards = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for mine, other in zip(
        torch.autograd.grad((ours * towards).sum(), inputs),
        torch.autograd.grad((theirs * towards).sum(), inputs),
        strict=True,
    ):
        assert (mine - other).abs().max() < 1e-5


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_nobody_sees_a_neighbour(lengths: tuple[int, ...], causal: bool) -> None:
    inputs = [x.detach() for x in qkv(sum(lengths))]
    before = attend(*inputs, Segments.of(lengths), causal=causal)
    first = lengths[0]
    changed = [torch.cat([x[:, :first] * 3 + 1, x[:, first:]], dim=1) for x in inputs]
    after = attend(*changed, Segments.of(lengths), causal=causal)
    assert torch.equal(before[:, first:], after[:, first:])
    assert not torch.allclose(before[:, :first], after[:, :first])


def test_causal_attention_does_not_see_what_follows() -> None:
    inputs = [x.detach() for x in qkv(9)]
    before = attend(*inputs, Segments.of([9]), causal=True)
    changed = [torch.cat([x[:, :5], x[:, 5:] + 1], dim=1) for x in inputs]
    assert torch.equal(before[:, :5], attend(*changed, Segments.of([9]), causal=True)[:, :5])


def test_an_ordinary_batch_sees_what_visible_allows() -> None:
    q, k, v = (torch.cat([x.detach(), 2 * x.detach()]) for x in qkv(6, 2))
    visible = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    visible |= torch.eye(6, dtype=torch.bool)
    ours = attend(q, k, v, None, visible=visible)
    for row in range(2):
        assert (ours[row] - alone(q[row], k[row], v[row], visible[row, 0])).abs().max() < 1e-6


@pytest.mark.parametrize("lengths", LENGTHS)
def test_queries_may_come_in_float32_beside_16_bit_values(lengths: tuple[int, ...]) -> None:
    """As under autocast, where the norm of queries and keys leaves them in float32."""
    q, k, v = (x.detach() for x in qkv(sum(lengths)))
    out = attend(q, k, v.bfloat16(), Segments.of(lengths))
    assert out.dtype == torch.bfloat16
    assert (out - oracle(q, k, v, lengths, False)).abs().max() < 0.05


def test_segments_describe_the_row() -> None:
    segments = Segments.of(torch.tensor([3, 0, 2, 3]).tolist())
    assert (segments.total, segments.longest) == (8, 3)
    assert segments.boundaries.tolist() == [0, 3, 3, 5, 8] and segments.boundaries.dtype == torch.int32
    assert sorted(i for group in segments.groups for i in group.flatten().tolist()) == list(range(8))
    assert [group.tolist() for group in segments.groups] == [[[0, 1, 2], [5, 6, 7]], [[3, 4]]]
    assert (Segments.of([]).total, Segments.of([]).longest) == (0, 0)


@pytest.mark.parametrize("causal", [False, True])
def test_the_gpu_kernel_is_asked_for_the_same_attention(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's varlen kernel needs a GPU; that it gets the right arguments does not."""
    signature = inspect.signature(varlen.varlen_attn)

    def stand_in(*args: object, **keywords: object) -> torch.Tensor:
        given = signature.bind(*args, **keywords)
        given.apply_defaults()
        asked = given.arguments
        assert torch.equal(asked["cu_seq_q"], asked["cu_seq_k"]) and asked["max_q"] == asked["max_k"] == 7
        lengths = tuple(asked["cu_seq_q"].diff().tolist())
        look_back = {(-1, -1): False, (-1, 0): True}[asked["window_size"]]
        return oracle(asked["query"][None], asked["key"][None], asked["value"][None], lengths, look_back)[0]

    from crocodil import attention
    from crocodil.attention import _varlen

    monkeypatch.setattr(attention, "_flash_attn", lambda: None)
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    lengths = (3, 7, 1, 7)
    inputs = [x.detach() for x in qkv(sum(lengths), 2)]
    ours = _varlen(*inputs, Segments.of(lengths), causal)
    assert (ours - oracle(*inputs, lengths, causal)).abs().max() < 1e-6


@pytest.mark.parametrize("causal", [False, True])
def test_flash_attn_is_asked_where_it_is_installed(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments as flash_attn 2 names them; heads of keys are not repeated for it."""
    from crocodil import attention

    def stand_in(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, causal=False
    ):  # type: ignore[no-untyped-def]
        assert torch.equal(cu_seqlens_q, cu_seqlens_k) and max_seqlen_q == max_seqlen_k == 7 and not dropout_p
        assert k.shape[1] == v.shape[1] == 2 and cu_seqlens_q.dtype == torch.int32
        return oracle(q[None], k[None], v[None], tuple(cu_seqlens_q.diff().tolist()), causal)[0]

    monkeypatch.setattr(attention, "_flash_attn", lambda: stand_in)
    lengths = (3, 7, 1, 7)
    inputs = [x.detach() for x in qkv(sum(lengths), 2)]
    ours = attention._varlen(*inputs, Segments.of(lengths), causal)
    assert (ours - oracle(*inputs, lengths, causal)).abs().max() < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
@pytest.mark.parametrize("causal", [False, True])
def test_the_gpu_kernel_agrees(causal: bool) -> None:
    lengths = (3, 7, 1, 7)
    inputs = [x.detach().bfloat16() for x in qkv(sum(lengths), 2)]
    ours = attend(*(x.cuda() for x in inputs), Segments.of(lengths, "cuda"), causal=causal)
    assert (ours.cpu() - oracle(*inputs, lengths, causal)).abs().max() < 0.05
