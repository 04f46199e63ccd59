"""Texts by the million: read once, in order, tokenised and appended to files on disk, in bounded memory.

    source.json   which texts, and the files they come from
    …             what pieces.py writes
    texts.json    appears last

A preparation that was killed goes on behind its last piece. All bytes are a function of source and vocabulary: two
processes that prepare one folder write the same, and the lock only spares them the work.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from crocodil.atomic import write_atomically
from crocodil.errors import CrocodilError
from crocodil.text.corpus import MAX_BYTES, Documents, load_documents
from crocodil.text.hub import PREFIX, HubRows
from crocodil.text.pieces import SIDES, Piece, Side, Written, publish, read_object, whole_pieces, writing
from crocodil.text.rows import Listing, Place
from crocodil.text.split import content_hash, is_held_out
from crocodil.text.tokens import DOCUMENTS_PER_BATCH, TokenisedCorpus, id_dtype, next_batch
from crocodil.text.vocabulary import Vocabulary

FORMAT = "crocodil-streamed-texts-1"
SOURCE, TEXTS = "source.json", "texts.json"
PIECE_TOKENS = 2**24  # so much is lost at most when the preparation is killed
LISTED = 1_000  # files of a source that are looked at when a finished corpus is opened
WAIT_SECONDS, SAY_SECONDS = 0.5, 10.0

Say = Callable[[str], None]
Corpora = tuple[TokenisedCorpus, TokenisedCorpus]


@dataclass(frozen=True)
class TextSource:
    """Which texts, and the share of them that is held out. With a vocabulary it says every byte of what is prepared."""

    source: str
    fields: tuple[str, ...]
    extensions: tuple[str, ...]
    held_out: float
    split_seed: int
    limit: int | None = None
    """First documents of the source; all if left out."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise CrocodilError(f"held_out must be above 0 and below 1, not {self.held_out}; 0.02 is usual")

    def documents(self, after: Place | None = None) -> Documents:
        """A row that is damaged is left out and counted: it should not end a reading of hours."""
        return load_documents(
            self.source, extensions=self.extensions, fields=self.fields, strict=False, after=after
        )

    def is_held_out(self, content: str) -> bool:
        """By a hash of the text alone. So copies stay on one side; near duplicates are not looked for."""
        return is_held_out(content, self.held_out, self.split_seed)

    def room(self, documents: Documents) -> int:
        """Documents of the next batch, at most."""
        left = DOCUMENTS_PER_BATCH if self.limit is None else self.limit - documents.position
        return min(left, DOCUMENTS_PER_BATCH)

    def name(self, vocabulary: Vocabulary) -> str:
        """Of the folder: texts that differ in anything have another."""
        says = [FORMAT, asdict(self), MAX_BYTES, vocabulary.fingerprint, id_dtype(vocabulary).str]
        return "streamed-" + hashlib.sha256(json.dumps(says).encode()).hexdigest()[:16]


def prepared(
    texts: TextSource,
    vocabulary: Vocabulary,
    cache: str | Path,
    say: Say | None = None,
    verify: bool = False,
) -> Corpora:
    """Training and held-out texts, memory-mapped; prepared first where that has not been done.

    Every process may call it: one prepares, the others wait. What is finished is opened without reading the source.

    Args:
        cache: folder of the folders of prepared texts.
        say: told how it goes, in lines; left out, they go to stderr.
        verify: compare every byte with its digest, and make again what is damaged.

    Raises:
        CrocodilError: the source cannot be read, or has changed meanwhile; the folder cannot be written.
    """
    say = say or _to_stderr
    folder = Path(cache) / texts.name(vocabulary)
    if not verify and (found := _finished(folder, texts, vocabulary)):
        return found
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    is_told = os.environ.get("RANK", "0") != "0"  # one of those that were launched together says it for all
    while True:
        with _only_one(folder) as mine:
            if mine:
                if verify or not _finished(folder, texts, vocabulary):
                    _Preparation(folder, texts, vocabulary, say).run(verify)
                return _load(folder, vocabulary)
        if not is_told:
            say(f"waiting for the process that prepares {folder}")
            is_told = True
        time.sleep(WAIT_SECONDS)
        if found := _finished(folder, texts, vocabulary):
            return found


