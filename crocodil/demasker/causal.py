"""A causal language model becomes a demasker (CADD §5.3; DiffuLLaMA, Gong et al. 2025a).

A Llama or a Qwen2 is a LLaDA behind a causal mask, so its weights are taken over, every one of them. Two things of its
past are kept. It goes on predicting token i from the state at i − 1, where it has learned to (`LLaDAConfig.shift`). And
its attention is opened while it trains: every pair of a query and a later key with a probability that rises from 0,
causal, to 1, where nothing of the mask is left.

Shape letters: V rows of the embedding table, E width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import LlamaConfig, Qwen2Config

from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.demasker.masking import MaskedTexts
from crocodil.demasker.weights import account
from crocodil.errors import CrocodilError
from crocodil.shards import checkpoint_folder, list_tensors, map_tensors, read_json, read_tensors
from crocodil.text.vocabulary import Vocabulary

_ARCHITECTURES = {"llama": LlamaConfig, "qwen2": Qwen2Config}
# What these may switch on and LLaDA's blocks do not compute.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_OUTSIDE = {"wte.weight": _TABLE, "ln_f.weight": "model.norm.weight", "ff_out.weight": _HEAD}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_ROWS = 4096  # whose mean is taken at a time, in double precision


def is_causal(path: str | Path) -> bool:
    """Whether this folder's config.json is of a causal model that `open_causal` reads."""
    file = Path(path) / "config.json"
    return file.is_file() and read_json(file).get("model_type") in _ARCHITECTURES


def open_causal(
    path: str | Path, dtype: torch.dtype | None = None, mapped: bool = False, shift: bool = True
) -> tuple[LLaDA, Vocabulary]:
    """A causal model of transformers as a LLaDA, and its vocabulary.

    Where its tokenizer has no BOS or mask, LLaDA's are added as the next ids. Their rows, spare ones of the table or new
    ones at its end, begin as the mean of all tokens.

    Args:
        path: folder with config.json, safetensors and tokenizer.json.
        dtype: dtype of the weights; None keeps the checkpoint's.
        mapped: leave the weights in their files, see `load_llada`; a table that gains rows is read all the same.
        shift: go on predicting each token from the state before it. Otherwise that has to be learned anew.

    Raises:
        CrocodilError: another architecture, a tokenizer that is no byte-level BPE, or a tensor too many or too few.
    """
    folder = checkpoint_folder(Path(path))
    vocabulary = Vocabulary.load(folder, complete=True)
    config, rows = _config(folder / "config.json", vocabulary, shift)
    try:
        with torch.device("meta"):
            model = LLaDA(config)
    except (RuntimeError, TypeError, OverflowError):  # torch, over sizes that do not fit into an address
        raise CrocodilError(
            f"{folder / 'config.json'}: sizes too large for any machine; fetch it again"
        ) from None
    names = {_released(name): name for name in model.state_dict()}
    wanted = {name: tuple(model.state_dict()[own].shape) for name, own in names.items()}
    matrices = [name for name in (_TABLE, _HEAD) if name in wanted]
    wanted |= {name: (rows, config.d_model) for name in matrices}
    stored = list_tensors(folder)
    if config.weight_tying and _HEAD in stored and _TABLE in stored:
        pair = read_tensors(folder, {name: stored[name] for name in (_HEAD, _TABLE)}, None, "cpu")
        if not torch.equal(pair[_HEAD], pair[_TABLE]):
            raise CrocodilError(
                f"{folder}: config.json ties the head to the embedding, but {_HEAD} differs from {_TABLE}: set "
                "tie_word_embeddings to false"
            )
        del stored[_HEAD]
    account(wanted, stored, folder)
    tensors = map_tensors(folder, stored) if mapped else read_tensors(folder, stored, dtype, "cpu")
    for name in matrices:
        tensors[name] = _with_rows(tensors[name], vocabulary)
    model.load_state_dict({names[name]: tensor for name, tensor in tensors.items()}, assign=True)
    return model, vocabulary


