"""Files of problems, and programs made of answers. No line here is HumanEval's or MBPP's: only their formats are used."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from crocodil.errors import CrocodilError
from crocodil.harness.problems import MBPP_STOPS, complete, cut, fingerprint, read_problems

HUMANEVAL = {
    "task_id": "Own/0",
    "prompt": "def twice(x):\n",
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
MBPP = {
    "task_id": 7,
    "text": "Write a function to double a number.",
    "code": "import math\ndef helper(x):\n    return x\ndef twice(x):\n    return 2 * helper(x)\n",
    "test_list": ["assert twice(2) == 4", "assert abs(twice(-1)) == 2"],
    "test_setup_code": "import math",
}


def write(file: Path, *records: Any) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text, "utf-8")
    return file


@pytest.mark.parametrize("name", ["problems.jsonl", "problems.jsonl.gz"])
def test_the_format_of_humaneval(name: str, tmp_path: Path) -> None:
    (problem,) = read_problems(write(tmp_path / name, HUMANEVAL))
    assert (problem.task_id, problem.prompt, problem.entry_point) == ("Own/0", "def twice(x):\n", "twice")
    assert problem.tests.endswith("assert candidate(2) == 4\n\n\ncheck(twice)\n") and problem.wrong == ()
    namespace: dict[str, Any] = {}
    exec(complete(problem, problem.canonical_solution) + problem.tests, namespace)


def test_the_format_of_mbpp(tmp_path: Path) -> None:
    first, second = read_problems(
        write(
            tmp_path / "mbpp.jsonl",
            MBPP,
            {k: v for k, v in MBPP.items() if k != "text"} | {"task_id": 8, "prompt": "Double."},
        )
    )
    assert (first.task_id, second.task_id, first.entry_point) == ("MBPP/7", "MBPP/8", "twice")
    assert (
        first.prompt == '"""\nWrite a function to double a number.\nassert twice(2) == 4\n"""\n'
    ) and first.stops == MBPP_STOPS
    assert second.prompt.startswith('"""\nDouble.\n')
    namespace: dict[str, Any] = {}
    exec(complete(first, first.canonical_solution) + first.tests, namespace)
    assert first.tests.startswith("import math\nassert twice(2) == 4\n")


def test_blank_lines_and_a_byte_order_mark_are_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(HUMANEVAL).encode() + b"\r\n\n  \n")
    assert len(read_problems(file)) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HUMANEVAL, HUMANEVAL], "line 2: Own/0 is there already"),
        ([HUMANEVAL, [1]], "line 2: no JSON object"),
        ([{"task_id": "x"}], "line 1: neither entry_point"),
        ([HUMANEVAL | {"prompt": 3}], "line 1: prompt must be a text, not 3"),
        ([HUMANEVAL | {"entry_point": "a b"}], "line 1: entry_point 'a b' is no name"),
        ([HUMANEVAL | {"entry_point": "def"}], "line 1: the .* of Own/0 cannot be parsed"),
        ([HUMANEVAL | {"test": "def check(:"}], "line 1: the tests of Own/0 cannot be parsed"),
        ([HUMANEVAL | {"wrong": "x"}], "line 1: wrong must be a list of texts"),
        ([MBPP | {"test_list": []}], "line 1: task_id must be"),
        ([MBPP | {"test_list": ["assert other(1)"]}], "line 1: no test calls a function of its code"),
        ([MBPP | {"code": "def ("}], "line 1: code or test_list cannot be parsed"),
        ([], "holds no problem"),
    ],
)
def test_what_is_no_problem_is_named_with_its_line(lines: list[Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "problems.jsonl", *lines)
    with pytest.raises(CrocodilError, match=message) as found:
        read_problems(file)
    assert str(file) in str(found.value) and "\n" not in str(found.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CrocodilError, match="does not exist"):
        read_problems(tmp_path / "none.jsonl")
    for content, name in ((b"{no}\n", "a.jsonl"), (b"\xff\xfe\n", "b.jsonl"), (b"no gzip", "c.jsonl.gz")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CrocodilError, match=f"{name}(, line 1: no JSON| is not UTF-8| cannot be read)"):
            read_problems(tmp_path / name)
    cut_short = write(tmp_path / "d.jsonl.gz", HUMANEVAL)
    cut_short.write_bytes(cut_short.read_bytes()[:-9])
    with pytest.raises(CrocodilError, match="cannot be read"):
        read_problems(cut_short)
    with pytest.raises(CrocodilError, match="cannot be read"):
        read_problems(tmp_path)


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("    return 1\n", "    return 1\n"),
        ("    return 1\n\ndef g():\n    pass\n", "    return 1\n"),
        ("    return 1\n# done\n", "    return 1"),
        ("    return 1\nif __name__ == '':\n", "    return 1"),
        (
            "    x = 1\n    if x:\n        return x\nprint(f())\nclass A:",
            "    x = 1\n    if x:\n        return x",
        ),
        ("", ""),
    ],
)
def test_an_answer_ends_where_the_next_thing_begins(answer: str, kept: str, tmp_path: Path) -> None:
    (problem,) = read_problems(write(tmp_path / "problems.jsonl", HUMANEVAL))
    assert complete(problem, answer) == problem.prompt + kept
    assert complete(problem, answer, whole_program=True) == answer


def test_a_whole_program_may_stand_in_a_block(tmp_path: Path) -> None:
    (problem,) = read_problems(write(tmp_path / "problems.jsonl", HUMANEVAL))
    chat = "Here you are:\n```python\ndef twice(x):\n    return x + x\n```\nand\n```\nelse\n```\n"
    assert complete(problem, chat, whole_program=True) == "def twice(x):\n    return x + x\n"


def test_cutting_takes_the_first_of_all_stops() -> None:
    assert cut("a b c", ["c", " b", ""]) == "a"
    assert cut("a b c", []) == cut("a b c", ["d"]) == "a b c"


def test_the_bundled_problems_are_complete_and_their_own() -> None:
    problems = read_problems()
    assert len(problems) == 24 and len({problem.entry_point for problem in problems}) == 24
    for problem in problems:
        assert len(problem.wrong) == 2 and len(problem.prompt) < 400
        for answer in (problem.canonical_solution, *problem.wrong):
            program = complete(problem, answer)
            assert program == problem.prompt + answer, "no stop is in it"
            ast.parse(program)


def test_a_fingerprint_changes_with_whatever_decides() -> None:
    problems = read_problems()
    assert fingerprint(problems) == fingerprint(read_problems()) != fingerprint(problems[1:])
