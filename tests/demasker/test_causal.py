"""A causal model of transformers, taken over: its logits, its shift, and its attention on the way to a demasker's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from crocodil.attention import Segments, attend
from crocodil.demasker import causal
from crocodil.demasker.causal import anneal, is_causal, open_causal
from crocodil.demasker.guided import GuideConfig, GuidedDemasker
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.masking import MaskedTexts
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.demasker.weights import load_llada, save_llada
from crocodil.errors import CrocodilError
from crocodil.text.vocabulary import Vocabulary

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama, tied, a key for each query": (
        LlamaConfig,
        LlamaForCausalLM,
        {"tie_word_embeddings": True, "num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen2, tied": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
}
LENGTHS = (6, 9, 1, 9)
WINDOW = torch.ones(1, 1, 12, 12).tril().bool()


def released(folder: Path, vocabulary: Vocabulary, kind: str = "llama", **changes: Any) -> PreTrainedModel:
    """A tiny causal model of random weights as the hub has it, and its folder."""
    config, network, more = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network(config(**(SIZES | {"vocab_size": vocabulary.size + 7} | more | changes))).eval()
        for name, parameter in model.named_parameters():
            # norms begin at one, biases at zero, and the rest so small that nothing would show
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.save_pretrained(folder)
    vocabulary.save(folder)
    return model


def without(vocabulary: Vocabulary, folder: Path, *words: str) -> None:
    """Write the tokenizer as one that has no token of these roles, as Qwen's has neither BOS nor mask."""
    state = json.loads(vocabulary.tokenizer.to_str())
    state["added_tokens"] = [
        token for token in state["added_tokens"] if not any(word in token["content"] for word in words)
    ]
    Tokenizer.from_str(json.dumps(state)).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "bos_token": None})
    )


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def tokens(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_vocabulary: Vocabulary) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    released(folder, tiny_vocabulary, "qwen2")
    return folder


@pytest.fixture(scope="module")
def demasker(folder: Path) -> UnguidedDemasker:
    return UnguidedDemasker(open_causal(folder)[0])


# --- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_behind_a_causal_mask_it_gives_the_logits_of_transformers(
    kind: str, tmp_path: Path, tiny_vocabulary: Vocabulary
) -> None:
    theirs = released(tmp_path, tiny_vocabulary, kind)
    assert is_causal(tmp_path)
    ours, vocabulary = open_causal(tmp_path)
    assert vocabulary.fingerprint == tiny_vocabulary.fingerprint
    assert ours.config.mask_token_id == tiny_vocabulary.mask_id
    ids = tokens(12)[None]
    wanted = theirs(ids).logits
    assert wanted.std() > 0.5
    assert (ours(ids, attention_bias=WINDOW) - wanted).abs().max() < 1e-5
    assert (ours(ids) - wanted).abs().max() > 0.1  # it is not causal by itself


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_was_taken_over_is_saved_and_loaded_by_the_released_names(
    kind: str, tmp_path: Path, tiny_vocabulary: Vocabulary
) -> None:
    released(tmp_path / "in", tiny_vocabulary, kind)
    ours, _ = open_causal(tmp_path / "in")
    save_llada(ours, tmp_path / "out")
    again = load_llada(tmp_path / "out")
    assert again.config == ours.config and again.config.shift
    assert torch.equal(again(tokens(12)[None]), ours(tokens(12)[None]))
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert ("model.transformer.blocks.1.q_proj.bias" in names) == ("qwen2" in kind)
    assert ("model.transformer.ff_out.weight" in names) == ("tied" not in kind)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["include_qkv_bias"] == ("qwen2" in kind)


def test_a_config_that_does_not_shift_is_as_released(make_llada: Callable[..., LLaDA]) -> None:
    assert "shift" not in make_llada().config.to_dict()
    assert make_llada(shift=True).config.to_dict()["shift"] is True


def test_fresh_biases_are_zero(make_llada: Callable[..., LLaDA]) -> None:
    block = make_llada(include_qkv_bias=True).blocks[0]
    assert all(not projection.bias.any() for projection in (block.q_proj, block.k_proj, block.v_proj))


def test_no_weight_is_in_memory_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Tensor] = []

    def recording(*arguments: Any) -> dict[str, torch.Tensor]:
        tensors = read_tensors(*arguments)
        read.extend(tensors.values())
        return tensors

    read_tensors = causal.read_tensors
    monkeypatch.setattr(causal, "read_tensors", recording)
    llada, _ = open_causal(folder)
    assert {p.data_ptr() for p in llada.parameters()} == {tensor.data_ptr() for tensor in read}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("spare", [0, 1, 7])
