"""Texts before a judge (Gen-PPL, MAUVE) and beside their originals (BERTScore)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crocodil.metrics.bertscore import bert_score
from crocodil.metrics.bootstrap import Estimate, interval, mean, ratio
from crocodil.metrics.generation import score_texts, text_features
from crocodil.metrics.mauve import area, divergence_curve, quantise, resampled_areas
from crocodil.metrics.reconstruction import parses
from crocodil.reproduce.lab import Lab, Task
from crocodil.reproduce.measures.decoding import Real
from crocodil.reproduce.store import Measured

MAUVE_RESAMPLES = 200
FEWEST_FOR_MAUVE = 2


@dataclass(frozen=True)
class Judged(Task):
    """What the judge says of each text of another task, and its features."""

    of: Task
    reads = ("judge",)

    def run(self, lab: Lab) -> Measured:
        texts = lab.result(self.of).values["texts"]
        scores = score_texts(texts, lab.judge)
        names = ("nats", "tokens", "token_entropy", "repetition", "length")
        values = {name: [getattr(score, name) for score in scores] for name in names}
        values["valid"] = [float(parses(text)) for text in texts]
        if not any(score.length for score in scores):
            return Measured(values)
        return Measured(values, {"features_BE": text_features(texts, lab.judge).features_BE.cpu()})

    def weight(self, lab: Lab) -> float:
        return self.of.weight(lab)


@dataclass(frozen=True)
class Compared(Task):
    """BERTScore of each text of another task with its original."""

    of: Task
    reads = ("scorer",)

    def run(self, lab: Lab) -> Measured:
        values = lab.result(self.of).values
        score = bert_score(values["texts"], values["references"], lab.scorer)
        return Measured({"f1": score.f1_B.tolist(), "f3": score.f3_B.tolist()})

    def weight(self, lab: Lab) -> float:
        return self.of.weight(lab)


def real(lab: Lab, count: int, length: int) -> list[Judged]:
    """At most `count` held-out windows before the judge."""
    return [Judged(Real(length, part)) for part in lab.parts(count, length)]


def of_kind(tasks: Sequence[Task], kind: type[Task]) -> list[Judged]:
    """The readings among tasks, of texts that came about in one way."""
    return [task for task in tasks if isinstance(task, Judged) and isinstance(task.of, kind)]


def judged(lab: Lab, tasks: Sequence[Judged]) -> dict[str, Estimate]:
    """Gen-PPL over all tokens of all texts, and what belongs beside it (`figure.JUDGED`); nothing where no text has a
    token."""
    scored = [one for task in tasks for one in _rows(lab, task, "nats", "tokens") if one[1]]
    if not scored:
        return {}
    return {
        "gen_ppl": ratio([nats for nats, _ in scored], [tokens for _, tokens in scored], torch.exp),
        "token_entropy": average(lab, tasks, "token_entropy", among="tokens"),
        "repetition": average(lab, tasks, "repetition", among="tokens"),
        "tokens": average(lab, tasks, "length"),
    }


def average(lab: Lab, tasks: Sequence[Task], name: str, among: str | None = None) -> Estimate:
    """Mean over texts of a number of each; over those alone whose `among` is not 0."""
    rows = [one for task in tasks for one in _rows(lab, task, name, among or name)]
    return mean([value for value, counts in rows if among is None or counts])


def mauve(lab: Lab, generated: Sequence[Judged], real: Sequence[Judged]) -> Estimate:
    """MAUVE, the mean over seeds of k-means; the interval draws texts again that keep their buckets."""
    features_ME, features_NE = (_features(lab, tasks) for tasks in (generated, real))
    if min(len(features_ME), len(features_NE)) < FEWEST_FOR_MAUVE:
        return Estimate(float("nan"), None, None, len(features_ME))
    areas, resampled = [], []
    for seed in range(lab.config.mauve_seeds):
        histograms = quantise(features_ME, features_NE, seed=seed)
        areas.append(area(divergence_curve(histograms.generated_J, histograms.reference_J)))
        resampled.append(resampled_areas(histograms, MAUVE_RESAMPLES, seed))
    value = sum(areas) / len(areas)
    # resampling lowers the area; what is wanted of it is how far it strays
    strays_R = torch.stack(resampled).mean(0)
    return interval(value, (strays_R - strays_R.mean() + value).clamp(0, 1), len(features_ME))


def _features(lab: Lab, tasks: Sequence[Judged]) -> Tensor:
    found = [lab.result(task).tensors.get("features_BE") for task in tasks]
    kept = [one for one in found if one is not None]
    return torch.cat(kept) if kept else torch.empty(0, 1)


def _rows(lab: Lab, task: Task, *names: str) -> list[tuple[float, ...]]:
    values = lab.result(task).values
    return list(zip(*(values[name] for name in names), strict=True))
