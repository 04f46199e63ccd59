"""Shapes of the released networks, so that a plan needs no file of theirs."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3Config

from crocodil.demasker.llada import LLaDAConfig

# config.json of GSAI-ML/LLaDA-8B-Base and of -Instruct, which agree: 8,015,581,184 parameters in 291 tensors.
LLADA_8B = LLaDAConfig(
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    mlp_hidden_size=12288,
    vocab_size=126464,
    embedding_size=126464,
    max_sequence_length=4096,
    mask_token_id=126336,
    eos_token_id=126081,
    pad_token_id=126081,
    rope_theta=500000.0,
)

# config.json of Qwen/Qwen3-Embedding-0.6B: 595,776,512 parameters in 310 tensors, with its own table of 151,669 rows.
_QWEN3_EMBEDDING: dict[str, Any] = {
    "vocab_size": 151669,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}

DEMASKERS = {"GSAI-ML/LLaDA-8B-Base": LLADA_8B, "GSAI-ML/LLaDA-8B-Instruct": LLADA_8B}
ENCODERS = ("Qwen/Qwen3-Embedding-0.6B",)


def qwen3_embedding(rows: int | None = None) -> Qwen3Config:
    """Qwen3-Embedding-0.6B, with its own table or with one of so many rows."""
    return Qwen3Config(**_QWEN3_EMBEDDING | ({} if rows is None else {"vocab_size": rows}))
