"""pass@k: the chance that one of k answers passes its tests (Chen et al. 2021, "Evaluating Large Language Models Trained
on Code")."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from crocodil.errors import CrocodilError, require_whole
from crocodil.harness import sandbox
from crocodil.harness.problems import Problem, complete, fingerprint
from crocodil.harness.samplers import Sampler
from crocodil.harness.samples import Sample, SampleFile
from crocodil.harness.sandbox import Limits
from crocodil.metrics.bootstrap import mean

MOST_SAMPLES = 100_000
UNANSWERED = "unanswered"


@dataclass(frozen=True)
class PassAtK:
    """The mean over problems, and the middle 95 % of such means over problems drawn with replacement.

    The interval tells how much hangs on the choice of problems, not how much a model's answers vary; where all problems
    fare alike, or there is one, it has no width.
    """

    k: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ProblemScore:
    task_id: str
    samples: int
    passed: int


@dataclass(frozen=True)
class Scores:
    """How a sampler did on a set of problems."""

    pass_at: tuple[PassAtK, ...]
    problems: tuple[ProblemScore, ...]
    outcomes: dict[str, int]
    """Samples by outcome, the most frequent first."""
    isolations: tuple[str, ...]
    """Of the sandbox that the samples ran in; more than one where a run went on elsewhere."""
    seed: int
    samples_per_problem: int
    label: str
    """Who was scored, as the caller says."""
    limits: Limits


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n−c, k) / C(n, k), Eq. 1: the unbiased estimate from c of n samples that passed.

    Whole numbers until the last division, so the result is the double nearest to the exact value.

    Raises:
        CrocodilError: not 0 ≤ c ≤ n and 1 ≤ k ≤ n ≤ 100,000.
    """
    for name, value, least in (("n", n, 1), ("c", c, 0), ("k", k, 1)):
        require_whole(name, value, least)
    if c > n or k > n or n > MOST_SAMPLES:
        raise CrocodilError(
            f"pass@{k} of {c} passed among {n} samples: there must be at least as many samples as either, "
            f"and at most {MOST_SAMPLES:,}"
        )
    choices = math.comb(n, k)
    return (choices - math.comb(n - c, k)) / choices


def score(
    problems: Sequence[Problem],
    sampler: Sampler,
    samples_per_problem: int = 1,
    ks: Sequence[int] = (1,),
    *,
    workers: int | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    problems_per_call: int = 1,
    whole_program: bool = False,
    file: str | Path | None = None,
    label: str = "",
    require_network_isolation: bool = False,
    on_done: Callable[[Sample], None] | None = None,
) -> Scores:
    """Sample answers to every problem, run them, and score.

    Answers are sampled in this thread; meanwhile, those already there are run.

    Args:
        ks: at most `samples_per_problem` each.
        workers: programs at a time; one for each CPU if left out. Slow machines and many workers make more timeouts.
        seed: the sampler is given a number made of it and of the (first) task of a call.
        problems_per_call: prompts that the sampler is given at a time.
        whole_program: see `problems.complete`.
        file: samples, as jsonl; those that it holds already are neither sampled nor run again.
        label: who is scored; a file that was begun under another label is refused.
        require_network_isolation: see `sandbox.run`.
        on_done: told every sample once it has been run; one at a time, from any thread. First those found in the file.

    Raises:
        CrocodilError: arguments that do not fit, a file of another run, no sandbox, or a sampler that gives none such.
    """
    _check(problems, samples_per_problem, ks, problems_per_call)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    require_whole("workers", workers, 1)
    require_whole("seed", seed)
    limits = limits or Limits()
    isolation = sandbox.find_isolation()
    if require_network_isolation:
        sandbox.require_network_namespace(isolation)
    settings = {
        "problems": fingerprint(problems),
        "samples_per_problem": samples_per_problem,
        "seed": seed,
        "problems_per_call": problems_per_call,
        "whole_program": whole_program,
        "label": label,
        "limits": asdict(limits),
    }
    done: dict[tuple[str, int], Sample] = {}
    telling = threading.Lock()
    with SampleFile(Path(file), settings) if file is not None else nullcontext() as log:

        def tell(sample: Sample, is_new: bool = True) -> None:
            with telling:
                done[sample.task_id, sample.number] = sample
                if log is not None and is_new:
                    log.append(sample)
                if on_done is not None:
                    on_done(sample)

        def play(problem: Problem, number: int, call_seed: int, text: str | None) -> None:
            tell(_play(problem, number, call_seed, text, whole_program, limits, isolation))

        for sample in log.found.values() if log is not None else ():
            tell(sample, is_new=False)
        pool = ThreadPoolExecutor(workers, "sandbox")
        running: list[Future[None]] = []
        try:
            for start in range(0, len(problems), problems_per_call):
                asked = problems[start : start + problems_per_call]
                wanted = [(p.task_id, i) for p in asked for i in range(samples_per_problem)]
                with telling:
                    missing = set(wanted) - done.keys()
                if not missing:
                    continue
                call_seed = _seed_of(seed, asked[0].task_id)
                # all of them, so that they are what they would have been
                answers = _sample(sampler, asked, samples_per_problem, call_seed)
                for problem, texts in zip(asked, answers, strict=True):
                    for number, text in enumerate(texts):
                        if (problem.task_id, number) in missing:
                            running.append(pool.submit(play, problem, number, call_seed, text))
                _raise_early(running)
            for future in running:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    samples = [done[p.task_id, i] for p in problems for i in range(samples_per_problem)]
    return summarise(samples, ks, seed, label, limits)


