"""What a plan says of activations, against tensors that were alive in a real forward and backward."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import crocodil.demasker.loss as loss_module
from crocodil import adapters
from crocodil.adapters import LoraSettings
from crocodil.autoencoder import Autoencoder
from crocodil.demasker.loss import VocabularyHead
from crocodil.joint import DemaskerRecipe, blueprint, family
from crocodil.plan.activations import (
    ADAPTED,
    AUTOCAST,
    FLOAT,
    FLOAT32,
    PURE,
    Learning,
    Precision,
    demasker_kept,
    encoder_kept,
    layer_at_work,
    llada_layer,
    loss_at_work,
    qwen3_layer,
)
from crocodil.plan.released import LLADA_8B, qwen3_embedding
from crocodil.plan.rows import Row
from tests.plan.live import K, Live, batch_of, encoder_config, llada_config, network, row_of

EVEN, MIXED = [64] * 6, [40, 88, 100, 60, 64, 32]
LLADA, QWEN = llada_config(layers=3), encoder_config(layers=2)
PRECISIONS = {"pure": PURE, "autocast": AUTOCAST, "float32": FLOAT32, "adapted": ADAPTED}
THIN = LoraSettings(rank=4, demasker=("q_proj", "v_proj", "ff_out"))


def measured(
    name: str, lengths: Sequence[int], recompute: bool, frozen: bool, lora: LoraSettings | None
) -> tuple[int, int]:
    """Bytes alive after a forward, and the most in forward and backward; gradients are let go as they come."""
    module = network(LLADA, QWEN)
    module.demasker.llada.recompute = recompute
    if recompute:
        module.encoder.recompute()
    if lora:
        adapters.inject(module, lora, 0, torch.bfloat16 if name == "adapted" else None)
    else:
        for title, parameter in module.named_parameters():
            parameter.requires_grad_(not frozen or family(title) == "guide")
    if name == "pure":
        module = module.to(torch.bfloat16)
    batch = batch_of(lengths, K, 32)
    casting = torch.autocast("cpu", torch.bfloat16) if name in ("autocast", "adapted") else nullcontext()
    with Live() as live:
        ignore_weights(live, module)
        with casting:
            losses = module(batch)
        after = live.now
        losses.total.backward()
    return after, live.peak


def ignore_weights(live: Live, module: Autoencoder) -> None:
    for parameter in module.parameters():
        live.ignore(parameter)
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))


def planned(
    precision: Precision, lengths: Sequence[int], recompute: bool, frozen: bool, lora: LoraSettings | None
) -> tuple[int, int]:  # fmt: skip
    """The same, by the formulas."""
    llada, qwen, row = LLADA, QWEN, row_of(lengths, K)
    reads = writes = Learning(True)
    if lora:
        # a dropout mask on a CPU is as wide as what it masks
        options = (lora.rank, lora.dropout > 0, 2 if precision is PURE else FLOAT)
        reads, writes = Learning(False, lora.encoder, *options), Learning(False, lora.demasker, *options)
    elif frozen:
        writes = Learning(False)
    reading = encoder_kept(row, qwen, precision, reads, recompute)
    kept = reading + demasker_kept(row, llada, precision, writes, recompute)
    after = kept + precision.stream * row.tokens * llada.d_model  # the gradient of the hidden states
    after += FLOAT * llada.embedding_size * llada.d_model if writes.weights else 0  # and of the head
    work = [
        kept + loss_at_work(row, llada, precision, writes.weights, recompute, writes, "cpu"),
        kept + layer_at_work(row.positions, llada_layer(llada), precision, writes, recompute),
        reading + layer_at_work(row.clean, qwen3_layer(qwen), precision, reads, recompute),
    ]
    return after, max(work)


LORAS = {"lora": LoraSettings(rank=4), "thin lora": THIN, "dropout": LoraSettings(rank=4, dropout=0.1)}
CASES = [
    *((name, what) for name in ("pure", "autocast", "float32") for what in ("all", "frozen")),
    *((name, what) for name in ("pure", "adapted", "float32") for what in LORAS),
]
"""Under autocast what lies under adapters is 16 bit, so there is no autocast over float32 with them."""


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("name", "what"), CASES)
def test_a_forward_keeps_what_the_plan_says(name: str, what: str, recompute: bool) -> None:
    case = (EVEN, recompute, what == "frozen", LORAS.get(what))
    found, said = measured(name, *case), planned(PRECISIONS[name], *case)
    assert said[0] == pytest.approx(found[0], rel=0.1 if recompute else 0.01)
    assert said[1] == pytest.approx(found[1], rel=0.1)


@pytest.mark.parametrize("name", ["pure", "autocast"])
def test_texts_of_different_lengths_in_a_row_keep_no_more(name: str) -> None:
    """On a CPU attention of a mixed row copies its result, which the kernel of a GPU does not."""
    for recompute in (False, True):
        found = measured(name, MIXED, recompute, False, None)
        assert planned(PRECISIONS[name], MIXED, recompute, False, None) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("name", ["pure", "autocast"])
def test_the_loss_takes_what_the_plan_says(name: str, learns: bool) -> None:
    """A vocabulary and a width at which the head's gradient and its product weigh as much as a chunk of logits."""
    config, rows = dataclasses.replace(llada_config(512), embedding_size=4000), 256
    dtype = torch.bfloat16 if name == "pure" else torch.float32
    head = VocabularyHead(512, 4000, bias=False, dtype=dtype)
    head.weight.requires_grad_(learns)
    casting = torch.autocast("cpu", torch.bfloat16) if name == "autocast" else nullcontext()
    with Live() as live:
        live.ignore(head.weight)
        hidden = torch.randn(rows, 512, dtype=dtype, requires_grad=True)
        with casting:
            head(hidden[torch.arange(rows)], torch.zeros(rows, dtype=torch.long), torch.ones(rows))
    counted = loss_at_work(Row(1, rows, 0, 0), config, PRECISIONS[name], learns, device="cpu")
    if not learns:
        # logsumexp's own copy is not seen, and then gradients in 16 bits are the most beside the logits
        counted -= (FLOAT - 2) * rows * 4000
    assert counted == pytest.approx(live.peak, rel=0.03 if learns else 0.08)


