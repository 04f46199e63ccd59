"""What a forward keeps for its backward, counted tensor by tensor from `demasker.llada`, `registers.encoder` and
`demasker.loss`, in bytes.

Four ways to compute: 16-bit weights (`PURE`: DeepSpeed, FSDP2), 16-bit products over float32 weights (`AUTOCAST`: one
GPU, plain data parallel), float32 adapters over 16-bit weights (`ADAPTED`: the same with LoRA), and float32. Attention
keeps queries, keys, values, their result and a row sum; keys and values for every head, as torch's kernel wants them
(flash-attn, where it is installed, wants them once).
torch.compile keeps less; what is said here is without it.

n positions, W width of a row, H heads of C channels, M width of the MLP, V rows of the vocabulary, E demasker width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from transformers import Qwen3Config

from crocodil.demasker.llada import LLaDAConfig
from crocodil.demasker.loss import CHUNK_LOGITS
from crocodil.plan.rows import Row

FLOAT = 4
"""Bytes of a float32: norms, angles and losses are computed in it."""


@dataclass(frozen=True)
class Precision:
    """Bytes of a number while computing."""

    compute: int
    """What products take and give."""
    stream: int
    """The residual stream, and what norms give."""
    wide_adapters: bool = False
    """Adapters are float32 over narrow weights: each makes its own copy of what goes in."""

    @property
    def casts(self) -> bool:
        """Autocast: every product makes its own narrow copy of its input, and of its weight."""
        return self.compute != self.stream


PURE, AUTOCAST, FLOAT32 = Precision(2, 2), Precision(2, 4), Precision(4, 4)
ADAPTED = Precision(2, 2, True)


@dataclass(frozen=True)
class Learning:
    """What of a network's layers learns in a stage."""

    weights: bool
    """All of them."""
    adapted: Collection[str] = ()
    """Or low-rank adapters beside these maps."""
    rank: int = 0
    dropout: bool = False
    mask: int = 1
    """Bytes for a number's place in a dropout mask, as CUDA's kernel has it."""

    def keeps(self, name: str) -> bool:
        """Whether a map must remember its input: a gradient of its weight, or of its adapter's, wants it."""
        return self.weights or name in self.adapted


@dataclass(frozen=True)
class Layer:
    """One layer, LLaDA's or Qwen3's."""

    width: int
    heads: int
    groups: int
    """Heads of keys and values."""
    channels: int
    mlp: int
    maps: tuple[str, str, str, str, str, str, str]
    """Names of query, key, value, attention's way out, gate, up, MLP's way out."""
    head_norms: bool = False
    own_tables: Literal[0, 1] = 0
    """Whether sines and cosines are made anew in every layer."""
    full_rotation: bool = True

    @property
    def matrices(self) -> int:
        """Numbers in its linear maps: 2 W·HC + 2 W·GC + 3 W·M."""
        return self.width * (2 * self.heads * self.channels + 2 * self.groups * self.channels + 3 * self.mlp)


def llada_layer(config: LLaDAConfig) -> Layer:
    return Layer(
        config.d_model,
        config.n_heads,
        config.n_kv_heads,
        config.channels,
        config.mlp_hidden_size,
        ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"),
        own_tables=1,
        full_rotation=config.rope_full_precision,
    )


def qwen3_layer(config: Qwen3Config) -> Layer:
    return Layer(
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.intermediate_size,
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        head_norms=True,
    )


def norm(n: int, width: int, heads: int, precision: int, learns: bool) -> int:
    """RMSNorm over `heads` parts of a row of so many numbers: the row in float32, its 1/rms, and for a gain that learns
    the normalised row."""
    return FLOAT * n * width + FLOAT * n * heads + (precision * n * width if learns else 0)


def inputs(n: int, width: int, maps: Collection[str], precision: Precision, learning: Learning) -> int:
    """What maps that share an input remember of it: the input once; a copy each, where each casts or drops out."""
    keeping = [name for name in maps if learning.keeps(name)]
    if not keeping:
        return 0
    if learning.dropout and not learning.weights:
        return len(keeping) * n * width * (precision.compute + learning.mask)
    copies = precision.casts or (precision.wide_adapters and not learning.weights)
    return precision.compute * n * width * (len(keeping) if copies else 1)


def attention(n: int, layer: Layer, precision: Precision) -> int:
    """Queries, keys, values (repeated for every head) and the result; the log of the row sums in float32."""
    return 4 * precision.compute * n * layer.heads * layer.channels + FLOAT * n * layer.heads


def rotary(n: int, layer: Layer, precision: Precision) -> int:
    """Cosine and sine for C/2 pairs, once for queries and once for keys."""
    return layer.own_tables * 2 * n * layer.channels * (FLOAT if layer.full_rotation else precision.compute)


def mlp(n: int, layer: Layer, precision: Precision, learning: Learning) -> int:
    """Gate, SiLU of it, and up; the product of the two last for a way out that learns."""
    out = inputs(n, layer.mlp, layer.maps[6:], _shared(precision), learning)
    return 3 * precision.compute * n * layer.mlp + out