def summarise(
    samples: Sequence[Sample], ks: Sequence[int], seed: int = 0, label: str = "", limits: Limits | None = None
) -> Scores:
    """The scores of samples, equally many of every problem.

    Raises:
        CrocodilError: no samples, not equally many, or fewer than a k.
    """
    total = Counter(sample.task_id for sample in samples)
    passed = Counter(sample.task_id for sample in samples if sample.outcome == "passed")
    if len(set(total.values())) != 1:
        raise CrocodilError("pass@k wants samples, and equally many of every problem")
    rows = tuple(ProblemScore(task, n, passed[task]) for task, n in total.items())
    return Scores(
        tuple(_pass_at(rows, k) for k in sorted(set(ks))),
        rows,
        dict(Counter(sample.outcome for sample in samples).most_common()),
        tuple(sorted({sample.isolation for sample in samples} - {""})),
        seed,
        rows[0].samples,
        label,
        limits or Limits(),
    )


def _pass_at(rows: Sequence[ProblemScore], k: int) -> PassAtK:
    values = [pass_at_k(row.samples, row.passed, k) for row in rows]
    found = mean(values)
    low, high = (found.value if edge is None else edge for edge in (found.low, found.high))
    return PassAtK(k, found.value, low, high)


def _play(
    problem: Problem,
    number: int,
    seed: int,
    text: str | None,
    whole_program: bool,
    limits: Limits,
    isolation: sandbox.Isolation,
) -> Sample:
    if text is None:
        return Sample(problem.task_id, number, seed, None, UNANSWERED, "", 0.0, "")
    program = complete(problem, text, whole_program)
    result = sandbox.run(program, problem.tests, problem.entry_point, limits, isolation=isolation)
    return Sample(
        problem.task_id,
        number,
        seed,
        text,
        result.outcome,
        result.detail,
        round(result.seconds, 4),
        isolation,
    )


def _sample(sampler: Sampler, asked: Sequence[Problem], n: int, seed: int) -> Sequence[Sequence[str | None]]:
    answers = sampler([problem.prompt for problem in asked], n, seed)
    good = isinstance(answers, Sequence) and len(answers) == len(asked)
    for texts in answers if good else ():
        good = good and isinstance(texts, Sequence) and not isinstance(texts, str) and len(texts) == n
        good = good and all(text is None or isinstance(text, str) for text in texts)
    if not good:
        raise CrocodilError(
            f"the sampler must give, for each of {len(asked)} prompts, {n} texts (or None), not {answers!r:.80}"
        )
    return answers


def _seed_of(seed: int, task_id: str) -> int:
    """Problems with numbers of their own, so that the noise of one does not come back in the next."""
    digest = hashlib.blake2b(f"{seed}/{task_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 16


def _raise_early(running: Sequence[Future[None]]) -> None:
    for future in running:
        if future.done():
            future.result()


def _check(problems: Sequence[Problem], samples_per_problem: int, ks: Sequence[int], per_call: int) -> None:
    require_whole("samples_per_problem", samples_per_problem, 1)
    require_whole("problems_per_call", per_call, 1)
    if not problems or not ks:
        raise CrocodilError("nothing to score: give a problem and a k at least")
    if len({problem.task_id for problem in problems}) < len(problems):
        raise CrocodilError("two problems have one task_id; give each its own")
    for k in ks:
        require_whole("k", k, 1)
    if samples_per_problem > MOST_SAMPLES:
        raise CrocodilError(
            f"{samples_per_problem:,} samples of each problem; at most {MOST_SAMPLES:,} are taken"
        )
    if max(ks) > samples_per_problem:
        raise CrocodilError(
            f"pass@{max(ks)} wants {max(ks)} samples of each problem at least, not {samples_per_problem}"
        )
