"""Generated texts before a judge, a causal language model that is not ours (CRoCoDiL Tab. 1 and 2, Fig. 6, 8 and 12).

Generative perplexity alone is easily fooled, since a model that repeats itself is easy to predict. So one record
holds it together with entropy, repetition, lengths, and who judged in which arithmetic.

Shape letters: B texts, N the judge's positions, V its vocabulary, E its width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from crocodil.errors import CrocodilError

REPEATED = 4
"""Tokens in the n-grams of `repetition`."""


@dataclass(frozen=True)
class Judge:
    """A causal language model that reads texts."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """The folder or hub id it came from."""
    context: int
    """Positions it reads at a time, BOS included."""

    @property
    def dtype(self) -> str:
        """`float32`, `bfloat16`, …"""
        return str(self.model.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class GenerationScore:
    """What a judge thinks of generated texts, and what keeps it honest."""

    perplexity: float
    """e to the nats per token, over all tokens of all texts, so that a long text weighs more."""
    nats: float
    """Nats per token."""
    tokens: int
    """Tokens that were scored."""
    token_entropy: float
    """Entropy in nats of the tokens within a text, mean over texts; low where a text uses few tokens."""
    repetition: float
    """Share of 4-grams that stood in the same text before, mean over texts."""
    mean_tokens: float
    """Judge tokens of a text, BOS not counted."""
    mean_characters: float
    texts: int
    """Texts that were scored, over which all means run."""
    left_out: int
    """Texts without a token to score: empty ones, and of a judge without BOS those of one token."""
    cut: int
    """Texts longer than the judge's context, which were read in pieces."""
    judge: str
    dtype: str
    """Arithmetic of the judge."""
    context: int


@dataclass(frozen=True)
class TextScore:
    """What a judge thinks of one text."""

    nats: float
    """Sum over its tokens."""
    tokens: int
    """Tokens that were scored, 0 where there is none to score."""
    token_entropy: float
    repetition: float
    length: int
    """Tokens of the judge, BOS not counted."""
    characters: int
    cut: bool
    """Longer than the judge's context, and read in pieces."""


@dataclass(frozen=True)
class TextFeatures:
    """Texts as points, for `metrics.mauve`."""

    features_BE: torch.Tensor
    """float32, on the judge's device; the texts in their order, without those left out."""
    left_out: int
    """Texts without a token."""
    cut: int
    """Texts longer than the judge's context, of which only the beginning was read."""


