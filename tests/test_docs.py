"""The docs are true: links lead somewhere, names exist, commands parse, examples compile."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from functools import lru_cache
from pathlib import Path

import pytest

from crocodil.cli.arguments import parse
from crocodil.report import records
from crocodil.training.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
LINK = re.compile(r"\[([^\]\n]*)\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
A_FILE = re.compile(r"[\w./-]+\.(py|ya?ml|toml|sh)")


def text_of(page: Path) -> str:
    """A page without its code blocks."""
    return BLOCK.sub("", page.read_text("utf-8"))


def blocks(name: str, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall((ROOT / name).read_text("utf-8")) if kind == language]


def commands(name: str) -> list[list[str]]:
    """The words of every command in a page's shell blocks."""
    lines = "".join(blocks(name, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@lru_cache
def anchors(page: Path) -> set[str]:
    """What `page.md#…` may say, by a code host's rule."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@lru_cache
def names_in(file: Path) -> set[str]:
    """Everything a module defines at its top, and `Class.member`; read, not imported."""
    return set(_defined(ast.parse(file.read_text("utf-8")).body, ""))


def _defined(body: list[ast.stmt], prefix: str) -> list[str]:
    found: list[str] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                found += _defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [prefix + target.id for target in targets if isinstance(target, ast.Name)]
    return found


def module_and_name(dotted: str) -> tuple[Path, str]:
    """`crocodil.a.b.Name` as the file of `crocodil.a.b`, and `Name`; the name is empty for a module."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:end])
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if file.is_file():
                return file, ".".join(parts[end:])
    raise AssertionError(f"{dotted} is in no module")


@EVERY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    for _, target in LINK.findall(text_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(there), f"{page}: {target}"


@EVERY_PAGE
def test_linked_names_are_defined_where_the_link_leads(page: Path) -> None:
    for label, target in LINK.findall(text_of(page)):
        name = label.strip("`").removeprefix("crocodil.")
        if label.startswith("`") and target.endswith(".py") and not name.endswith(".py"):
            assert name in names_in((page.parent / target).resolve()), f"{page}: {label} in {target}"


@EVERY_PAGE
def test_files_modules_and_tests_in_backticks_exist(page: Path) -> None:
    tests = {name for file in (ROOT / "tests").rglob("test_*.py") for name in names_in(file)}
    for word in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text_of(page)):
        if re.fullmatch(r"crocodil(\.\w+)+", word):
            file, name = module_and_name(word)
            lazy = file == ROOT / "crocodil" / "__init__.py" and name in public_names()
            assert not name or lazy or name in names_in(file), f"{page}: {word}"
        elif re.fullmatch(r"test_\w+", word):
            assert word in tests, f"{page}: {word}"
        elif "/" in word and (
            A_FILE.fullmatch(word) or re.match(r"(crocodil|recipes|launch|tests|docs)/", word)
        ):
            places = (ROOT / word, ROOT / "crocodil" / word)
            assert any(place.exists() for place in places), f"{page}: {word}"


def public_names() -> list[str]:
    tree = ast.parse((ROOT / "crocodil" / "__init__.py").read_text("utf-8"))
    return next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )


def test_every_public_name_is_told() -> None:
    page = (ROOT / "docs" / "using.md").read_text("utf-8")
    for name in public_names():
        assert f"crocodil.{name}" in page, name


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    for page in PAGES[1:]:
        assert page.name == "README.md" or f"({page.name})" in index, page.name


@pytest.mark.parametrize("name", ["README.md", "docs/using.md", "docs/cadd.md"])
def test_python_examples_compile_and_call_what_there_is(name: str) -> None:
    found = blocks(name, "python")
    assert found
    for code in found:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "crocodil":
                assert node.attr in public_names(), code


@pytest.mark.parametrize("name", ["docs/using.md", "docs/cadd.md"])
def test_command_line_examples_parse(name: str) -> None:
    lines = [words[words.index("crocodil") :] for words in commands(name) if "crocodil" in words]
    assert len(lines) > 5
    for words in lines:
        parse(words[1:])


def test_json_shapes_are_those_of_the_records() -> None:
    page = (ROOT / "docs" / "using.md").read_text("utf-8")
    for record in (records.Reconstruction, records.GridRow, records.ModelFacts, records.Written):
        shape = ", ".join(f'"{name}"' for name in record.__dataclass_fields__)
        assert f"{{{shape}}}" in page, record.__name__


@pytest.mark.parametrize("name", ["README.md", "docs/training.md"])
def test_training_commands_name_files_and_fields_that_exist(name: str) -> None:
    found = 0
    for words in commands(name):
        recipe = next((word for word in words if re.fullmatch(r"recipes/train_\w+\.py", word)), None)
        if recipe is None:
            continue
        found += 1
        after = {
            option: words[words.index(option) + 1]
            for option in ("--config_file", "--config")
            if option in words
        }
        for file in (recipe, *after.values()):
            assert (ROOT / file).is_file(), file
        config = after.get("--config")
        overrides = [word for word in words[words.index(recipe) :] if re.match(r"[a-z_.]+=", word)]
        load_config(recipe_of(recipe), None if config is None else str(ROOT / config), overrides)
    assert found


def recipe_of(file: str) -> type:
    """The dataclass of a recipe."""
    module = importlib.import_module(f"recipes.{Path(file).stem}")
    kinds = r"(Base|Demasker|Denoiser|Judge|Cadd)Recipe"
    return next(value for name, value in vars(module).items() if re.fullmatch(kinds, name))


def test_make_targets_that_the_docs_name_exist() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text("utf-8")
        for name in re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, re.MULTILINE):
            assert name in targets, f"{page}: make {name}"