def anneal(texts: MaskedTexts, share: float, generators: Iterable[torch.Generator]) -> MaskedTexts:
    """These texts with attention that is open by `share`: 0 is causal, 1 and above what a demasker does.

    Args:
        generators: one for each text, from which its pairs are drawn; another at every step.
    """
    seeds = [int(torch.randint(2**62, (), generator=generator)) for generator in generators]
    return replace(texts, segments=texts.segments.annealed(share, seeds))


def _config(file: Path, vocabulary: Vocabulary, shift: bool) -> tuple[LLaDAConfig, int]:
    """LLaDA's config with the sizes of theirs, and the rows of the table on disk."""
    values = read_json(file)
    kind = values.get("model_type")
    if kind not in _ARCHITECTURES:
        raise CrocodilError(
            f"{file}: model_type = {kind!r} is no causal model that crocodil takes over; give a "
            f"{' or '.join(_ARCHITECTURES)}"
        )
    try:
        theirs = _ARCHITECTURES[kind].from_dict(values)
    except Exception as error:  # transformers checks what it reads, and raises many kinds
        reason = " ".join(str(error).split())
        raise CrocodilError(f"{file} is no config of a {kind} ({reason}); fetch it again") from None
    said = {key: getattr(theirs, key, wanted) for key, wanted in _FIXED.items()}
    said["rope_type"] = theirs.rope_parameters["rope_type"]
    for key, wanted in (_FIXED | {"rope_type": "default"}).items():
        if said[key] != wanted:
            raise CrocodilError(f"{file}: {key} = {said[key]!r} is not what a LLaDA computes ({wanted!r})")
    heads, width = theirs.num_attention_heads, theirs.hidden_size
    if (getattr(theirs, "head_dim", None) or width / heads) * heads != width:
        raise CrocodilError(f"{file}: {heads} heads of {theirs.head_dim} are not the {width} of a LLaDA's")
    rows, known = theirs.vocab_size, vocabulary.size - len(vocabulary.fresh)
    if known > rows:
        raise CrocodilError(
            f"{file}: the tokenizer beside it has ids up to {known - 1}, the table {rows} rows: they are not of one model"
        )
    ours = {
        "d_model": width,
        "n_layers": theirs.num_hidden_layers,
        "n_heads": heads,
        "n_kv_heads": theirs.num_key_value_heads,
        "mlp_hidden_size": theirs.intermediate_size,
        "vocab_size": vocabulary.size,
        "embedding_size": max(rows, vocabulary.size),
        "max_sequence_length": theirs.max_position_embeddings,
        "mask_token_id": vocabulary.mask_id,
        "eos_token_id": vocabulary.eos_id,
        "pad_token_id": vocabulary.eos_id,
        "rope_theta": theirs.rope_parameters["rope_theta"],
        "rms_norm_eps": theirs.rms_norm_eps,
        "weight_tying": theirs.tie_word_embeddings,
        "include_qkv_bias": kind == "qwen2",
        "shift": shift,
    }
    return LLaDAConfig.from_dict(ours, str(file)), rows


def _released(name: str) -> str:
    """What transformers calls this tensor of a LLaDA."""
    parts = name.removeprefix("model.transformer.").split(".")
    if parts[0] != "blocks":
        return _OUTSIDE[".".join(parts)]
    return f"model.layers.{parts[1]}.{_INSIDE[parts[2]]}.{parts[3]}"


def _with_rows(matrix_VE: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """The matrix with a row for every token, those of new ones at the mean."""
    if not vocabulary.fresh:
        return matrix_VE
    known = matrix_VE[: vocabulary.size - len(vocabulary.fresh)]
    mean = sum(part.double().sum(0) for part in known.split(_ROWS)) / len(known)
    if missing := max(0, vocabulary.size - len(matrix_VE)):
        matrix_VE = torch.cat([matrix_VE, matrix_VE.new_empty(missing, matrix_VE.shape[1])])
    matrix_VE[list(vocabulary.fresh)] = mean.to(matrix_VE.dtype)
    return matrix_VE
