"""EleutherAI's lm-evaluation-harness with a crocodil model: `python -m crocodil.harness.lm_eval --model crocodil …`.

`Answers` does the work and knows nothing of that package, which is imported only by `model_class` and not installed with
crocodil (`pip install lm_eval`).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from crocodil.errors import CrocodilError, one_line_errors, require_whole
from crocodil.harness.likelihood import BATCH, DRAWS, is_greedy, loglikelihood
from crocodil.harness.problems import cut
from crocodil.model import Model, load
from crocodil.text.vocabulary import Vocabulary
from crocodil.text.windows import split_text

NAME = "crocodil"
MOST_NEW = 256
"""Tokens to write where a task names no number, as in that package."""


class Answers:
    """What lm-evaluation-harness asks of a model, request by request.

    Args:
        model: a loaded one.
        length: positions of a window, BOS included; the model's if left out.
        mc_num: draws of a likelihood; see `likelihood.loglikelihood`, as for `batch_size` and `tail`.
        is_check_greedy: tell whether a continuation is the greedy one, which few tasks ask, and which takes an
            evaluation for each token; else the answer is no.
        seed: of all draws. A request has its own, whatever was asked before it.
        options: of `crocodil.synthesis.generate`: method, nfe, k, … A task's temperature goes before that one.
    """

    def __init__(
        self,
        model: Model,
        *,
        length: int | None = None,
        mc_num: int = DRAWS,
        batch_size: int = BATCH,
        tail: int = 0,
        is_check_greedy: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        for name, value, least in (("mc_num", mc_num, 1), ("batch_size", batch_size, 1), ("tail", tail, 0)):
            require_whole(name, value, least)
        require_whole("seed", seed)
        self.model, self.length = model, model.resolve_length(length)
        if self.length < tail + 4:
            raise CrocodilError(
                f"a window of {self.length} has no room for a tail of {tail}: give a larger length"
            )
        self.mc_num, self.batch_size, self.tail = mc_num, batch_size, tail
        self.is_check_greedy, self.seed, self.options = is_check_greedy, seed, options

    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """Nats of a continuation behind a context, and whether it is the greedy one.

        A context that is too long loses its beginning.

        Raises:
            CrocodilError: the continuation alone is longer than the window.
        """
        vocabulary = self.model.vocabulary
        before, target = encode_pair(vocabulary, context, continuation)
        room = self.length - 1 - self.tail - len(target)
        if room < 0:
            raise CrocodilError(
                f"a continuation of {len(target)} tokens does not fit a window of {self.length}: give a larger length"
            )
        prefix = [vocabulary.bos_id, *before[max(0, len(before) - room) :]]
        nats = self._nats(prefix, target)
        greedy = self.is_check_greedy and is_greedy(
            self._predict, prefix, target, vocabulary.mask_id, tail=self.tail, device=self.model.device
        )
        return nats, greedy

    def rolling(self, text: str) -> float:
        """Nats of a whole text, window by window; windows know nothing of one another."""
        bos = self.model.vocabulary.bos_id
        pieces = split_text(text, self.model.vocabulary, self.length - self.tail)
        return sum(self._nats([bos], ids) for ids in pieces)

    def generate(self, context: str, wishes: Mapping[str, Any]) -> str:
        """What is written behind a context, up to the first of the texts in `until`.

        A context that is too long loses its beginning: half the window at least is for writing, if as much is asked for.

        Args:
            wishes: as a task gives them: until, max_gen_toks, do_sample, temperature; others are passed over.
        """
        vocabulary, until = self.model.vocabulary, wishes.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        new = wishes.get("max_gen_toks", MOST_NEW)
        require_whole("max_gen_toks", new, 1)
        ids = vocabulary.encode(context)
        room = self.length - 2 - min(new, self.length // 2)
        prompt = context if len(ids) <= room else _fitting(vocabulary, ids, room)
        options = dict(self.options)
        if wishes.get("do_sample") is False:
            options["temperature"] = 0.0
        elif "temperature" in wishes:
            options["temperature"] = float(wishes["temperature"])
        length = min(self.length, len(vocabulary.encode(prompt)) + new + 2)
        seed = self._seed("generate", context)
        (made,) = self.model.generate(1, prompt=prompt, length=length, seed=seed, **options)
        return cut(made.text[len(prompt) :], stops)

    def _nats(self, prefix: Sequence[int], target: Sequence[int]) -> float:
        return loglikelihood(
            self._predict,
            prefix,
            target,
            self.model.vocabulary.mask_id,
            draws=self.mc_num,
            batch_size=self.batch_size,
            tail=self.tail,
            generator=torch.Generator().manual_seed(
                self._seed("likelihood", repr((list(prefix), list(target))))
            ),
            device=self.model.device,
        )

    def _predict(self, ids_BN: Tensor, rows_BN: Tensor) -> Tensor:
        """The unguided demasker, k = 0."""
        with torch.no_grad():
            # spare rows of a padded table stand for nothing
            return self.model.demasker.logits(ids_BN, rows_BN, None)[:, : self.model.vocabulary.size]

    def _seed(self, purpose: str, request: str) -> int:
        text = f"{self.seed}/{purpose}/{request}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 16


def encode_pair(vocabulary: Vocabulary, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of both, cut out of the ids of the whole, so that no text is lost or written as the model never sees it.

    As that package does it, blanks at the context's end go to the continuation, where they are part of its first token.
    Otherwise than there, a token that reaches over the cut is the continuation's, which thus never is without a token.
    """
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, continuation = context[:-blanks], context[-blanks:] + continuation
    before, whole = vocabulary.encode(context), vocabulary.encode(context + continuation)
    shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    return whole[:shared], whole[shared:]


