"""Vocabulary transplant: the encoder's input table re-embedded once for the demasker's ids."""

from __future__ import annotations

import json

import torch
from tokenizers import Tokenizer

from crocodil.errors import CrocodilError
from crocodil.text.vocabulary import Vocabulary, byte_alphabet


def transplant(
    source: Tokenizer,
    table_VD: torch.Tensor,
    target: Vocabulary,
    eos_row: int | None = None,
) -> torch.Tensor:
    """Rows for `target`'s ids out of the rows for `source`'s (Gee et al. 2022, on bytes).

    A target token whose bytes are one source token takes its row; any other the mean of the rows of its
    pieces, by the source's merges over its bytes: no normaliser, no pre-tokeniser, no UTF-8 between. EOS
    takes `eos_row`. Other special tokens and spare rows take the mean of the table. With the same tokenizer
    on both sides it is the identity.

    Args:
        source: byte-level BPE tokenizer that `table_VD` belongs to.
        table_VD: (V_source, D) input embeddings; more rows than tokens are welcome.
        target: the vocabulary to re-embed for.
        eos_row: the row that the source pools on; by default `pooled_row(source)`.

    Returns:
        (target.size, D), the dtype and device of `table_VD`.

    Raises:
        CrocodilError: `source` is no byte-level BPE, its ids or `eos_row` exceed the table.
    """
    state = json.loads(source.to_str())
    specials = {token["id"] for token in state["added_tokens"]}
    vocab = {token: id for token, id in state["model"]["vocab"].items() if id not in specials}
    of_byte = {byte: char for char, byte in byte_alphabet().items()}
    if state["model"].get("type") != "BPE" or not vocab.keys() >= set(of_byte.values()):
        raise CrocodilError("the encoder's tokenizer is no byte-level BPE; give one like Qwen's or GPT-2's")
    eos_row = pooled_row(source) if eos_row is None else eos_row
    highest = max(*vocab.values(), *specials, eos_row)
    if highest >= len(table_VD) or eos_row < 0:
        raise CrocodilError(f"no row {highest} in a table of {len(table_VD)}; give the tokenizer's own table")

    table_mean_D = table_VD.mean(dim=0, dtype=torch.float64).to(table_VD.dtype)
    result_VD = table_mean_D.repeat(target.size, 1)
    if _same_tokens(state, target):
        shared = min(len(table_VD), target.size)
        result_VD[:shared] = table_VD[:shared]
    else:
        model = source.model
        for id in range(target.size):
            piece = target.token_bytes(id)
            if not piece:
                continue
            mapped = "".join(of_byte[byte] for byte in piece)
            rows = [vocab[mapped]] if mapped in vocab else [token.id for token in model.tokenize(mapped)]
            result_VD[id] = (
                table_VD[rows[0]] if len(rows) == 1 else table_VD[rows].mean(dim=0, dtype=torch.float64)
            )
    result_VD[target.eos_id] = table_VD[eos_row]
    return result_VD


def pooled_row(source: Tokenizer) -> int:
    """Id that the tokenizer's template appends to every text; Qwen3-Embedding pools on it (151643).

    Raises:
        CrocodilError: the template appends nothing.
    """
    appended = source.encode("", add_special_tokens=True).ids
    if not appended:
        raise CrocodilError("the encoder's tokenizer appends no token to pool on; name its id as eos_row")
    return appended[-1]


def _same_tokens(state: dict, target: Vocabulary) -> bool:
    """Whether every token, special or not, has the same id on both sides."""
    own = json.loads(target.tokenizer.to_str())
    added = [[(token["id"], token["content"]) for token in side["added_tokens"]] for side in (state, own)]
    return state["model"]["vocab"] == own["model"]["vocab"] and added[0] == added[1]