@pytest.mark.parametrize(
    ("recompute", "frozen"),
    [
        (True, False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(False, False), (True, True)]),
    ],
)
def test_the_released_sizes_agree_with_a_trace_of_them(
    recompute: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaDA-8B and Qwen3-Embedding on a row of 16,384 tokens, run without memory: every operator gives shapes alone."""
    monkeypatch.setitem(loss_module.CHUNK_LOGITS, "cpu", loss_module.CHUNK_LOGITS["cuda"])
    lengths, qwen = [4096] * 4, qwen3_embedding(LLADA_8B.vocab_size)
    module = blueprint(DemaskerRecipe(K=128), LLADA_8B, qwen).train()
    module.demasker.llada.recompute = recompute
    if recompute:
        module.encoder.recompute()
    with FakeTensorMode():
        for layer in module.modules():
            for own, dtype in ((layer._parameters, torch.bfloat16), (layer._buffers, None)):
                for name, tensor in own.items():
                    if tensor is not None:
                        made = torch.empty(tensor.shape, dtype=dtype or tensor.dtype)
                        own[name] = torch.nn.Parameter(made) if dtype else made
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not frozen or family(name) == "guide")
        batch = batch_of(lengths, 128, 1024)
        with Live() as live:
            ignore_weights(live, module)
            z = module.encoder(batch.clean_T, batch.clean, batch.k)
            z = z + batch.noise_kD.to(z.dtype)
            hidden = module.demasker.hidden(batch.texts.visible_T, batch.texts.segments, z, batch.k)
            # what is masked is not known without values: here it is all
            masked = hidden.clone()
            score = module.demasker.llada.score(masked, batch.texts.ids_T, torch.ones(len(masked)))
            del z, hidden, masked
            score.total.backward()
    row, writes = row_of(lengths, 128), Learning(not frozen)
    kept = encoder_kept(row, qwen, PURE, Learning(True), recompute) + demasker_kept(
        row, LLADA_8B, PURE, writes, recompute
    )
    block = layer_at_work(row.positions, llada_layer(LLADA_8B), PURE, writes, recompute)
    loss = loss_at_work(row, LLADA_8B, PURE, not frozen, recompute, writes)
    assert kept + max(block, loss) == pytest.approx(live.peak, rel=0.04)
    assert live.peak > 8e9
