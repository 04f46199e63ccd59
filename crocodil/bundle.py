"""A model as a folder: `encoder/`, `demasker/`, `tokenizer/` and an index, each part loadable by itself.

    config.json      what the parts are and that they belong together
    tokenizer/       the one vocabulary
    demasker/        LLaDA in the released layout, and guide.safetensors (START, END, P) beside it; of a model with
                     latents that are merged by a matrix (`concat`), latents.safetensors too
    encoder/         a sentence-transformers folder, and registers.safetensors (suffix embeddings) beside it
    README.md        model card

Only safetensors and JSON are read; nothing is unpickled and no code of the folder is run.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar, cast, get_args

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from crocodil.autoencoder import Autoencoder
from crocodil.cadd.demasker import AugmentedDemasker
from crocodil.cadd.latents import LatentConfig, TokenLatents
from crocodil.demasker.causal import is_causal, open_causal
from crocodil.demasker.guided import GuideConfig, GuidedDemasker, Layout
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.demasker.weights import load_llada, save_llada
from crocodil.errors import CrocodilError
from crocodil.registers.encoder import RegisterEncoder, Scale
from crocodil.registers.geometry import RegisterNoise, check_count
from crocodil.shards import read_json, read_matching, save_tensors, write_file
from crocodil.text.vocabulary import Vocabulary

T = TypeVar("T")
FORMAT = 1
INDEX = "config.json"
_MODELS = Path(__file__).parent / "models"
BUNDLED = _MODELS / "nano"
GUIDE = Path("demasker") / "guide.safetensors"
REGISTERS = Path("encoder") / "registers.safetensors"
LATENTS = Path("demasker") / "latents.safetensors"
DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32")}
_CHOICES = {
    "kind": ("autoencoder", "unguided", "adapters"),
    "layout": get_args(Layout),
    "scale": get_args(Scale),
}
# What a bundle with registers must say, because a default would be another model. (suffix_from came later.)
_GUIDED = {"K", "D", "layout", "local_pairs", "scale"}
# What makes two Qwen3 of the same weights compute different things, or weights fit; none of it may be left out.
SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters", "attention_bias",
)  # fmt: skip
# Nothing else of its config is written, because other versions of transformers have other keys.
_WRITTEN = (
    *SHAPE, "model_type", "max_position_embeddings", "tie_word_embeddings", "attention_dropout", "bos_token_id",
    "eos_token_id", "pad_token_id",
)  # fmt: skip
_LARGEST = 2**31


@dataclass(frozen=True)
class Index:
    """config.json of a bundle."""

    kind: str
    """`autoencoder`; `unguided` for a demasker without registers; `adapters` for what is merged into another model."""
    vocabulary: str
    """Fingerprint of the vocabulary that all parts share."""
    window: int
    """Longest window the model was trained with, in tokens."""
    K: int = 0
    D: int = 0
    layout: str = "anchored"
    local_pairs: tuple[int, ...] = ()
    scale: str = "sqrt_d"
    suffix_from: int | None = None
    """RoPE position of the first suffix register, None for straight after EOS."""
    latents: LatentConfig | None = None
    """Of a demasker that sees a latent at every masked token (CADD), with nothing left open."""
    format: int = FORMAT


def resolve(name: str | Path, wanted: Sequence[str] = ("*.json", "*.safetensors", "*.md", "*.txt")) -> Path:
    """The folder of a model or of adapters.

    Args:
        name: `bundled` (or `nano`), another that comes along as `bundled/cadd`, a path, or a hub id, `org/name` or
            `org/name@REVISION` with a branch, a tag or a commit. What is fetched goes into the hub's cache, which does
            without the network where HF_HUB_OFFLINE is set.
        wanted: patterns of the files that are fetched of a hub id.

    Raises:
        CrocodilError: a home folder or a hub id that there is not.
    """
    if str(name) in ("bundled", "nano"):
        return BUNDLED
    if str(name).startswith("bundled/"):
        return _bundled(str(name))
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise CrocodilError(f"no model {str(name)!r}: there is no such home folder; give a folder") from None
    repository, at, revision = str(name).partition("@")
    if path.exists() or repository.count("/") != 1 or repository.startswith((".", "~", "/")):
        return path
    if at and not revision:
        raise CrocodilError(
            f"no model {str(name)!r}: no revision behind the @; give a branch, a tag or a commit"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(wanted),
            )
        )
    except Exception as error:  # the hub's client and its HTTP library raise what they like
        raise CrocodilError(
            f"no model {str(name)!r}: not a folder here, and not to be had from the hub ({type(error).__name__}); "
            "give a folder, or `bundled`, the model that comes with the package"
        ) from None


def _bundled(name: str) -> Path:
    folder = _MODELS.joinpath(*name.split("/")[1:])
    if not (folder / INDEX).is_file() or not folder.resolve().is_relative_to(_MODELS):
        there = sorted(str(found.parent.relative_to(_MODELS)) for found in _MODELS.glob("*/" + INDEX))
        raise CrocodilError(f"no model {name!r}: those that come along are {', '.join(there)}")
    return folder


def pinned(name: str) -> str:
    """A name that goes on meaning what it means now: a hub id with the commit that it led to."""
    repository, folder = name.partition("@")[0], resolve(name)
    of_hub = folder.parts[-3:-1] == (f"models--{repository.replace('/', '--')}", "snapshots")
    return f"{repository}@{folder.name}" if of_hub else name


def save_unguided(
    folder: Path,
    llada: LLaDA,
    vocabulary: Vocabulary,
    dtype: torch.dtype | None = None,
    latents: TokenLatents | None = None,
    trained: Mapping[str, Any] | None = None,
) -> None:
    """Write a demasker without registers into an empty folder (a temporary one that is published as a whole).

    Args:
        latents, trained: see `save_autoencoder`.

    Raises:
        CrocodilError: see `check_values`.
    """
    check_values(llada, dtype)
    if latents is not None:
        check_values(latents, dtype)
    save_llada(llada, folder / "demasker", dtype=dtype)
    vocabulary.save(folder / "tokenizer")
    _save_latents(folder, latents, dtype)
    _save_record(folder, trained)
    card = _unguided_card(llada, vocabulary, latents, trained or {})
    (folder / "README.md").write_text(card, encoding="utf-8")
    index = Index("unguided", vocabulary.fingerprint, llada.config.max_sequence_length)
    write_json(folder / INDEX, _described(index, latents))


def save_autoencoder(
    folder: Path,
    autoencoder: Autoencoder,
    vocabulary: Vocabulary,
    window: int,
    dtype: torch.dtype | None = None,
    trained: Mapping[str, Any] | None = None,
    latents: TokenLatents | None = None,
    keep_encoder: bool = False,
) -> None:
    """Write a model into an empty folder (a temporary one that is published as a whole).

    Args:
        window: the longest window it was trained with.
        dtype: of the weights on disk; None keeps the model's.
        trained: how it was made, for the record: written to training.json.
        latents: those that its demasker sees beside the registers.
        keep_encoder: its encoder was not trained, and denoisers of its registers go on fitting: where `dtype` would
            round it, it is written in float32.

    Raises:
        CrocodilError: see `check_values`.
    """
    check_values(autoencoder, dtype)
    if latents is not None:
        check_values(latents, dtype)
    save_llada(autoencoder.demasker.llada, folder / "demasker", dtype=dtype)
    of_encoder = dtype
    if keep_encoder and dtype is not None and not is_exact(autoencoder.encoder, dtype):
        of_encoder = torch.float32
    _save_encoder(autoencoder.encoder, folder / "encoder", vocabulary, window, of_encoder)
    save_registers(folder, autoencoder, dtype, of_encoder)
    vocabulary.save(folder / "tokenizer")
    _save_latents(folder, latents, dtype)
    _save_record(folder, trained)
    (folder / "README.md").write_text(_card(autoencoder, vocabulary, window, trained or {}), encoding="utf-8")
    write_json(folder / INDEX, _described(index_of("autoencoder", autoencoder, vocabulary, window), latents))


def is_exact(module: nn.Module, kind: torch.dtype) -> bool:
    """Whether no weight changes on its way into this dtype."""
    return all(torch.equal(tensor, tensor.to(kind).to(tensor.dtype)) for tensor in module.parameters())


def check_values(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Refuse weights that nobody could load: no numbers, or none in the dtype they are written in.

    Args:
        dtype: on disk; None keeps the module's.

    Raises:
        CrocodilError: it names the first such parameter.
    """
    for name, tensor in module.named_parameters():
        kept = tensor.to(dtype or tensor.dtype)
        if kept.isfinite().all():
            continue
        if kept.dtype == torch.float16 and not kept.isnan().any():  # it ends at 65,504
            raise CrocodilError(f"{name} has values that float16 does not hold; take bfloat16 or float32")
        raise CrocodilError(
            f"{name} has values that are no numbers: the training has diverged, and nothing is exported; go on from an "
            "earlier checkpoint with a lower optimiser.lr"
        )


