"""LLaDA, our own module: a Llama-type transformer without causal mask (arXiv 2502.09992).

Parameters bear the released key names, so a released checkpoint is a `load_state_dict`; see `weights.py`.

Shape letters: B batch, N text positions, T packed positions, E demasker width, H heads, C channels of a head, V rows
of the embedding table.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from crocodil.attention import Segments, attend
from crocodil.demasker.loss import Score, VocabularyHead, cross_entropy
from crocodil.demasker.rotary import angles, rotate
from crocodil.errors import CrocodilError
from crocodil.recompute import RECOMPUTE

# What this implementation computes; a config that says otherwise is another network, not a setting.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llada",),
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "activation_type": ("silu",),
    "rope": (True,),
    "alibi": (False,),
    "include_bias": (False, None),
    "bias_for_layer_norm": (False, None),
    "layer_norm_with_affine": (True,),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
    "attention_dropout": (0, 0.0),
    "residual_dropout": (0, 0.0),
    "embedding_dropout": (0, 0.0),
    "block_group_size": (1,),
}
# Carried along unread, so that a saved config.json is the one that was loaded.
_CARRIED: dict[str, Any] = {
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_layer_norm_with_affine": True,
    "auto_map": None,
    "flash_attention": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "precision": "amp_bf16",
    "transformers_version": None,
    "use_cache": False,
    "dtype": None,
    "torch_dtype": None,
    "_name_or_path": None,
    "return_dict": None,
}


@dataclass(frozen=True)
class LLaDAConfig:
    """The released config.json, its own names. Fields with a default are those that every release sets alike."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden_size: int
    vocab_size: int
    embedding_size: int
    max_sequence_length: int
    mask_token_id: int
    eos_token_id: int
    rope_theta: float
    rms_norm_eps: float = 1e-5
    rope_full_precision: bool = True
    weight_tying: bool = False
    include_qkv_bias: bool = False
    pad_token_id: int | None = None
    shift: bool = False
    """Not in a release: position i is predicted from the state at i − 1, as in a causal model that was adapted."""
    carried: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def channels(self) -> int:
        """C, channels of one head."""
        return self.d_model // self.n_heads

    @staticmethod
    def from_dict(values: Mapping[str, Any], where: str = "config.json") -> LLaDAConfig:
        """Read a released config.json; refuse unknown keys and features that this network does not have."""
        own = {f.name: f for f in dataclasses.fields(LLaDAConfig) if f.name != "carried"}
        known = [*own, *_FIXED, *_CARRIED]
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean '{near[0]}'?" if near else "; remove it"
                raise CrocodilError(f"{where}: unknown key '{key}' for a LLaDA checkpoint{hint}")
            if key in _FIXED and value not in _FIXED[key]:
                raise CrocodilError(
                    f"{where}: {key} = {value!r} is not a LLaDA that crocodil implements (wanted {_FIXED[key][0]!r})"
                )
        read = {k: v for k, v in values.items() if k in own}
        heads = read.get("n_heads")
        if read.get("n_kv_heads") is None:
            read["n_kv_heads"] = 1 if values.get("multi_query_attention") else heads
        if read.get("embedding_size") is None:
            read["embedding_size"] = read.get("vocab_size")
        if read.get("mlp_hidden_size") is None and read.get("d_model"):
            _check_type("mlp_ratio", values.get("mlp_ratio"), where)
            read["mlp_hidden_size"] = (values.get("mlp_ratio") or 4) * read["d_model"]
        missing = [n for n, f in own.items() if f.default is dataclasses.MISSING and read.get(n) is None]
        if missing:
            raise CrocodilError(
                f"{where}: missing {', '.join(missing)}; take the config.json of the released checkpoint"
            )
        for name in own:
            _check_type(name, read.get(name), where)
        rest = {k: v for k, v in values.items() if k not in own}
        config = LLaDAConfig(**read, carried=rest)
        if config.d_model % config.n_heads or config.n_heads % config.n_kv_heads:
            raise CrocodilError(
                f"{where}: d_model {config.d_model}, n_heads {config.n_heads} and n_kv_heads {config.n_kv_heads} "
                "must divide one another in this order"
            )
        if config.embedding_size < config.vocab_size:
            raise CrocodilError(
                f"{where}: embedding_size {config.embedding_size} is below vocab_size {config.vocab_size}"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The released layout, every key that was loaded included."""
        fixed = {k: v[0] for k, v in _FIXED.items()}
        carried = {k: v for k, v in _CARRIED.items() if v is not None}
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "carried"}
        if not self.shift:
            del own["shift"]  # the released layout does not have it
        return dict(sorted({**fixed, **carried, **own, **self.carried}.items()))


def _check_type(name: str, value: Any, where: str) -> None:
    """A size must be a positive whole number, a rate a positive number, a switch true or false."""
    if name in ("rope_full_precision", "weight_tying", "include_qkv_bias", "shift"):
        fits = value is None or isinstance(value, bool)
    elif name in ("rope_theta", "rms_norm_eps"):
        largest = torch.finfo(torch.float32).max
        fits = value is None or (type(value) in (int, float) and 0 < value <= largest)
    else:
        least = 0 if name.endswith("_id") else 1
        fits = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least)
    if not fits:
        raise CrocodilError(
            f"{where}: {name} = {value!r} is not a value it can have; take the released config.json"
        )


class RMSNorm(nn.Module):
    """Normalise in float32, cast back, *then* multiply by the weight: the released order, which bfloat16 notices."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class Block(nn.Module):
    """Pre-norm attention, then pre-norm gated MLP. `ff_proj` is the gate, `ff_out` the way down."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        E, C, bias = config.d_model, config.channels, bool(config.include_qkv_bias)
        self.config = config
        self.attn_norm = RMSNorm(E, config.rms_norm_eps)
        self.ff_norm = RMSNorm(E, config.rms_norm_eps)
        self.q_proj = nn.Linear(E, config.n_heads * C, bias=bias)
        self.k_proj = nn.Linear(E, config.n_kv_heads * C, bias=bias)
        self.v_proj = nn.Linear(E, config.n_kv_heads * C, bias=bias)
        self.attn_out = nn.Linear(config.n_heads * C, E, bias=False)
        self.ff_proj = nn.Linear(E, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(E, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, E, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        angles_TC: torch.Tensor,
        segments: Segments | None,
        visible: torch.Tensor | None,
    ) -> torch.Tensor:
        """x (B, T, E), angles (T, C/2), and either `segments` or a dense `visible` (B, 1, T, T)."""
        C = self.config.channels
        full = self.config.rope_full_precision
        h = self.attn_norm(x)
        q = rotate(self.q_proj(h).unflatten(-1, (-1, C)), angles_TC, full)
        k = rotate(self.k_proj(h).unflatten(-1, (-1, C)), angles_TC, full)
        v = self.v_proj(h).unflatten(-1, (-1, C))
        x = x + self.attn_out(attend(q, k, v, segments, visible=visible).flatten(-2))
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class Transformer(nn.Module):
    """wte → blocks → ln_f, and the head `ff_out`, under the released names."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.embedding_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        if not config.weight_tying:
            self.ff_out = VocabularyHead(config.d_model, config.embedding_size, bias=False)


class _Model(nn.Module):
    """The released checkpoints keep everything below `model.`."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.transformer = Transformer(config)


class LLaDA(nn.Module):
    """The unguided demasker: token ids, some of them masked, to logits over the vocabulary at every position."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Model(config)
        self.recompute = False  # activation checkpointing, one block at a time

    def initialise(self, generator: torch.Generator | None = None) -> LLaDA:
        """LLaDA's "mitchell" start: normal cut at 3 std, 1/sqrt(fan in), ways out shrunk by depth."""
        core = self.model.transformer

        def normal(weight: torch.Tensor, std: float) -> None:
            nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std, generator=generator)

        width = self.config.d_model
        normal(core.wte.weight, 1 / math.sqrt(width))
        for depth, block in enumerate(self.blocks, start=1):
            for way_in in (block.q_proj, block.k_proj, block.v_proj, block.ff_proj, block.up_proj):
                normal(way_in.weight, 1 / math.sqrt(way_in.in_features))
                if way_in.bias is not None:
                    nn.init.zeros_(way_in.bias)
            for way_out in (block.attn_out, block.ff_out):
                normal(way_out.weight, 1 / math.sqrt(2 * depth * way_out.in_features))
        if not self.config.weight_tying:
            normal(core.ff_out.weight, 1 / math.sqrt(width))
        return self

    def allow(self, length: int) -> None:
        """Raise the longest sequence the config names to at least `length`; RoPE itself has no end."""
        if length > self.config.max_sequence_length:
            self.config = dataclasses.replace(self.config, max_sequence_length=length)

    @property
    def blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.model.transformer.blocks]

    @property
    def units(self) -> list[str]:
        """Classes of the modules that are worth being sharded by themselves."""
        return ["Block"] if self.config.weight_tying else ["Block", "VocabularyHead"]

    @property
    def head_weight(self) -> torch.Tensor:
        """(V, E): the output matrix, which is the embedding table when weights are tied."""
        core = self.model.transformer
        return core.wte.weight if self.config.weight_tying else core.ff_out.weight

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids of any shape to (…, E)."""
        return self.model.transformer.wte(ids)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, E) to logits (…, V)."""
        if self.config.weight_tying:
            return F.linear(hidden, self.head_weight)
        return self.model.transformer.ff_out(hidden)

    def score(self, hidden_RE: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor) -> Score:
        """Weighted cross-entropy of R masked positions; see `demasker.loss`."""
        if self.config.weight_tying:
            return cross_entropy(hidden_RE, self.head_weight, targets_R, weights_R)
        return self.model.transformer.ff_out(hidden_RE, targets_R, weights_R)

    def run(
        self,
        x: torch.Tensor,
        angles_TC: torch.Tensor,
        segments: Segments | None,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """All blocks and the final norm over embeddings (B, T, E); the engine room of every forward."""
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, angles_TC, segments, visible, **RECOMPUTE)
            else:
                x = block(x, angles_TC, segments, visible)
        return self.model.transformer.ln_f(x)

    def read(self, states_TE: torch.Tensor, segments: Segments) -> torch.Tensor:
        """The states that the positions of packed texts are predicted from: their own or, by `shift`, the one before."""
        return states_TE[segments.before] if self.config.shift else states_TE

    def hidden(
        self,
        ids: torch.Tensor | None = None,
        *,
        embeddings: torch.Tensor | None = None,
        attend: torch.Tensor | None = None,
        attention_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final-norm hidden states (B, N, E) of ids (B, N) or embeddings (B, N, E).

        Args:
            attend: (B, N), nonzero where a position is real; the others are left out and return zeros.
                Positions count from 0 over padding too, as in the released code.
            attention_bias: (B, 1, N, N) bool, True where a query may look; excludes `attend`.
        """
        if ids is not None and embeddings is None:
            x = self.embed(ids)
        elif ids is None and embeddings is not None:
            x = embeddings
        else:
            raise CrocodilError("LLaDA wants either ids or embeddings, exactly one of them")
        B, N, E = x.shape
        positions = torch.arange(N, device=x.device)
        if attention_bias is not None:
            if attend is not None:
                raise CrocodilError("LLaDA takes attend or attention_bias, not both")
            return self.run(x, self.angles(positions), None, attention_bias.bool())
        if attend is None or bool(attend.all()):
            return self.run(x, self.angles(positions), None)
        real = attend.bool()
        segments = Segments.of(real.sum(1).tolist(), x.device)
        packed = self.run(x[real][None], self.angles(positions.expand(B, N)[real]), segments)
        out = x.new_zeros(B, N, E)
        out[real] = packed[0]
        return out

    def angles(self, positions_T: torch.Tensor) -> torch.Tensor:
        """Plain RoPE angles (T, C/2) at these positions."""
        return angles(positions_T, self.config.channels, self.config.rope_theta)

    def forward(
        self,
        ids: torch.Tensor | None = None,
        *,
        embeddings: torch.Tensor | None = None,
        attend: torch.Tensor | None = None,
        attention_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, N, V) at every position; arguments as in `hidden`."""
        return self.head(
            self.hidden(ids, embeddings=embeddings, attend=attend, attention_bias=attention_bias)
        )
