"""Kinds of text that every installation has, and that no bundled model was trained on (CADD Table 7).

Beside held-out programs, what stands in them and around them: words in place of code, another kind of manual, other
programming languages. What other packages have changes with their versions, so the digest of a source is in the name of
what is measured on it.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from importlib import import_module, metadata
from pathlib import Path

from crocodil.reproduce.lab import CADD, Lab
from crocodil.reproduce.texts import held_out_documents
from crocodil.text.characters import only_letters
from crocodil.text.corpus import Document, load_documents
from crocodil.text.tokens import corpus_digest, tokenise
from crocodil.text.windows import FRAME, Sample, Windows

PACKAGES = (
    "accelerate", "huggingface-hub", "jinja2", "matplotlib", "numpy", "pyyaml", "rapidfuzz", "rich", "safetensors",
    "sentence-transformers", "tokenizers", "torch", "transformers",
)  # fmt: skip
"""What crocodil itself asks for."""


def documents(source: str, programs: str) -> tuple[Document, ...]:
    """The texts of one kind; of anything that is none of those kinds, those of a corpus as in training, all of them.

    Args:
        source: a name of `KINDS`, or a corpus.
        programs: where the held-out programs come from.
    """
    if source in KINDS:
        return tuple(KINDS[source](programs))
    return tuple(load_documents(source))


@lru_cache(maxsize=32)
def windows(lab: Lab, source: str, name: str) -> tuple[str, tuple[Sample, ...]]:
    """A digest of a source, and its windows, as long as a model's, that text fills, in a random order.

    Args:
        name: a model of the section `cadd`.
    """
    model = lab.model(CADD + name)
    texts = documents(source, lab.config.source)
    cut = Windows(tokenise(texts, model.vocabulary), (model.window,), lab.config.seed, short_fraction=0.0)
    samples = (cut.sample(int(i), 0) for i in cut.order(0))
    full = tuple(one for one in samples if len(one.text_ids) == model.window - FRAME)
    return corpus_digest(texts, model.vocabulary), full


def _comments(programs: str) -> Iterator[Document]:
    """What people say in programs: comments, and strings in triple quotes."""
    for document in held_out_documents(programs):
        said = []
        try:
            for token in tokenize.generate_tokens(io.StringIO(document.text).readline):
                text = token.string.lstrip("rRbBuUfF")
                if token.type == tokenize.COMMENT:
                    said.append(text.lstrip("#").strip())
                elif token.type == tokenize.STRING and text.startswith(('"""', "'''")):
                    said.append(re.sub(r"\n[ \t]+", "\n", text[3:-3]).strip())
        except (tokenize.TokenError, SyntaxError):
            pass  # an excerpt ends anywhere; what was read until there counts
        if text := "\n".join(filter(None, said)):
            yield Document(document.id, text)


def _manual(programs: str) -> Iterator[Document]:
    """Python's reference manual, as `help()` shows it."""
    for topic, text in sorted(import_module("pydoc_data.topics").topics.items()):
        yield Document(topic, text)


def _descriptions(programs: str) -> Iterator[Document]:
    """What packages say of themselves, in Markdown."""
    for package in PACKAGES:
        try:
            text = str(metadata.metadata(package).json.get("description", ""))
        except metadata.PackageNotFoundError:
            continue
        if text.strip():
            yield Document(package, text)


def _files(package: str, folder: str, pattern: str, programs: str) -> Iterator[Document]:
    """Files of an installed package."""
    file = import_module(package).__file__
    assert file is not None
    for path in sorted((Path(file).parent / folder).glob(pattern)):
        yield Document(path.name, path.read_text("utf-8", errors="replace"))


KINDS: dict[str, Callable[[str], Iterable[Document]]] = {
    "programs": held_out_documents,
    "comments": _comments,
    "manual": _manual,
    "descriptions": _descriptions,
    "headers": partial(_files, "torch", "include/ATen", "*.h"),
    "javascript": partial(_files, "matplotlib", "backends/web_backend/js", "*.js"),
    "letters": lambda programs: only_letters(held_out_documents(programs)),
}
"""Held-out programs; comments and docstrings of them; Python's manual; descriptions of packages; C++ headers of PyTorch;
JavaScript of matplotlib; held-out programs with nothing but their letters, as text8 has them."""