def _save_record(folder: Path, trained: Mapping[str, Any] | None) -> None:
    if trained is not None:
        (folder / "training.json").write_text(
            json.dumps(trained, indent=2, default=str) + "\n", encoding="utf-8"
        )


def _save_latents(folder: Path, latents: TokenLatents | None, dtype: torch.dtype | None) -> None:
    """What latents have of weights."""
    if latents is not None and latents.merge is not None:
        weight = latents.merge.weight.detach()
        write_file({"merge.weight": weight.to("cpu", dtype or weight.dtype).contiguous()}, folder / LATENTS)


def _described(index: Index, latents: TokenLatents | None) -> dict[str, Any]:
    """config.json; nothing is said of latents where there are none, so that older versions read it."""
    values = asdict(index)
    del values["latents"]
    return values if latents is None else values | {"latents": asdict(latents.settled)}


def save_registers(
    folder: Path,
    autoencoder: Autoencoder,
    dtype: torch.dtype | None = None,
    of_encoder: torch.dtype | None = None,
) -> None:
    """Write what encoder and demasker have beyond their backbones: START, END and P, suffix and norm."""
    for file, tensors in _beyond(autoencoder).items():
        (folder / file).parent.mkdir(exist_ok=True)
        kind = of_encoder if Path(file).parts[0] == "encoder" else dtype
        write_file(
            {name: t.detach().to("cpu", kind or t.dtype).contiguous() for name, t in tensors.items()},
            folder / file,
        )


