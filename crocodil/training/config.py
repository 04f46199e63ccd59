"""Configuration: a dataclass, filled by a YAML file, changed by `a.b=c` on the command line.

The dataclass is the schema. A key it does not have is an error that names the nearest one it does have; a
value of another type is an error that says which type was expected. Nothing is guessed, nothing is ignored.
"""

from __future__ import annotations

import argparse
import difflib
import re
import reprlib
import sys
import types
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from crocodil.atomic import write_atomically
from crocodil.errors import CrocodilError

C = TypeVar("C")

CONFIG = "config.yaml"
"""What a run calls its resolved configuration."""
COMMAND_LINE = "the command line"
NEWEST = "newest"
"""What `--resume` without a directory stands for: the newest complete checkpoint of the run."""

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_LARGEST = 2**63
_ASKED = object()
"""In place of a section's value: it is wanted, with its defaults where nothing else is said."""
# The reader makes dates of what looks like one, and follows brackets as deep as they go.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
_OVERRIDE = re.compile(r"(--)?[A-Za-z_][\w.]*=")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and leaves the exit code to the program."""

    def error(self, message: str) -> NoReturn:
        raise CrocodilError(f"{COMMAND_LINE}: {message}; --help lists the options")


class _Mismatch(Exception):
    """The value does not have the type; the caller knows the key and the file."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would silently keep the last."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        own: set[tuple[str, str]] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if (key_node.tag, key_node.value) in own:
                    said = f"the key {key_node.value!r:.60} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, said, key_node.start_mark)
                own.add((key_node.tag, key_node.value))
        super().flatten_mapping(node)
        # what `<<` brings in may be overridden, and bringing it in again and again may not grow without end
        last: dict[Hashable, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            scalar = isinstance(key_node, yaml.ScalarNode)
            last[(key_node.tag, key_node.value) if scalar else id(key_node)] = (key_node, value_node)
        node.value = list(last.values())


@dataclass(frozen=True)
class Arguments(Generic[C]):
    """What a recipe was asked for: its configuration, and a checkpoint to go on from.

    `resume` is None (start anew), `NEWEST`, or the path of one checkpoint.
    """

    config: C
    resume: str | None


def load_config(cls: type[C], path: str | None, overrides: Sequence[str] = ()) -> C:
    """Build `cls` from its defaults, then the YAML file, then the overrides; the later wins.

    Args:
        cls: a dataclass; its fields are int, float, bool, str, tuples, Literal, Optional or dataclasses.
        path: a YAML file, or None for the defaults alone.
        overrides: `a.b=c` or `--a.b=c`, the value written as in YAML; a str field takes the text as it is.

    Raises:
        CrocodilError: unknown key, wrong type, missing value, unreadable file.
    """
    leaves: dict[str, Any] = {}
    if path is not None:
        _read_mapping(cls, _read_yaml(path), "", path, leaves)
    for override in overrides:
        _read_override(cls, override, leaves)
    return _build(cls, leaves, "", None, path or COMMAND_LINE)


def config_text(config: Any) -> str:
    """The configuration as YAML, every field written out, in the order of the dataclass."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, allow_unicode=True)


def flat(config: Any, prefix: str = "") -> dict[str, str | int | float | bool]:
    """`{"a.b": value}` for trackers, which take numbers and text only."""
    values: dict[str, str | int | float | bool] = {}
    for key, value in (config if isinstance(config, dict) else asdict(config)).items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = value if isinstance(value, str | int | float | bool) else str(value)
    return values


def save_config(config: Any, path: str | Path) -> None:
    """Write every field to `path` as YAML, atomically; `load_config` reads it back to an equal value."""
    write_atomically(Path(path), config_text(config))


def parse_arguments(cls: type[C], argv: Sequence[str] | None, description: str) -> Arguments[C]:
    """Read a recipe's command line: `--config FILE`, `--resume [DIR]`, `--print-config`, then `a.b=c` ....

    A field `some_thing` that is true or false may be switched on with `--some-thing`.
    `--print-config` writes the resolved configuration to stdout and leaves with exit code 0.
    """
    parser = _Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the configuration")
    parser.add_argument(
        "--resume", metavar="DIR", nargs="?", const=NEWEST,
        help="go on from DIR, or from the newest complete checkpoint of the run",
    )  # fmt: skip
    parser.add_argument("--print-config", action="store_true", help="print the configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a field: optimiser.lr=1e-4")
    arguments, dashed = parser.parse_known_intermixed_args(_separate_overrides(argv))
    flags = {
        f"--{name.replace('_', '-')}": f"{name}=true" for name, hint in _hints(cls).items() if hint is bool
    }
    dashed = [flags.get(token, token) for token in dashed]
    for token in dashed:
        if not _OVERRIDE.match(token):
            raise CrocodilError(f"{COMMAND_LINE}: unknown option {token!r}; --help lists them")
    config = load_config(cls, arguments.config, [*arguments.overrides, *dashed])
    if arguments.print_config:
        print(config_text(config), end="")
        raise SystemExit(0)
    return Arguments(config, arguments.resume)


def _separate_overrides(argv: Sequence[str] | None) -> list[str]:
    """Keep `--resume a.b=c` from reading the override as its directory."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    for i, token in enumerate(tokens):
        if token == "--resume" and i + 1 < len(tokens) and _OVERRIDE.match(tokens[i + 1]):
            tokens[i] = f"--resume={NEWEST}"
    return tokens


def _read_yaml(path: str) -> Mapping[str, Any]:
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.load(stream, _Loader)
    except FileNotFoundError:
        raise CrocodilError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CrocodilError(f"{path}: cannot be read: {error}") from None
    except _NOT_YAML as error:
        raise CrocodilError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise CrocodilError(f"{path}: expected 'key: value' lines, found {_kind(content)}")
    return content


def _read_mapping(
    cls: type, mapping: Mapping[str, Any], prefix: str, source: str, leaves: dict[str, Any]
) -> None:
    hints = _hints(cls)
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise _unknown(key, [f"{prefix}{known}" for known in hints], source)
        section = _section(hints[name])
        if section is None or (value is None and _is_optional(hints[name])):
            _set(leaves, key, _typed(value, hints[name], key, source))
        elif isinstance(value, Mapping):
            _read_section(section, value, key, source, leaves)
        elif value is not None:  # `optimiser:` with nothing below it keeps the defaults
            raise CrocodilError(
                f"{source}: {key} = {_shown(value)}: expected a section, found {_kind(value)}"
            )


def _read_section(
    section: type, mapping: Mapping[str, Any], key: str, source: str, leaves: dict[str, Any]
) -> None:
    """Also of `{}`, which asks for a section that may be left out, with its defaults."""
    if leaves.get(key, _ASKED) is None:
        del leaves[key]
    leaves.setdefault(key, _ASKED)
    _read_mapping(section, mapping, f"{key}.", source, leaves)


def _set(leaves: dict[str, Any], key: str, value: Any) -> None:
    """The last word on a key, and on all below it."""
    for below in [leaf for leaf in leaves if leaf.startswith(f"{key}.")]:
        del leaves[below]
    leaves[key] = value


def _read_override(cls: type, override: str, leaves: dict[str, Any]) -> None:
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals:
        raise CrocodilError(f"{COMMAND_LINE}: {override!r} is not key=value")
    hint: Any = cls
    parts = key.split(".")
    for depth, name in enumerate(parts):
        section = _section(hint)
        hints = _hints(section) if section else {}
        if name not in hints:
            prefix = "".join(f"{part}." for part in parts[:depth])
            # The full key may be right but for its section, so all keys of the tree are candidates.
            raise _unknown(key, [f"{prefix}{known}" for known in hints] + _all_keys(cls, ""), COMMAND_LINE)
        hint = hints[name]
    value = _scalar(text)
    section = _section(hint)
    if section is not None and isinstance(value, Mapping):
        _read_section(section, value, key, COMMAND_LINE, leaves)
        return
    if section is not None and not (value is None and _is_optional(hint)):
        inner = fields(section)[0].name
        raise CrocodilError(f"{COMMAND_LINE}: {key} is a section; set one of its keys, as {key}.{inner}=…")
    if _wants_text(hint) and not (value is None and _is_optional(hint)):
        value = text
    elif _is_tuple(hint) and isinstance(value, str | int | float) and text:
        value = [_scalar(item) for item in text.split(",")]
    _set(leaves, key, _typed(value, hint, key, COMMAND_LINE))


def _scalar(text: str) -> Any:
    """What YAML reads, or the text itself where that is no YAML; whether it will do is for its type to say."""
    try:
        return yaml.load(text, _Loader)
    except _NOT_YAML:
        return text


def _build(cls: type[C], leaves: Mapping[str, Any], prefix: str, base: C | None, source: str) -> C:
    """One dataclass from the leaves under `prefix`; the rest comes from `base`, or from the defaults."""
    values: dict[str, Any] = {}
    hints = _hints(cls)
    for field in fields(cls):  # type: ignore[arg-type]
        if not field.init:
            continue
        key = f"{prefix}{field.name}"
        section = _section(hints[field.name])
        if base is not None:
            default = getattr(base, field.name)
        elif field.default_factory is not MISSING:
            default = field.default_factory()
        else:
            default = field.default
        asked = leaves.get(key) is _ASKED
        if key in leaves and not asked:
            default = leaves[key]
        if section is not None:
            named = asked or any(leaf.startswith(f"{key}.") for leaf in leaves)
            if named or default is MISSING:
                nested = default if is_dataclass(default) else None
                default = _build(section, leaves, f"{key}.", nested, source)
        if default is MISSING:
            raise CrocodilError(f"{source}: {key} has no value; give one in the file or as {key}=…")
        values[field.name] = default
    return cls(**values)


def _typed(value: Any, hint: Any, key: str, source: str) -> Any:
    try:
        return _convert(value, hint)
    except _Mismatch:
        found = _kind(value)
    except OverflowError:
        found = "a number beyond 64 bits"
    raise CrocodilError(f"{source}: {key} = {_shown(value)}: expected {_describe(hint)}, found {found}")


def _convert(value: Any, hint: Any) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for member in get_args(hint):
            try:
                return _convert(value, member)
            except _Mismatch:
                continue
    elif hint is type(None):
        if value is None:
            return None
    elif origin is Literal:
        for allowed in get_args(hint):
            if value == allowed and type(value) is type(allowed):
                return value
    elif origin is tuple:
        return _convert_tuple(value, get_args(hint))
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            return float(value)  # YAML 1.1 reads 1e-3, without a dot, as text
    elif hint in (int, bool, str):
        if type(value) is hint:
            if hint is int and not -_LARGEST <= value < _LARGEST:
                raise OverflowError
            return value
    elif not is_dataclass(hint):
        raise TypeError(f"a configuration field cannot have the type {hint}")
    raise _Mismatch


def _convert_tuple(value: Any, members: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _Mismatch
    if len(members) == 2 and members[1] is Ellipsis:
        return tuple(_convert(item, members[0]) for item in value)
    if len(value) != len(members):
        raise _Mismatch
    return tuple(_convert(item, member) for item, member in zip(value, members, strict=True))


def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _section(hint: Any) -> type | None:
    """The dataclass behind a field, also behind `Section | None`; None for a plain value."""
    return next((m for m in _members(hint) if isinstance(m, type) and is_dataclass(m)), None)


def _is_optional(hint: Any) -> bool:
    return type(None) in _members(hint)


def _is_tuple(hint: Any) -> bool:
    return any(get_origin(member) is tuple for member in _members(hint))


def _wants_text(hint: Any) -> bool:
    """Whether an override is text as it stands: `name=007`, and `schedule=off`, which YAML reads as false."""
    members = [member for member in _members(hint) if member is not type(None)]
    return all(
        member is str or (get_origin(member) is Literal and all(isinstance(a, str) for a in get_args(member)))
        for member in members
    )


def _all_keys(cls: type, prefix: str) -> list[str]:
    keys: list[str] = []
    for name, hint in _hints(cls).items():
        section = _section(hint)
        keys += _all_keys(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return keys


def _unknown(key: str, known: Sequence[str], source: str) -> CrocodilError:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
    return CrocodilError(f"{source}: unknown key {key!r}; {hint}")


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in get_args(hint))
    if hint is type(None):
        return "null"
    if origin is Literal:
        return f"one of {', '.join(repr(allowed) for allowed in get_args(hint))}"
    if origin is tuple:
        members = get_args(hint)
        if len(members) == 2 and members[1] is Ellipsis:
            return f"a list of {_describe(members[0])}"
        return f"a list of {len(members)} values ({', '.join(_describe(member) for member in members)})"
    return getattr(hint, "__name__", str(hint))


def _shown(value: Any) -> str:
    """A value for a message: short, whatever it is and however deep it refers to itself."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    try:
        return short.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    name = type(value).__name__
    return {"list": "a list", "dict": "a section"}.get(name, name)


def _plain(value: Any) -> Any:
    """Tuples as lists: the safe YAML dumper has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