def test_bos_and_mask_that_the_tokenizer_lacks_get_rows(
    spare: int, mapped: bool, tmp_path: Path, tiny_vocabulary: Vocabulary
) -> None:
    known = tiny_vocabulary.size - 2
    theirs = released(tmp_path, tiny_vocabulary, "qwen2", vocab_size=known + spare)
    without(tiny_vocabulary, tmp_path, "start", "mask")
    before = (tmp_path / "model.safetensors").read_bytes()
    llada, vocabulary = open_causal(tmp_path, mapped=mapped)
    assert (vocabulary.bos_id, vocabulary.mask_id, vocabulary.size) == (known, known + 1, known + 2)
    assert (llada.config.vocab_size, llada.config.embedding_size) == (
        known + 2,
        max(known + spare, known + 2),
    )
    for ours, matrix in (
        (llada.model.transformer.wte.weight, theirs.get_input_embeddings().weight),
        (llada.head_weight, theirs.get_output_embeddings().weight),
    ):
        assert torch.equal(ours[:known], matrix[:known])
        assert (ours[[known, known + 1]] - matrix[:known].mean(0)).abs().max() < 1e-6
        assert torch.equal(ours[known + 2 :], matrix[known + 2 :])
    assert (tmp_path / "model.safetensors").read_bytes() == before
    vocabulary.save(tmp_path / "tokenizer")
    again = Vocabulary.load(tmp_path / "tokenizer")
    assert again.fingerprint == vocabulary.fingerprint and again.mask_id == vocabulary.mask_id
    assert not again.fresh


def test_a_mask_that_the_tokenizer_has_keeps_its_row(folder: Path) -> None:
    llada, vocabulary = open_causal(folder, torch.bfloat16)
    stored = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(llada.model.transformer.wte.weight, stored.bfloat16())
    assert not vocabulary.fresh


