"""A section of a config file, and how one is read: YAML, ``--set``, and errors that name the key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from probekd.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Section(BaseModel):
    """A frozen part of a config that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


SectionT = TypeVar("SectionT", bound=Section)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raises ConfigError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(value).__name__}")
    return value


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``values`` with each ``a.b=c`` set; c is read as YAML, so numbers, lists and null work."""
    result: dict[str, Any] = json.loads(json.dumps(values, default=str))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override}: expected KEY=VALUE, such as --set task.labels=100")
        *parents, last = key.strip().split(".")
        node = result
        for parent in parents:
            child = node.get(parent)
            if child is None:
                child = node[parent] = {}
            elif isinstance(child, str) and parent in ("task", "teacher", "student"):
                child = node[parent] = {"name" if parent == "task" else "model": child}
            if not isinstance(child, dict):
                raise ConfigError(f"--set {override}: {parent} is a single value, it has no key {last!r}")
            node = child
        try:
            node[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    return result


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the keys allowed beside the one at ``location``."""
    for part in location[:-1]:
        if isinstance(part, int):  # which of several sections
            continue
        field = model.model_fields.get(part)
        nested = _sections_in(field.annotation) if field else []
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Sections that a type is made of, such as X of ``X | None`` or of ``tuple[Annotated[X, ...], ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]


def validate(model: type[SectionT], values: Mapping[str, Any], source: str) -> SectionT:
    """Build ``model`` from ``values``; raises ConfigError with one line for each problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        lines = [_line(model, problem) for problem in problems if not _follows(problem, problems)]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def _line(model: type[BaseModel], problem: ErrorDetails) -> str:
    """What is wrong at which key, and the nearest right one."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, problem["loc"])
        return f"unknown key {key!r}; {_meant(problem['loc'][-1], known) or 'known keys: ' + ', '.join(known)}"
    if problem["type"] == "missing":
        return f"the key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    where = f"{key}: " if key else ""  # a rule about several keys names them itself
    if isinstance(problem["input"], Mapping | BaseModel):
        return f"{where}{message}"
    line = f"{where}{message} (found {problem['input']!r})"
    choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"]) if problem["type"] == "literal_error" else []
    hint = _meant(problem["input"], choices)
    return f"{line}; {hint}" if hint else line


def _meant(written: object, known: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(str(written), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else None


def _follows(problem: ErrorDetails, problems: Sequence[ErrorDetails]) -> bool:
    """Whether a list is only too short because of its items that are wrong, which have lines of their own."""
    place = problem["loc"]
    inside = any(len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in problems)
    return problem["type"] == "too_short" and inside


def dump_config(config: Section) -> str:
    """The config as YAML with every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: old -> new`` for every leaf where two dumped configs differ."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += config_differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines
