"""A laboratory of tiny things: a random model with denoisers, and a random judge."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crocodil.denoiser.dit import Denoiser, DenoiserConfig
from crocodil.denoiser.weights import TrainedDenoiser, save_denoiser
from crocodil.model import load
from crocodil.reproduce.config import ReproduceConfig, preset
from crocodil.reproduce.lab import Lab

CONFIG = """
part: 2
mauve_seeds: 1
synthesis: {texts: 3, latent_steps: 2, refresh_steps: 2}
table1: {length: 32, windows: 3, ks: [null, 2]}
table2: {length: 16, windows: 3}
fig4: {windows: 3, levels: [0.5, 1.0], ks: [0, 2, 4, 64]}
fig6: {lengths: [16, 32], ks: [2, 4], nfes: [2, 4]}
fig7: {windows: 3, sigmas: [0.0, 1.0]}
fig8: {pairs: 3, length: 32, nfe: 2, alphas: [0.0, 0.5, 1.0], ks: [null, 2]}
fig9: {windows: 3, levels: [0.2, 0.8], ks: [2, 4]}
fig11: {length: 32, nfe: 2, ks: [2, 4], k: 2}
fig12: {lengths: [32], ks: [2], nfes: [2]}
prdc: {samples: 8, ks: [2]}
eq6: {windows: 3, levels: [0.5, 1.0], ks: [0, 4], draws: 2}
appendix_b: {draws: 50, steps: 2}
appendix_c: {windows: 3, nfe: 2}
examples: {nfes: [2, 4], nfe: 2, length: 32}
"""


@pytest.fixture(scope="session")
def judge_folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    model = load(tiny_bundle, "cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=model.vocabulary.size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=model.vocabulary.tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def denoiser_folders(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An unconditional and a conditional one, of random weights."""
    model, folders = load(tiny_bundle, "cpu"), []
    for conditional in (False, True):
        torch.manual_seed(0)
        config = DenoiserConfig(K=4, D=model.D, width=8, layers=1, heads=1, conditional=conditional)
        denoiser = Denoiser(config)
        torch.nn.init.normal_(denoiser.write.weight)
        folders.append(tmp_path_factory.mktemp("denoiser"))
        save_denoiser(folders[-1], TrainedDenoiser(denoiser, model.fingerprint, 0.2, any_k=True))
    return folders


@pytest.fixture
def config(
    judge_folder: Path, tiny_bundle: Path, denoiser_folders: list[Path], tmp_path: Path
) -> ReproduceConfig:
    """Everything of the tiny model; all ablations are the model itself."""
    file = tmp_path / "tiny.yaml"
    whole = tmp_path / "whole"
    shutil.copytree(tiny_bundle, whole)
    shutil.copytree(denoiser_folders[0], whole / "denoiser" / "unconditional")
    ablations = dict.fromkeys(("reference", "no_noise", "no_nested_dropout", "layer_norm"), whole)
    ablations |= dict.fromkeys(("offsets", "no_offsets"), denoiser_folders[0])
    told = ", ".join(f'{name}: "{path}"' for name, path in ablations.items())
    file.write_text(f'{CONFIG}judge: "{judge_folder}"\nscorer: "{judge_folder}"\nablations: {{{told}}}\n')
    return preset(str(file))


@pytest.fixture
def make_lab(
    config: ReproduceConfig, tiny_bundle: Path, denoiser_folders: list[Path], tmp_path: Path
) -> Callable[..., Lab]:
    """`make_lab(config=…, folder=…, denoisers=…)`."""

    def make(
        config: ReproduceConfig = config, folder: Path = tmp_path / "measured", denoisers: bool = True
    ) -> Lab:
        given = [str(one) for one in denoiser_folders] if denoisers else []
        return Lab(config, folder, str(tiny_bundle), given, "cpu")

    return make
