"""A text while it is written: which step revealed each of its tokens.

Shape letters: N text positions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from crocodil.report.records import Token
from crocodil.sampler.demask import Step
from crocodil.text.vocabulary import Vocabulary


class Forming:
    """The first text of a run, noted step by step.

    Args:
        ids_N: the window before anything is written.
    """

    def __init__(self, vocabulary: Vocabulary, ids_N: Tensor) -> None:
        self._vocabulary = vocabulary
        self._ids_N = ids_N
        # 0 where a token was given
        self._steps_N = (ids_N == vocabulary.mask_id).long()
        self._over = False
        self.number = 0
        """Steps done."""

    def note(self, step: Step) -> None:
        """To be told of every step; those of further batches, which hold other texts, change nothing."""
        self._over |= step.number != self.number + 1
        if self._over:
            return
        # a token counts as revealed by the step after the last one that left it masked
        self._steps_N[step.is_masked_BN[0].cpu()] = step.number + 1
        self._ids_N, self.number = step.ids_BN[0].cpu(), step.number

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The window; what is still masked has a step to come."""
        ids = self._ids_N.tolist()
        eos, bos = self._vocabulary.eos_id, self._vocabulary.bos_id
        end = ids.index(eos) if eos in ids else len(ids)
        tokens = []
        for at, (id, step) in enumerate(zip(ids, self._steps_N.tolist(), strict=True)):
            piece = self._vocabulary.token_bytes(id) or b""
            if at < end:
                kind = "start" if id == bos else "text"
            else:
                kind = "end" if at == end else "tail"
            tokens.append(Token(piece.decode("utf-8", errors="replace"), step, kind))
        return tuple(tokens)


def at_step(tokens: Sequence[Token], step: int) -> list[Token]:
    """A window after so many steps: masked where nothing is revealed yet, and nothing behind an end that is."""
    shown = []
    for token in tokens:
        if token.step > step:
            shown.append(Token("", token.step, "masked"))
        elif token.kind != "tail":
            shown.append(token)
        if token.kind == "end" and token.step <= step:
            break
    return shown
