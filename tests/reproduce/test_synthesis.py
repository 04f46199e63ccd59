"""A sweep over settings before a tiny judge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crocodil.denoiser.dit import Denoiser, DenoiserConfig
from crocodil.denoiser.weights import Denoisers, TrainedDenoiser
from crocodil.metrics.generation import Judge, open_judge
from crocodil.model import Model, load
from crocodil.reproduce.synthesis import Setting, reference, sweep
from crocodil.synthesis import Generated
from crocodil.text.windows import Sample


@pytest.fixture
def model(tiny_bundle: Path) -> Model:
    model = load(tiny_bundle, "cpu")
    both = []
    for conditional in (False, True):
        torch.manual_seed(0)
        config = DenoiserConfig(K=4, D=model.D, width=8, layers=1, heads=1, conditional=conditional)
        denoiser = Denoiser(config).eval().requires_grad_(False)
        torch.nn.init.normal_(denoiser.write.weight)
        both.append(TrainedDenoiser(denoiser, model.fingerprint, 0.2, any_k=True))
    model.__dict__["denoisers"] = Denoisers(*both)
    return model


@pytest.fixture
def judge(model: Model, tmp_path: Path) -> Judge:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=model.vocabulary.size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=model.vocabulary.tokenizer).save_pretrained(tmp_path)
    return open_judge(tmp_path)


def test_every_setting_is_judged_on_the_same_seeds(model: Model, judge: Judge) -> None:
    ids = tuple(model.vocabulary.encode("for number in range(10):\n    print(number)\n"))[:20]
    real = reference(model, judge, [Sample(i, ids[i : i + 12], 32) for i in range(4)])
    assert real.score.texts == 4 and len(real.features_NE) == 4
    settings = [
        Setting("mdm", 4),
        Setting("conthendisc", 4, k=2),
        Setting("conwithindisc", 4, k=2, refresh=(0.25,)),
    ]
    told: list[list[Generated]] = []
    rows = sweep(
        model, judge, real, settings, texts=3, min_length=32, latent_steps=2, refresh_steps=2, seed=5,
        on_row=lambda row, made: told.append(made),
    )  # fmt: skip
    assert [row.setting for row in rows] == settings
    assert [[one.seed for one in made] for made in told] == [[5, 6, 7]] * 3
    for row in rows:
        assert row.nfe == 4 and row.texts == 3 and row.score.texts == 3
        assert 0 <= row.mauve <= 1 and row.score.perplexity > 1
    mdm, first, second = rows
    assert mdm.nfe_paper == 4 < first.nfe_paper < second.nfe_paper
    again = sweep(
        model, judge, real, settings[1:2], texts=3, min_length=32, latent_steps=2, refresh_steps=2, seed=5
    )
    assert again[0].score == first.score and again[0].mauve == first.mauve