def open_judge(
    path_or_repo: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    context: int | None = None,
) -> Judge:
    """Load a causal language model and its tokenizer.

    Args:
        path_or_repo: a Hugging Face folder, or a hub id; only safetensors are read and no remote code is run.
        device: where it computes.
        dtype: its weights and arithmetic; perplexities of different types do not compare.
        context: positions it reads at a time; what its configuration names if left out.

    Raises:
        CrocodilError: it cannot be loaded, lacks weights, sees what comes after, or does not have that context.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path_or_repo), trust_remote_code=False)
        model, loading = AutoModelForCausalLM.from_pretrained(
            str(path_or_repo),
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and the hub client raise what they like
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CrocodilError(
            f"{path_or_repo} cannot be loaded as a judge, a causal language model: {reason}"
        ) from None
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise CrocodilError(
            f"{path_or_repo} has no weights for {missing[0]} and {len(missing) - 1} more, so it would judge at "
            "random; give a folder saved with its language head"
        )
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = limit if context is None else context
    if context is None:
        raise CrocodilError(f"{path_or_repo} does not say how many positions it reads; give context=…")
    if context < 2 or context > (limit or context):
        raise CrocodilError(
            f"{path_or_repo} reads 2 to {limit or '…'} positions, not {context}; give another context"
        )
    model = model.to(device).eval()
    if not _is_causal(model):
        raise CrocodilError(
            f"{path_or_repo} sees tokens before it predicts them, so it cannot judge; give a causal language model"
        )
    return Judge(model, tokenizer, str(path_or_repo), context)


@torch.no_grad()
def generative_perplexity(texts: Sequence[str], judge: Judge, batch_size: int = 8) -> GenerationScore:
    """Gen-PPL: e^(−(1/n) Σ log p(token | the tokens before it)) under the judge, and what belongs beside it.

    BOS goes first where the tokenizer has one, so that the first token is scored too. A text longer than the context
    is read in pieces that know nothing of one another; each piece has BOS before it, or without one the last token of
    the piece before, so that every token is scored once. A text that spells a special token is read as plain text.

    Args:
        texts: what was generated.
        judge: see `open_judge`.
        batch_size: pieces that are read at once; memory is batch_size · N · V. It changes no result beyond rounding.

    Raises:
        CrocodilError: no text has a token to score, or the judge's arithmetic overflows.
    """
    scores = [score for score in score_texts(texts, judge, batch_size) if score.tokens]
    if not scores:
        raise CrocodilError(f"none of {len(texts)} texts has a token to score; give one at least")
    nats, tokens = math.fsum(score.nats for score in scores), sum(score.tokens for score in scores)
    mean = lambda name: sum(getattr(score, name) for score in scores) / len(scores)  # noqa: E731
    return GenerationScore(
        # math.exp would refuse what torch calls infinite
        perplexity=float(torch.tensor(nats / tokens, dtype=torch.float64).exp()),
        nats=nats / tokens,
        tokens=tokens,
        token_entropy=mean("token_entropy"),
        repetition=mean("repetition"),
        mean_tokens=mean("length"),
        mean_characters=mean("characters"),
        texts=len(scores),
        left_out=len(texts) - len(scores),
        cut=sum(score.cut for score in scores),
        judge=judge.name,
        dtype=judge.dtype,
        context=judge.context,
    )


@torch.no_grad()
def score_texts(texts: Sequence[str], judge: Judge, batch_size: int = 8) -> list[TextScore]:
    """What `generative_perplexity` is made of, text by text; one without a token to score has `tokens` 0.

    Raises:
        CrocodilError: there are no texts, or the judge's arithmetic overflows.
    """
    bos = [] if judge.tokenizer.bos_token_id is None else [int(judge.tokenizer.bos_token_id)]
    ids_of_texts = _tokenise(texts, judge)
    owners = [
        (text, piece)
        for text, ids in enumerate(ids_of_texts)
        if len(bos + ids) > 1
        for piece in _pieces(ids, bos, judge.context)
    ]
    pieces = [piece for _, piece in owners]
    nats, tokens = [0.0] * len(texts), [0] * len(texts)
    for which, ids_BN, attend_BN in _batches(pieces, batch_size, judge):
        logits_BNV = judge.model(input_ids=ids_BN, attention_mask=attend_BN, use_cache=False).logits
        # one text at a time: a float32 copy of the whole batch's logits would be the largest thing in memory
        for logits_NV, ids_N, piece in zip(logits_BNV, ids_BN, which, strict=True):
            n, text = len(pieces[piece]), owners[piece][0]
            logits = logits_NV[: n - 1].to(torch.promote_types(logits_NV.dtype, torch.float32))
            nats[text] += float(F.cross_entropy(logits, ids_N[1:n], reduction="none").double().sum())
            tokens[text] += n - 1
    if not all(map(math.isfinite, nats)):
        raise CrocodilError(
            f"the judge {judge.name} overflows in {judge.dtype}; open it with dtype=torch.float32"
        )
    return [
        TextScore(
            nats[text],
            tokens[text],
            token_entropy(ids) if ids else 0.0,
            repetition(ids),
            len(ids),
            len(texts[text]),
            len(bos + ids) > judge.context,
        )
        for text, ids in enumerate(ids_of_texts)
    ]


@torch.no_grad()
def text_features(texts: Sequence[str], judge: Judge, batch_size: int = 8) -> TextFeatures:
    """The judge's last hidden state at the last token of every text, which MAUVE compares (Pillutla et al. 2021, §3).

    As there, no BOS goes first, and a text longer than the context is cut to its beginning.

    Args:
        texts: generated or human.
        judge: see `open_judge`; it must be the same for texts that are to be compared.
        batch_size: texts that are read at once. It changes no result beyond rounding.

    Raises:
        CrocodilError: no text has a token.
    """
    tokens = [ids for ids in _tokenise(texts, judge) if ids]
    if not tokens:
        raise CrocodilError(f"none of {len(texts)} texts has a token; give one at least")
    rows = [ids[: judge.context] for ids in tokens]
    features: dict[int, torch.Tensor] = {}
    for which, ids_BN, attend_BN in _batches(rows, batch_size, judge):
        # without the head: nobody needs its logits
        hidden_BNE = judge.model.base_model(
            input_ids=ids_BN, attention_mask=attend_BN, use_cache=False
        ).last_hidden_state
        features |= {row: hidden_BNE[i, len(rows[row]) - 1].float() for i, row in enumerate(which)}
    cut = sum(len(ids) > judge.context for ids in tokens)
    return TextFeatures(torch.stack([features[row] for row in range(len(rows))]), len(texts) - len(rows), cut)


def token_entropy(ids: Sequence[int]) -> float:
    """−Σ p log p in nats, p the share of each token in the text: 0 for one token repeated, log n for n different ones."""
    return sum(n / len(ids) * math.log(len(ids) / n) for n in Counter(ids).values())


def repetition(ids: Sequence[int], n: int = REPEATED) -> float:
    """1 − different n-grams / n-grams (Welleck et al. 2020, seq-rep-n); 0 for a text shorter than n."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _tokenise(texts: Sequence[str], judge: Judge) -> list[list[int]]:
    if not texts:
        raise CrocodilError("no texts to judge; give one at least")
    # verbose=False: a text longer than the context is no surprise here
    encoded = judge.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids_of_texts: list[list[int]] = encoded["input_ids"]
    rows = judge.model.get_input_embeddings().weight.shape[0]
    top = max((max(ids, default=0) for ids in ids_of_texts), default=0)
    if top >= rows:
        raise CrocodilError(
            f"{judge.name}: its tokenizer gives id {top}, its table has {rows} rows; give a tokenizer that belongs to it"
        )
    return ids_of_texts


