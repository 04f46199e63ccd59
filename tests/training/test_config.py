from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from crocodil.errors import CrocodilError
from crocodil.training.config import (
    NEWEST,
    config_text,
    load_config,
    parse_arguments,
    save_config,
)


@dataclass(frozen=True)
class Rate:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Literal["constant", "off"] = "constant"


@dataclass(frozen=True)
class Data:
    folder: str
    limit: int | None = None


@dataclass(frozen=True)
class Recipe:
    data: Data
    optimiser: Rate = field(default_factory=lambda: Rate(lr=0.5))
    name: str = "run"
    steps: int = 10
    widths: tuple[int, ...] = (1, 2)
    noise: bool = True
    teacher: Rate | None = None


def written(directory: Path, text: str) -> str:
    path = directory / "run.yaml"
    path.write_text(text)
    return str(path)


def test_later_sources_win(tmp_path: Path) -> None:
    path = written(tmp_path, "data: {folder: books}\nsteps: 20\noptimiser:\n  betas: [0.8, 0.9]\n")
    config = load_config(Recipe, path, ["steps=30", "--data.limit=7", "steps=31"])
    assert config.steps == 31
    assert config.data == Data("books", 7)
    assert config.optimiser == Rate(lr=0.5, betas=(0.8, 0.9))  # the default of the field, not of its class


def test_unknown_key_names_the_nearest_and_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "data: {folder: books}\noptimiser: {lrr: 1}\n")
    with pytest.raises(
        CrocodilError, match=r"run\.yaml: unknown key 'optimiser\.lrr'.*'optimiser\.lr'"
    ) as caught:
        load_config(Recipe, path)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        CrocodilError, match=r"the command line: unknown key 'optimizer\.lr'.*'optimiser\.lr'"
    ):
        load_config(Recipe, None, ["optimizer.lr=1"])
    with pytest.raises(CrocodilError, match=r"unknown key 'steps\.more'"):
        load_config(Recipe, None, ["steps.more=1"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=1.5", r"steps = 1\.5: expected int, found float"),
        ("steps=true", r"expected int, found bool"),
        ("noise=1", r"noise = 1: expected bool, found int"),
        ("optimiser.lr=fast", r"optimiser\.lr = 'fast': expected float, found str"),
        ("optimiser.betas=0.9", r"expected a list of 2 values \(float, float\)"),
        ("widths=1,b", r"expected a list of int"),
        ("optimiser.schedule=cosine", r"expected one of 'constant', 'off'"),
        ("optimiser=3", r"optimiser is a section; set one of its keys, as optimiser\.lr="),
        ("steps=null", r"expected int, found null"),
        ("steps", r"not key=value"),
        ("widths=1,[", r"expected a list of int"),
        ("widths=!!x y", r"expected a list of int"),
        ("steps=2024-13-45", r"expected int, found str"),
        (f"optimiser.lr=1{400 * '0'}", r"= 10+\.\.\.0+: expected float, found a number beyond 64 bits"),
        (f"data.limit={10**31}", r"data\.limit = 10+: expected int or null, found a number beyond 64 bits"),
        (f"widths=1,{2**63}", r"expected a list of int, found a number beyond 64 bits"),
        (f"steps={hex(16**5000)}", r"expected int, found a number beyond 64 bits"),
        (f"optimiser.betas=0.9,{10**400}", r"expected a list of 2 values"),
        ("optimiser.schedule=" + 999 * "x", r"schedule = 'x*\.\.\.x*': expected one of"),
    ],
)
def test_wrong_type_says_key_value_and_expectation_in_one_line(override: str, expected: str) -> None:
    with pytest.raises(CrocodilError, match=expected) as caught:
        load_config(Recipe, None, ["data.folder=x", override])
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_64_bits_are_accepted() -> None:
    assert load_config(Recipe, None, ["data.folder=x", f"steps={2**63 - 1}"]).steps == 2**63 - 1


def test_types_that_are_accepted() -> None:
    config = load_config(
        Recipe,
        None,
        ["data.folder=007", "optimiser.lr=1e-3", "widths=4,5,6", "data.limit=null", "optimiser.schedule=off"],
    )
    assert config.data == Data("007", None)
    assert config.optimiser.lr == 1e-3 and config.optimiser.schedule == "off"
    assert config.widths == (4, 5, 6)
    whole = load_config(Recipe, None, ["data.folder=x", "optimiser.lr=2", "widths=9"])
    assert type(whole.optimiser.lr) is float and whole.widths == (9,)


def test_optional_section(tmp_path: Path) -> None:
    assert load_config(Recipe, None, ["data.folder=x"]).teacher is None
    assert load_config(Recipe, None, ["data.folder=x", "teacher.lr=2"]).teacher == Rate(lr=2.0)
    path = written(tmp_path, "data: {folder: x}\nteacher: null\n")
    assert load_config(Recipe, path).teacher is None


