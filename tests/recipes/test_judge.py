"""The judge's recipe: golden losses, the same through a resume on two ranks, an export that transformers opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crocodil.errors import CrocodilError
from crocodil.text.vocabulary import PROBE, Vocabulary
from crocodil.text.windows import Sample
from crocodil.training.config import load_config
from crocodil.training.log import read_metrics
from recipes.train_judge import Judge, JudgeRecipe, JudgeShape, WholeTexts, fresh_judge, save_judge
from tests.recipes import tiny as neighbour

TINY = JudgeShape(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
# Adam's first step is the sign of the gradient; with the usual eps, rounding alone would turn some signs.
TINY_JUDGE = [
    "shape.hidden_size=32", "shape.num_hidden_layers=2", "shape.num_attention_heads=2", "shape.intermediate_size=64",
    "shape.vocabulary=300", "steps=3", "save_every=2", "optimiser.lr=0.003", "optimiser.eps=1e-4", "ema=0.5",
    *neighbour.TINY_DATA,
]  # fmt: skip
TEXTS = ("x = 1\n", "", " def f(a):\n\n    return 'é\t日本' # <|endoftext|><|mdm_mask|>\n")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    run = tmp_path_factory.mktemp("judge") / "run"
    about = neighbour.common(texts, run)
    neighbour.launch("train_judge.py", "cpu.yaml", f"run={run}", *about, *TINY_JUDGE)
    return run


def test_golden_losses_of_the_judge_recipe(judge: Path) -> None:
    assert neighbour.losses(judge) == pytest.approx(GOLDEN_JUDGE, rel=2e-4)


def test_a_stopped_run_goes_on_with_two_ranks_as_if_nothing_had_happened(judge: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(judge, run)
    # a kill after the checkpoint of step 2 leaves exactly this behind
    shutil.rmtree(run / "step-00000003")
    shutil.rmtree(run / "export")
    done = neighbour.launch(
        "train_judge.py", "cpu2.yaml", "--config", str(judge / "config.yaml"), f"run={run}", "--resume"
    )
    assert "from step 2" in done.stderr
    assert neighbour.losses(run) == pytest.approx(neighbour.losses(judge), abs=1e-5)
    after, before = (read_metrics(folder / "metrics.jsonl")[-1] for folder in (run, judge))
    assert after["perplexity"] == pytest.approx(before["perplexity"], rel=1e-5)
    assert (run / "export" / "model.safetensors").is_file()


def test_the_export_opens_with_transformers_and_gives_texts_back(judge: Path) -> None:
    export = judge / "export"
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(export), Vocabulary.load(export)
    for text in (*TEXTS, PROBE):
        ids = tokenizer(text).input_ids
        assert ids == vocabulary.encode(text) and tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (vocabulary.bos_id, vocabulary.eos_id)
    model = AutoModelForCausalLM.from_pretrained(export)
    assert model.config.max_position_embeddings == 32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    about = json.loads((export / "training.json").read_text())
    assert (about["recipe"], about["steps"]) == ("train_judge", 3)
    validated = read_metrics(judge / "metrics.jsonl")[-1]
    assert about["held_out"] == {name: value for name, value in validated.items() if name != "step"}


def test_the_sum_is_the_definition_token_by_token(judge: Path) -> None:
    """Text and first EOS, each from what stands before it; neither BOS nor what fills the rows up."""
    model = AutoModelForCausalLM.from_pretrained(judge / "export").eval()
    vocabulary = Vocabulary.load(judge / "export")
    samples = [Sample(i, tuple(vocabulary.encode(text)), 128) for i, text in enumerate(TEXTS)]
    expected, tokens = 0.0, 0
    with torch.no_grad():
        for sample in samples:
            ids = [vocabulary.bos_id, *sample.text_ids, vocabulary.eos_id]
            for n in range(1, len(ids)):
                logits_V = model(torch.tensor([ids[:n]])).logits[0, -1]
                expected, tokens = expected - float(logits_V.log_softmax(0)[ids[n]]), tokens + 1
        surprise = Judge(model)(WholeTexts.of(samples, vocabulary))
    assert float(surprise.total) == pytest.approx(expected, rel=1e-5)
    assert int(surprise.tokens) == tokens


def test_an_export_of_sixteen_bits_opens_in_float32(tiny_vocabulary: Vocabulary, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = fresh_judge(TINY, tiny_vocabulary, 32)
    made = {"steps": 1, "held_out": {"nats_per_token": 1.0, "bits_per_byte": 1.0}}
    save_judge(tmp_path, model, tiny_vocabulary, "float16", made)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert opened.dtype == torch.float32
    ids_BN = torch.arange(20)[None]
    assert (opened(ids_BN).logits - model(ids_BN).logits).abs().max() < 0.02
    assert (tmp_path / "model.safetensors").stat().st_size < 2.2 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("shape.num_attention_heads=0", "shape.num_attention_heads"),
        ("shape.num_attention_heads=5", "multiple"),
        ("row_tokens=100", "row_tokens"),
        ("batch_size=0", "batch_size"),
        ("export_dtype=int8", "bfloat16"),
    ],
)
def test_numbers_that_no_judge_can_use_are_refused(override: str, message: str) -> None:
    with pytest.raises(CrocodilError, match=message):
        load_config(JudgeRecipe, None, [override])


GOLDEN_JUDGE = [6.205677880181207, 5.979023008856155, 5.509095783475079]
