"""Gen-PPL and its companions against definitions written out, on judges of random weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from crocodil.errors import CrocodilError
from crocodil.metrics.generation import (
    Judge,
    generative_perplexity,
    open_judge,
    repetition,
    text_features,
    token_entropy,
)
from crocodil.text.vocabulary import Vocabulary

CONTEXT = 11
TEXTS = [
    "x = 1\n",
    "def area(side):\n    return side * side\n" * 2,
    "é",
    "for number in range(10):\n    print(number)\n",
    "x = {'side': 3}",
]


@pytest.fixture(scope="module")
def tokenizer(tiny_vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_vocabulary.tokenizer, bos_token="<|startoftext|>", eos_token="<|endoftext|>"
    )


@pytest.fixture(scope="module")
def llama_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
    )


@pytest.fixture(scope="module")
def save(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`save(model)`: a folder that a judge can be opened from."""

    def to_folder(model: PreTrainedModel) -> Path:
        folder = tmp_path_factory.mktemp("judge")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return to_folder


@pytest.fixture(scope="module")
def judges(
    save: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, llama_config: LlamaConfig
) -> dict[str, Judge]:
    """Rotary positions and learned ones; a head of its own and a tied one."""
    gpt2 = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=0.3
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        folders = {"llama": save(LlamaForCausalLM(llama_config)), "gpt2": save(GPT2LMHeadModel(gpt2))}
    return {name: open_judge(folder) for name, folder in folders.items()}


@pytest.fixture(params=["llama", "gpt2"])
def judge(request: pytest.FixtureRequest, judges: dict[str, Judge]) -> Judge:
    return judges[request.param]


def without_bos(judge: Judge) -> Judge:
    bare = PreTrainedTokenizerFast(tokenizer_object=judge.tokenizer.backend_tokenizer)
    assert bare.bos_token_id is None
    return replace(judge, tokenizer=bare)


def ids_of(text: str, judge: Judge) -> list[int]:
    return judge.tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def surprise(judge: Judge, before: list[int], token: int) -> float:
    """−log p(token | before): one forward for one number, without batch, padding or mask."""
    return -float(judge.model(torch.tensor([before])).logits[0, -1].double().log_softmax(0)[token])


def test_perplexity_is_the_definition_token_by_token(judge: Judge) -> None:
    bos, nats = judge.tokenizer.bos_token_id, []
    for text in TEXTS:
        ids = ids_of(text, judge)
        for i, token in enumerate(ids):
            # a long text goes piece by piece, each behind its own BOS
            start = i - i % (CONTEXT - 1)
            nats.append(surprise(judge, [bos, *ids[start:i]], token))
    score = generative_perplexity(TEXTS, judge)
    assert score.tokens == len(nats) == sum(len(ids_of(text, judge)) for text in TEXTS)
    assert score.nats == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.nats))
    assert score.cut == 2 and score.texts == 5 and score.left_out == 0


def test_without_bos_the_first_token_is_a_condition_only(judge: Judge) -> None:
    judge = without_bos(judge)
    nats = []
    for text in TEXTS:
        ids = ids_of(text, judge)
        for i in range(1, len(ids)):
            start = (i - 1) - (i - 1) % (CONTEXT - 1)
            nats.append(surprise(judge, ids[start:i], ids[i]))
    score = generative_perplexity(TEXTS, judge)
    assert score.tokens == len(nats)
    assert score.nats == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_a_text_of_one_token_needs_a_bos(judge: Judge) -> None:
    assert len(ids_of("x", judge)) == 1
    assert generative_perplexity(["x", "x = 1"], judge).left_out == 0
    assert generative_perplexity(["x", "x = 1"], without_bos(judge)).left_out == 1


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_company_order_and_padding_make_no_difference(judge: Judge, batch_size: int) -> None:
    whole = generative_perplexity(TEXTS, judge)
    other = generative_perplexity(TEXTS[::-1], judge, batch_size)
    for name, value in asdict(whole).items():
        expected = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        assert getattr(other, name) == expected, name


def test_a_judge_that_knows_nothing_has_the_vocabulary_as_perplexity(
    save: Callable[..., Path], llama_config: LlamaConfig
) -> None:
    model = LlamaForCausalLM(llama_config)
    torch.nn.init.zeros_(model.lm_head.weight)
    score = generative_perplexity(TEXTS, open_judge(save(model)))
    assert score.perplexity == pytest.approx(llama_config.vocab_size, rel=1e-5)


def test_a_special_token_that_a_text_spells_is_plain_text(judge: Judge) -> None:
    text = "x<|endoftext|>"
    assert generative_perplexity([text], judge).tokens > len(ids_of(text, judge)) == 2


def test_empty_texts_are_counted_and_left_out(judge: Judge) -> None:
    full, holed = generative_perplexity(TEXTS, judge), generative_perplexity(["", *TEXTS, ""], judge)
    assert holed.left_out == 2 and holed == replace(full, left_out=2)
    features = text_features(["", *TEXTS, ""], judge)
    assert features.left_out == 2
    torch.testing.assert_close(features.features_BE, text_features(TEXTS, judge).features_BE)


