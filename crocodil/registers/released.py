"""A released sentence-transformers Qwen3 as a register encoder, re-embedded once for the demasker's vocabulary."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import Qwen3Model

from crocodil.errors import CrocodilError
from crocodil.registers.encoder import RegisterEncoder, Scale
from crocodil.text.transplant import transplant
from crocodil.text.vocabulary import Vocabulary


def open_encoder(
    path_or_repo: str | Path, vocabulary: Vocabulary, K: int, scale: Scale = "sqrt_d"
) -> RegisterEncoder:
    """Load Qwen3-Embedding (or a kin of it) and transplant the demasker's vocabulary (docs/choices.md).

    Args:
        path_or_repo: a sentence-transformers folder, or a hub id; only safetensors are read and no remote code is run.
        vocabulary: the demasker's.
        K: registers, a power of two.

    Returns:
        The encoder in float32; with K = 1 and one shared tokenizer it is the sentence embedding, up to scale.

    Raises:
        CrocodilError: it cannot be loaded, is no Qwen3, does not pool on the last token, or has modules after that.
    """
    from sentence_transformers import SentenceTransformer

    try:
        whole = SentenceTransformer(
            str(path_or_repo),
            device="cpu",
            trust_remote_code=False,
            model_kwargs={"dtype": torch.float32, "use_safetensors": True},
        )
    except Exception as error:  # sentence-transformers, transformers and the hub client raise what they like
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CrocodilError(
            f"{path_or_repo} cannot be loaded as a sentence-transformers encoder: {reason}"
        ) from None
    backbone = getattr(whole[0], "auto_model", None)
    if not isinstance(backbone, Qwen3Model):
        raise CrocodilError(
            f"{path_or_repo} is a {type(backbone).__name__}, not a Qwen3Model; give Qwen3-Embedding or one of its kin"
        )
    pooling = whole[1] if len(whole) > 1 else None
    if "lasttoken" not in str(getattr(pooling, "pooling_mode", None) or _legacy_mode(pooling)):
        raise CrocodilError(
            f"{path_or_repo} does not pool on the last token; copy modules.json and 1_Pooling/ of the released encoder "
            "(without them sentence-transformers averages silently)"
        )
    for module in list(whole)[2:]:
        if type(module).__name__ != "Normalize":
            raise CrocodilError(
                f"{path_or_repo} has a {type(module).__name__} module after pooling, which registers do not pass "
                "through; give an encoder of Transformer, Pooling and Normalize alone, as Qwen3-Embedding is"
            )
    table = backbone.embed_tokens.weight.detach()
    rows = transplant(whole.tokenizer.backend_tokenizer, table, vocabulary)
    backbone.set_input_embeddings(nn.Embedding.from_pretrained(rows, freeze=False))
    backbone.config.vocab_size = len(rows)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(backbone.config, name, vocabulary.eos_id)
    return RegisterEncoder(backbone, K, vocabulary.eos_id, scale)


def _legacy_mode(pooling: object) -> str:
    return "lasttoken" if getattr(pooling, "pooling_mode_lasttoken", False) else ""