def _pieces(ids: list[int], bos: list[int], context: int) -> Iterator[list[int]]:
    """Pieces of at most `context` ids, whose first id only conditions and whose others are each scored once."""
    first = bos or ids[:1]
    rest = ids if bos else ids[1:]
    for start in range(0, len(rest), context - 1):
        before = first if bos or start == 0 else rest[start - 1 : start]
        yield before + rest[start : start + context - 1]


def _batches(
    rows: Sequence[list[int]], batch_size: int, judge: Judge
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """(numbers of the rows, ids_BN, attend_BN); the longest first, so that memory that is too small shows at once."""
    if batch_size < 1:
        raise CrocodilError(f"batch_size must be at least 1, not {batch_size}")
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    for start in range(0, len(rows), batch_size):
        which = order[start : start + batch_size]
        # padding stands on the right: a causal model never sees it, and positions count from the text's beginning
        ids_BN = torch.zeros(len(which), len(rows[which[0]]), dtype=torch.long)
        attend_BN = torch.zeros_like(ids_BN)
        for i, row in enumerate(which):
            ids_BN[i, : len(rows[row])] = torch.tensor(rows[row])
            attend_BN[i, : len(rows[row])] = 1
        yield which, ids_BN.to(judge.model.device), attend_BN.to(judge.model.device)


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    """Whether what is said of the first position ignores the second."""
    ids_BN = torch.tensor([[0, 1], [0, 2]], device=model.device)
    logits_BNV = model(input_ids=ids_BN, attention_mask=torch.ones_like(ids_BN), use_cache=False).logits
    one, other = logits_BNV[:, 0].float()
    # not a number is no sign of looking ahead: whoever scores says that
    return not bool((one - other).abs().max() > 0.01 * one.abs().max())
