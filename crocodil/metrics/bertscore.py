"""BERTScore: how much of one text's tokens is found in another, in the eyes of an encoder (Zhang et al. 2020).

Every token becomes the encoder's hidden state, so that its surroundings count, and looks for the token of the other
text that is most like it. With the settings `CODE_BERT_SCORE` this is CodeBERTScore (Zhou et al. 2023; CRoCoDiL Tab.
1 and 2).

Shape letters: B pairs of texts, N tokens of a prediction, M of a reference, C rows of a chunk, T positions of a piece,
E the encoder's width.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from crocodil.errors import CrocodilError

OVERLAP = 0.5
"""Share of a piece that it has in common with its neighbours, half of it with each."""
OPERATORS = "+-*/&|~"
"""Punctuation that is matched even where punctuation is not."""
CHUNK_SIMILARITIES = 1 << 22
"""Similarities that exist at the same time: 32 MiB in float64."""


class Settings(TypedDict):
    """Arguments of `open_scorer` by which a published score is known."""

    path_or_repo: str | Path
    layer: int
    context: int
    punctuation: bool


CODE_BERT_SCORE: Settings = {
    "path_or_repo": "neulab/codebert-python",
    "layer": 10,
    "context": 512,
    "punctuation": False,
}
"""What the package code-bert-score takes for Python: `open_scorer(**CODE_BERT_SCORE)`.