def _finished(folder: Path, texts: TextSource, vocabulary: Vocabulary) -> Corpora | None:
    """What is finished and whole; None where something is left to do."""
    if not (folder / TEXTS).is_file():
        return None
    if texts.source == "stdlib" or os.path.exists(texts.source):  # elsewhere there is nothing to compare
        _check_files(folder, texts, texts.documents().listing(LISTED))
    try:
        return _load(folder, vocabulary)
    except CrocodilError:
        return None


def _load(folder: Path, vocabulary: Vocabulary) -> Corpora:
    train, held_out = (TokenisedCorpus.load(folder / side, vocabulary) for side in SIDES)
    return train, held_out


def _check_files(folder: Path, texts: TextSource, listing: Listing | None) -> None:
    """Refuse files that were added, removed or renamed since the preparation began, or became longer or shorter."""
    now = asdict(listing) if listing else None
    then = read_object(folder / SOURCE).get("files") if (folder / SOURCE).is_file() else None
    if now and then and now != then:
        raise CrocodilError(
            f"{texts.source} has changed since {folder} was prepared of it ({then.get('files')} files of "
            f"{then.get('bytes')} bytes then, {now['files']} of {now['bytes']} now); put it back, or delete that "
            "folder to prepare it anew"
        )


class _Preparation:
    """Reads what has not been read yet, and writes it."""

    def __init__(self, folder: Path, texts: TextSource, vocabulary: Vocabulary, say: Say) -> None:
        self._folder, self._texts, self._vocabulary, self._say = folder, texts, vocabulary, say

    def run(self, verify: bool) -> None:
        folder, dtype = self._folder, id_dtype(self._vocabulary)
        pieces = whole_pieces(folder, dtype, verify)
        if (folder / TEXTS).is_file():
            is_all = len(pieces) == read_object(folder / TEXTS).get("pieces")
            if is_all and _finished(folder, self._texts, self._vocabulary):
                self._say(f"{folder} is whole: {pieces[-1]}")
                return
            self._say(f"{folder} is damaged; what is missing is made again")
            with writing(folder / TEXTS):
                (folder / TEXTS).unlink()
        documents = self._documents(pieces)
        before = pieces[-1].sides if pieces else (Written(), Written())
        with ExitStack() as opened:
            sides = []
            for side, written in zip(SIDES, before, strict=True):
                files = Side(folder / side, dtype, written, self._vocabulary.fingerprint)
                sides.append(opened.enter_context(closing(files)))
            number = self._read(documents, sides, len(pieces))
            self._finish(documents, sides, number)

    def _documents(self, pieces: list[Piece]) -> Documents:
        """From the beginning, or behind those of the last piece, whose last batch must come again."""
        texts = self._texts
        place = pieces[-1].place if pieces else {}
        # What a data set said of where it stood may lead elsewhere, with another version of its library: then its rows
        # are counted.
        counted = [{**place, "state": None}] if place.get("state") is not None else []
        for after in (place, *counted):
            documents = texts.documents(after)
            listing = documents.listing()
            _check_files(self._folder, texts, listing)
            if not pieces:
                self._describe(listing)
                if texts.source.startswith(PREFIX) and not HubRows(texts.source, texts.fields, {}).is_pinned:
                    self._say(f"{texts.source} may change while it is read; {PREFIX}NAME@REVISION pins it")
                return documents
            batch = next_batch(documents, texts.room(documents))
            if _digest([content_hash(document.text) for document in batch]) == pieces[-1].batch:
                self._say(f"{self._folder} holds {pieces[-1]}; going on from there")
                return documents
        raise CrocodilError(
            f"{texts.source} gives other documents than when {self._folder} was begun; delete that folder to begin anew"
        )

    def _describe(self, listing: Listing | None) -> None:
        """Say in the folder what it is of."""
        says = {"format": FORMAT, **asdict(self._texts), "vocabulary": self._vocabulary.fingerprint}
        with writing(self._folder / SOURCE):
            text = json.dumps(says | {"files": asdict(listing) if listing else None}, indent=1)
            write_atomically(self._folder / SOURCE, text + "\n")

    def _read(self, documents: Documents, sides: list[Side], number: int) -> int:
        """Read to the end; `number` is that of the next piece, before and after."""
        progress = _Progress(self._say, self._texts.limit, documents, sides)
        tokens, place, batch_digest = 0, documents.place(), ""
        while batch := next_batch(documents, self._texts.room(documents)):
            encoded = self._vocabulary.encode_batch([document.text for document in batch])
            contents = [content_hash(document.text) for document in batch]
            out = [self._texts.is_held_out(content) for content in contents]
            for side, wanted in zip(sides, (False, True), strict=True):
                chosen = [i for i in range(len(batch)) if out[i] == wanted]
                side.add([encoded[i] for i in chosen], [contents[i] for i in chosen])
            tokens += sum(map(len, encoded))
            before, place, batch_digest = place, documents.place(), _digest(contents)
            if tokens >= PIECE_TOKENS:
                publish(self._folder, number, sides, before, batch_digest)
                number, tokens, batch_digest = number + 1, 0, ""
            progress.tell(documents, sides)
        if batch_digest:
            publish(self._folder, number, sides, before, batch_digest)
            number += 1
        return number

    def _finish(self, documents: Documents, sides: list[Side], number: int) -> None:
        for side in sides:
            side.finish()
        train, held_out = (side.written for side in sides)
        about = {
            "format": FORMAT,
            "pieces": number,
            "left_out": dict(documents.left_out),
            "train": asdict(train),
            "held_out": asdict(held_out),
        }
        with writing(self._folder / TEXTS):
            write_atomically(self._folder / TEXTS, json.dumps(about, indent=1) + "\n")
        counts = [f"{count:,} {why}" for why, count in sorted(documents.left_out.items())]
        left_out = f"; left out: {', '.join(counts)}" if counts else ""
        self._say(f"{self._folder} is complete: {Piece(train, held_out, {}, '')}{left_out}")