def drop(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors")

    return spoil


def add(name: str, like: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors | {name: tensors[like] + 1}, folder / "model.safetensors")

    return spoil


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


BAD = {
    "another architecture": (config(model_type="gpt2"), "model_type = 'gpt2'.*llama or qwen2"),
    "no architecture": (config(model_type=...), "model_type = None"),
    "another activation": (config(hidden_act="gelu"), "hidden_act = 'gelu'"),
    "biases everywhere": (config(attention_bias=True), "attention_bias = True"),
    "biases in the MLP": (config(mlp_bias=True), "mlp_bias = True"),
    "a window of attention": (config(use_sliding_window=True), "use_sliding_window = True"),
    "scaled positions": (
        config(rope_parameters=None, rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.0}),
        "rope_type = 'linear'",
    ),
    "wide heads": (config(head_dim=16), "4 heads of 16"),
    "no number": (config(hidden_size="x"), "no config of a qwen2 .*hidden_size"),
    "other sizes": (config(intermediate_size=81), "gate_proj.*they are not of one checkpoint"),
    "fewer layers": (config(num_hidden_layers=1, layer_types=["full_attention"]), "has model.layers.1"),
    "a tensor too few": (drop("model.layers.1.self_attn.k_proj.bias"), "lacks model.layers.1.self_attn.k_proj.bias"),
    "a tensor too many": (add("model.extra", "model.norm.weight"), "has model.extra"),
    "a head that is not tied": (config(tie_word_embeddings=True), "set tie_word_embeddings to false"),
    "another tokenizer": (config(vocab_size=100), "tokenizer beside it has ids up to 319, the table 100 rows"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_folder_is_refused_in_one_line(fault: str, tmp_path: Path, tiny_vocabulary: Vocabulary) -> None:
    spoil, message = BAD[fault]
    released(tmp_path, tiny_vocabulary, "qwen2")
    spoil(tmp_path)
    with pytest.raises(CrocodilError, match=message) as error:
        open_causal(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_llada_is_no_causal_model(tmp_path: Path, make_llada: Callable[..., LLaDA]) -> None:
    save_llada(make_llada(), tmp_path / "llada")
    assert not is_causal(tmp_path / "llada") and not is_causal(tmp_path)


# --- the shift ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_position_is_read_before_it_in_its_own_text(demasker: UnguidedDemasker) -> None:
    ids = tokens(sum(LENGTHS))
    states = demasker.hidden(ids, Segments.of(LENGTHS)).split(LENGTHS)
    for state, text in zip(states, ids.split(LENGTHS), strict=True):
        unshifted = demasker.llada.hidden(text[None])[0]
        assert torch.allclose(state[0], unshifted[0], atol=1e-5)
        assert torch.allclose(state[1:], unshifted[:-1], atol=1e-5)


@torch.no_grad()
def test_logits_are_read_there_too(demasker: UnguidedDemasker) -> None:
    ids = tokens(20).reshape(2, 10)
    rows = torch.rand(2, 10, generator=torch.Generator().manual_seed(0)) < 0.5
    unshifted = demasker.llada(ids)
    wanted = torch.cat([unshifted[:, :1], unshifted[:, :-1]], dim=1)
    assert torch.allclose(demasker.logits(ids, rows), wanted[rows], atol=1e-4)


@torch.no_grad()
def test_behind_registers_the_first_of_a_text_is_read_at_itself(make_llada: Callable[..., LLaDA]) -> None:
    ids, segments, k = tokens(15), Segments.of([6, 9]), [2, 0]
    registers = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    states = []
    for shift in (False, True):
        guided = GuidedDemasker(make_llada(shift=shift), GuideConfig(K=4, D=8))
        guided.initialise(torch.Generator().manual_seed(0))
        states.append(guided.hidden(ids, segments, registers, k))
    index = torch.tensor([0, 0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11, 12, 13])
    assert torch.equal(states[1], states[0][index])


@torch.no_grad()
def test_a_masked_token_costs_what_the_next_one_costs_the_causal_model(
    tmp_path: Path, tiny_vocabulary: Vocabulary
) -> None:
    theirs = released(tmp_path, tiny_vocabulary, "qwen2")
    demasker = UnguidedDemasker(open_causal(tmp_path)[0])
    ids, n = tokens(12), 12
    wanted = F.cross_entropy(theirs(ids[None]).logits[0, :-1], ids[1:], reduction="none")
    # one text for each position, in which it alone is masked; the last ones are longer, so that lengths differ
    texts = [ids[: max(i + 1, 8)] for i in range(1, n)]
    masks = [torch.arange(len(text)) == i for i, text in enumerate(texts, start=1)]
    packed = MaskedTexts(
        torch.cat(texts),
        torch.cat(masks),
        torch.ones(n - 1),
        Segments.of([len(text) for text in texts]),
        tiny_vocabulary.mask_id,
    )
    losses = demasker(anneal(packed, 0.0, [torch.Generator().manual_seed(0)] * (n - 1)))
    assert torch.allclose(losses.entropy_B, wanted, atol=1e-5)
    assert not torch.allclose(demasker(packed).entropy_B, wanted, atol=0.1)


# --- the annealing ------------------------------------------------------------------------------------------


def annealed(share: float, lengths: tuple[int, ...] = LENGTHS, first_seed: int = 0) -> Segments:
    return Segments.of(lengths).annealed(share, range(first_seed, first_seed + len(lengths)))


@torch.no_grad()
def test_at_share_0_nothing_flows_backwards(demasker: UnguidedDemasker) -> None:
    ids = tokens(sum(LENGTHS))
    changed = ids.clone()
    changed[6 + 4] += 1  # in the second text
    before, after = (demasker.hidden(x, annealed(0.0)) for x in (ids, changed))
    at = 6 + 4 + 1  # what is there at i is read at i + 1
    assert torch.equal(before[:at], after[:at]) and torch.equal(before[15:], after[15:])
    assert (before[at:15] - after[at:15]).abs().amin(1).amax() > 0
    open_before, open_after = (demasker.hidden(x, annealed(0.5)) for x in (ids, changed))
    assert not torch.equal(open_before[:at], open_after[:at])
    assert torch.equal(open_before[:6], open_after[:6]) and torch.equal(open_before[15:], open_after[15:])


@torch.no_grad()
@pytest.mark.parametrize("share", [1.0, 2.5])
def test_at_share_1_it_is_the_plain_forward(demasker: UnguidedDemasker, share: float) -> None:
    ids = tokens(sum(LENGTHS))
    segments = annealed(share)
    assert segments.annealing is None
    assert torch.equal(demasker.hidden(ids, segments), demasker.hidden(ids, Segments.of(LENGTHS)))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_between_them_a_share_of_all_later_keys_is_open(share: float) -> None:
    (visible,) = annealed(share, (200, 200)).visible
    assert visible.shape == (2, 1, 200, 200)
    later = torch.ones(200, 200).triu(1).bool()
    assert visible[..., ~later].all()
    # 5 standard deviations of 19,900 draws
    assert (visible[..., later].float().mean(-1) - share).abs().max() < 5 * (
        share * (1 - share) / 19_900
    ) ** 0.5
    assert not torch.equal(visible[0], visible[1])


@pytest.mark.parametrize("lengths", [(5, 5, 5), (3, 7, 1, 7), (9,), (4, 0, 6)])
def test_attention_is_that_of_each_text_behind_its_own_mask(lengths: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, sum(lengths), heads, 8, generator=draws).requires_grad_() for heads in (4, 2, 2)
    )
    segments = annealed(0.4, lengths)
    ours = attend(q, k, v, segments)
    parts, places = [], dict.fromkeys(lengths, 0)
    kinds = [n for n in dict.fromkeys(lengths) if n]
    for one_q, one_k, one_v in zip(*(x.split(lengths, dim=1) for x in (q, k, v)), strict=True):
        n = one_q.shape[1]
        if n:
            mask = segments.visible[kinds.index(n)][places[n]][None]
            parts.append(attend(one_q, one_k, one_v, None, visible=mask))
            places[n] += 1
    theirs = torch.cat(parts, dim=1)
    assert (ours - theirs).abs().max() < 1e-6
    for mine, other in zip(
        *(torch.autograd.grad((x**2).sum(), (q, k, v)) for x in (ours, theirs)), strict=True
    ):
        assert (mine - other).abs().max() < 1e-5


@torch.no_grad()
def test_a_text_is_annealed_alike_wherever_it_is_packed(demasker: UnguidedDemasker) -> None:
    ids = tokens(sum(LENGTHS))
    states = demasker.hidden(ids, annealed(0.3)).split(LENGTHS)
    for i, (state, text) in enumerate(zip(states, ids.split(LENGTHS), strict=True)):
        alone = demasker.hidden(text, annealed(0.3, (len(text),), first_seed=i))
        assert torch.allclose(state, alone, atol=1e-5)
    other = demasker.hidden(ids, annealed(0.3, first_seed=4)).split(LENGTHS)
    assert not torch.allclose(states[1], other[1], atol=1e-3)


def test_masked_texts_carry_it_to_where_the_network_is(demasker: UnguidedDemasker) -> None:
    ids, lengths = tokens(15), [6, 9]
    texts = MaskedTexts(
        ids, torch.rand(15) < 2, torch.ones(2), Segments.of(lengths), demasker.llada.config.mask_token_id
    )
    draw = lambda: [torch.Generator().manual_seed(seed) for seed in (5, 6)]  # noqa: E731
    there = anneal(texts, 0.5, draw()).to("cpu")
    assert there.segments.annealing == anneal(texts, 0.5, draw()).segments.annealing
    assert there.segments.annealing is not None and there.segments.annealing.share == 0.5
    loss = demasker(there).total
    assert torch.equal(loss, demasker(anneal(texts, 0.5, draw())).total)
    assert not torch.equal(loss, demasker(texts).total)


def test_activation_checkpointing_sees_the_same_pairs(folder: Path) -> None:
    gradients = []
    for recompute in (False, True):
        demasker = UnguidedDemasker(open_causal(folder)[0])
        demasker.llada.recompute = recompute
        demasker.hidden(tokens(sum(LENGTHS)), annealed(0.5)).square().sum().backward()
        gradients.append(demasker.llada.blocks[0].q_proj.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(("share", "seeds"), [(-0.1, 4), (float("nan"), 4), (0.5, 3)])
def test_what_cannot_be_annealed_is_refused(share: float, seeds: int) -> None:
    with pytest.raises(CrocodilError, match="cannot be annealed"):
        Segments.of(LENGTHS).annealed(share, range(seeds))


def test_registers_are_refused(make_llada: Callable[..., LLaDA]) -> None:
    guided = GuidedDemasker(make_llada(), GuideConfig(K=4, D=8)).initialise()
    with pytest.raises(CrocodilError, match="before it gets registers"):
        guided.hidden(tokens(6), annealed(0.5, (6,)), torch.zeros(0, 8), [0])
