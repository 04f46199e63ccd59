"""Laboratories of tiny things: random models with denoisers and with latents, and a random judge."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crocodil.bundle import save_unguided
from crocodil.cadd.latents import LatentConfig, TokenLatents
from crocodil.demasker.llada import LLaDA
from crocodil.denoiser.dit import Denoiser, DenoiserConfig
from crocodil.denoiser.weights import TrainedDenoiser, save_denoiser
from crocodil.images.unet import UNetShape, fresh_unet
from crocodil.images.weights import save_pixels
from crocodil.model import load
from crocodil.reproduce.config import ReproduceConfig, preset
from crocodil.reproduce.lab import Lab
from crocodil.reproduce.measures.pictures import DIGITS
from crocodil.text.characters import character_vocabulary
from crocodil.text.vocabulary import Vocabulary

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
CADD_CONFIG = """
part: 2
mauve_seeds: 1
synthesis: {latent_steps: 2}
chains: {texts: 3}
cadd_fig3: {steps: [2, 4]}
cadd_fig4: {steps: [2, 4]}
cadd_fig5: {steps: [2, 4], draws: [1, 2]}
cadd_fig6: {steps: [2, 4], draws: [1, 2]}
cadd_table1: {images: 12, nfes: [2, 4], estimates: [hard, soft]}
cadd_table4: {batch: 2, rounds: 3, draws: [1, 2], steps: 2}
cadd_table5: {windows: 3, samples: 2, steps: 4, sources: [letters]}
cadd_table7: {windows: 3, samples: 2, steps: 4, sources: [programs, comments]}
cadd_table8: {steps: 2}
cadd_table9: {steps: 2}
cadd_table10: {steps: 2}
cadd_table12: {windows: 3, levels: [0.1, 1.0], examples: 1, steps: 2}
cadd_both: {windows: 3, levels: [0.5, 1.0], k: 2, steps: 2}
"""
LATENTS: dict[str, LatentConfig | None] = {
    "mdm": None,
    "cadd": LatentConfig(),
    "reweight": LatentConfig(fusion="reweight"),
    "concat": LatentConfig(fusion="concat"),
    "vp": LatentConfig(schedule="vp"),
    "rho_half": LatentConfig(rho=1.7),
    "rho_double": LatentConfig(rho=6.8),
    "rho_root_E": LatentConfig(rho=5.7),
    "letters_mdm": None,
    "letters_cadd": LatentConfig(),
}
SAME = {
    "finetuned": "cadd", "mdm_more": "mdm", "mdm_small": "mdm", "reference": "cadd", "mse_soft": "cadd",
    "mse_hard": "cadd",
}  # fmt: skip
"""Models that are another one here."""


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


@pytest.fixture(scope="session")
def cadd_models(
    tiny_bundle: Path,
    tiny_latents: Path,
    tiny_vocabulary: Vocabulary,
    make_llada: Callable[..., LLaDA],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """A tiny folder for every model of the section `cadd`."""
    root, letters = tmp_path_factory.mktemp("cadd"), character_vocabulary()
    found = {"both": str(tiny_latents), "registers_only": str(tiny_bundle)}
    for seed, (name, config) in enumerate(LATENTS.items()):
        vocabulary = letters if name.startswith("letters") else tiny_vocabulary
        ids = {"mask_token_id": vocabulary.mask_id, "eos_token_id": vocabulary.eos_id}
        llada = make_llada(
            seed, vocab_size=vocabulary.size, embedding_size=vocabulary.size, max_sequence_length=32, **ids
        )
        latents = None
        if config is not None:
            sizes = llada.config
            latents = TokenLatents(config, sizes.vocab_size, sizes.d_model)
            latents.initialise(llada.model.transformer.wte.weight)
        (root / name).mkdir()
        record = {"steps": 100 + seed, "config": {"batch_size": 4, "init": None}}
        save_unguided(root / name, llada, vocabulary, torch.float32, latents, record)
        found[name] = str(root / name)
    shape = UNetShape(width=8, channels=(8, 8), attention=(), head=8, groups=4)
    for name, config in (("digits_mdm", None), ("digits_cadd", LatentConfig())):
        (root / name).mkdir()
        save_pixels(root / name, fresh_unet(DIGITS, shape, config, seed=len(name)))
        found[name] = str(root / name)
    return found | {name: found[other] for name, other in SAME.items()}


@pytest.fixture(scope="session")
def cadd_config(
    judge_folder: Path, cadd_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> ReproduceConfig:
    file = tmp_path_factory.mktemp("config") / "cadd.yaml"
    told = ", ".join(f'{name}: "{path}"' for name, path in cadd_models.items())
    file.write_text(f'{CADD_CONFIG}judge: "{judge_folder}"\ncadd: {{{told}}}\n')
    return preset(str(file))


@pytest.fixture(scope="session")
def cadd_lab(
    cadd_config: ReproduceConfig,
    tiny_bundle: Path,
    denoiser_folders: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Lab:
    """One for all tests, so that nothing is measured twice. What changes a model has its own, from `make_lab`."""
    folder = tmp_path_factory.mktemp("measured")
    return Lab(cadd_config, folder, str(tiny_bundle), [str(one) for one in denoiser_folders], "cpu")