def _digest(contents: list[str]) -> str:
    return hashlib.blake2b("".join(contents).encode(), digest_size=16).hexdigest()


@contextmanager
def _only_one(folder: Path) -> Iterator[bool]:
    """Whether this process may prepare the folder. The kernel frees the lock of one that died."""
    with writing(folder / "lock"):
        stream = open(folder / "lock", "ab")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # no locks on this file system: the work is done twice then
        yield True


class _Progress:
    """A line now and then: how far, how fast, how long it will take."""

    def __init__(self, say: Say, limit: int | None, documents: Documents, sides: list[Side]) -> None:
        self._say, self._limit = say, limit
        self._began = self._said = time.monotonic()
        self._tokens = sum(side.tokens for side in sides)
        self._share = self._share_of(documents)

    def tell(self, documents: Documents, sides: list[Side]) -> None:
        now = time.monotonic()
        if now - self._said < SAY_SECONDS:
            return
        self._said = now
        seconds, share, tokens = now - self._began, self._share_of(documents), sum(s.tokens for s in sides)
        parts = [f"{documents.position:,} documents", f"{tokens:,} tokens"]
        parts.append(f"{(tokens - self._tokens) / seconds:,.0f} tokens/s")
        if share > self._share:
            left = seconds * (1 - share) / (share - self._share)
            parts += [f"{share:.1%}", f"{timedelta(seconds=round(left))} left"]
        self._say("  ".join(parts))

    def _share_of(self, documents: Documents) -> float:
        """How much has been read, 0 to 1; 0 where that is not known."""
        limited = 0.0 if self._limit is None else documents.position / self._limit
        return max(documents.share() or 0.0, limited)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
