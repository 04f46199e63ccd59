"""pass@k: the estimator, the bundled problems as proof of the harness, runs that go on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest

from crocodil.errors import CrocodilError
from crocodil.harness import passk, sandbox
from crocodil.harness.passk import pass_at_k, score, summarise
from crocodil.harness.problems import Problem, read_problems
from crocodil.harness.samples import Sample
from crocodil.harness.sandbox import Limits, Result

# --- the estimator ---


@pytest.mark.parametrize("n", range(1, 7))
def test_the_estimate_is_the_mean_over_all_choices_of_k(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == sum(map(any, choices)) / len(choices)


def test_edges_are_exact() -> None:
    for n in (1, 7, 200, 100_000):
        assert pass_at_k(n, 0, 1) == 0.0 and pass_at_k(n, n, 1) == 1.0
        assert pass_at_k(n, 1, n) == 1.0 and pass_at_k(n, 0, n) == 0.0
    assert pass_at_k(10, 3, 8) == 1.0
    assert pass_at_k(100_000, 1, 1) == 1e-5


def test_large_numbers_lose_no_digit() -> None:
    for n, c, k in ((200, 1, 100), (200, 13, 100), (1000, 2, 10), (5000, 1, 3)):
        assert pass_at_k(n, c, k) == float(1 - Fraction(comb(n - c, k), comb(n, k)))


def test_the_estimate_is_unbiased() -> None:
    rng, p, n, k = np.random.default_rng(0), 0.3, 8, 4
    mean = np.mean([pass_at_k(n, int(c), k) for c in rng.binomial(n, p, 20_000)])
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=0.005)


@pytest.mark.parametrize(
    "wrong", [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4), (100_001, 1, 1), (3.0, 1, 1)]
)
def test_numbers_that_do_not_fit_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(CrocodilError):
        pass_at_k(*wrong)


def sample(task: str, number: int, outcome: str) -> Sample:
    return Sample(task, number, 0, "", outcome, "", 0.1, "namespaces")


def test_scores_are_means_over_problems() -> None:
    samples = [sample("a", i, "passed" if i < 1 else "failed") for i in range(4)]
    samples += [sample("b", i, "passed" if i < 3 else "timeout") for i in range(4)]
    scores = summarise(samples, (2, 1, 2))
    assert [(row.k, row.value) for row in scores.pass_at] == [(1, 0.5), (2, (0.5 + 1.0) / 2)]
    assert [(row.task_id, row.passed, row.samples) for row in scores.problems] == [("a", 1, 4), ("b", 3, 4)]
    assert scores.outcomes == {"passed": 4, "failed": 3, "timeout": 1}
    for row in scores.pass_at:
        assert row.low <= row.value <= row.high
    with pytest.raises(CrocodilError, match="equally many"):
        summarise(samples[1:], (1,))


# --- the harness proves itself on the bundled problems ---


def solutions(problems: Sequence[Problem]) -> passk.Sampler:
    """For every prompt the canonical solution, and then both wrong ones."""
    known = {p.prompt: [p.canonical_solution, *p.wrong] for p in problems}
    return lambda prompts, n, seed: [known[prompt][:n] for prompt in prompts]


def test_canonical_solutions_pass_and_wrong_ones_fail() -> None:
    problems = read_problems()
    samples: list[Sample] = []
    scores = score(
        problems, solutions(problems), 3, (1, 3), workers=6, limits=Limits(seconds=30), on_done=samples.append
    )
    assert len(samples) == 72
    for one in samples:
        assert (one.outcome == "passed") == (one.number == 0), one
        assert one.outcome in ("passed", "failed", "error")
    assert [row.value for row in scores.pass_at] == [pytest.approx(1 / 3), 1.0]
    assert scores.outcomes["passed"] == 24 and scores.isolations == (sandbox.find_isolation(),)


# --- runs; programs are not run here, which is tested elsewhere ---


@pytest.fixture
def problems() -> list[Problem]:
    return [Problem(f"t/{i}", f"def f{i}():\n", f"f{i}", "pass", "") for i in range(3)]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that were run; those with `yes` in it pass."""
    programs: list[str] = []

    def fake(program: str, tests: str, entry: str, limits: Limits, *, isolation: str) -> Result:
        programs.append(program)
        return Result("passed" if "yes" in program else "failed", "", 0.1, "", "audit hook")

    monkeypatch.setattr(sandbox, "run", fake)
    monkeypatch.setattr(sandbox, "find_isolation", lambda: "audit hook")
    return programs


