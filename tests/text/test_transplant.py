from __future__ import annotations

import json

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

from crocodil.errors import CrocodilError
from crocodil.text.transplant import pooled_row, transplant
from crocodil.text.vocabulary import Vocabulary


def as_encoder(vocabulary: Vocabulary) -> Tokenizer:
    """As Qwen3-Embedding's: NFC, and a template that appends the pooled-on token."""
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    tokenizer.normalizer = normalizers.NFC()
    end = vocabulary.eos_id
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A <|endoftext|>", None, [("<|endoftext|>", end)]
    )
    return tokenizer


def naive_merges(piece: bytes, source: Vocabulary) -> list[int]:
    """Byte-level BPE as in its definition: again and again the leftmost pair of the earliest merge."""
    state = json.loads(source.tokenizer.to_str())["model"]
    bytes_of = {token: source.token_bytes(id) for token, id in state["vocab"].items()}
    ranks = {(bytes_of[a], bytes_of[b]): rank for rank, (a, b) in enumerate(state["merges"])}
    parts = [bytes([byte]) for byte in piece]
    while pairs := [
        (ranks[pair], i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in ranks
    ]:
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    ids = {token: id for id in range(source.size) if (token := source.token_bytes(id))}
    return [ids[part] for part in parts]


def is_utf8(piece: bytes) -> bool:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def test_identity_for_the_same_tokenizer(vocabulary):
    table_VD = torch.randn(vocabulary.size, 6)
    assert torch.equal(transplant(as_encoder(vocabulary), table_VD, vocabulary), table_VD)


def test_same_tokenizer_with_other_spare_rows(vocabulary):
    wide = Vocabulary(vocabulary.tokenizer, size=512)
    table_VD = torch.randn(505, 6)
    result_VD = transplant(as_encoder(vocabulary), table_VD, wide)
    assert torch.equal(result_VD[:505], table_VD)
    assert torch.allclose(result_VD[505:], table_VD.mean(dim=0).expand(7, 6), atol=1e-6)


def test_every_row_against_the_definition(vocabulary, other_vocabulary):
    table_VD = torch.randn(other_vocabulary.size + 4, 6)
    result_VD = transplant(as_encoder(other_vocabulary), table_VD, vocabulary)
    row_of = {piece: id for id in range(other_vocabulary.size) if (piece := other_vocabulary.token_bytes(id))}
    shared = composed = partial = 0
    for id in range(vocabulary.size):
        piece = vocabulary.token_bytes(id)
        if piece is None:
            continue
        if piece in row_of:
            shared += 1
            assert torch.equal(result_VD[id], table_VD[row_of[piece]])
        else:
            composed += 1
            rows = naive_merges(piece, other_vocabulary)
            assert torch.allclose(result_VD[id], table_VD[rows].mean(dim=0), atol=1e-6)
        partial += len(piece) > 1 and not is_utf8(piece)
    assert shared > 256 and composed > 20 and partial > 3
    assert torch.equal(result_VD[vocabulary.eos_id], table_VD[other_vocabulary.eos_id])
    for id in (vocabulary.bos_id, vocabulary.mask_id):
        assert torch.allclose(result_VD[id], table_VD.mean(dim=0), atol=1e-6)


def test_rows_keep_their_type_and_the_given_eos_row(vocabulary, other_vocabulary):
    table_VD = torch.randn(other_vocabulary.size, 4, dtype=torch.bfloat16)
    result_VD = transplant(as_encoder(other_vocabulary), table_VD, vocabulary, eos_row=7)
    assert result_VD.dtype == torch.bfloat16
    assert torch.equal(result_VD[vocabulary.eos_id], table_VD[7])


def test_pooled_row_is_what_the_template_appends(vocabulary):
    assert pooled_row(as_encoder(vocabulary)) == vocabulary.eos_id
    with pytest.raises(CrocodilError, match="eos_row"):
        pooled_row(vocabulary.tokenizer)


def test_strangers_are_refused(vocabulary):
    with pytest.raises(CrocodilError, match="no row 459"):
        transplant(as_encoder(vocabulary), torch.randn(300, 4), vocabulary)
    with pytest.raises(CrocodilError, match="byte-level BPE"):
        transplant(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), torch.randn(300, 4), vocabulary)


def test_added_tokens_of_the_source_are_no_pieces(vocabulary, other_vocabulary):
    source = as_encoder(other_vocabulary)
    source.add_tokens([AddedToken("return", special=False)])
    table_VD = torch.randn(other_vocabulary.size + 1, 4)
    table_VD[-1] = 1e6
    result_VD = transplant(source, table_VD, vocabulary)
    plain = [id for id in range(vocabulary.size) if vocabulary.token_bytes(id)]
    assert result_VD[plain].abs().max() < 100
