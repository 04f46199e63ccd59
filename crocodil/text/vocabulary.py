"""One vocabulary for the whole system: byte-exact text <-> ids, special ids found by name."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from crocodil.errors import CrocodilError

SPECIAL_NAMES = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "mask": "<|mdm_mask|>"}
"""Names in LLaDA's released tokenizer; used where tokenizer_config.json names none (it names no mask)."""

# After Qwen's and GPT-4's: single digits, no contractions (they break 'strings' in code), and a newline keeps
# the indentation that follows it, so that "\n        " or "):\n        " can become one token of Python.
CODE_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+(?:[\r\n]+[ \t]*)?|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"
)
LONGEST_TOKEN = 64  # bytes; rules of "----" would otherwise fill a small vocabulary

# A token that ends this many characters before a cut is not changed by what follows the cut (see `encode`).
LOOKAHEAD = 1024
# Python's \s holds four control characters that tokenizers' does not.
NO_BLANK = re.compile(r"[\S\x1c-\x1f]")
# What a tokenizer that is not byte-exact would change.
PROBE = (
    '\ufeff A\x00é e\u0301\r\n\t  if x12:\n\n   y\'ll == "日本\U0001f468\u200d\U0001f469"  \n <|mdm_mask|>  '
)

# The threads of `encode_batch` do not live on in a forked process: whoever waits for them there waits for ever. By
# itself the library only knows that when nobody has set this variable.
os.register_at_fork(after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false"))


def byte_alphabet() -> dict[str, int]:
    """The 256 printable characters that stand for bytes in byte-level BPE (GPT-2), character -> byte."""
    printable = [byte for low, high in ("!~", "¡¬", "®ÿ") for byte in range(ord(low), ord(high) + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


class Vocabulary:
    """A byte-level BPE tokenizer whose ids are the demasker's.

    Encoding uses the BPE model alone: text that spells a special token is plain text, nothing is normalised,
    nothing is added. So `decode(encode(text)) == text` for every text.

    Attributes:
        tokenizer: the tokenizer as read or trained, special tokens included.
        bos_id, eos_id, mask_id: the three ids that the system needs.
        size: rows V of the embedding table that ids may name; at least the number of tokens.
        fingerprint: first 16 hex digits of a SHA-256 over tokens, merges, pre-tokeniser and the three ids.
        characters: ids of all characters that a text may consist of, where a token is a character (`characters.py`);
            None where every text has ids.
        fresh: ids of special tokens that the tokenizer came without (see `load`): nobody has trained their rows.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        mask_id: int | None = None,
        size: int | None = None,
        origin: str = "the tokenizer",
    ) -> None:
        """Ids left out are looked up by LLaDA's names; `size` left out is the highest id + 1.

        Raises:
            CrocodilError: no byte-level BPE; a special id is missing, shared or a plain token's; `size` is
            too small.
        """
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True
        self._origin = origin
        state = json.loads(tokenizer.to_str())
        specials = {token["id"] for token in state["added_tokens"] if token["special"]}
        is_bpe = state["model"].get("type") == "BPE"
        self.characters = _characters(state, specials) if is_bpe else None
        if not is_bpe or not (self.characters or byte_alphabet().keys() <= state["model"]["vocab"].keys()):
            raise CrocodilError(f"{origin} is no byte-level BPE; give one like LLaDA's, Qwen's or GPT-2's")
        self.fresh: tuple[int, ...] = ()
        self._bytes = _token_bytes(state, specials)
        self.bos_id = self._special("bos", bos_id)
        self.eos_id = self._special("eos", eos_id)
        self.mask_id = self._special("mask", mask_id)
        if len({self.bos_id, self.eos_id, self.mask_id}) < 3:
            raise CrocodilError(f"{origin}: BOS, EOS and mask must be three ids; mend tokenizer_config.json")
        needed = max(*self._bytes, *specials, self.bos_id, self.eos_id, self.mask_id) + 1
        self.size = needed if size is None else size
        if self.size < needed:
            raise CrocodilError(
                f"{origin} has ids up to {needed - 1}, the table {self.size} rows; use its own"
            )
        # Only the BPE model encodes: all else that a tokenizer may do would change the text.
        bare = dict.fromkeys(("normalizer", "post_processor", "truncation", "padding"))
        self._encoder = Tokenizer.from_str(json.dumps(state | bare | {"added_tokens": []}))
        self.fingerprint = self._digest(state)
        probe = "".join(self.characters or PROBE)
        if self.decode(self.encode(probe)) != probe:
            raise CrocodilError(f"{origin} does not give text back byte for byte; give a byte-level BPE")

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        mask_id: int | None = None,
        size: int | None = None,
        complete: bool = False,
    ) -> Vocabulary:
        """Read a folder with tokenizer.json (and tokenizer_config.json), or the path of a tokenizer.json.

        Special ids: the argument, else what `save` wrote, else the names bos_token, eos_token and mask_token
        in tokenizer_config.json, else LLaDA's. `size` is the demasker's vocab_size where its table has spare
        rows. `complete` adds LLaDA's special token, as the next id, for what a tokenizer has no token for.

        Raises:
            CrocodilError: the file is missing, cannot be read, or lacks a special id.
        """
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise CrocodilError(f"{file} does not exist; give a folder with tokenizer.json, or that file")
        try:
            tokenizer = Tokenizer.from_str(file.read_text("utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise CrocodilError(f"{file} cannot be read as a tokenizer ({error}); fetch it again") from error
        names, saved = _read_config(file.with_name("tokenizer_config.json"))
        ids, lacking = {}, []
        for role, given in (("bos", bos_id), ("eos", eos_id), ("mask", mask_id)):
            name = names[role]
            ids[f"{role}_id"] = next(
                (known for known in (given, saved.get(f"{role}_id")) if known is not None),
                tokenizer.token_to_id(name) if name else None,
            )
            special = SPECIAL_NAMES[role]
            if complete and ids[f"{role}_id"] is None and tokenizer.token_to_id(special) is None:
                tokenizer.add_special_tokens([AddedToken(special, special=True)])
                lacking.append(f"{role}_id")
        size = saved.get("size") if size is None else size
        vocabulary = cls(tokenizer, **ids, size=size, origin=str(file))
        vocabulary.fresh = tuple(getattr(vocabulary, role) for role in lacking)
        return vocabulary

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json into folder `path`; transformers opens it too."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        ids = {"bos_id": self.bos_id, "eos_id": self.eos_id, "mask_id": self.mask_id}
        names = {f"{role[:-3]}_token": self.tokenizer.id_to_token(id) for role, id in ids.items()}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{role: name for role, name in names.items() if name is not None},
            "pad_token": names["eos_token"],
            "clean_up_tokenization_spaces": False,
            "crocodil": ids | {"size": self.size},
        }
        for name, content in (
            ("tokenizer.json", self.tokenizer.to_str(pretty=True)),
            ("tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n"),
        ):
            beside = folder / f".{name}.{os.getpid()}"
            beside.write_text(content, "utf-8", newline="\n")
            os.replace(beside, folder / name)

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of a text, without BOS or EOS; with `limit` only the first `limit`, without reading the rest.

        A prefix of the text is tokenised and its settled ids are taken. Pre-tokenisers of the GPT family
        match from the left and stop at a change of character class; only a run of white space asks what
        follows (its last newline), so the prefix tells that. BPE merges ask a few neighbours, far fewer than
        LOOKAHEAD.

        Raises:
            CrocodilError: not a string, a lone surrogate in it, or a character that has no token.
        """
        check_text(text)
        if self.characters:
            return self._spell(text if limit is None else text[: max(limit, 0)])
        if limit is None:
            return self._encoder.encode(text, add_special_tokens=False).ids
        if limit <= 0:
            return []
        cut = LOOKAHEAD + 4 * limit
        while cut < len(text):
            word = NO_BLANK.search(text, cut)
            blank = text[cut : word.start() if word else len(text)]
            prefix = text[:cut] + ("\n" if "\n" in blank or "\r" in blank else "")
            encoding = self._encoder.encode(prefix, add_special_tokens=False)
            if len(encoding) >= limit and encoding.offsets[limit - 1][1] <= cut - LOOKAHEAD:
                return encoding.ids[:limit]
            cut *= 2
        return self._encoder.encode(text, add_special_tokens=False).ids[:limit]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, on all cores that tokenizers may use."""
        if self.characters:
            return [self.encode(text) for text in texts]
        for text in texts:
            check_text(text)
        return [found.ids for found in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids up to the first EOS; BOS, mask and other specials dropped; broken UTF-8 is U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """As `decode`, before the bytes are read as UTF-8."""
        pieces = []
        for id in map(int, ids):
            if id == self.eos_id:
                break
            pieces.append(self.token_bytes(id) or b"")
        return b"".join(pieces)

    def token_bytes(self, id: int) -> bytes | None:
        """Bytes that an id stands for; None for special tokens and spare rows.

        Raises:
            CrocodilError: the id is outside the table.
        """
        if not 0 <= id < self.size:
            raise CrocodilError(f"id {id} is outside the {self.size} of {self._origin}; was it another's?")
        return self._bytes.get(id)

    def _spell(self, text: str) -> list[int]:
        """As the BPE model would, which takes forty times as long and hundreds of bytes for every token."""
        assert self.characters is not None
        try:
            return [self.characters[character] for character in text]
        except KeyError as error:
            raise CrocodilError(
                f"the text has {error}, which is none of the {len(self.characters)} characters of {self._origin}: pass "
                "it through `letters` first"
            ) from None

    def _special(self, role: str, given: int | None) -> int:
        id = self.tokenizer.token_to_id(SPECIAL_NAMES[role]) if given is None else given
        if id is None:
            raise CrocodilError(
                f"{self._origin} has no {role} token; "
                f"name it as {role}_token in tokenizer_config.json or give {role}_id"
            )
        if id < 0 or id in self._bytes:
            raise CrocodilError(
                f"{role}_id {id} of {self._origin} is a plain token; give a special token's id"
            )
        return id

    def _digest(self, state: dict) -> str:
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
        tokens = sorted((id, piece.hex()) for id, piece in self._bytes.items())
        content = [tokens, merges, state["pre_tokenizer"], [self.bos_id, self.eos_id, self.mask_id]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def train_bpe(texts: Iterable[str], size: int) -> Vocabulary:
    """Train byte-level BPE: all 256 bytes, no normaliser, LLaDA's three special tokens as the last ids.

    Args:
        texts: what to learn merges from; read once.
        size: rows V of the table, specials included; fewer result where the texts offer too few merges.

    Raises:
        CrocodilError: `size` holds no merge.
    """
    least = 256 + len(SPECIAL_NAMES)
    if size < least:
        raise CrocodilError(
            f"a vocabulary of {size} cannot hold all bytes and specials; ask for {least} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CODE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL_NAMES),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_NAMES.values()])
    return Vocabulary(tokenizer, origin="the trained tokenizer")


def _read_config(file: Path) -> tuple[dict[str, str | None], dict[str, int]]:
    """Of a tokenizer_config.json, which need not be there: names of the special tokens, and what `save` wrote."""
    try:
        config = json.loads(file.read_text("utf-8")) if file.exists() else {}
        tokens = {role: config.get(f"{role}_token") for role in SPECIAL_NAMES}
        names = {
            role: token["content"] if isinstance(token, dict) else token for role, token in tokens.items()
        }
        saved = config.get("crocodil", {})
        if not all(isinstance(name, str | None) for name in names.values()):
            raise ValueError("a special token is named by a string")
        if not all(type(number) is int for number in saved.values()):
            raise ValueError("ids and size are whole numbers")
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CrocodilError(f"{file} cannot be read ({reason}); fetch it again") from None
    return names, saved


def _characters(state: dict, specials: set[int]) -> dict[str, int] | None:
    """Of a vocabulary that has no merge and no token but one for each of some ASCII characters; None of any other."""
    model, alphabet = state["model"], byte_alphabet()
    plain = {token: id for token, id in model["vocab"].items() if id not in specials}
    is_byte_level = (state["pre_tokenizer"] or {}).get("type") == "ByteLevel"
    if model["merges"] or not is_byte_level or not all(alphabet.get(token, 128) < 128 for token in plain):
        return None
    return {chr(alphabet[token]): id for token, id in plain.items()}


def _token_bytes(state: dict, specials: set[int]) -> dict[int, bytes]:
    """Bytes of every token that is not special; added tokens that are not special spell themselves."""
    alphabet = byte_alphabet()
    try:
        plain = {
            id: bytes(alphabet[char] for char in token)
            for token, id in state["model"]["vocab"].items()
            if id not in specials
        }
    except KeyError:
        return {}  # no byte-level vocabulary; the round trip refuses it with a message
    added = [token for token in state["added_tokens"] if not token["special"]]
    return plain | {token["id"]: token["content"].encode() for token in added}


def check_text(text: str) -> None:
    """Raise CrocodilError unless `text` is a str that UTF-8 can write."""
    if not isinstance(text, str):
        raise CrocodilError(f"a text must be str, not {type(text).__name__}; decode bytes as UTF-8 first")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CrocodilError(
            f"character {error.start} of the text is a lone surrogate; read the file with errors='replace'"
        ) from None