class Echo:
    """A sampler that remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[str, ...], int, int]] = []

    def __call__(self, prompts: Sequence[str], n: int, seed: int) -> list[list[str | None]]:
        self.calls.append((tuple(prompts), n, seed))
        return [["    yes\n" if i % 2 else f"    no {seed}\n" for i in range(n)] for _ in prompts]


def test_every_prompt_is_asked_once_with_a_seed_of_its_own(problems: list[Problem], ran: list[str]) -> None:
    one, other, third = Echo(), Echo(), Echo()
    scores = score(problems, one, 4, (1, 4))
    assert [(prompts, n) for prompts, n, _ in one.calls] == [((p.prompt,), 4) for p in problems]
    assert len({seed for *_, seed in one.calls}) == 3 and len(ran) == 12
    assert [row.value for row in scores.pass_at] == [0.5, 1.0]
    score(problems, other, 4)
    score(problems, third, 4, seed=1)
    assert one.calls == other.calls
    assert not {seed for *_, seed in one.calls} & {seed for *_, seed in third.calls}


def test_several_prompts_may_go_in_one_call(problems: list[Problem], ran: list[str]) -> None:
    echo = Echo()
    scores = score(problems, echo, 2, problems_per_call=2)
    assert [len(prompts) for prompts, *_ in echo.calls] == [2, 1]
    assert [row.passed for row in scores.problems] == [1, 1, 1]


def test_no_answer_is_not_passed_and_not_run(problems: list[Problem], ran: list[str]) -> None:
    scores = score(problems, lambda prompts, n, seed: [[None] * n for _ in prompts], 2)
    assert ran == [] and scores.outcomes == {"unanswered": 6} and scores.isolations == ()


@pytest.mark.parametrize("answers", [[], [["a"]], [["a", 3]], ["ab"], [["a", "b"], ["a", "b"]], None])
def test_a_sampler_that_gives_something_else_is_told(
    answers: object, problems: list[Problem], ran: list[str]
) -> None:
    with pytest.raises(CrocodilError, match="the sampler must give, for each of 1 prompts, 2 texts"):
        score(problems, lambda *_: answers, 2)  # type: ignore[arg-type, return-value]


def test_bad_arguments_cost_nothing(problems: list[Problem]) -> None:
    echo = Echo()
    for wrong in (
        {"samples_per_problem": 0},
        {"ks": ()},
        {"ks": (2,)},
        {"ks": (0,)},
        {"workers": 0},
        {"problems_per_call": 0},
        {"problems": []},
        {"problems": [problems[0], problems[0]]},
    ):
        with pytest.raises(CrocodilError):
            score(**({"problems": problems, "sampler": echo} | wrong))  # type: ignore[arg-type]
    assert echo.calls == []


def test_a_fault_of_the_sandbox_ends_the_run(
    problems: list[Problem], ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Result:
        raise CrocodilError("no sandbox")

    monkeypatch.setattr(sandbox, "run", broken)
    with pytest.raises(CrocodilError, match="no sandbox"):
        score(problems, Echo(), 2)


# --- going on ---


def test_a_killed_run_goes_on_where_it_was(problems: list[Problem], ran: list[str], tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    scores = score(problems, Echo(), 2, (1, 2), file=whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7
    for kept in range(len(lines) + 1):
        for half in (b"", b'{"task_id": "t/0", "numb'):
            ran.clear()
            file, echo, told = tmp_path / "part.jsonl", Echo(), list[Sample]()
            torn = half if kept else lines[0][: len(half)]
            file.write_bytes(b"".join(lines[:kept]) + torn)
            again = score(problems, echo, 2, (1, 2), file=file, workers=1, on_done=told.append)
            assert again == scores and len(told) == 6
            assert len(ran) == 7 - max(kept, 1)
            assert sorted(file.read_bytes().splitlines()[1:]) == sorted(whole.read_bytes().splitlines()[1:])
    assert echo.calls == [], "all was there"


def test_samples_of_another_run_are_not_mixed_in(
    problems: list[Problem], ran: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "samples.jsonl"
    score(problems, Echo(), 2, file=file, label="one")
    before = file.read_bytes()
    for change, told in (
        ({"label": "two"}, "label = 'one', not 'two'"),
        ({"seed": 1}, "seed = 0, not 1"),
        ({"samples_per_problem": 3}, "samples_per_problem = 2, not 3"),
        ({"limits": Limits(seconds=1)}, "limits = "),
        ({"problems": problems[1:]}, "problems = "),
    ):
        arguments = {"problems": problems, "samples_per_problem": 2, "label": "one", "file": file} | change
        with pytest.raises(CrocodilError, match=told):
            score(sampler=Echo(), **arguments)  # type: ignore[arg-type]
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"notes\n", b"notes", b'{"kind": "other"}\n', b"[]\n{}\n"])
def test_a_file_of_something_else_is_left_as_it_is(
    content: bytes, problems: list[Problem], ran: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_bytes(content)
    with pytest.raises(CrocodilError, match="no file of samples"):
        score(problems, Echo(), file=file)
    assert file.read_bytes() == content


def test_a_damaged_line_is_named(problems: list[Problem], ran: list[str], tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    score(problems, Echo(), file=file)
    lines = file.read_text().splitlines()
    lines[2] = json.dumps({"task_id": "t/1"})
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(CrocodilError, match="line 3: no sample"):
        score(problems, Echo(), file=file)


def test_two_runs_do_not_write_one_file(problems: list[Problem], ran: list[str], tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"

    def meanwhile(prompts: Sequence[str], n: int, seed: int) -> list[list[str | None]]:
        with pytest.raises(CrocodilError, match="being written by another run"):
            score(problems, Echo(), file=file)
        return Echo()(prompts, n, seed)

    score(problems, meanwhile, file=file)


def test_an_interrupted_run_keeps_what_was_done(
    problems: list[Problem], ran: list[str], tmp_path: Path
) -> None:
    file, echo = tmp_path / "samples.jsonl", Echo()

    def interrupted(prompts: Sequence[str], n: int, seed: int) -> list[list[str | None]]:
        if len(echo.calls) == 2:
            raise KeyboardInterrupt
        return echo(prompts, n, seed)

    with pytest.raises(KeyboardInterrupt):
        score(problems, interrupted, file=file, workers=1)
    after = Echo()
    score(problems, after, file=file)
    assert 1 <= len(after.calls) <= 3 and after.calls[-1][0] == (problems[2].prompt,)
