"""Every size of every benchmark, in one place.

FULL is what is reported, QUICK is a look in passing, TINY is for the tests and means nothing as a timing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LLADA_ROWS = 126_464
"""Rows of LLaDA's embedding table: the true vocabulary."""


@dataclass(frozen=True)
class Network:
    """A demasker of random weights, in the names of LLaDA's config."""

    d_model: int
    n_layers: int
    n_heads: int
    mlp_hidden_size: int
    vocab_size: int


SHAPE_FAITHFUL = Network(d_model=512, n_layers=8, n_heads=8, mlp_hidden_size=1536, vocab_size=3952)
"""Head and blocks share the work as in LLaDA-8B, where the head is 7.4 % of the blocks."""

QUARTER_DEEP = replace(SHAPE_FAITHFUL, n_layers=2, vocab_size=988)
"""A quarter of its blocks and of its vocabulary: all shares of the work stay."""

WIDE_VOCABULARY = Network(d_model=128, n_layers=2, n_heads=2, mlp_hidden_size=384, vocab_size=LLADA_ROWS)
"""Logits weigh in memory more than in the real model, whose blocks are larger."""


@dataclass(frozen=True)
class DenoiserShape:
    """A denoiser of random weights, in the names of its config."""

    D: int
    width: int
    layers: int
    heads: int


ONE_TWENTIETH = DenoiserShape(D=128, width=128, layers=7, heads=2)
"""A twentieth of SHAPE_FAITHFUL's parameters, as 400 M are of LLaDA-8B's.

Registers are a quarter as wide as tokens and 7 blocks stand beside 8, as 1,024 beside 4,096 and 28 beside 32.
"""


@dataclass(frozen=True)
class StepSizes:
    """P1."""

    network: Network
    length: int
    """N, text positions."""
    registers: int
    """k, in the prefix on both sides; without them a text that is all mask is the same at every position."""
    shares: tuple[float, ...]
    """Share of the positions that is masked."""
    runs: tuple[tuple[int, int], ...]
    """(B, steps that are timed together)."""
    temperatures: tuple[float, ...]
    checked_steps: int
    """NFE of the whole runs whose tokens are compared before anything is timed."""


@dataclass(frozen=True)
class DrawSizes:
    """P2."""

    rows: int
    vocab_size: int
    draws: int
    """Draws of the check that the law is softmax(logits / temperature)."""


@dataclass(frozen=True)
class SynthesisSizes:
    """P3."""

    network: Network
    denoiser: DenoiserShape
    encoder_layers: int
    length: int
    """N, text positions, all of them to be written: so many steps has the base sampler."""
    registers: tuple[int, ...]
    """K, all of them in use; the targets are for the first."""
    nfe: int
    latent_steps: int
    refresh_steps: int
    base_steps: int
    """Steps of the base sampler that are timed, and counted for all N."""
    vocabulary_texts: int
    """Files that the tokenizer is trained on."""


@dataclass(frozen=True)
class LatentSizes:
    """P4."""

    network: Network
    denoiser: DenoiserShape
    length: int
    registers: tuple[int, ...]
    """K; the targets are for the first."""
    batches: tuple[int, ...]
    steps: int
    checked_steps: int
    """DDIM steps whose registers are compared before anything is timed."""


@dataclass(frozen=True)
class LossSizes:
    """P5."""

    positions: int
    d_model: int
    vocab_size: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class TrainingSizes:
    """P6, P11 and P12: encoder and demasker in one engine, and what it trains on."""

    network: Network
    encoder_width: int
    encoder_layers: int
    registers: int
    length: int
    """N, text positions of every window."""
    texts: int
    """In the one packed row of a step."""


@dataclass(frozen=True)
class GatheringSizes:
    """P12 under ZeRO-3."""

    network: Network
    length: int
    nfe: int
    """Forwards of one sample, each of which gathers, or none of them."""