def index_of(kind: str, autoencoder: Autoencoder, vocabulary: Vocabulary, window: int) -> Index:
    """What is to be known of a model beside its weights."""
    encoder, demasker = autoencoder.encoder, autoencoder.demasker
    return Index(
        kind,
        vocabulary.fingerprint,
        window,
        encoder.K,
        encoder.D,
        demasker.config.layout,
        demasker.local_pairs,
        encoder.scale,
        encoder.suffix_from,
    )


def _beyond(autoencoder: Autoencoder) -> dict[Path, dict[str, torch.Tensor]]:
    encoder, demasker = autoencoder.encoder, autoencoder.demasker
    registers: dict[str, torch.Tensor] = {"suffix": encoder.suffix}
    if encoder.norm is not None:
        registers |= {"norm.weight": encoder.norm.weight, "norm.bias": encoder.norm.bias}
    guide: dict[str, torch.Tensor] = {
        "boundaries": demasker.boundaries,
        "projection.weight": demasker.projection.weight,
    }
    return {GUIDE: guide, REGISTERS: registers}


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:,.1f} M"


def _how(trained: Mapping[str, Any]) -> str:
    """How a model was made, where that is known."""
    if not {"recipe", "steps"} <= trained.keys():
        return ""
    made = f"`recipes/{trained['recipe']}.py`, {trained['steps']:,} optimiser steps"
    return f"{made}; every setting is in `training.json`."


