"""A corpus as one flat array of ids: tokenised once, memory-mapped afterwards, refused when it is stale."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crocodil.errors import CrocodilError
from crocodil.text.corpus import Document
from crocodil.text.vocabulary import Vocabulary

DOCUMENTS_PER_BATCH = 256


@dataclass(frozen=True)
class TokenisedCorpus:
    """Ids of all documents, end to end, without BOS and EOS.

    Attributes:
        ids_T: (T,) uint16 where the vocabulary fits, else int32.
        offsets: (documents + 1,) int64; document i is ids_T[offsets[i] : offsets[i + 1]].
        names: the ids of the documents.
        fingerprint: of the vocabulary.
        digest: 16 hex digits over the fingerprint and every document's id and content.
    """

    ids_T: np.ndarray
    offsets: np.ndarray
    names: tuple[str, ...]
    fingerprint: str
    digest: str

    def __len__(self) -> int:
        return len(self.names)

    def document(self, index: int) -> np.ndarray:
        """Ids of one document."""
        return self.ids_T[self.offsets[index] : self.offsets[index + 1]]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder as a whole: beside it first, then renamed, replacing another one.

        Raises:
            CrocodilError: the folder around it cannot be made or written.
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
            np.save(written / "ids.npy", self.ids_T)
            np.save(written / "offsets.npy", self.offsets)
            about = {"fingerprint": self.fingerprint, "digest": self.digest, "names": self.names}
            (written / "corpus.json").write_text(json.dumps(about), "utf-8")
            while True:  # another process may put its own there meanwhile
                try:
                    os.rename(written, target)
                    break
                except OSError:
                    # whole and the same: somebody may be reading it already
                    if self._is_in(target):
                        break
                    os.rename(target, beside / str(next(old)))
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _is_in(self, folder: Path) -> bool:
        """Whether a folder holds this very corpus, undamaged."""
        try:
            digest = json.loads((folder / "corpus.json").read_text("utf-8"))["digest"]
            ids_T = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
            offsets = np.load(folder / "offsets.npy", allow_pickle=False)
            return digest == self.digest and len(ids_T) == offsets[-1] and len(offsets) == len(self.offsets)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        vocabulary: Vocabulary,
        documents: Iterable[Document] | None = None,
    ) -> TokenisedCorpus:
        """Open a saved corpus, its ids memory-mapped; `documents`, where given, must be those it was made of.

        Raises:
            CrocodilError: missing, damaged, made with another vocabulary or of other documents.
        """
        folder = Path(folder)
        again = "delete the folder and tokenise again"
        if not (folder / "corpus.json").is_file():
            raise CrocodilError(f"{folder} holds no tokenised corpus; tokenise documents and save them there")
        try:
            about = json.loads((folder / "corpus.json").read_text("utf-8"))
            ids_T = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
            offsets = np.load(folder / "offsets.npy", allow_pickle=False)
            corpus = cls(ids_T, offsets, tuple(about["names"]), about["fingerprint"], about["digest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CrocodilError(f"{folder} is damaged ({error}); {again}") from error
        if len(offsets) != len(corpus.names) + 1 or offsets[-1] != len(ids_T):
            raise CrocodilError(f"{folder} is damaged (its parts differ in length); {again}")
        if corpus.fingerprint != vocabulary.fingerprint:
            raise CrocodilError(
                f"{folder} is of vocabulary {corpus.fingerprint}, not {vocabulary.fingerprint}; {again}"
            )
        if documents is not None and corpus_digest(documents, vocabulary) != corpus.digest:
            raise CrocodilError(f"{folder} was made of other documents; {again}")
        return corpus


def tokenise(documents: Iterable[Document], vocabulary: Vocabulary) -> TokenisedCorpus:
    """Encode documents in batches, in their order; memory beyond the ids is one batch of texts.

    Raises:
        CrocodilError: there is no document, or one holds no text.
    """
    dtype = np.uint16 if vocabulary.size <= 2**16 else np.int32
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    names: list[str] = []
    lengths: list[int] = [0]
    pieces: list[np.ndarray] = []
    documents = iter(documents)
    while batch := list(itertools.islice(documents, DOCUMENTS_PER_BATCH)):
        encoded = vocabulary.encode_batch([document.text for document in batch])
        for document in batch:
            _add(digest, document)
        names.extend(document.id for document in batch)
        lengths.extend(map(len, encoded))
        pieces.append(np.fromiter(itertools.chain.from_iterable(encoded), dtype, sum(map(len, encoded))))
    if not names:
        raise CrocodilError(
            "there is no document to tokenise: the source is empty, or too small for its held-out share "
            "(a few files want data.held_out=0.2)"
        )
    offsets = np.cumsum(np.array(lengths, np.int64))
    return TokenisedCorpus(
        np.concatenate(pieces), offsets, tuple(names), vocabulary.fingerprint, digest.hexdigest()[:16]
    )


def corpus_digest(documents: Iterable[Document], vocabulary: Vocabulary) -> str:
    """The digest that `tokenise` would give, without tokenising."""
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    for document in documents:
        _add(digest, document)
    return digest.hexdigest()[:16]


def _add(digest: hashlib._Hash, document: Document) -> None:
    for part in (document.id, document.text):
        data = part.encode("utf-8")
        digest.update(len(data).to_bytes(8, "big") + data)