@pytest.mark.parametrize(
    ("text", "overrides", "teacher"),
    [
        ("teacher: {}", [], Rate()),
        ("", ["teacher={}"], Rate()),
        ("", ["teacher={lr: 2}"], Rate(lr=2.0)),
        ("teacher: {lr: 2}", ["teacher={}"], Rate(lr=2.0)),
        ("teacher: {lr: 2}", ["teacher=null"], None),
        ("teacher: {lr: 2}", ["teacher=null", "teacher={}"], Rate()),
        ("teacher: null", ["teacher.lr=2"], Rate(lr=2.0)),
        ("teacher: {}", ["teacher.lr=2", "teacher=null"], None),
        ("teacher:", [], None),
    ],
)
def test_an_optional_section_is_what_was_said_of_it_last(
    text: str, overrides: list[str], teacher: Rate | None, tmp_path: Path
) -> None:
    path = written(tmp_path, f"data: {{folder: x}}\n{text}\n")
    assert load_config(Recipe, path, overrides).teacher == teacher


def test_an_empty_section_keeps_the_defaults_of_its_field(tmp_path: Path) -> None:
    path = written(tmp_path, "data: {folder: x}\noptimiser: {}\n")
    assert load_config(Recipe, path, ["optimiser={}"]).optimiser == Rate(lr=0.5)
    with pytest.raises(CrocodilError, match=r"data\.folder has no value"):
        load_config(Recipe, written(tmp_path, "data: {}\n"))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    for text in ("steps: 3\nsteps: 4\n", "optimiser: {lr: 1, lr: 2}\n"):
        with pytest.raises(
            CrocodilError, match=r"run\.yaml: not valid YAML: the key '\w+' stands twice.*line"
        ):
            load_config(Recipe, written(tmp_path, f"data: {{folder: x}}\n{text}"))
    merged = "data: {folder: x}\noptimiser: &o {lr: 2, schedule: off}\nteacher: {<<: *o, lr: 3}\n"
    # a key that is brought in by `<<` is there to be overridden (and YAML reads a bare `off` as false)
    config = load_config(Recipe, written(tmp_path, merged.replace("off", '"off"')))
    assert config.teacher == Rate(lr=3.0, schedule="off")


def bomb(kind: str) -> str:
    """A value that a few lines make of billions of parts."""
    if kind == "list":
        return "x0: &x0 [a, b]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 60))
    first = "x0: &x0 {a: 1, b: 2}\n"
    return first + "".join(f"x{i}: &x{i} {{<<: [*x{i - 1}, *x{i - 1}]}}\n" for i in range(1, 60))


@pytest.mark.parametrize("kind", ["list", "mapping"])
def test_a_value_of_billions_of_parts_is_one_short_line(kind: str, tmp_path: Path) -> None:
    indented = "".join(f"  {line}\n" for line in bomb(kind).splitlines())
    for text in (f"data: {{folder: x}}\nsteps:\n{indented}", f"data:\n  folder: x\n{indented}"):
        with pytest.raises(
            CrocodilError, match="expected int, found a section|unknown key 'data.x0'"
        ) as caught:
            load_config(Recipe, written(tmp_path, text))
        assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_a_value_without_default_must_be_given() -> None:
    with pytest.raises(CrocodilError, match=r"data\.folder has no value"):
        load_config(Recipe, None)


def test_saved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(Recipe, None, ["data.folder=é", "optimiser.lr=2.5e-5", "teacher.lr=1"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(Recipe, str(tmp_path / "config.yaml")) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_yaml_builds_no_objects(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = written(tmp_path, f"name: !!python/object/apply:os.mkdir ['{canary}']\n")
    with pytest.raises(CrocodilError, match="not valid YAML"):
        load_config(Recipe, path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1\n", "found a list"),
        ("a: [", "not valid YAML"),
        ("a: 2024-13-45", "not valid YAML"),
        ("[" * 9999, "not valid"),
    ],
)
def test_malformed_file_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(CrocodilError, match=expected) as caught:
        load_config(Recipe, written(tmp_path, text))
    assert "\n" not in str(caught.value)
    with pytest.raises(CrocodilError, match="no such configuration file"):
        load_config(Recipe, str(tmp_path / "absent.yaml"))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "data: {folder: books}\n")
    arguments = parse_arguments(
        Recipe, ["--config", path, "steps=3", "--resume", "--noise=false"], "A recipe."
    )
    assert (arguments.config.steps, arguments.config.noise, arguments.resume) == (3, False, NEWEST)
    assert parse_arguments(Recipe, ["--config", path, "--resume", "steps=3"], "").config.steps == 3
    assert parse_arguments(Recipe, ["--config", path, "--resume", "runs/a"], "").resume == "runs/a"
    assert parse_arguments(Recipe, ["--config", path], "").resume is None
    assert parse_arguments(Recipe, ["--config", path, "noise=false", "--noise"], "").config.noise is True
    with pytest.raises(CrocodilError, match="unknown option '--resum'"):
        parse_arguments(Recipe, ["--config", path, "--resum"], "")
    with pytest.raises(CrocodilError, match="command line: argument --config: expected one argument; --help"):
        parse_arguments(Recipe, ["--config"], "")
    with pytest.raises(SystemExit) as left:
        parse_arguments(Recipe, ["--config", path, "--print-config", "steps=4"], "")
    assert left.value.code == 0
    assert capsys.readouterr().out == config_text(load_config(Recipe, path, ["steps=4"]))