def _unguided_card(
    llada: LLaDA, vocabulary: Vocabulary, latents: TokenLatents | None, trained: Mapping[str, Any]
) -> str:
    """A model card of a demasker without registers."""
    sizes = llada.config
    with_latents, method, row = "", "mdm", ""
    if latents is not None:
        kept = latents.settled
        with_latents, method = " that sees a latent at every masked token (CADD)", "cadd"
        row = f"\n| latents | {kept.schedule}, {kept.fusion}, norm {kept.rho:.3f}, gain {kept.gain:.4f} |"
    return f"""---
library_name: crocodil
---

# A crocodil demasker

A masked diffusion language model{with_latents}.

| | |
| --- | --- |
| demasker | LLaDA, {sizes.n_layers} layers, width {sizes.d_model}, {_millions(llada)} parameters |
| vocabulary | {vocabulary.size:,} tokens, fingerprint `{vocabulary.fingerprint}` |
| window | {sizes.max_sequence_length} tokens |{row}

{_how(trained)}

```python
import crocodil

crocodil.load("PATH").generate(method="{method}", nfe=64)
```

Trained from LLaDA's weights, it inherits their licence (MIT).
"""


def _card(autoencoder: Autoencoder, vocabulary: Vocabulary, window: int, trained: Mapping[str, Any]) -> str:
    """A model card: what it is, how it was made, how to use it. What it reaches is for whoever measured it to add."""
    encoder, demasker = autoencoder.encoder, autoencoder.demasker
    sizes, layers = demasker.llada.config, encoder.backbone.config.num_hidden_layers
    how = _how(trained)
    if "adapters" in trained:
        origin = trained["adapters"]
        names = " with ".join(
            f"`{origin[part]}`" for part in ("model", "demasker", "encoder") if origin[part]
        )
        how += f" Trained as adapters on {names}, and merged."
    return f"""---
library_name: crocodil
---

# A crocodil autoencoder

Writes a text into up to {encoder.K} ordered registers of width {encoder.D}, and writes the registers back into text
by guided masked diffusion (CRoCoDiL).

| | |
| --- | --- |
| encoder | Qwen3, {layers} layers, width {encoder.D}, {_millions(encoder)} parameters |
| demasker | LLaDA, {sizes.n_layers} layers, width {sizes.d_model}, {_millions(demasker)} parameters |
| vocabulary | {vocabulary.size:,} tokens, fingerprint `{vocabulary.fingerprint}` |
| window | {window} tokens |
| registers | norm √D ({encoder.scale}), prefix layout `{demasker.config.layout}` |

{how}

```python
import crocodil

model = crocodil.load("PATH")
registers = model.encode("def double(x):\\n    return 2 * x\\n")
model.decode(registers, nfe=16)
```

Trained from LLaDA or Qwen3-Embedding weights, it inherits their licences (MIT and Apache-2.0).
"""


def read_index(folder: Path) -> Index:
    """config.json of a bundle; unknown keys, other formats and impossible values are refused."""
    file = folder / INDEX
    if not folder.is_dir() or not file.is_file():
        export = folder / "export"
        hint = (
            f"take {export}, or `crocodil export`" if export.is_dir() else "give a folder that `export` wrote"
        )
        raise CrocodilError(f"{folder} holds no crocodil model ({INDEX} is missing); {hint}")
    values = read_json(file)
    if values.get("kind") == "adapters":
        raise CrocodilError(
            f"{folder} holds adapters, not a whole model: load the model they were trained on with adapters={folder}, "
            f"or merge them: crocodil export {folder} --out FOLDER"
        )
    if values.get("kind") == "images":
        raise CrocodilError(
            f"{folder} is a model of images: open it with crocodil.images.weights.load_pixels, as docs/cadd.md shows"
        )
    return check_index(values, file)


