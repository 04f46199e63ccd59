"""Texts of 27 characters, a to z and the space, each of them a token: for bits per character, as on text8 (CADD Table 5).

A table of all 256 bytes would spend probability on rows that no text ever names: little after training, but never
nothing, and the noise of a latent would be tuned to as many rows (`cadd/latents.py`). So there are 30 rows: the
characters, BOS, EOS and mask.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from string import ascii_lowercase, ascii_uppercase

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from crocodil.text.rows import Document
from crocodil.text.vocabulary import SPECIAL_NAMES, Vocabulary, byte_alphabet

CHARACTERS = " " + ascii_lowercase
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Only ASCII's capitals and digits, as `tr/A-Z/a-z/` has it: lower() would make letters of others' signs.
_SPELLED = str.maketrans(
    dict(zip(ascii_uppercase, ascii_lowercase, strict=True))
    | {str(number): f" {name} " for number, name in enumerate(_DIGITS)}
)
_NO_LETTERS = re.compile(r"[^a-z]+")


def letters(text: str) -> str:
    """Words of a to z, one space between them: digits are spelled out, all else parts words (text8's wikifil.pl)."""
    return _NO_LETTERS.sub(" ", text.translate(_SPELLED)).strip()


def only_letters(documents: Iterable[Document]) -> Iterator[Document]:
    """The letters of these documents; those that have none are left out."""
    for document in documents:
        if text := letters(document.text):
            yield Document(document.id, text)


def character_vocabulary() -> Vocabulary:
    """One token for each of the 27 characters, then BOS, EOS and mask; all other text is refused."""
    of_byte = {byte: sign for sign, byte in byte_alphabet().items()}
    tokenizer = Tokenizer(models.BPE({of_byte[ord(c)]: id for id, c in enumerate(CHARACTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_NAMES.values()])
    return Vocabulary(tokenizer, origin="the vocabulary of letters")


def bits_per_character(nats: float, characters: int) -> float:
    """Of what a model says of so many characters in all; BOS and EOS, which cost nats too, are none."""
    return nats / characters / math.log(2)
