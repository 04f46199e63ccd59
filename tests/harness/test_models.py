"""A crocodil model under the harness: as a sampler, as the command runs it, and for lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from crocodil.errors import CrocodilError
from crocodil.harness import command, sandbox
from crocodil.harness.lm_eval import NAME, Answers, encode_pair, model_class
from crocodil.harness.passk import score
from crocodil.harness.problems import Problem
from crocodil.harness.samplers import crocodil_sampler, identity
from crocodil.harness.sandbox import Limits, Result
from crocodil.model import Model, load

PROMPTS = ("def area(side):\n", "x = [")
OPTIONS = {"method": "mdm", "nfe": 4}


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    """Random weights, windows of 32 tokens."""
    return load(tiny_bundle, "cpu")


# --- sampler ---


def test_answers_are_what_the_model_writes_behind_the_prompt(model: Model) -> None:
    answers = crocodil_sampler(model, **OPTIONS)(PROMPTS, 3, 7)
    for prompt, texts in zip(PROMPTS, answers, strict=True):
        made = model.generate(3, prompt=prompt, seed=7, **OPTIONS)
        assert [prompt + str(text) for text in texts] == [one.text for one in made]
    assert len({text for texts in answers for text in texts}) > 1


def test_the_same_seed_gives_the_same_answers_however_many_are_asked(model: Model) -> None:
    sampler = crocodil_sampler(model, **OPTIONS)
    assert sampler(PROMPTS, 3, 7)[1][:2] == sampler(PROMPTS[1:], 2, 7)[0]


def test_a_prompt_without_room_has_no_answers(model: Model) -> None:
    ids = model.vocabulary.encode("x" * 400)
    fits = model.vocabulary.decode(ids[: model.window - 2])
    over = fits + "y(z)"
    assert len(model.vocabulary.encode(fits)) == model.window - 2
    (there,), (none,) = crocodil_sampler(model, **OPTIONS)([fits, over], 1, 0)
    assert isinstance(there, str) and none is None


def test_options_that_are_the_samplers_own_are_refused(model: Model) -> None:
    for name in ("prompt", "seed", "n", "template"):
        with pytest.raises(CrocodilError, match=f"{name} is what the sampler is asked for"):
            crocodil_sampler(model, **{name: 1})


def test_an_identity_changes_with_weights_and_options(tiny_bundle: Path) -> None:
    one, other = load(tiny_bundle, "cpu"), load(tiny_bundle, "cpu")
    assert identity(one, nfe=4) == identity(other, nfe=4) != identity(one, nfe=5)
    with torch.no_grad():
        next(other.autoencoder.demasker.parameters()).add_(1e-3)
    assert identity(one, nfe=4) != identity(other, nfe=4)


# --- command ---


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    def fake(program: str, tests: str, entry: str, limits: Limits, *, isolation: str) -> Result:
        return Result("passed" if program.startswith("x") else "failed", "", 0.1, "", "audit hook")

    monkeypatch.setattr(sandbox, "run", fake)
    monkeypatch.setattr(sandbox, "find_isolation", lambda: "audit hook")
    return [Problem(f"own/[{i}]", prompt, "f", "pass", "") for i, prompt in enumerate((*PROMPTS, "x" * 400))]


def test_a_run_writes_samples_and_scores_and_shows_a_table(
    problems: list[Problem], model: Model, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    scores = command.run(model, problems, 2, (1, 2), folder=folder, **OPTIONS)
    assert scores.outcomes == {"failed": 2, "passed": 2, "unanswered": 2}
    assert json.loads((folder / "scores.json").read_text()) == json.loads(json.dumps(asdict(scores)))
    lines = (folder / "samples.jsonl").read_bytes()
    assert len(lines.splitlines()) == 7
    assert command.run(model, problems, 2, (1, 2), folder=folder, **OPTIONS) == scores
    assert (folder / "samples.jsonl").read_bytes() == lines
    console = Console(file=io.StringIO(), width=80)
    command.show(console, scores)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "33.3%" in text and "own/[1] (2)" in text and "isolation: audit hook" in text
    with pytest.raises(CrocodilError, match="was begun with label"):
        command.run(model, problems, 2, (1, 2), folder=folder, **OPTIONS | {"nfe": 5})


def test_a_run_gives_what_score_gives(problems: list[Problem], model: Model) -> None:
    one = command.run(model, problems, 2, (1,), **OPTIONS)
    other = score(problems, crocodil_sampler(model, **OPTIONS), 2, label=identity(model, **OPTIONS))
    assert one == other


# --- lm-evaluation-harness ---


@pytest.fixture
def answers(model: Model) -> Answers:
    return Answers(model, mc_num=16, seed=3, **OPTIONS)


def test_a_pair_is_cut_out_of_the_whole(model: Model) -> None:
    encode = model.vocabulary.encode
    pairs = (
        ("def area(", "side):\n"),
        ("x = ", "3"),
        ("", "x"),
        ("for  ", " number"),
        ("x = 3", ""),
        ("de", "f"),
    )
    for context, continuation in pairs:
        before, after = encode_pair(model.vocabulary, context, continuation)
        assert before + after == encode(context + continuation)
        assert before == encode(context.rstrip())[: len(before)], "the rest reaches over the cut"
        assert bool(after) == bool(continuation)
    # `(s` is a token, and so `(` does not stand before the cut
    assert len(encode_pair(model.vocabulary, "def area(", "side):\n")[0]) < len(encode("def area("))


def test_a_likelihood_is_the_models_own_whatever_came_before(answers: Answers) -> None:
    first = answers.loglikelihood("def area(", "side):\n")
    answers.loglikelihood("x", " = 3")
    assert answers.loglikelihood("def area(", "side):\n") == first
    assert -1000 < first[0] < 0 and isinstance(first[1], bool)


def test_one_token_has_the_likelihood_that_the_demasker_gives_it(answers: Answers, model: Model) -> None:
    vocabulary = model.vocabulary
    nats, _ = answers.loglikelihood("x", "=")
    ids_BN = torch.tensor([[vocabulary.bos_id, *vocabulary.encode("x"), vocabulary.mask_id]])
    rows_BN = ids_BN == vocabulary.mask_id
    logits_V = model.autoencoder.demasker.logits(ids_BN, rows_BN, None)[0, : vocabulary.size]
    (token,) = vocabulary.encode("=")
    assert nats == pytest.approx(float(logits_V.log_softmax(-1)[token].detach()), rel=1e-4)


def test_what_the_demasker_writes_is_greedy_and_little_else_is(answers: Answers, model: Model) -> None:
    vocabulary = model.vocabulary
    ids_BN = torch.tensor([[vocabulary.bos_id, *vocabulary.encode("x"), vocabulary.mask_id]])
    logits_V = model.autoencoder.demasker.logits(ids_BN, ids_BN == vocabulary.mask_id, None)[0]
    plain = [t for t in range(vocabulary.size) if (vocabulary.token_bytes(t) or b" ").isalpha()]
    best, worst = (vocabulary.decode([pick(plain, key=logits_V.__getitem__)]) for pick in (max, min))
    # of all tokens, special ones too, another may be likelier than the best of these
    is_best = int(logits_V[: vocabulary.mask_id].argmax()) in plain
    if len(vocabulary.encode("x" + best)) == 2:
        assert answers.loglikelihood("x", best)[1] == is_best
    assert not answers.loglikelihood("x", worst)[1]
    model_says_no = Answers(model, mc_num=1, is_check_greedy=False)
    assert model_says_no.loglikelihood("x =", "y")[1] is False


def test_a_context_that_is_too_long_loses_its_beginning(answers: Answers, model: Model) -> None:
    ids = model.vocabulary.encode("side * " * 60)
    kept = model.vocabulary.decode(ids[-(model.window - 2) :])
    target = model.vocabulary.encode("side * " * 60 + "z")[len(ids) :]
    assert len(target) == 1
    assert answers.loglikelihood("side * " * 60, "z")[0] == pytest.approx(
        answers.loglikelihood(kept, "z")[0], rel=0.2
    )
    with pytest.raises(CrocodilError, match="does not fit a window of 32"):
        answers.loglikelihood("x", "side * " * 60)


def test_a_whole_text_goes_window_by_window(answers: Answers) -> None:
    short, long = answers.rolling("x = 3\n"), answers.rolling("x = {'side': 3}\n" * 12)
    assert long < short < 0 and math.isfinite(long)


def test_writing_ends_at_the_first_stop(answers: Answers, model: Model) -> None:
    free = answers.generate("x = ", {"max_gen_toks": 20, "until": []})
    assert free and free == answers.generate("x = ", {"max_gen_toks": 20})
    stop = free[len(free) // 2]
    assert answers.generate("x = ", {"max_gen_toks": 20, "until": stop}) == free[: free.index(stop)]
    assert answers.generate("x = ", {"max_gen_toks": 20, "until": [stop, free[0]]}) == ""
    assert len(model.vocabulary.encode(answers.generate("x = ", {"max_gen_toks": 3}))) <= 6


def test_writing_keeps_the_end_of_a_long_context_and_a_tasks_temperature(answers: Answers) -> None:
    long = "area(side) " * 80
    assert isinstance(answers.generate(long, {"max_gen_toks": 8}), str)
    cold = [answers.generate("x = ", {"temperature": 0.0, "max_gen_toks": 20}) for _ in range(2)]
    assert cold[0] == cold[1] == answers.generate("x = ", {"do_sample": False, "max_gen_toks": 20})
    with pytest.raises(CrocodilError, match="max_gen_toks"):
        answers.generate("x", {"max_gen_toks": 0})


def test_a_window_without_room_is_refused(model: Model) -> None:
    with pytest.raises(CrocodilError, match="no room"):
        Answers(model, tail=30)
    with pytest.raises(CrocodilError, match="mc_num"):
        Answers(model, mc_num=0)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_a_missing_package_is_one_line() -> None:
    with pytest.raises(CrocodilError, match="pip install lm_eval"):
        model_class()


def test_the_class_answers_requests(model: Model) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.registry import get_model

    made = model_class()(model=model, mc_num=4, batch_size="2", **OPTIONS)
    assert get_model(NAME) is model_class() and made.answers.batch_size == 2
    request = lambda *args: SimpleNamespace(args=args)  # noqa: E731
    ((nats, greedy),) = made.loglikelihood([request("x", " = 3")])
    assert nats < 0 and greedy in (True, False)
    assert made.loglikelihood_rolling([request("x = 3\n")])[0] < 0
    (text,) = made.generate_until([request("x = ", {"until": ["\n"], "max_gen_toks": 8})])
    assert "\n" not in text
