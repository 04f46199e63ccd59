"""Problems with tests: our own, and files in the formats of HumanEval and MBPP.

A file has one JSON object a line and may be compressed (`.gz`). HumanEval's keys (Chen et al. 2021): `task_id`, `prompt`,
`entry_point`, `test` (which defines `check(candidate)`), `canonical_solution`; ours adds `wrong`, a list of solutions
that must fail. MBPP's keys (Austin et al. 2021): `task_id`, `text` or `prompt`, `code`, `test_list`, and
`test_setup_code` or `test_imports`.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from crocodil.errors import CrocodilError

BUNDLED = Path(__file__).parent / "problems" / "crocodil.jsonl"
HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where an answer to HumanEval ends (Chen et al. 2021, §3.1): behind the function whose beginning the prompt is."""
MBPP_STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif")
"""Where an answer to MBPP ends, whose prompt holds no program yet, so that functions may follow one another."""


@dataclass(frozen=True)
class Problem:
    """One task. A program is the prompt and what the model writes behind it."""

    task_id: str
    prompt: str
    """The program's beginning."""
    entry_point: str
    """The function that the tests call."""
    tests: str
    """A program that ends with an exception where the solution is wrong; it sees the solution's names."""
    canonical_solution: str
    """What to write behind the prompt; empty where the file has none."""
    stops: tuple[str, ...] = HUMANEVAL_STOPS
    """Where an answer is cut off."""
    wrong: tuple[str, ...] = ()
    """Plausible solutions that fail."""


def read_problems(source: str | Path = "bundled") -> list[Problem]:
    """Problems of a file, or `bundled`: 24 of our own, easy to medium.

    Raises:
        CrocodilError: no such file, or a line that is no problem, with its number.
    """
    file = BUNDLED if str(source) == "bundled" else Path(source)
    problems: dict[str, Problem] = {}
    for number, line in _lines(file):
        try:
            problem = _parse(line)
        except _Bad as error:
            raise CrocodilError(f"{file}, line {number}: {error}") from None
        if problem.task_id in problems:
            raise CrocodilError(
                f"{file}, line {number}: {problem.task_id} is there already; name each task once"
            )
        problems[problem.task_id] = problem
    if not problems:
        raise CrocodilError(f"{file} holds no problem; give one JSON object a line")
    return list(problems.values())


def fingerprint(problems: Sequence[Problem]) -> str:
    """16 hex digits over all that decides whether an answer passes."""
    content = json.dumps([astuple(problem) for problem in problems])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def complete(problem: Problem, text: str, whole_program: bool = False) -> str:
    """The program that an answer makes.

    What stands behind the first of the problem's stops is cut off, the stop with it; a completion goes behind the prompt.

    Args:
        text: what the model wrote, without the prompt.
        whole_program: the answer is a program by itself, as a chat model gives it; its first ```` ```python ```` block if
            it has one, and never cut.
    """
    if whole_program:
        block = re.search(r"^```(?:python|py)?[ \t]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        return block.group(1) if block else text
    return problem.prompt + cut(text, problem.stops)


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first place where any of `stops` begins; empty stops are none."""
    places = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))]


class _Bad(Exception):
    """What is wrong with a line."""


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, numbered from 1."""
    try:
        opened = gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")
        with opened as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except FileNotFoundError:
        raise CrocodilError(f'{file} does not exist; give a .jsonl or .jsonl.gz file, or "bundled"') from None
    except UnicodeDecodeError:
        raise CrocodilError(f"{file} is not UTF-8; give a .jsonl or .jsonl.gz file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise CrocodilError(f"{file} cannot be read ({error}); fetch it again") from None


def _parse(line: str) -> Problem:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Bad(f"no JSON ({error})") from None
    if not isinstance(record, dict):
        raise _Bad("no JSON object")
    if "entry_point" in record:
        problem = _human_eval(record)
    elif "test_list" in record:
        problem = _mbpp(record)
    else:
        raise _Bad("neither entry_point, as in HumanEval, nor test_list, as in MBPP")
    for name, program in (("tests", problem.tests), ("entry point", problem.entry_point)):
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _Bad(f"the {name} of {problem.task_id} cannot be parsed ({error})") from None
    return problem


def _human_eval(record: dict[str, Any]) -> Problem:
    entry_point = _text(record, "entry_point")
    if not entry_point.isidentifier():
        raise _Bad(f"entry_point {entry_point[:40]!r} is no name")
    return Problem(
        _text(record, "task_id"),
        _text(record, "prompt"),
        entry_point,
        f"{_text(record, 'test')}\n\ncheck({entry_point})\n",
        _text(record, "canonical_solution", ""),
        wrong=tuple(_texts(record, "wrong", [])),
    )


def _mbpp(record: dict[str, Any]) -> Problem:
    tests, code = _texts(record, "test_list"), _text(record, "code")
    before = _texts(record, "test_imports", []) + [_text(record, "test_setup_code", "")]
    task = record.get("task_id")
    if not isinstance(task, int | str) or not tests:
        raise _Bad("task_id must be a number or a text, and test_list have a test")
    words = _text(record, "text") if "text" in record else _text(record, "prompt")
    # InCoder's prompt (Fried et al. 2022, App.): the task and one test as the docstring of a program to come
    prompt = f'"""\n{words}\n{tests[0]}\n"""\n'
    return Problem(
        task if isinstance(task, str) else f"MBPP/{task}",
        prompt,
        _called(tests, code),
        "\n".join([*before, *tests, ""]),
        code,
        MBPP_STOPS,
    )


def _called(tests: Sequence[str], code: str) -> str:
    """The function of `code` that the tests call: the file does not name it."""
    try:
        defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
        calls = [node.func for node in ast.walk(ast.parse("\n".join(tests))) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _Bad(f"code or test_list cannot be parsed ({error})") from None
    names = [call.id for call in calls if isinstance(call, ast.Name) and call.id in defined]
    if not names:
        raise _Bad("no test calls a function of its code")
    return names[0]


def _text(record: dict[str, Any], key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        raise _Bad(f"{key} must be a text, not {value!r:.40}")
    return value


def _texts(record: dict[str, Any], key: str, default: list[str] | None = None) -> list[str]:
    value = record.get(key, default)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _Bad(f"{key} must be a list of texts, not {value!r:.40}")
    return value
