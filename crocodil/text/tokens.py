"""A corpus as one flat array of ids: tokenised once, memory-mapped afterwards, refused when it is stale."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crocodil.errors import CrocodilError
from crocodil.text.corpus import Document
from crocodil.text.vocabulary import Vocabulary

IDS, OFFSETS, ABOUT = "ids.npy", "offsets.npy", "corpus.json"
DOCUMENTS_PER_BATCH = 256
CHARACTERS_PER_BATCH = 2**22  # a tokenizer holds some hundred bytes for each token of a batch
NO_DOCUMENT = (
    "there is no document to tokenise: the source is empty, or too small for its held-out share "
    "(a few files want data.held_out=0.2)"
)


@dataclass(frozen=True)
class TokenisedCorpus:
    """Ids of all documents, end to end, without BOS and EOS.

    Attributes:
        ids_T: (T,) uint16 where the vocabulary fits, else int32.
        offsets: (documents + 1,) int64; document i is ids_T[offsets[i] : offsets[i + 1]].
        fingerprint: of the vocabulary.
        digest: 16 hex digits over the fingerprint and the documents, in order.
    """

    ids_T: np.ndarray
    offsets: np.ndarray
    fingerprint: str
    digest: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        """Ids of one document."""
        return self.ids_T[self.offsets[index] : self.offsets[index + 1]]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder as a whole: beside it first, then renamed, replacing another one.

        Raises:
            CrocodilError: the folder around it cannot be made or written, or the disk is full.
        """
        target = Path(folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        except OSError as error:
            raise CrocodilError(
                f"{target.parent}: tokenised texts cannot be kept there ({error}); give another data.cache"
            ) from None
        try:
            written, old = beside / "new", itertools.count()
            written.mkdir()
            np.save(written / IDS, self.ids_T)
            np.save(written / OFFSETS, self.offsets)
            files = {name: _file_digest(written / name) for name in (IDS, OFFSETS)}
            about = {"fingerprint": self.fingerprint, "digest": self.digest, "files": files}
            (written / ABOUT).write_text(json.dumps(about), "utf-8")
            while True:  # another process may put its own there meanwhile
                try:
                    os.rename(written, target)
                    break
                except OSError:
                    # whole and the same: somebody may be reading it already
                    if self._is_in(target):
                        break
                    os.rename(target, beside / str(next(old)))
        except OSError as error:
            size = (self.ids_T.nbytes + self.offsets.nbytes) / 2**20
            raise CrocodilError(
                f"{target}: {size:,.0f} MiB of tokenised texts cannot be written ({error}); make room, or give another "
                "data.cache"
            ) from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _is_in(self, folder: Path) -> bool:
        """Whether a folder holds this very corpus, undamaged."""
        try:
            digest = json.loads((folder / ABOUT).read_text("utf-8"))["digest"]
            ids_T = np.load(folder / IDS, mmap_mode="r", allow_pickle=False)
            offsets = np.load(folder / OFFSETS, allow_pickle=False)
            return digest == self.digest and len(ids_T) == offsets[-1] and len(offsets) == len(self.offsets)
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            return False

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        vocabulary: Vocabulary,
        documents: Iterable[Document] | None = None,
    ) -> TokenisedCorpus:
        """Open a saved corpus, memory-mapped; `documents`, where given, must be those it was made of.

        Raises:
            CrocodilError: missing, damaged, made with another vocabulary or of other documents.
        """
        folder = Path(folder)
        again = "delete the folder and tokenise again"
        if not (folder / ABOUT).is_file():
            raise CrocodilError(f"{folder} holds no tokenised corpus; tokenise documents and save them there")
        try:
            about = json.loads((folder / ABOUT).read_text("utf-8"))
            ids_T, offsets = (
                np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (IDS, OFFSETS)
            )
            corpus = cls(ids_T, offsets, about["fingerprint"], about["digest"])
            altered = [
                n for n, digest in about.get("files", {}).items() if _file_digest(folder / n) != digest
            ]
            whole = offsets.ndim == ids_T.ndim == 1 and (offsets[0], offsets[-1]) == (0, len(ids_T))
        except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
            raise CrocodilError(f"{folder} is damaged ({error}); {again}") from error
        if not whole:
            raise CrocodilError(f"{folder} is damaged (its parts differ in length); {again}")
        if altered:
            raise CrocodilError(f"{folder} is damaged ({altered[0]} was altered); {again}")
        if corpus.fingerprint != vocabulary.fingerprint:
            raise CrocodilError(
                f"{folder} is of vocabulary {corpus.fingerprint}, not {vocabulary.fingerprint}; {again}"
            )
        if documents is not None and corpus_digest(documents, vocabulary) != corpus.digest:
            raise CrocodilError(f"{folder} was made of other documents; {again}")
        return corpus


def _file_digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def tokenise(documents: Iterable[Document], vocabulary: Vocabulary) -> TokenisedCorpus:
    """Encode documents in batches, in their order; memory beyond the ids is one batch of texts.

    Raises:
        CrocodilError: there is no document, or one holds no text.
    """
    dtype = id_dtype(vocabulary)
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    lengths: list[int] = [0]
    pieces: list[np.ndarray] = []
    documents = iter(documents)
    while batch := next_batch(documents):
        encoded = vocabulary.encode_batch([document.text for document in batch])
        for document in batch:
            _add(digest, document)
        lengths.extend(map(len, encoded))
        pieces.append(flat(encoded, dtype))
    if not pieces:
        raise CrocodilError(NO_DOCUMENT)
    offsets = np.cumsum(np.array(lengths, np.int64))
    return TokenisedCorpus(np.concatenate(pieces), offsets, vocabulary.fingerprint, digest.hexdigest()[:16])


def next_batch(documents: Iterator[Document], most: int = DOCUMENTS_PER_BATCH) -> list[Document]:
    """The next documents, at most so many, and few where they are long; none at the end."""
    batch: list[Document] = []
    characters = 0
    while len(batch) < most and characters < CHARACTERS_PER_BATCH:
        if (document := next(documents, None)) is None:
            break
        batch.append(document)
        characters += len(document.text)
    return batch


def id_dtype(vocabulary: Vocabulary) -> np.dtype:
    """Of ids on disk."""
    return np.dtype("<u2" if vocabulary.size <= 2**16 else "<i4")


def flat(encoded: list[list[int]], dtype: np.dtype) -> np.ndarray:
    """Ids of several texts, end to end."""
    return np.fromiter(itertools.chain.from_iterable(encoded), dtype, sum(map(len, encoded)))


def corpus_digest(documents: Iterable[Document], vocabulary: Vocabulary) -> str:
    """The digest that `tokenise` would give, without tokenising."""
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    for document in documents:
        _add(digest, document)
    return digest.hexdigest()[:16]


def _add(digest: hashlib._Hash, document: Document) -> None:
    for part in (document.id, document.text):
        # a file's name may be no UTF-8; its bytes are the same whatever the locale
        data = part.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "big") + data)