def check_index(values: Mapping[str, Any], file: Path) -> Index:
    """The values of a config.json as an Index, if they are possible."""
    known = {f.name for f in dataclasses.fields(Index)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise CrocodilError(f"{file}: unknown key {unknown[0]!r}; it knows {', '.join(sorted(known))}")
    if values.get("format") != FORMAT:
        raise CrocodilError(
            f"{file}: format {values.get('format')!r}, this version of crocodil reads {FORMAT}"
        )
    guided = values.get("kind") != "unguided"
    wanted = {"kind", "vocabulary", "window"} | (_GUIDED if guided else set())
    if missing := sorted(wanted - values.keys()):
        raise CrocodilError(f"{file} lacks {missing[0]!r}; copy the model again")
    pairs = values.get("local_pairs", [])
    index = Index(
        **{
            **values,
            "local_pairs": tuple(pairs) if isinstance(pairs, list) else (pairs,),
            "latents": latents_of(values.get("latents"), file),
        }
    )
    for name, choices in _CHOICES.items():
        if getattr(index, name) not in choices:
            raise CrocodilError(
                f"{file}: {name} is {getattr(index, name)!r}, not one of {', '.join(choices)}"
            )
    numbers = [index.window, index.K, index.D, *index.local_pairs]
    if index.suffix_from is not None:
        numbers.append(index.suffix_from)
    if any(type(n) is not int or not 0 <= n < _LARGEST for n in numbers):
        raise CrocodilError(
            f"{file}: window, K, D, suffix_from and local_pairs must be whole numbers below 2^31; "
            "copy the model again"
        )
    if guided:
        with blaming(file):
            check_count(index.K)
    return index


def latents_of(values: Any, file: Path) -> LatentConfig | None:
    """What config.json says of latents, all of it and nothing else; None of a model without.

    Raises:
        CrocodilError: it says too little, too much, or what cannot be.
    """
    if values is None:
        return None
    config = section_of(LatentConfig, values, file, "latents")
    if None in (config.rho, config.gain):
        raise CrocodilError(f"{file}: latents must say rho and gain; copy the model again")
    return config


def section_of(kind: type[T], values: Any, file: Path, name: str) -> T:
    """A dataclass of what a section of config.json says, all of it and nothing else.

    Raises:
        CrocodilError: it says too little, too much, or what cannot be.
    """
    known = {field.name for field in dataclasses.fields(cast(Any, kind))}
    if not isinstance(values, dict) or values.keys() != known:
        raise CrocodilError(f"{file}: {name} must say {', '.join(sorted(known))}; copy the model again")
    with blaming(file):
        return kind(**{key: tuple(one) if isinstance(one, list) else one for key, one in values.items()})


@dataclass(frozen=True)
class Opened:
    """A model of any kind, its parts together."""

    demasker: AugmentedDemasker
    """With or without latents; its host is the demasker of the autoencoder, where there is one."""
    vocabulary: Vocabulary
    window: int
    autoencoder: Autoencoder | None


def open_augmented(
    name: str | Path,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    mapped: bool = False,
    registers: bool = True,
    noise: RegisterNoise | None = None,
) -> Opened:
    """A model and all that it has: registers, latents, both or neither.

    Args:
        name: a model folder, `bundled`, a hub id, a LLaDA checkpoint with its tokenizer, or a causal model (see
            `demasker.causal`), which wants training before it demasks.
        dtype: of the demasker's weights; None keeps those on disk.
        mapped: see `load_llada`; not with registers.
        registers: False leaves the encoder aside.
        noise: of registers in training.

    Raises:
        CrocodilError: the model is missing, damaged, or has no registers where some are wanted in training.
    """
    folder = resolve(name)
    host: UnguidedDemasker | GuidedDemasker
    is_llada = (folder / INDEX).is_file() and "d_model" in read_json(folder / INDEX)
    if is_llada or is_causal(folder):  # by itself, without an index of ours
        llada, vocabulary = open_demasker(folder, dtype, mapped)
        host = UnguidedDemasker(llada if mapped else llada.to(device))
        return Opened(AugmentedDemasker(host, None), vocabulary, llada.config.max_sequence_length, None)
    index = read_index(folder)
    autoencoder = None
    if index.kind == "autoencoder" and registers:
        autoencoder, vocabulary = load_autoencoder(folder, noise, device, dtype)
        host = autoencoder.demasker
    else:
        llada, vocabulary = open_demasker(folder, dtype, mapped)
        host = UnguidedDemasker(llada if mapped else llada.to(device))
    latents = None
    if index.latents is not None:
        sizes = host.llada.config
        latents = TokenLatents(index.latents, sizes.vocab_size, sizes.d_model)
        if latents.merge is not None:
            tensors = read_matching(folder / LATENTS, {"merge.weight": latents.merge.weight})
            with torch.no_grad():
                latents.merge.weight.copy_(tensors["merge.weight"])
            latents.merge.to(host.llada.head_weight.dtype)
        elif (folder / LATENTS).exists():
            raise CrocodilError(
                f"{folder / LATENTS} belongs to fusion concat, {INDEX} says {index.latents.fusion}; copy the model again"
            )
        latents = latents.to(device)
    return Opened(AugmentedDemasker(host, latents), vocabulary, index.window, autoencoder)


def load_autoencoder(
    name: str | Path,
    noise: RegisterNoise | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> tuple[Autoencoder, Vocabulary]:
    """A trained model and its vocabulary; every tensor is accounted for.

    Args:
        dtype: of the demasker's weights, which are most of a model; None keeps those on disk. The encoder's are
            float32 (its fingerprint is taken of them); `crocodil.model.load` converts them.
    """
    folder = resolve(name)
    index = read_index(folder)
    if index.kind != "autoencoder":
        raise CrocodilError(
            f"{folder} is a demasker without registers; train_demasker.py makes an autoencoder of it"
        )
    llada, vocabulary, backbone = open_backbones(folder, dtype, device)
    return assemble(folder, index, llada, backbone, vocabulary, noise, device), vocabulary


def open_backbones(
    folder: Path, dtype: torch.dtype | None, device: torch.device | str = "cpu"
) -> tuple[LLaDA, Vocabulary, Qwen3Model]:
    """LLaDA, vocabulary and Qwen3 (float32) of a model folder, without what has to do with registers."""
    llada = load_llada(folder / "demasker", dtype, device)
    vocabulary = _vocabulary(folder, read_index(folder), llada)
    return llada, vocabulary, _load_backbone(folder / "encoder")


def assemble(
    folder: Path,
    index: Index,
    llada: LLaDA,
    backbone: Qwen3Model,
    vocabulary: Vocabulary,
    noise: RegisterNoise | None = None,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """An autoencoder around its two backbones; what is beyond them comes from `folder`."""
    guide = GuideConfig(index.K, index.D, index.layout, index.local_pairs)  # type: ignore[arg-type]
    with blaming(folder / INDEX):
        demasker = GuidedDemasker(llada, guide)
    with blaming(folder / "encoder"):
        encoder = RegisterEncoder(backbone, index.K, vocabulary.eos_id, index.scale, index.suffix_from)  # type: ignore[arg-type]
    autoencoder = Autoencoder(encoder, demasker, noise)
    for file, parameters in _beyond(autoencoder).items():
        tensors = read_matching(folder / file, parameters)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])
    if encoder.D != index.D or encoder.backbone.config.vocab_size < vocabulary.size:
        raise CrocodilError(f"{folder}: encoder and demasker do not belong together; copy the model again")
    return autoencoder.to(device)


def open_demasker(
    path: str | Path, dtype: torch.dtype | None = torch.float32, mapped: bool = False
) -> tuple[LLaDA, Vocabulary]:
    """An unguided demasker: an export of train_base.py, a LLaDA checkpoint folder with its tokenizer, or a causal model.

    Args:
        mapped: see `load_llada`.
    """
    folder = resolve(path)
    if (folder / "demasker").is_dir():
        llada = load_llada(folder / "demasker", dtype, mapped=mapped)
        return llada, _vocabulary(folder, read_index(folder), llada)
    if is_causal(folder):
        return open_causal(folder, dtype, mapped)
    llada = load_llada(folder, dtype, mapped=mapped)
    config = llada.config
    return llada, Vocabulary.load(
        folder, eos_id=config.eos_token_id, mask_id=config.mask_token_id, size=config.vocab_size
    )


def _vocabulary(folder: Path, index: Index, llada: LLaDA) -> Vocabulary:
    vocabulary = Vocabulary.load(folder / "tokenizer")
    if vocabulary.fingerprint != index.vocabulary:
        raise CrocodilError(
            f"{folder / 'tokenizer'} is another vocabulary ({vocabulary.fingerprint}) than the model was trained with "
            f"({index.vocabulary}); copy the model again"
        )
    if vocabulary.mask_id != llada.config.mask_token_id or vocabulary.size > llada.config.embedding_size:
        raise CrocodilError(f"{folder}: tokenizer and demasker do not belong together; copy the model again")
    longest = llada.config.max_sequence_length
    if not 3 <= index.window <= longest:
        raise CrocodilError(
            f"{folder / INDEX}: window is {index.window}, this demasker's can be 3 to {longest} tokens; copy the model "
            "again"
        )
    return vocabulary


def _save_encoder(
    encoder: RegisterEncoder, folder: Path, vocabulary: Vocabulary, window: int, dtype: torch.dtype | None
) -> None:
    """A folder that SentenceTransformer(path) opens: Qwen3, last-token pooling, normalisation."""
    folder.mkdir()
    backbone = encoder.backbone
    kept = dtype or backbone.dtype
    config = {key: value for key, value in backbone.config.to_dict().items() if key in _WRITTEN}
    config |= {"architectures": ["Qwen3Model"], "dtype": str(kept).removeprefix("torch.")}
    write_json(folder / "config.json", config)
    save_tensors(backbone.state_dict(), folder, dtype=dtype)
    # the summary register is the state at EOS, so the tokenizer appends it, as Qwen3-Embedding's does
    vocabulary.save(folder)
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    eos = tokenizer.id_to_token(vocabulary.eos_id)
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, vocabulary.eos_id)]
    )
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8", newline="\n")
    write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
    )
    (folder / "1_Pooling").mkdir()
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": encoder.D,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
    )
    (folder / "2_Normalize").mkdir()
    (folder / "2_Normalize" / ".keep").touch()
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": window, "do_lower_case": False})


