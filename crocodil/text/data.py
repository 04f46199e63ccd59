"""From a named source to tokenised training and held-out texts, prepared once and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crocodil.text.corpus import Document, load_documents
from crocodil.text.split import Split, split
from crocodil.text.tokens import TokenisedCorpus, corpus_digest, tokenise
from crocodil.text.vocabulary import Vocabulary
from crocodil.text.windows import Windows


@dataclass(frozen=True)
class DataConfig:
    """Which texts, and how they are cut into windows."""

    source: str = "stdlib"
    """A folder, a .jsonl or .parquet file, `stdlib`, or `datasets:NAME[:config[:split]]`."""
    held_out: float = 0.02
    """Share of the files that is never trained on; near duplicates stay on one side."""
    split_seed: int = 0
    """Which files are held out. Encoder and demasker of one model must agree on it."""
    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    """Windows in tokens; a text gets one of those that hold it."""
    short_fraction: float = 0.0
    """Share of the samples cut to a random shorter text, for corpora whose files are all longer than the window."""
    fields: tuple[str, ...] = ("text", "content")
    """Names of the text column in .jsonl, .parquet and `datasets`; the first that a row has is taken."""
    extensions: tuple[str, ...] = (".py",)
    """Files of a folder that are read; .jsonl and .parquet files give one document per row."""
    cache: str = "runs/corpus"
    """Folder where tokenised texts are kept between runs."""


def load_split(config: DataConfig) -> Split:
    """Documents of the source, training and held-out apart."""
    documents = load_documents(config.source, extensions=config.extensions, fields=config.fields)
    return split(documents, config.held_out, config.split_seed)


def tokenised(documents: tuple[Document, ...], vocabulary: Vocabulary, cache: str | Path) -> TokenisedCorpus:
    """Ids of these documents in this vocabulary, out of the cache where they have been made before."""
    folder = Path(cache) / corpus_digest(documents, vocabulary)
    if not (folder / "corpus.json").is_file():
        tokenise(documents, vocabulary).save(folder)
    return TokenisedCorpus.load(folder, vocabulary)


def windows_of(
    parts: Split, vocabulary: Vocabulary, config: DataConfig, seed: int
) -> tuple[Windows, Windows]:
    """Training and held-out windows of a split, tokenised or out of the cache."""
    train, held_out = (
        Windows(tokenised(part, vocabulary, config.cache), config.lengths, seed, config.short_fraction)
        for part in (parts.train, parts.held_out)
    )
    return train, held_out
