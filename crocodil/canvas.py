"""A window with some tokens given and the others to be written: prompts, infilling, or nothing at all.

Shape letter: N window length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crocodil.errors import CrocodilError
from crocodil.text.vocabulary import Vocabulary

Template = Sequence[str | int]
"""Texts that are given, and numbers of tokens to write between them: `["def f(x):\\n", 24, "    return y\\n"]`."""


@dataclass(frozen=True)
class Canvas:
    """The window before anything is written."""

    ids_N: Tensor
    """Given tokens, the mask token elsewhere."""
    slots: int
    """Positions to write."""
    last_given: int
    """Position of the last token of a given text, −1 without one."""
    no_end_before: int
    """The first position at which a text may end: behind what was given, and behind `min_length`."""

    @property
    def length(self) -> int:
        return len(self.ids_N)


def lay_out(
    vocabulary: Vocabulary,
    length: int,
    prompt: str | None = None,
    template: Template | None = None,
    min_length: int = 0,
) -> Canvas:
    """A window of `length` positions, all to be written, or given in part.

    Args:
        min_length: positions in which the text does not end; a template ends where it ends.

    Raises:
        CrocodilError: a prompt and a template, one that is neither, or one that does not fit.
    """
    if prompt is not None and template is not None:
        raise CrocodilError("a prompt and a template both say how the text begins: give one of them")
    mask, eos = vocabulary.mask_id, vocabulary.eos_id
    if prompt is None and template is None:
        return Canvas(torch.full((length,), mask), length, -1, min_length)
    if prompt is not None and not isinstance(prompt, str):
        raise CrocodilError(f"the prompt must be a text, not {prompt!r}")
    ids = [vocabulary.bos_id]
    last = -1
    parts = [prompt or ""] if template is None else _parts(template)
    for part in parts:
        if isinstance(part, str):
            ids += vocabulary.encode(part)
            last = len(ids) - 1 if part else last
        else:
            ids += [mask] * min(part, length)  # more cannot fit
    if len(ids) + 1 > length:
        raise CrocodilError(
            f"the {'prompt' if template is None else 'template'} takes {len(ids)} of the {length} positions of the "
            "window and leaves no room for the end: shorten it, or give a larger length"
        )
    ids += [mask if template is None else eos] * (length - len(ids))
    return Canvas(torch.tensor(ids), ids.count(mask), last, last if template else max(last, min_length))


def _parts(template: Template) -> list[str | int]:
    good = isinstance(template, Sequence) and not isinstance(template, str)
    parts = list(template) if good else []
    for part in parts:
        good = good and (isinstance(part, str) or (type(part) is int and part > 0))
    if not good or not any(isinstance(part, int) for part in parts):
        raise CrocodilError(
            'a template is a list of texts and of numbers of tokens to write, at least one, as ["def f(x):\\n", 24, '
            f'"    return y\\n"], not {template!r}'
        )
    return parts