def _fitting(vocabulary: Vocabulary, ids: Sequence[int], room: int) -> str:
    """The end of a text in at most `room` tokens. Cut elsewhere, a text may be tokenised otherwise, and need one more."""
    for start in range(len(ids) - room, len(ids)):
        text = vocabulary.decode(ids[start:])
        if len(vocabulary.encode(text)) <= room:
            return text
    return ""


@lru_cache(maxsize=1)
def model_class() -> type:
    """The class for lm-evaluation-harness, registered there as `crocodil`.

    Raises:
        CrocodilError: the package is not installed.
    """
    try:
        base: Any = importlib.import_module("lm_eval.api.model").LM
        register = importlib.import_module("lm_eval.api.registry").register_model
    except ImportError as error:
        raise CrocodilError(f"lm-evaluation-harness is missing ({error}): pip install lm_eval") from None

    class CrocodilLM(base):
        """Arguments as `--model_args` gives them: model=FOLDER, and those of `Answers`."""

        def __init__(
            self,
            model: str | Model = "bundled",
            device: str | None = None,
            batch_size: int | str | None = None,
            max_batch_size: int | None = None,
            **options: Any,
        ) -> None:
            super().__init__()
            # its command line says cuda:0 where nothing was said
            if str(device).startswith("cuda") and not torch.cuda.is_available():
                device = None
            loaded = model if isinstance(model, Model) else load(model, device)
            # "auto" and nothing are ours to choose
            if str(batch_size).isdecimal():
                options["batch_size"] = int(batch_size)  # type: ignore[arg-type]
            self.answers = Answers(loaded, **options)

        def loglikelihood(
            self, requests: Sequence[Any], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            return [
                self._keep("loglikelihood", one, self.answers.loglikelihood(*one.args)) for one in requests
            ]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            return [
                self._keep("loglikelihood_rolling", one, self.answers.rolling(*one.args)) for one in requests
            ]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return [self._keep("generate_until", one, self.answers.generate(*one.args)) for one in requests]

        def _keep(self, kind: str, request: Any, answer: Any) -> Any:
            """With --use_cache, what has been answered is not asked again."""
            self.cache_hook.add_partial(kind, request.args, answer)
            return answer

    register(NAME)(CrocodilLM)
    return CrocodilLM


def main() -> None:
    """That package's own command line, which knows `--model crocodil` here."""
    with one_line_errors():
        model_class()
        importlib.import_module("lm_eval.__main__").cli_evaluate()


if __name__ == "__main__":
    main()