What differs: there a token may find its match in a special token, two empty texts score 0, and where a long text is cut
depends on its batch.
"""


@dataclass(frozen=True)
class Scorer:
    """An encoder that reads texts."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """The folder or hub id it came from."""
    layer: int
    """Which hidden state stands for a token; 0 is the embedding table's."""
    context: int
    """Positions it reads at a time, special tokens included."""
    punctuation: bool
    """Whether punctuation and blanks are matched; they are read in any case."""

    @property
    def dtype(self) -> str:
        """`float32`, `bfloat16`, …"""
        return str(self.model.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Idf:
    """How rare a token is among texts; see `idf_of`."""

    texts: int
    seen: dict[int, int]
    """Texts that each token stands in."""

    def weight(self, token: int) -> float:
        """log((texts + 1) / (texts with the token + 1)): 0 for a token of every text, largest for one of none."""
        return math.log((self.texts + 1) / (self.seen.get(token, 0) + 1))


@dataclass(frozen=True)
class BertScore:
    """Scores of pairs in their order, float64 on the CPU, their means, and what they depend on."""

    precision_B: torch.Tensor
    """How well the prediction's tokens are found in the reference: at most 1, and below 0 only by strange encoders."""
    recall_B: torch.Tensor
    """How well the reference's tokens are found in the prediction."""
    f1_B: torch.Tensor
    """Harmonic mean of both, 0 where one of them is not positive."""
    f3_B: torch.Tensor
    """The same with recall weighing nine times as much."""
    precision: float
    recall: float
    f1: float
    f3: float
    empty: int
    """Pairs in which a text had no token to match, whose score is a definition."""
    chunked: int
    """Texts, of both sides, longer than the encoder's context, which were read in pieces."""
    scorer: str
    layer: int
    dtype: str
    """Arithmetic of the encoder."""
    context: int
    punctuation: bool
    weighted: bool
    """Whether tokens were weighted by their idf."""


def open_scorer(
    path_or_repo: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    layer: int | None = None,
    context: int | None = None,
    punctuation: bool = True,
) -> Scorer:
    """Load an encoder and its tokenizer.

    Of an encoder-decoder the encoder is taken. Of a causal language model the body is; its tokens know only what stands
    before them.

    Args:
        path_or_repo: a Hugging Face folder, or a hub id; only safetensors are read and no remote code is run.
        device: where it computes.
        dtype: its weights and arithmetic; scores of different types differ a little.
        layer: hidden state that stands for a token, 0 for the embedding table's; the last if left out, though a middle
            one often agrees better with people.
        context: positions it reads at a time; what its tokenizer and configuration name if left out.
        punctuation: whether tokens of nothing but blanks and ASCII punctuation are matched. Without, `OPERATORS` are
            still.

    Raises:
        CrocodilError: it cannot be loaded, lacks weights, does not read plain text, or does not have that layer or
            context.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path_or_repo), trust_remote_code=False)
        model, loading = AutoModel.from_pretrained(
            str(path_or_repo),
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and the hub client raise what they like
        raise CrocodilError(f"{path_or_repo} cannot be loaded as an encoder: {_reason(error)}") from None
    # a masked language model is saved without the pooler, which no hidden state needs
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key.split("."))
    if missing:
        raise CrocodilError(
            f"{path_or_repo} has no weights for {missing[0]} and {len(missing) - 1} more, so it would score at "
            "random; give a folder saved with its whole encoder"
        )
    model = (model.get_encoder() if model.config.is_encoder_decoder else model).to(device).eval()
    model.config.use_cache = False
    layers = _layers(model, path_or_repo)
    layer = layers if layer is None else layer
    if not 0 <= layer <= layers:
        raise CrocodilError(
            f"{path_or_repo} has hidden states 0 to {layers}, not {layer}; give another layer"
        )
    limit = _positions(model)
    if context is None:
        # a tokenizer that knows no limit names an astronomic one
        known = [n for n in (limit, tokenizer.model_max_length) if n is not None and n < 1e9]
        if not known:
            raise CrocodilError(f"{path_or_repo} does not say how many positions it reads; give context=…")
        context = int(min(known))
    if context < 4 or context > (limit or context):
        raise CrocodilError(
            f"{path_or_repo} reads 4 to {limit or '…'} positions, not {context}; give another context"
        )
    return Scorer(model, tokenizer, str(path_or_repo), layer, context, punctuation)


@torch.no_grad()
def bert_score(
    predictions: Sequence[str],
    references: Sequence[str],
    scorer: Scorer,
    batch_size: int = 8,
    idf: Idf | None = None,
) -> BertScore:
    """BERTScore of every prediction with its reference, see `greedy_match`; without rescaling by a baseline.

    A text is read without the blanks around it, and one that spells a special token is read as plain text. Special
    tokens that the tokenizer adds are read, but not matched. A text longer than the context is read in pieces, see
    `pieces`.

    Args:
        predictions: what was generated.
        references: one for each.
        scorer: see `open_scorer`.
        batch_size: pieces that are read at once, and pairs whose states are kept. It changes no result beyond rounding.
        idf: weights of tokens, from the references or any other texts (`idf_of`); all tokens weigh alike if left out.

    Raises:
        CrocodilError: the lists do not pair up or are empty, or the encoder's arithmetic overflows.
    """
    if len(predictions) != len(references):
        raise CrocodilError(
            f"{len(predictions)} predictions for {len(references)} references; give one for each"
        )
    if batch_size < 1:
        raise CrocodilError(f"batch_size must be at least 1, not {batch_size}")
    pairs = list(zip(_tokenise(predictions, scorer), _tokenise(references, scorer), strict=True))
    precision_B, recall_B = (torch.empty(len(pairs), dtype=torch.float64) for _ in range(2))
    # the longest first, so that memory that is too small shows at once
    order = sorted(range(len(pairs)), key=lambda b: -sum(len(text.ids) for text in pairs[b]))
    for start in range(0, len(pairs), batch_size):
        which = order[start : start + batch_size]
        # a text that came back as it was is read once
        texts = list(dict.fromkeys(text for b in which for text in pairs[b] if text.matched))
        states = dict(zip(texts, _states(texts, scorer, batch_size), strict=True))
        for b in which:
            given = [states.get(text, torch.empty(0, 1)) for text in pairs[b]]
            weights = [None if idf is None else _weights(text, idf) for text in pairs[b]]
            precision_B[b], recall_B[b] = greedy_match(*given, *weights)
    f1_B, f3_B = f_measure(precision_B, recall_B), f_measure(precision_B, recall_B, beta=3)
    return BertScore(
        precision_B=precision_B,
        recall_B=recall_B,
        f1_B=f1_B,
        f3_B=f3_B,
        precision=float(precision_B.mean()),
        recall=float(recall_B.mean()),
        f1=float(f1_B.mean()),
        f3=float(f3_B.mean()),
        empty=sum(not all(text.matched for text in pair) for pair in pairs),
        chunked=sum(len(text.ids) > scorer.context for pair in pairs for text in pair),
        scorer=scorer.name,
        layer=scorer.layer,
        dtype=scorer.dtype,
        context=scorer.context,
        punctuation=scorer.punctuation,
        weighted=idf is not None,
    )


@torch.no_grad()
def greedy_match(
    prediction_NE: torch.Tensor,
    reference_ME: torch.Tensor,
    weight_N: torch.Tensor | None = None,
    weight_M: torch.Tensor | None = None,
) -> tuple[float, float]:
    """(precision, recall) of one pair: every token's largest cosine on the other side, averaged (Zhang et al., Eq. 1).

    Two empty texts have precision and recall 1, an empty and another 0. Similarities are computed in float64 and a
    chunk of rows at a time.

    Args:
        prediction_NE: states of the prediction's tokens, of any length but 0.
        reference_ME: of the reference's.
        weight_N: how much each token counts, alike if left out or if all are 0.
        weight_M: the same of the reference.
    """
    N, M = len(prediction_NE), len(reference_ME)
    if N == 0 or M == 0:
        return (1.0, 1.0) if N == M else (0.0, 0.0)
    a_NE, b_ME = (nn.functional.normalize(states.double(), dim=1) for states in (prediction_NE, reference_ME))
    best_N, best_M = a_NE.new_empty(N), b_ME.new_full((M,), -1.0)
    chunk = max(1, CHUNK_SIMILARITIES // M)
    for start in range(0, N, chunk):
        # rounding may lift a token's cosine with itself above 1
        cosine_CM = (a_NE[start : start + chunk] @ b_ME.T).clamp_(-1, 1)
        best_N[start : start + chunk] = cosine_CM.amax(1)
        best_M = torch.maximum(best_M, cosine_CM.amax(0))
    return _mean(best_N, weight_N), _mean(best_M, weight_M)


def f_measure(precision_B: torch.Tensor, recall_B: torch.Tensor, beta: float = 1) -> torch.Tensor:
    """(1 + β²) P R / (β² P + R), and 0 where P or R is not positive."""
    weighted_B = (1 + beta**2) * precision_B * recall_B / (beta**2 * precision_B + recall_B)
    return torch.where((precision_B > 0) & (recall_B > 0), weighted_B, 0.0)


def idf_of(texts: Sequence[str], scorer: Scorer) -> Idf:
    """In how many texts every token stands, for `bert_score(…, idf=…)` (Zhang et al., §3).

    Raises:
        CrocodilError: there are no texts.
    """
    tokens = _tokenise(texts, scorer)
    return Idf(len(tokens), dict(Counter(token for text in tokens for token in set(text.ids))))


@dataclass(frozen=True)
class Piece:
    """Positions start to stop are read, of which first to last are kept."""

    start: int
    stop: int
    first: int
    last: int


def pieces(length: int, context: int) -> Iterator[Piece]:
    """How a long text is read, such that every token is kept once, with company on both sides.

    A text that fits is one piece. Else every piece is as long as the context, the last ends where the text ends, and
    each other begins half a context after the one before. A token is kept from a piece in which at least a quarter of
    a context stands on either side of it, or all that the text has there. The special tokens at the ends of a text are
    at the ends of its first and last piece; the others have none.
    """
    margin = int(context * OVERLAP / 2)
    last_start = max(0, length - context)
    kept = 0
    for start in (*range(0, last_start, context - 2 * margin), last_start):
        stop = min(length, start + context)
        last = stop if start == last_start else stop - margin
        yield Piece(start, stop, kept, last)
        kept = last


@dataclass(frozen=True)
class _Tokens:
    """A text as the encoder reads it."""

    ids: tuple[int, ...]
    matched: tuple[int, ...]
    """Positions that are matched."""


def _tokenise(texts: Sequence[str], scorer: Scorer) -> list[_Tokens]:
    if not texts:
        raise CrocodilError("no texts to compare; give one at least")
    # verbose=False: a text longer than the context is no surprise here
    encoded = scorer.tokenizer(
        [text.strip() for text in texts],
        return_special_tokens_mask=True,
        split_special_tokens=True,
        verbose=False,
    )
    rows = scorer.model.get_input_embeddings().weight.shape[0]
    vocabulary = {id for ids in encoded["input_ids"] for id in ids}
    if max(vocabulary, default=0) >= rows:
        raise CrocodilError(
            f"{scorer.name}: its tokenizer gives id {max(vocabulary)}, its table has {rows} rows; give a tokenizer "
            "that belongs to it"
        )
    if not scorer.punctuation:
        vocabulary = {id for id in vocabulary if not _is_punctuation(scorer.tokenizer.decode([id]))}
    return [
        _Tokens(tuple(ids), tuple(i for i, id in enumerate(ids) if not special[i] and id in vocabulary))
        for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    ]


def _is_punctuation(token: str) -> bool:
    return all(sign in string.punctuation and sign not in OPERATORS for sign in token.strip())


def _weights(text: _Tokens, idf: Idf) -> torch.Tensor:
    return torch.tensor([idf.weight(text.ids[i]) for i in text.matched], dtype=torch.float64)


def _mean(best_N: torch.Tensor, weight_N: torch.Tensor | None) -> float:
    if weight_N is None or not bool(weight_N.any()):
        return float(best_N.mean())
    weight_N = weight_N.to(best_N)
    return float((best_N * weight_N).sum() / weight_N.sum())


def _states(texts: Sequence[_Tokens], scorer: Scorer, batch_size: int) -> list[torch.Tensor]:
    """States of every text's matched tokens: (tokens, E) of each."""
    read = [(t, piece) for t, text in enumerate(texts) for piece in pieces(len(text.ids), scorer.context)]
    read.sort(key=lambda row: row[1].start - row[1].stop)
    parts: list[dict[int, torch.Tensor]] = [{} for _ in texts]
    for begin in range(0, len(read), batch_size):
        batch = read[begin : begin + batch_size]
        # padding stands on the right, so that positions count from the piece's beginning
        ids_BT = torch.zeros(len(batch), batch[0][1].stop - batch[0][1].start, dtype=torch.long)
        attend_BT = torch.zeros_like(ids_BT)
        for i, (t, piece) in enumerate(batch):
            ids = texts[t].ids[piece.start : piece.stop]
            ids_BT[i, : len(ids)] = torch.tensor(ids)
            attend_BT[i, : len(ids)] = 1
        states_BTE = _read(scorer.model, ids_BT, attend_BT)[scorer.layer]
        for i, (t, piece) in enumerate(batch):
            parts[t][piece.start] = states_BTE[i, piece.first - piece.start : piece.last - piece.start]
    states = []
    for text, of_text in zip(texts, parts, strict=True):
        whole_NE = torch.cat([of_text[start] for start in sorted(of_text)])
        states.append(whole_NE[list(text.matched)])
    if not all(bool(torch.isfinite(states_NE).all()) for states_NE in states):
        raise CrocodilError(
            f"the encoder {scorer.name} overflows in {scorer.dtype}; open it with dtype=torch.float32"
        )
    return states


def _read(model: PreTrainedModel, ids_BT: torch.Tensor, attend_BT: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All hidden states, each (B, T, E)."""
    return model(
        input_ids=ids_BT.to(model.device),
        attention_mask=attend_BT.to(model.device),
        output_hidden_states=True,
    ).hidden_states


@torch.no_grad()
def _layers(model: PreTrainedModel, path_or_repo: str | Path) -> int:
    """Number of the last hidden state; the configurations name it in too many ways, so it is tried."""
    ids_BT = torch.zeros(1, 2, dtype=torch.long)
    try:
        return len(_read(model, ids_BT, torch.ones_like(ids_BT))) - 1
    except Exception as error:  # a model of images, say, asks for them in words of its own
        raise CrocodilError(f"{path_or_repo} does not read plain text: {_reason(error)}") from None


def _positions(model: PreTrainedModel) -> int | None:
    """Tokens that fit, where the model says so."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding) and table.padding_idx is not None:
        # RoBERTa counts from behind the row of padding
        return table.num_embeddings - table.padding_idx - 1
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
