"""The model that comes with the package."""

from __future__ import annotations

import pytest
import torch

import crocodil
from crocodil.bundle import BUNDLED
from crocodil.metrics.reconstruction import corpus_cer
from crocodil.model import Model
from crocodil.reproduce.measures.registers import psnr
from crocodil.text.windows import Sample, split_text


@pytest.fixture(scope="module")
def nano() -> Model:
    return crocodil.load()


def test_it_is_small_and_whole() -> None:
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 24 * 2**20
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_the_face_works_with_no_arguments_beyond_the_text() -> None:
    registers = crocodil.encode("x = 1\n")
    assert registers.values_WKD.shape[0] == 1
    assert isinstance(crocodil.decode(registers)[0], str)
    assert crocodil.autoencode("") == [""]
    assert len(crocodil.interpolate("x = 1\n", "y = 2\n", nfe=4)) == 5


def test_registers_carry_held_out_programs(nano: Model) -> None:
    """Full windows of programs it was not trained on come back from all registers, and not from one."""
    texts = [path.read_text("utf-8") for path in sorted((BUNDLED / "examples").glob("*.py"))]
    pieces = [split_text(text, nano.vocabulary, nano.window)[0] for text in texts]
    windows = [nano.vocabulary.decode(ids) for ids in pieces if len(ids) == nano.window - 2]
    assert len(windows) > 3
    whole = corpus_cer(nano.autoencode(windows, nfe=8), windows)
    gist = corpus_cer(nano.autoencode(windows, k=1, nfe=8), windows)
    assert whole < 0.02 < 0.5 < gist


@pytest.mark.parametrize("length", [1, 10, 50, 200, 600])
def test_texts_of_every_length_come_back(nano: Model, length: int) -> None:
    file = sorted((BUNDLED / "examples").glob("*.py"))[0]
    text = file.read_text("utf-8")[:length]
    assert corpus_cer(nano.autoencode(text, nfe=4), [text]) < 0.02


def test_its_encoder_is_a_sentence_transformer(nano: Model) -> None:
    from sentence_transformers import SentenceTransformer

    opened = SentenceTransformer(
        str(BUNDLED / "encoder"), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True
    )
    texts = ["def double(x):\n    return 2 * x", "import os"]
    theirs = torch.tensor(opened.encode(texts, show_progress_bar=False))
    ours = nano.encode(texts, k=1).values_WKD[:, 0]
    assert torch.cosine_similarity(theirs, ours).min() > 0.99999


def test_its_denoisers_know_its_registers(nano: Model) -> None:
    """On programs they were not trained on: better than the mean register, and better still given half of the text."""
    texts = [path.read_text("utf-8") for path in sorted((BUNDLED / "examples").glob("*.py"))]
    pieces = [split_text(text, nano.vocabulary, nano.window)[0] for text in texts][:4]
    samples = [Sample(i, tuple(ids), nano.window) for i, ids in enumerate(pieces)]
    for k in (8, nano.K):
        rows = {
            (s, share): float(psnr(nano, samples, s, share, k).mean())
            for s in (0.3, 0.8)
            for share in (None, 0.5)
        }
        assert rows[0.3, None] > 6 and rows[0.8, None] > 1
        assert rows[0.3, 0.5] > rows[0.3, None] + 0.3 and rows[0.8, 0.5] > rows[0.8, None] + 1


def test_it_varies_a_text_as_much_as_it_is_told(nano: Model) -> None:
    text = "".join(sorted((BUNDLED / "examples").glob("*.py"))[0].read_text("utf-8"))[:400]
    near, far = (
        corpus_cer([one.text for one in nano.vary(text, s, n=2, nfe=8, latent_steps=16)], [text] * 2)
        for s in (0.2, 0.9)
    )
    assert near < 0.1 < 0.5 < far


def test_it_writes_new_texts_and_keeps_a_prompt() -> None:
    options = {"nfe": 8, "latent_steps": 8, "refresh_steps": 8, "min_length": 200}
    texts = [one.text for one in crocodil.generate(2, seed=7, **options)]
    assert len(set(texts)) == 2 and all(len(text) > 200 for text in texts)
    assert crocodil.generate(seed=8, **options)[0].text == texts[1]
    prompt = "def area(radius):\n"
    assert crocodil.generate(prompt=prompt, **options)[0].text.startswith(prompt)


def test_a_demasker_with_latents_and_one_without_are_there() -> None:
    """`crocodil generate --method cadd` takes the one, and measures are taken of both."""
    cadd, mdm = crocodil.load("bundled/cadd"), crocodil.load("bundled/mdm")
    assert cadd.augmented is not None and mdm.augmented is None
    for model in (cadd, mdm):
        folder = BUNDLED.parent / ("cadd" if model is cadd else "mdm")
        assert sum(path.stat().st_size for path in folder.rglob("*")) < 6 * 2**20
        assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")]
    one, two = crocodil.generate(2, method="cadd", nfe=16, seed=7)
    assert crocodil.generate(method="cadd", nfe=16, seed=8)[0].text == two.text != one.text


def test_latents_tell_the_demasker_of_masked_tokens() -> None:
    """On programs it was not trained on, with half of the tokens masked."""
    model = crocodil.load("bundled/cadd")
    demasker, noise = model.augmented, torch.Generator().manual_seed(0)
    assert demasker is not None and demasker.latents is not None
    texts = [path.read_text("utf-8") for path in sorted((BUNDLED / "examples").glob("*.py"))]
    pieces = [split_text(text, model.vocabulary, 128)[0] for text in texts]
    ids_BN = torch.tensor([ids for ids in pieces if len(ids) == 126])
    is_masked_BN = torch.rand(ids_BN.shape, generator=noise) < 0.5
    visible_BN = ids_BN.masked_fill(is_masked_BN, model.vocabulary.mask_id)
    right = {}
    for whose, known_BN in {"its own": ids_BN, "another's": ids_BN.roll(1, 0)}.items():
        clean_BNE = demasker.latents.clean(demasker.llada.embed(known_BN))
        noisy_BNE = 0.5 * clean_BNE + 0.5 * torch.randn(clean_BNE.shape, generator=noise)
        of_text_BNE = demasker.latents.clean(demasker.llada.embed(ids_BN))
        z_BNE = torch.where(is_masked_BN[..., None], noisy_BNE, of_text_BNE)
        with torch.no_grad():
            found_R = demasker.logits(visible_BN, is_masked_BN, None, z_BNE, 0.5).argmax(-1)
        right[whose] = (found_R == ids_BN[is_masked_BN]).float().mean()
    assert len(ids_BN) > 4 and right["its own"] > right["another's"] + 0.1, right