@pytest.mark.parametrize("measure", [generative_perplexity, text_features])
def test_nothing_to_judge_is_refused(measure: Callable[..., object], judge: Judge) -> None:
    with pytest.raises(CrocodilError, match="no texts"):
        measure([], judge)
    with pytest.raises(CrocodilError, match="none of 2 texts has a token"):
        measure(["", ""], judge)
    with pytest.raises(CrocodilError, match="batch_size must be at least 1"):
        measure(["x = 1"], judge, 0)


def test_the_companions_are_means_over_texts(judge: Judge) -> None:
    score = generative_perplexity(TEXTS, judge)
    tokens = [ids_of(text, judge) for text in TEXTS]
    assert score.mean_tokens == pytest.approx(sum(map(len, tokens)) / 5)
    assert score.mean_characters == pytest.approx(sum(map(len, TEXTS)) / 5)
    assert score.token_entropy == pytest.approx(sum(map(token_entropy, tokens)) / 5)
    assert score.repetition == pytest.approx(sum(map(repetition, tokens)) / 5) and score.repetition > 0
    assert (score.judge, score.dtype, score.context) == (judge.name, "float32", CONTEXT)


@pytest.mark.parametrize(
    ("ids", "entropy", "repeated"),
    [
        ([7] * 10, 0.0, 6 / 7),
        ([1, 2, 3, 4], math.log(4), 0.0),
        ([1, 2, 1, 2, 1, 2, 1], -(4 / 7) * math.log(4 / 7) - (3 / 7) * math.log(3 / 7), 2 / 4),
        ([1, 1, 2], -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3), 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_entropy_and_repetition_of_hand_counted_texts(
    ids: list[int], entropy: float, repeated: float
) -> None:
    assert token_entropy(ids) == pytest.approx(entropy) and repetition(ids) == pytest.approx(repeated)


@torch.no_grad()
def test_features_are_the_last_state_at_the_last_token(judge: Judge) -> None:
    for batch_size in (1, 3):
        found = text_features(TEXTS, judge, batch_size)
        for text, feature_E in zip(TEXTS, found.features_BE, strict=True):
            ids = torch.tensor([ids_of(text, judge)[:CONTEXT]])
            alone = judge.model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
            torch.testing.assert_close(feature_E, alone, rtol=1e-4, atol=1e-5)
        assert found.left_out == 0 and found.cut == 2


def test_the_record_names_the_arithmetic(judge: Judge) -> None:
    score = generative_perplexity(TEXTS, open_judge(judge.name, dtype=torch.bfloat16))
    assert score.dtype == "bfloat16"
    assert score.nats == pytest.approx(generative_perplexity(TEXTS, judge).nats, rel=0.05)
    assert (
        text_features(TEXTS, open_judge(judge.name, dtype=torch.bfloat16)).features_BE.dtype == torch.float32
    )


def test_a_smaller_context_may_be_asked_for(judge: Judge) -> None:
    score = generative_perplexity(TEXTS, open_judge(judge.name, context=4))
    assert score.context == 4 and score.cut == 4
    assert score.tokens == generative_perplexity(TEXTS, judge).tokens
    for context in (0, 1, CONTEXT + 1):
        with pytest.raises(CrocodilError, match=f"reads 2 to {CONTEXT} positions, not {context}"):
            open_judge(judge.name, context=context)


def test_a_judge_that_is_sure_and_wrong_gives_infinity(judges: dict[str, Judge]) -> None:
    judge = open_judge(judges["llama"].name)
    with torch.no_grad():
        judge.model.get_output_embeddings().weight.mul_(1e6)
    score = generative_perplexity(TEXTS, judge)
    assert score.perplexity == math.inf and math.isfinite(score.nats)


def test_overflow_is_refused(judges: dict[str, Judge]) -> None:
    judge = open_judge(judges["llama"].name)
    with torch.no_grad():
        judge.model.get_input_embeddings().weight.mul_(math.inf)
    with pytest.raises(CrocodilError, match="overflows in float32"):
        generative_perplexity(TEXTS, judge)


def test_a_judge_that_looks_ahead_is_refused(
    save: Callable[..., Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    with pytest.raises(CrocodilError, match="give a causal language model"):
        open_judge(save(BertLMHeadModel(config)))


def test_a_judge_without_its_head_is_refused(save: Callable[..., Path], llama_config: LlamaConfig) -> None:
    with pytest.raises(CrocodilError, match="no weights for lm_head.weight"):
        open_judge(save(LlamaModel(llama_config)))


def test_a_stranger_s_tokenizer_is_refused(
    save: Callable[..., Path], llama_config: LlamaConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    small = LlamaConfig(**{**llama_config.to_dict(), "vocab_size": 40})
    with pytest.raises(CrocodilError, match="its table has 40 rows"):
        generative_perplexity(TEXTS, open_judge(save(LlamaForCausalLM(small))))


def test_pickles_are_not_read(save: Callable[..., Path], llama_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(llama_config)
    folder = save(model)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CrocodilError, match="cannot be loaded as a judge"):
        open_judge(folder)


def test_code_in_the_folder_is_not_run(save: Callable[..., Path], llama_config: LlamaConfig) -> None:
    folder = save(LlamaForCausalLM(llama_config))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {
        "model_type": "stranger",
        "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n", "utf-8")
    with pytest.raises(CrocodilError, match="cannot be loaded as a judge"):
        open_judge(folder)
    assert not (folder / "ran").exists()


def test_a_folder_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CrocodilError, match="cannot be loaded as a judge") as caught:
        open_judge(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
