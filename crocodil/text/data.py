"""From a named source to tokenised training and held-out texts, prepared once and kept on disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from crocodil.errors import MOST, CrocodilError
from crocodil.text.characters import only_letters
from crocodil.text.corpus import Document, load_documents
from crocodil.text.prepare import TextSource, prepared
from crocodil.text.split import Split, content_hash, split
from crocodil.text.tokens import TokenisedCorpus, corpus_digest, tokenise
from crocodil.text.vocabulary import Vocabulary
from crocodil.text.windows import Windows

SAMPLE = 20_000  # texts of a stream that a vocabulary is trained on


@dataclass(frozen=True)
class DataConfig:
    """Which texts, and how they are cut into windows."""

    source: str = "stdlib"
    """A folder, a .jsonl or .parquet file, `stdlib`, or `datasets:NAME[@REVISION][:config[:split]]`."""
    held_out: float = 0.02
    """Share of the files that is never trained on; near duplicates stay on one side, in a stream only copies."""
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
    streaming: bool = False
    """Read the source once and in order, in little memory, for sources of any size; else it is read into memory."""
    limit: int | None = None
    """First documents of the source; all if left out."""
    letters: bool = False
    """Read of every document only its letters, a to z and the space, digits spelled out, as text8 is made."""

    def __post_init__(self) -> None:
        if self.letters and self.streaming:
            raise CrocodilError(
                "data.letters is not for streamed texts; leave out one of letters and streaming"
            )
        if self.limit is not None and not 1 <= self.limit <= MOST:
            raise CrocodilError(f"data.limit is {self.limit}; give 1 to {MOST:,}, or leave it out")
        if not 0 <= self.held_out < 1 or (self.streaming and not self.held_out):
            range_ = "above 0 and below 1, as texts are streamed" if self.streaming else "from 0 to below 1"
            raise CrocodilError(f"data.held_out is {self.held_out}; give a share {range_}; 0.02 is usual")
        if not 0 <= self.short_fraction <= 1:
            raise CrocodilError(f"data.short_fraction is {self.short_fraction}; give a share from 0 to 1")

    @property
    def text_source(self) -> TextSource:
        """What a streamed corpus depends on, the vocabulary apart."""
        return TextSource(
            self.source, self.fields, self.extensions, self.held_out, self.split_seed, self.limit
        )


class Texts:
    """The texts of a configuration. Nothing is read before it is asked for, and no document is kept after `windows`."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def sample(self) -> Iterator[str]:
        """Training texts to train a vocabulary on: every fourth, or the first SAMPLE of a stream."""
        if not self._config.streaming:
            return (document.text for document in self._parts.train[::4])
        source = self._config.text_source
        documents = itertools.islice(source.documents(), self._config.limit)
        texts = (d.text for d in documents if not source.is_held_out(content_hash(d.text)))
        return itertools.islice(texts, SAMPLE)

    def windows(self, vocabulary: Vocabulary, seed: int) -> tuple[Windows, Windows]:
        """Training and held-out windows; tokenised, or out of the cache. Every process of a launch may call it.

        Raises:
            CrocodilError: the source cannot be read, or one side has no document.
        """
        if not self._config.streaming:
            parts = self._parts
            sides = tuple(
                tokenised(part, vocabulary, self._config.cache) for part in (parts.train, parts.held_out)
            )
            del self._parts
        else:
            sides = prepared(self._config.text_source, vocabulary, self._config.cache)
        train, held_out = (
            Windows(tokens, self._config.lengths, seed, self._config.short_fraction) for tokens in sides
        )
        return train, held_out

    @cached_property
    def _parts(self) -> Split:
        return load_split(self._config)


def load_split(config: DataConfig) -> Split:
    """Documents of the source in memory, training and held-out apart."""
    documents: Iterator[Document] = itertools.islice(
        load_documents(config.source, extensions=config.extensions, fields=config.fields), config.limit
    )
    if config.letters:
        documents = only_letters(documents)
    return split(documents, config.held_out, config.split_seed)


def tokenised(documents: tuple[Document, ...], vocabulary: Vocabulary, cache: str | Path) -> TokenisedCorpus:
    """Ids of these documents in this vocabulary, out of the cache where they have been made before."""
    folder = Path(cache) / corpus_digest(documents, vocabulary)
    if not (folder / "corpus.json").is_file():
        tokenise(documents, vocabulary).save(folder)
    return TokenisedCorpus.load(folder, vocabulary)
