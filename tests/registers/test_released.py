"""A released sentence-transformers Qwen3 as a register encoder, on a tiny folder of the released shape."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

from crocodil.attention import Segments
from crocodil.errors import CrocodilError
from crocodil.registers.encoder import RegisterEncoder
from crocodil.registers.released import open_encoder
from crocodil.text.vocabulary import Vocabulary, train_bpe

D = 32
# sentence-transformers strips a text, the encoder does not: so none has white space at its ends
TEXTS = ("def area(side):\n    return side * side", "x12 = {'side': 3}", "日本 déjà", "print(number)", "")


def write_encoder(folder: Path, vocabulary: Vocabulary, spare_rows: int = 0) -> Path:
    """config.json, weights, a tokenizer that appends EOS, modules.json and last-token pooling, as Qwen3-Embedding."""
    vocabulary.save(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos = tokenizer.id_to_token(vocabulary.eos_id)
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, vocabulary.eos_id)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = Qwen3Config(
        vocab_size=vocabulary.size + spare_rows,
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,  # the queries are wider than the residual stream, as in the release
        intermediate_size=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        initializer_range=D**-0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3Model(config).save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": D,
        "pooling_mode_lasttoken": True,
        "pooling_mode_mean_tokens": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, tiny_vocabulary: Vocabulary) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"), tiny_vocabulary, spare_rows=3)


@pytest.fixture
def spoilt(released: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(released, tmp_path / "encoder"))


def summaries(encoder: RegisterEncoder, vocabulary: Vocabulary, k: int = 1) -> torch.Tensor:
    ids = [vocabulary.encode(text) for text in TEXTS]
    flat = torch.tensor([i for text in ids for i in text])
    with torch.no_grad():
        z = encoder(flat, Segments.of([len(text) for text in ids]), [k] * len(ids))
    return z.unflatten(0, (len(ids), k))[:, 0]


@pytest.mark.parametrize("K", [1, 8])
def test_register_1_is_the_sentence_embedding(K: int, released: Path, tiny_vocabulary: Vocabulary) -> None:
    theirs = torch.tensor(SentenceTransformer(str(released), device="cpu").encode(list(TEXTS)))
    encoder = open_encoder(released, tiny_vocabulary, K)
    ours = summaries(encoder, tiny_vocabulary, K)
    assert torch.cosine_similarity(ours, theirs).min() > 0.99999
    assert torch.allclose(ours, theirs * D**0.5, atol=1e-4)
    assert (encoder.K, encoder.D, encoder.backbone.dtype) == (K, D, torch.float32)


def test_one_shared_tokenizer_leaves_the_table_as_it_is(released: Path, tiny_vocabulary: Vocabulary) -> None:
    table = Qwen3Model.from_pretrained(released).embed_tokens.weight
    encoder = open_encoder(released, tiny_vocabulary, 1)
    assert torch.equal(encoder.backbone.embed_tokens.weight, table[: tiny_vocabulary.size])
    assert encoder.backbone.config.vocab_size == tiny_vocabulary.size


def test_another_vocabulary_is_transplanted(released: Path, tiny_vocabulary: Vocabulary) -> None:
    other = train_bpe(["import torch\nnumber = torch.zeros(3)\n" * 3, "class Shape: side = 1\n" * 3], 330)
    assert other.fingerprint != tiny_vocabulary.fingerprint and other.eos_id != tiny_vocabulary.eos_id
    table = Qwen3Model.from_pretrained(released).embed_tokens.weight
    rows = open_encoder(released, other, 1).backbone.embed_tokens.weight
    assert len(rows) == other.size
    assert torch.equal(rows[other.eos_id], table[tiny_vocabulary.eos_id])
    copied = averaged = 0
    for id in range(256, other.size):
        piece = other.token_bytes(id)
        if piece is None:
            continue
        pieces = tiny_vocabulary.encode(piece.decode())
        assert torch.allclose(rows[id], table[pieces].mean(0), atol=1e-6)
        copied, averaged = copied + (len(pieces) == 1), averaged + (len(pieces) > 1)
    assert copied > 3 and averaged > 3
    # a text that both split into the same pieces is the same text
    text = "日本"
    ids = torch.tensor(other.encode(text))
    assert [other.token_bytes(int(i)) for i in ids] == [bytes([byte]) for byte in text.encode()]
    theirs = torch.tensor(SentenceTransformer(str(released), device="cpu").encode([text]))
    with torch.no_grad():
        ours = open_encoder(released, other, 1)(ids, Segments.of([len(ids)]), [1])
    assert torch.cosine_similarity(ours, theirs).min() > 0.99999


def lose(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def average(folder: Path) -> None:
    file = folder / "1_Pooling" / "config.json"
    file.write_text(json.dumps({"word_embedding_dimension": D, "pooling_mode_mean_tokens": True}))


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def swap_for_bert(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    size = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=400, **size)).save_pretrained(folder)


def project(folder: Path) -> None:
    """A dense layer between pooling and the embedding, as some encoders have."""
    (folder / "2_Dense").mkdir()
    Dense(D, D).save(str(folder / "2_Dense"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[2] |= {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps(modules))


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose("modules.json"), "does not pool on the last token; copy modules.json"),
        (average, "does not pool on the last token"),
        (lose("model.safetensors"), "cannot be loaded"),
        (lose("config.json"), "cannot be loaded"),
        (truncate, "cannot be loaded"),
        (swap_for_bert, "is a BertModel, not a Qwen3Model"),
        (project, "has a Dense module after pooling"),
        (remove, "cannot be loaded"),
    ],
    ids=[
        "no modules.json",
        "mean pooling",
        "no weights",
        "no config",
        "truncated",
        "BERT",
        "dense",
        "no folder",
    ],
)
def test_what_is_no_such_encoder_is_refused_in_one_line(
    spoil: Callable[[Path], None], message: str, spoilt: Path, tiny_vocabulary: Vocabulary
) -> None:
    spoil(spoilt)
    with pytest.raises(CrocodilError, match=message) as error:
        open_encoder(spoilt, tiny_vocabulary, 4)
    assert str(spoilt) in str(error.value) and "\n" not in str(error.value)


def test_other_numbers_of_registers_are_refused(released: Path, tiny_vocabulary: Vocabulary) -> None:
    with pytest.raises(CrocodilError, match="power of two"):
        open_encoder(released, tiny_vocabulary, 6)