@dataclass(frozen=True)
class PackingSizes:
    """P7."""

    network: Network
    registers: int
    texts: int
    batch: int
    """Texts that are padded to the longest of them."""
    row_tokens: int
    """Tokens that a packed row holds."""
    longest: int
    """Tokens of a text at most; longer files are passed over."""
    shrink: int
    """Real lengths are divided by this."""


@dataclass(frozen=True)
class EncodeSizes:
    """P8."""

    texts: int
    longest: int
    """Tokens of a text at most; longer files are passed over."""
    hidden_size: int
    layers: int
    vocab_size: int


@dataclass(frozen=True)
class CacheSizes:
    """P9."""

    samples: int
    K: int
    D: int
    window: int
    """Tokens that are kept with each sample."""
    shard_samples: int
    batch: int
    """Samples of one read; a shard holds a multiple of it."""


@dataclass(frozen=True)
class ScalingSizes:
    """P10. The largest of each is written last."""

    network: Network
    lengths: tuple[int, ...]
    length_registers: int
    registers: tuple[int, ...]
    registers_length: int
    batches: tuple[int, ...]
    batches_length: int
    files: tuple[int, ...]
    file_characters: int


@dataclass(frozen=True)
class Sizes:
    """All benchmarks."""

    name: str
    pairs: int
    """Timed pairs after the warm-up."""
    least_seconds: float
    """A timing shorter than this is repeated until it is as long."""
    gemm: int
    """Rows and columns of the matrices that calibrate."""
    copy_bytes: int
    step: StepSizes
    draw: DrawSizes
    synthesis: SynthesisSizes
    latent: LatentSizes
    loss: LossSizes
    training: TrainingSizes
    true_vocabulary: TrainingSizes
    """P6's memory at LLaDA's vocabulary."""
    packing: PackingSizes
    encode: EncodeSizes
    cache: CacheSizes
    scaling: ScalingSizes
    gathering: GatheringSizes


FULL = Sizes(
    name="full",
    pairs=5,
    least_seconds=0.2,
    gemm=2048,
    copy_bytes=1 << 28,
    step=StepSizes(SHAPE_FAITHFUL, 256, 8, (1.0, 0.5, 0.1), ((1, 2), (8, 1)), (0.0, 1.0), 4),
    draw=DrawSizes(32, LLADA_ROWS, 2000),
    synthesis=SynthesisSizes(
        SHAPE_FAITHFUL,
        ONE_TWENTIETH,
        encoder_layers=4,
        length=256,
        registers=(8, 128),
        nfe=16,
        latent_steps=128,
        refresh_steps=32,
        base_steps=16,
        vocabulary_texts=400,
    ),
    latent=LatentSizes(SHAPE_FAITHFUL, ONE_TWENTIETH, 256, (8, 128), (1, 8), steps=128, checked_steps=16),
    loss=LossSizes(1024, 256, LLADA_ROWS, (0.5, 1.0)),
    training=TrainingSizes(SHAPE_FAITHFUL, 128, 4, registers=8, length=256, texts=4),
    true_vocabulary=TrainingSizes(WIDE_VOCABULARY, 128, 1, registers=8, length=256, texts=2),
    packing=PackingSizes(QUARTER_DEEP, 8, texts=32, batch=8, row_tokens=2048, longest=512, shrink=8),
    encode=EncodeSizes(192, 512, 256, 4, 2048),
    cache=CacheSizes(4096, 8, 1024, 256, shard_samples=2048, batch=32),
    scaling=ScalingSizes(
        SHAPE_FAITHFUL,
        lengths=(128, 256, 512, 1024),
        length_registers=8,
        registers=(1, 8, 32, 128),
        registers_length=256,
        batches=(1, 2, 4, 8, 16),
        batches_length=128,
        files=(100, 1_000, 10_000),
        file_characters=500,
    ),
    gathering=GatheringSizes(SHAPE_FAITHFUL, length=128, nfe=16),
)

