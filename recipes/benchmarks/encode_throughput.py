"""P8: texts to vectors, tokenisation included, against `SentenceTransformer.encode` on the same weights.

The texts are Python files of the running interpreter and the weights are random. With one register our encoder gives
the sentence embedding of sentence-transformers, of norm √D instead of 1.

B texts, K registers, D register width.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from crocodil.errors import CrocodilError
from crocodil.text.corpus import load_documents
from crocodil.text.vocabulary import Vocabulary, train_bpe
from recipes.benchmarks.harness import Bench, Benchmark, Row, assert_close, compare
from recipes.benchmarks.networks import guided_demasker, register_encoder
from recipes.benchmarks.sizes import EncodeSizes, Network

BATCH = 32
"""The default of sentence-transformers."""
APART = 1e-5
SHORTEST = 16
"""Tokens; files with less are empty modules."""


def texts_and_vocabulary(sizes: EncodeSizes) -> tuple[list[str], Vocabulary]:
    """The first files of the interpreter that are long and short enough, and a tokenizer trained on them."""
    longest = 4 * sizes.longest  # characters; more do not fit in so few tokens
    short = [
        document.text for document in islice(load_documents("stdlib", max_bytes=longest), 8 * sizes.texts)
    ]
    vocabulary = train_bpe(short[: 4 * sizes.texts], sizes.vocab_size)
    texts = []
    for text in short:
        if SHORTEST <= len(vocabulary.encode(text, limit=sizes.longest + 1)) <= sizes.longest:
            texts.append(text)
        if len(texts) == sizes.texts:
            return texts, vocabulary
    raise CrocodilError(
        f"this Python has {len(texts)} source files of {SHORTEST} to {sizes.longest} tokens, P8 wants {sizes.texts}; "
        "install its standard library as source"
    )


def measure(bench: Bench) -> Iterator[Row]:
    # heavy to import, and no other benchmark needs them
    from sentence_transformers import SentenceTransformer

    from crocodil.autoencoder import Autoencoder
    from crocodil.bundle import save_autoencoder
    from crocodil.model import Model

    sizes = bench.sizes.encode
    texts, vocabulary = texts_and_vocabulary(sizes)
    encoder = register_encoder(vocabulary, 1, sizes.hidden_size, sizes.layers)
    # a model has a demasker; nobody asks this one
    unasked = guided_demasker(Network(sizes.hidden_size, 1, 1, 64, vocabulary.size), 1, 64, "cpu")
    autoencoder = Autoencoder(encoder, unasked)
    window = sizes.longest + 2
    with TemporaryDirectory() as folder:
        save_autoencoder(Path(folder), autoencoder, vocabulary, window)
        theirs = SentenceTransformer(os.path.join(folder, "encoder"), device=str(bench.device))
    ours = Model(autoencoder.to(bench.device), vocabulary, window)
    assert_close(
        "embeddings of norm 1",
        torch.from_numpy(theirs.encode(texts, batch_size=BATCH, show_progress_bar=False)),
        ours.encode(texts, k=1).values_WKD[:, 0] / math.sqrt(ours.D),
        largest=APART,
    )
    yield compare(
        lambda: theirs.encode(texts, batch_size=BATCH, show_progress_bar=False),
        lambda: ours.encode(texts, k=1),
        bench,
    ).row(f"{len(texts)} files of up to {sizes.longest} tokens", 1.3, 1.7)


BENCHMARK = Benchmark(
    "P8",
    "encoding texts",
    f"SentenceTransformer.encode, batches of {BATCH}, same weights",
    "no coordinate of a unit vector further apart than 1e-5",
    measure,
)