def adapters(n: int, layer: Layer, precision: Precision, learning: Learning) -> int:
    """The thin row between the two matrices of every adapter."""
    return precision.compute * n * learning.rank * (0 if learning.weights else len(learning.adapted))


def layer_kept(n: int, layer: Layer, precision: Precision, learning: Learning) -> int:
    """Everything that one layer keeps."""
    W, queries, keys = layer.width, layer.heads * layer.channels, layer.groups * layer.channels
    kept = 2 * norm(n, W, 1, precision.stream, learning.weights)
    kept += inputs(n, W, layer.maps[:3], precision, learning)
    if layer.head_norms:
        kept += norm(n, queries, layer.heads, precision.compute, learning.weights)
        kept += norm(n, keys, layer.groups, precision.compute, learning.weights)
    kept += rotary(n, layer, precision) + attention(n, layer, precision)
    if not learning.weights and (learning.dropout or precision.casts or precision.wide_adapters):
        # otherwise its input is attention's result, which is kept anyway; PEFT casts it back and forth
        kept += inputs(n, queries, layer.maps[3:4], _shared(precision), learning)
    kept += inputs(n, W, layer.maps[4:6], precision, learning)
    kept += mlp(n, layer, precision, learning) + adapters(n, layer, precision, learning)
    return kept


def layer_flight(n: int, layer: Layer, precision: Precision, learning: Learning) -> int:
    """What backward adds where a layer is fullest, at its MLP: the gradient of the stream and those of the product and
    its two factors, the product itself being gone if it was kept; a wide adapter gives the product's in float32 too."""
    keeps = learning.keeps(layer.maps[6])
    wide = FLOAT * n * layer.mlp if keeps and precision.wide_adapters else 0
    return precision.stream * n * layer.width + (2 if keeps else 3) * precision.compute * n * layer.mlp + wide


def layers_kept(
    n: int, layer: Layer, count: int, precision: Precision, learning: Learning, recompute: bool
) -> int:
    """Every layer and, under autocast, its narrow weights; or every layer's input alone."""
    if recompute:
        return count * precision.stream * n * layer.width
    return count * (layer_kept(n, layer, precision, learning) + _cast(layer, precision))


def layer_at_work(n: int, layer: Layer, precision: Precision, learning: Learning, recompute: bool) -> int:
    """What the backward of one layer adds: the layer again, if only its input was kept, and gradients on their way."""
    again = layer_kept(n, layer, precision, learning) + _cast(layer, precision) if recompute else 0
    return again + layer_flight(n, layer, precision, learning)


def encoder_kept(
    row: Row, config: Qwen3Config, precision: Precision, learning: Learning, recompute: bool = False
) -> int:
    """Layers, one table of sines and cosines, the last norm; registers in float32, as they are scaled, and as the
    projection keeps them."""
    layer, n, D = qwen3_layer(config), row.clean, config.hidden_size
    kept = layers_kept(n, layer, config.num_hidden_layers, precision, learning, recompute)
    kept += 2 * precision.stream * n * layer.channels + norm(n, D, 1, precision.stream, learning.weights)
    return kept + (2 * FLOAT + precision.compute) * row.registers * D


def demasker_kept(
    row: Row, config: LLaDAConfig, precision: Precision, learning: Learning, recompute: bool = False
) -> int:
    """Blocks, the angles, the last norm."""
    layer, n, E = llada_layer(config), row.positions, config.d_model
    kept = layers_kept(n, layer, config.n_layers, precision, learning, recompute)
    return kept + FLOAT * n * config.channels // 2 + norm(n, E, 1, precision.stream, learning.weights)


def loss_at_work(
    row: Row,
    config: LLaDAConfig,
    precision: Precision,
    head_learns: bool,
    recompute: bool = False,
    learning: Learning | None = None,
    device: str = "cuda",
) -> int:
    """What the loss adds to a forward, at its fullest: a chunk of logits.

    Hidden states of the text, those of masked positions (at worst all) and their gradient; a chunk's logits in float32
    and a copy of them inside logsumexp, or, later, their gradient and its product with the hidden states; the head's
    gradient, summed in float32. Under autocast narrow copies of hidden states and head, and of every block's weights
    that learn: autocast keeps those until the forward ends.
    """
    V, E, T = config.embedding_size, config.d_model, row.tokens
    rows = min(T, max(1, CHUNK_LOGITS[device] // V))
    states = precision.stream * T * E * 3
    chunk = 2 * FLOAT * rows * V
    if head_learns and precision.compute != FLOAT:
        chunk = max(chunk, (FLOAT + precision.compute) * rows * V + precision.compute * V * E)
    gradient = FLOAT * V * E if head_learns else 0
    casts = 0
    if precision.casts:
        casts = precision.compute * (T * E + V * E)
        if recompute and learning is not None and learning.weights:
            casts += precision.compute * config.n_layers * llada_layer(config).matrices
    return states + chunk + gradient + casts


def _cast(layer: Layer, precision: Precision) -> int:
    """Narrow copies of a layer's weights, which its backward wants."""
    return precision.compute * layer.matrices if precision.casts else 0


def _shared(precision: Precision) -> Precision:
    """Of an input that is narrow already."""
    return Precision(precision.compute, precision.compute, precision.wide_adapters)