def _load_backbone(folder: Path) -> Qwen3Model:
    """A Qwen3 in float32 from config.json and safetensors, every tensor accounted for."""
    file = folder / "config.json"
    values = read_json(file)
    known = Qwen3Config().to_dict()
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it"
            raise CrocodilError(f"{file}: unknown key {key!r} for a Qwen3; {hint}")
    if missing := [key for key in SHAPE if values.get(key) is None]:
        raise CrocodilError(f"{file} lacks {missing[0]!r}; copy the model again")
    rope = values["rope_parameters"]
    theta = rope.get("rope_theta") if isinstance(rope, dict) else None
    for name, number in {"rope_theta": theta, "rms_norm_eps": values["rms_norm_eps"]}.items():
        if type(number) not in (int, float) or not number > 0:
            raise CrocodilError(f"{file}: {name} is {number!r}, not a positive number; copy the model again")
    with blaming(file), torch.device("meta"):
        backbone = Qwen3Model(Qwen3Config(**values))
    backbone.load_state_dict(read_matching(folder, backbone.state_dict()), assign=True)
    backbone.rotary_emb = type(backbone.rotary_emb)(backbone.config)  # its angles are in no file
    return backbone


@contextmanager
def blaming(file: Path) -> Iterator[None]:
    """Whatever cannot be built of what `file` says names it in one line; torch and transformers raise what they like."""
    try:
        yield
    except CrocodilError as error:
        raise CrocodilError(f"{file}: {error}") from None
    except Exception as error:
        reason = shorten(f"{type(error).__name__}: {error}", 200)
        raise CrocodilError(f"{file}: no model can be built of it ({reason}); copy the model again") from None


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