QUICK = Sizes(
    name="quick",
    pairs=5,
    least_seconds=0.1,
    gemm=1024,
    copy_bytes=1 << 26,
    step=StepSizes(SHAPE_FAITHFUL, 128, 8, (1.0, 0.1), ((1, 2),), (0.0, 1.0), 2),
    draw=DrawSizes(16, LLADA_ROWS, 500),
    synthesis=SynthesisSizes(
        SHAPE_FAITHFUL,
        ONE_TWENTIETH,
        encoder_layers=4,
        length=128,
        registers=(8,),
        nfe=8,
        latent_steps=128,
        refresh_steps=32,
        base_steps=8,
        vocabulary_texts=200,
    ),
    latent=LatentSizes(SHAPE_FAITHFUL, ONE_TWENTIETH, 128, (8,), (1, 8), steps=128, checked_steps=8),
    loss=LossSizes(256, 256, LLADA_ROWS, (0.5,)),
    training=TrainingSizes(SHAPE_FAITHFUL, 128, 4, registers=8, length=128, texts=6),
    true_vocabulary=TrainingSizes(WIDE_VOCABULARY, 128, 1, registers=8, length=128, texts=2),
    packing=PackingSizes(QUARTER_DEEP, 8, texts=16, batch=8, row_tokens=1536, longest=256, shrink=16),
    encode=EncodeSizes(64, 256, 256, 4, 2048),
    cache=CacheSizes(1024, 8, 1024, 256, shard_samples=512, batch=32),
    scaling=ScalingSizes(
        SHAPE_FAITHFUL,
        lengths=(128, 256, 512),
        length_registers=8,
        registers=(1, 128),
        registers_length=128,
        batches=(1, 2, 4),
        batches_length=128,
        files=(100, 1_000),
        file_characters=500,
    ),
    gathering=GatheringSizes(SHAPE_FAITHFUL, length=64, nfe=8),
)

_TOY = Network(d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=64, vocab_size=96)
_TOY_BYTES = replace(_TOY, vocab_size=300)  # for a tokenizer, which wants all bytes
_TOY_DENOISER = DenoiserShape(D=16, width=16, layers=1, heads=2)

TINY = Sizes(
    name="tiny",
    pairs=2,
    least_seconds=0.0,
    gemm=64,
    copy_bytes=1 << 16,
    step=StepSizes(_TOY, 24, 2, (1.0, 0.5), ((1, 2), (2, 1)), (0.0, 1.0), 3),
    draw=DrawSizes(4, 1536, 200),
    synthesis=SynthesisSizes(
        _TOY_BYTES,
        _TOY_DENOISER,
        encoder_layers=1,
        length=24,
        registers=(2, 4),
        nfe=4,
        latent_steps=3,
        refresh_steps=2,
        base_steps=3,
        vocabulary_texts=4,
    ),
    latent=LatentSizes(_TOY, _TOY_DENOISER, 24, (2, 4), (1, 2), steps=4, checked_steps=5),
    loss=LossSizes(24, 16, 300, (0.5, 1.0)),
    training=TrainingSizes(_TOY_BYTES, 16, 1, registers=4, length=16, texts=4),
    true_vocabulary=TrainingSizes(_TOY_BYTES, 16, 1, registers=4, length=16, texts=2),
    packing=PackingSizes(_TOY, 2, texts=5, batch=2, row_tokens=64, longest=32, shrink=128),
    encode=EncodeSizes(5, 64, 32, 2, 300),
    cache=CacheSizes(14, 2, 8, 6, shard_samples=8, batch=4),
    scaling=ScalingSizes(
        _TOY,
        lengths=(8, 16),
        length_registers=2,
        registers=(1, 4),
        registers_length=8,
        batches=(1, 2),
        batches_length=8,
        files=(4, 8),
        file_characters=200,
    ),
    gathering=GatheringSizes(_TOY, length=16, nfe=4),
)
