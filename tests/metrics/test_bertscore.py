"""BERTScore against its definition written out, on encoders of random weights, and what must be true of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from crocodil.errors import CrocodilError
from crocodil.metrics import bertscore as module
from crocodil.metrics.bertscore import (
    CODE_BERT_SCORE,
    Scorer,
    bert_score,
    f_measure,
    greedy_match,
    idf_of,
    open_scorer,
    pieces,
)

CONTEXT = 16
PREDICTIONS = [
    "x = 1",
    "def area(side):\n    return side * side\n\n\ndef volume(side):\n    return side * area(side)",
    "for number in range(10):\n    print(number)",
    "x = {'side': 3}",
    "é",
]
REFERENCES = [
    "x = 2",
    "def area(width, height):\n    return width * height",
    "for number in range(10):\n    print(number)",
    "def f(side):\n    if side > 3:\n        return {'side': side}\n    return {'side': 3}",
    "y",
]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
SCORES = ("precision_B", "recall_B", "f1_B", "f3_B")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """As RoBERTa's: <s> before a text and </s> behind it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "<pad>", "</s>", "<mask>"]
    bpe.train_from_iterator(
        PREDICTIONS + REFERENCES,
        trainers.BpeTrainer(
            vocab_size=285, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, cls_token="<s>", pad_token="<pad>", sep_token="</s>", mask_token="<mask>"
    )


@pytest.fixture(scope="module")
def save(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`save(model)`: a folder that a scorer can be opened from."""

    def to_folder(model: PreTrainedModel) -> Path:
        folder = tmp_path_factory.mktemp("encoder")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return to_folder


@pytest.fixture(scope="module")
def folders(save: Callable[..., Path], tokenizer: PreTrainedTokenizerFast) -> dict[str, Path]:
    """Learned positions, the same behind a padding row and without a pooler, and rotary ones that look back only."""
    V = len(tokenizer)
    roberta = RobertaConfig(vocab_size=V, max_position_embeddings=CONTEXT + 2, pad_token_id=1, **SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "bert": save(BertModel(BertConfig(vocab_size=V, max_position_embeddings=CONTEXT, **SIZES))),
            "roberta": save(RobertaForMaskedLM(roberta)),
            "llama": save(
                LlamaForCausalLM(LlamaConfig(vocab_size=V, max_position_embeddings=CONTEXT, **SIZES))
            ),
        }


@pytest.fixture(scope="module")
def scorers(folders: dict[str, Path]) -> dict[str, Scorer]:
    return {name: open_scorer(folder, layer=2) for name, folder in folders.items()}


@pytest.fixture(params=["bert", "roberta", "llama"])
def scorer(request: pytest.FixtureRequest, scorers: dict[str, Scorer]) -> Scorer:
    return scorers[request.param]


def ids_of(text: str, scorer: Scorer) -> list[int]:
    return scorer.tokenizer(text.strip())["input_ids"]


@torch.no_grad()
def states_of(text: str, scorer: Scorer) -> list[list[float]]:
    """Every token's state from its piece alone, without batch, padding or mask; <s> and </s> left out."""
    ids, rows = ids_of(text, scorer), []
    for piece in pieces(len(ids), scorer.context):
        found = scorer.model(torch.tensor([ids[piece.start : piece.stop]]), output_hidden_states=True)
        rows += found.hidden_states[scorer.layer][0, piece.first - piece.start : piece.last - piece.start]
    return [row.tolist() for row in rows[1:-1]]


def cosine(a: list[float], b: list[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def by_definition(prediction: list[list[float]], reference: list[list[float]]) -> tuple[float, float]:
    """Equation 1, word for word."""
    precision = sum(max(cosine(p, r) for r in reference) for p in prediction) / len(prediction)
    recall = sum(max(cosine(p, r) for p in prediction) for r in reference) / len(reference)
    return precision, recall


def test_it_is_the_definition_token_by_token(scorer: Scorer) -> None:
    score = bert_score(PREDICTIONS, REFERENCES, scorer)
    for b, (prediction, reference) in enumerate(zip(PREDICTIONS, REFERENCES, strict=True)):
        P, R = by_definition(states_of(prediction, scorer), states_of(reference, scorer))
        assert [float(getattr(score, name)[b]) for name in SCORES] == pytest.approx(
            [P, R, 2 * P * R / (P + R), 10 * P * R / (9 * P + R)], rel=1e-5
        )
    long = sum(len(ids_of(text, scorer)) > CONTEXT for text in PREDICTIONS + REFERENCES)
    assert score.chunked == long > 2 and score.empty == 0


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_company_order_and_padding_make_no_difference(scorer: Scorer, batch_size: int) -> None:
    whole = bert_score(PREDICTIONS, REFERENCES, scorer)
    other = bert_score(PREDICTIONS[::-1], REFERENCES[::-1], scorer, batch_size)
    for name, value in asdict(whole).items():
        if name in SCORES:
            torch.testing.assert_close(getattr(other, name).flip(0), value, rtol=1e-5, atol=1e-6)
        else:
            expected = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert getattr(other, name) == expected, name


def test_a_text_is_itself(scorer: Scorer) -> None:
    score = bert_score(PREDICTIONS, PREDICTIONS, scorer)
    for name in SCORES:
        torch.testing.assert_close(getattr(score, name), torch.ones(5, dtype=torch.float64))
        assert (getattr(score, name) <= 1).all()
    assert score.f1 == pytest.approx(1) and score.f3 == pytest.approx(1)


def test_texts_that_differ_score_less(scorer: Scorer) -> None:
    score = bert_score(PREDICTIONS, REFERENCES, scorer)
    assert score.f1_B[2] == pytest.approx(1) and (score.f1_B[[0, 1, 3, 4]] < 0.999).all()


def test_sides_that_change_places_swap_precision_and_recall(scorer: Scorer) -> None:
    idf = idf_of(REFERENCES, scorer)
    for weights in (None, idf):
        one = bert_score(PREDICTIONS, REFERENCES, scorer, idf=weights)
        other = bert_score(REFERENCES, PREDICTIONS, scorer, idf=weights)
        torch.testing.assert_close(one.precision_B, other.recall_B, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.f1_B, other.f1_B, rtol=1e-6, atol=1e-6)


def test_the_record_holds_means_and_settings(scorer: Scorer) -> None:
    score = bert_score(PREDICTIONS, REFERENCES, scorer)
    for name in SCORES:
        assert getattr(score, name).dtype == torch.float64
        assert getattr(score, name.removesuffix("_B")) == pytest.approx(float(getattr(score, name).mean()))
    assert (score.scorer, score.layer, score.dtype, score.context) == (scorer.name, 2, "float32", CONTEXT)
    assert score.punctuation and not score.weighted


# --- matching ---


def test_hand_made_states() -> None:
    """Three tokens against two: the third matches the first best, whatever its length."""
    prediction_NE = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    reference_ME = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert greedy_match(prediction_NE, reference_ME) == pytest.approx(((1 + 0 + 0.6) / 3, (1 + 0) / 2))
    assert greedy_match(reference_ME, prediction_NE) == pytest.approx((1 / 2, 1.6 / 3))
    weight_N, weight_M = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([3.0, 1.0])
    assert greedy_match(prediction_NE, reference_ME, weight_N, weight_M) == pytest.approx((2.2 / 4, 3 / 4))
    # weights of nothing are no weights
    assert greedy_match(prediction_NE, reference_ME, torch.zeros(3)) == pytest.approx((1.6 / 3, 1 / 2))


def test_limits() -> None:
    one, far, none = torch.eye(3)[:1], -torch.eye(3)[:1], torch.empty(0, 3)
    assert greedy_match(one, one) == (1, 1) and greedy_match(one, far) == (-1, -1)
    assert greedy_match(none, none) == (1, 1)
    assert greedy_match(none, one) == greedy_match(one, none) == (0, 0)


def test_chunks_of_similarities_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction_NE, reference_ME = (torch.randn(n, 8, generator=generator) for n in (23, 17))
    expected = by_definition(prediction_NE.tolist(), reference_ME.tolist())
    for size in (1, 17, 18, 50, 10_000):
        monkeypatch.setattr(module, "CHUNK_SIMILARITIES", size)
        assert greedy_match(prediction_NE, reference_ME) == pytest.approx(expected)


def test_f_measures() -> None:
    P, R = torch.tensor([1.0, 0.5, 0.5, 0.0, -0.2]).double(), torch.tensor([1.0, 0.5, 1.0, 0.0, 0.2]).double()
    torch.testing.assert_close(f_measure(P, R), torch.tensor([1, 0.5, 2 / 3, 0, 0]).double())
    # recall counts nine times: 10 / (1/P + 9/R)
    torch.testing.assert_close(f_measure(P, R, beta=3), torch.tensor([1, 0.5, 10 / 11, 0, 0]).double())


# --- what is matched ---


def test_empty_texts_are_defined_and_counted(scorer: Scorer) -> None:
    score = bert_score(["", "x = 1", " \n", "x = 1"], ["\n", "", "x = 1", "x = 1"], scorer)
    for name in SCORES:
        assert getattr(score, name).tolist() == pytest.approx([1, 0, 0, 1])
    assert score.empty == 3


def test_blanks_around_a_text_are_not_read(scorer: Scorer) -> None:
    plain = bert_score(PREDICTIONS, REFERENCES, scorer)
    blank = bert_score([f"\n  {text}\n" for text in PREDICTIONS], REFERENCES, scorer)
    torch.testing.assert_close(plain.f1_B, blank.f1_B)


def test_a_special_token_that_a_text_spells_is_plain_text(scorer: Scorer) -> None:
    end = scorer.tokenizer.sep_token_id
    assert end in ids_of("x</s>", scorer)[1:-1]
    (tokens,) = module._tokenise(["x</s>"], scorer)
    assert tokens.ids[-1] == end and end not in tokens.ids[1:-1]
    assert tokens.matched == tuple(range(1, len(tokens.ids) - 1))


@pytest.mark.parametrize(
    ("token", "punctuation"),
    [("(", True), ("):", True), ("\n    ", True), (" =", True), ("'", True), ("_", True), ("", True),
     ("*", False), (" +=", False), ("x", False), (" x", False), ("(x", False), ("1", False), ("é", False), ("«", False)],
)  # fmt: skip
def test_punctuation(token: str, punctuation: bool) -> None:
    assert module._is_punctuation(token) == punctuation


def test_punctuation_may_be_read_without_being_matched(folders: dict[str, Path]) -> None:
    folder = folders["roberta"]
    scorer = open_scorer(folder, layer=2, punctuation=False)
    words = {}
    for text in ("f(x)", "g((x))"):
        tokens = scorer.tokenizer.convert_ids_to_tokens(ids_of(text, scorer))[1:-1]
        states = states_of(text, scorer)
        words[text] = [state for state, token in zip(states, tokens, strict=True) if set(token) - set("()")]
        assert len(words[text]) == 2 < len(states)
    score = bert_score(["f(x)"], ["g((x))"], scorer)
    P, R = by_definition(*words.values())
    assert (score.precision, score.recall) == pytest.approx((P, R), rel=1e-5)
    # its brackets are what surrounds x
    assert score.f1 != pytest.approx(bert_score(["f x"], ["g x"], scorer).f1, rel=1e-4)
    assert bert_score(["()"], ["x"], scorer).empty == 1 and not score.punctuation


def test_idf_counts_texts(scorer: Scorer) -> None:
    idf = idf_of(["x\nx", "x", "y"], scorer)
    x, y, z = (ids_of(letter, scorer)[1] for letter in "xyz")
    assert ids_of("x\nx", scorer).count(x) == 2
    assert idf.texts == 3
    assert [idf.weight(id) for id in (x, y, z)] == pytest.approx(
        [math.log(4 / 3), math.log(4 / 2), math.log(4)]
    )


def test_idf_weighs_tokens(scorer: Scorer) -> None:
    idf = idf_of(REFERENCES, scorer)
    score = bert_score(PREDICTIONS, REFERENCES, scorer, idf=idf)
    assert score.weighted
    for b, texts in enumerate(zip(PREDICTIONS, REFERENCES, strict=True)):
        prediction, reference = (states_of(text, scorer) for text in texts)
        weight = [idf.weight(id) for id in ids_of(texts[1], scorer)[1:-1]]
        best = [max(cosine(p, r) for p in prediction) for r in reference]
        recall = sum(w * c for w, c in zip(weight, best, strict=True)) / sum(weight)
        assert float(score.recall_B[b]) == pytest.approx(recall, rel=1e-5)


# --- long texts ---


@pytest.mark.parametrize("context", [4, 5, 16, 17, 512])
def test_every_token_is_kept_once_with_company_on_both_sides(context: int) -> None:
    margin = context // 4
    for length in {0, 1, context - 1, context, context + 1, context + margin, 3 * context, 5 * context + 3}:
        read = list(pieces(length, context))
        assert read[0].first == 0 and read[-1].last == read[-1].stop == length
        assert all(a.last == b.first for a, b in zip(read, read[1:], strict=False))
        assert (len(read) == 1) == (length <= context)
        for piece in read:
            assert piece.stop - piece.start == min(length, context)
            assert piece.first - piece.start >= margin or piece.start == 0
            assert piece.stop - piece.last >= margin or piece.stop == length


def test_pieces_do_not_cut_what_matters(scorers: dict[str, Scorer]) -> None:
    """An encoder that sees a neighbour at most gives the same states in pieces as at once: the table's do."""
    short = replace(scorers["llama"], layer=0)
    long = replace(short, context=200)
    texts = REFERENCES[::-1]
    pieced, whole = bert_score(PREDICTIONS, texts, short), bert_score(PREDICTIONS, texts, long)
    torch.testing.assert_close(pieced.f1_B, whole.f1_B)
    assert pieced.chunked > whole.chunked == 0


# --- opening ---


def test_code_bert_score_s_settings_open_a_scorer(
    save: Callable[..., Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    sizes = SIZES | {"num_hidden_layers": 12, "max_position_embeddings": 514, "pad_token_id": 1}
    folder = save(RobertaForMaskedLM(RobertaConfig(vocab_size=len(tokenizer), **sizes)))
    scorer = open_scorer(**(CODE_BERT_SCORE | {"path_or_repo": folder}))
    assert (scorer.layer, scorer.context, scorer.punctuation) == (10, 512, False)
    assert bert_score(PREDICTIONS, PREDICTIONS, scorer).f3 == pytest.approx(1)


def test_context_and_layer_are_the_model_s_if_left_out(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        scorer = open_scorer(folder)
        assert (scorer.context, scorer.layer) == (CONTEXT, 3)
    for context in (3, CONTEXT + 1):
        with pytest.raises(CrocodilError, match=f"reads 4 to {CONTEXT} positions, not {context}"):
            open_scorer(folders["roberta"], context=context)
    for layer in (-1, 4):
        with pytest.raises(CrocodilError, match=f"hidden states 0 to 3, not {layer}"):
            open_scorer(folders["bert"], layer=layer)
    smaller = bert_score(PREDICTIONS, REFERENCES, open_scorer(folders["bert"], context=8))
    assert smaller.context == 8 and smaller.chunked > 4


def test_the_tokenizer_s_limit_counts_too(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["bert"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 12}), "utf-8")
    assert open_scorer(tmp_path).context == 12


def test_of_an_encoder_decoder_the_encoder_is_taken(
    save: Callable[..., Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4,
        decoder_start_token_id=1,
    )  # fmt: skip
    folder = save(T5ForConditionalGeneration(config))
    with pytest.raises(CrocodilError, match="does not say how many positions"):
        open_scorer(folder)
    scorer = open_scorer(folder, context=CONTEXT)
    score = bert_score(PREDICTIONS, REFERENCES, scorer)
    assert scorer.layer == 1 and score.f1_B[2] == pytest.approx(1) and score.f1 < 1


def test_the_record_names_the_arithmetic(folders: dict[str, Path]) -> None:
    exact = bert_score(PREDICTIONS, REFERENCES, open_scorer(folders["bert"]))
    score = bert_score(PREDICTIONS, REFERENCES, open_scorer(folders["bert"], dtype=torch.bfloat16))
    assert score.dtype == "bfloat16" and score.f1_B.dtype == torch.float64
    assert score.f1 == pytest.approx(exact.f1, abs=0.05)


def test_lists_that_do_not_pair_up_are_refused(scorer: Scorer) -> None:
    with pytest.raises(CrocodilError, match="2 predictions for 1"):
        bert_score(["a", "b"], ["a"], scorer)
    with pytest.raises(CrocodilError, match="no texts"):
        bert_score([], [], scorer)
    with pytest.raises(CrocodilError, match="no texts"):
        idf_of([], scorer)
    with pytest.raises(CrocodilError, match="batch_size must be at least 1"):
        bert_score(["a"], ["a"], scorer, 0)


def test_overflow_is_refused(folders: dict[str, Path]) -> None:
    scorer = open_scorer(folders["bert"])
    with torch.no_grad():
        scorer.model.get_input_embeddings().weight.mul_(math.inf)
    with pytest.raises(CrocodilError, match="overflows in float32"):
        bert_score(["x"], ["x"], scorer)


def test_an_encoder_without_its_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["bert"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}), "utf-8")
    with pytest.raises(CrocodilError, match="no weights for encoder.layer.3"):
        open_scorer(tmp_path)


def test_a_stranger_s_tokenizer_is_refused(save: Callable[..., Path]) -> None:
    folder = save(BertModel(BertConfig(vocab_size=40, max_position_embeddings=CONTEXT, **SIZES)))
    with pytest.raises(CrocodilError, match="its table has 40 rows"):
        bert_score(PREDICTIONS, REFERENCES, open_scorer(folder))


def test_a_model_of_images_is_refused_in_one_line(save: Callable[..., Path]) -> None:
    folder = save(ViTModel(ViTConfig(image_size=8, patch_size=4, **SIZES)))
    with pytest.raises(CrocodilError, match="does not read plain text") as caught:
        open_scorer(folder)
    assert "\n" not in str(caught.value)


def test_pickles_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["bert"].iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(open_scorer(folders["bert"]).model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CrocodilError, match="cannot be loaded as an encoder") as caught:
        open_scorer(tmp_path)
    assert "\n" not in str(caught.value)


def test_code_in_the_folder_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["bert"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config |= {"model_type": "stranger", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", "utf-8")
    with pytest.raises(CrocodilError, match="cannot be loaded as an encoder"):
        open_scorer(tmp_path)
    assert not (tmp_path / "ran").exists()
