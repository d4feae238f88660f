"""Read params: a YAML mapping becomes a frozen dataclass, and what is wrong with it one sentence.

    @dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
    class MaskParams: ...
    load_section(Path("data/resolved/r1/mask.yaml"), MaskParams)

The dataclasses live beside the code that obeys them; this module knows none of them.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from tnt.core.artifacts import complete
from tnt.core.errors import Faults, did_you_mean, lines_of, nearest, shortened
from tnt.core.hashes import refuse_changed
from tnt.core.imports import CODE_ROOT

Share = Annotated[float, Field(ge=0, le=1)]


T = TypeVar("T")
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""Pydantic's configuration of every params dataclass: unknown keys, wrong types, NaN are errors."""

LARGEST = 100_000
"""Values in a YAML file. A few nested aliases make a thousand million of them."""

REMEDIES = {
    "found unexpected ':'": "Inside {} or [], put quotes around a value with a colon in it."
}
"""Of what other readers read: this one is DVC's, which has to read params.yaml too."""


def load_yaml(path: Path) -> dict[Any, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ValueError: The file is missing, not YAML, not a mapping, or endless by way of its aliases.
    """
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        size = _size(content, {})
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist. Run from the project's root folder.") from error
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        remedy = REMEDIES.get(str(problem), "Correct the file.")
        raise ValueError(f"{path}{where} is not valid YAML: {problem}. {remedy}") from error
    except RecursionError as error:
        raise ValueError(
            f"{path} is nested too deeply, or an alias in it contains itself. Correct the file."
        ) from error
    if size > LARGEST:
        raise ValueError(
            f"{path} holds {size:.3g} values when its aliases are written out, more than "
            f"{LARGEST:,}. Write out what you mean, without them."
        )
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not a mapping of sections.")
    return content


def _size(value: Any, known: dict[int, int]) -> int:
    """Return how many values there are in a value, those of an alias wherever it stands."""
    if not isinstance(value, Mapping | list):
        return 1
    if id(value) not in known:
        below = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_size(each, known) for each in below)
    return known[id(value)]


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, in block style; the comments of one from `edited` survive."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 100
    text = io.StringIO()
    yaml.dump(values, text)
    return text.getvalue()


@contextlib.contextmanager
def edited(path: Path, check: Callable[[Path], object]) -> Iterator[CommentedMap]:
    """Yield a YAML file's mapping to change; write it back, comments and all, if `check` passes.

    `check` gets the new file under a temporary name and raises where it is not valid; the old file
    then stays as it is.

    Raises:
        ValueError: It is not valid, before or after.
    """
    load_yaml(path)
    yaml = YAML()
    yaml.preserve_quotes = True
    values = yaml.load(path.read_text(encoding="utf-8"))
    yield values
    with complete(path) as partial:
        partial.write_text(dump_yaml(values), encoding="utf-8")
        try:
            check(partial)
        except ValueError as error:
            told = (line.replace(str(partial), str(path)) for line in lines_of(error))
            raise Faults(told) from error


def load_section(path: Path, section: type[T]) -> T:
    """Return a stage's resolved params as the dataclass that describes them.

    Beside them stands `code`, what the stage runs by hash.

    Raises:
        ValueError: The params do not fit, or the code is not what was pinned.
    """
    values = load_yaml(path)
    refuse_changed(values.pop("code", {}), CODE_ROOT)
    return parse(values, section, where=str(path))


def parse(values: Mapping[Any, Any], section: type[T], *, where: str, called: str = "key") -> T:
    """Return `values` as a `section`, checked strictly.

    Args:
        values: What the YAML holds.
        section: A params dataclass.
        where: Named in the error: the file, and the key of the section in it.
        called: What its own keys are called in the error.

    Raises:
        Faults: Keys are unknown or missing, or values do not fit; one sentence for each, with the
            value seen and, for an unknown key, the nearest one that is valid there.
    """
    if strange := [key for key in _keys(values) if not isinstance(key, str)]:
        raise Faults(
            f"{where}: the key {key!r} is not a string. Quote it or rename it." for key in strange
        )
    try:  # by way of JSON, where strict types allow a list for a tuple, a dict for a dataclass
        return TypeAdapter(section).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        told = _sentences(error, section, called)
        raise Faults(f"{where}: {sentence}" for sentence in told) from None


def merge(default: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `default` with `override` laid over it, mappings key by key."""
    merged = dict(default)
    for key, value in override.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
UNKNOWN = "unexpected_keyword_argument"


def _sentences(error: ValidationError, section: type, called: str) -> list[str]:
    """Return what is wrong, one sentence for each place."""
    places: dict[tuple[Any, ...], list[Any]] = {}
    for each in error.errors():
        places.setdefault(place_in(section, each["loc"])[0], []).append(each)
    meant = {
        (*place[:-1], nearest(place[-1], _valid(section, first["loc"])))
        for place, (first, *_) in places.items()
        if first["type"] == UNKNOWN
    }
    outer = {place[:n] for place in places for n in range(len(place))}
    return [
        _sentence(place, errors, section, called if len(place) == 1 else "key")
        for place, errors in places.items()
        if place not in meant | outer  # a key that is misspelt is missing as well
    ]


def _sentence(place: tuple[Any, ...], errors: list[Any], section: type, called: str) -> str:
    key = ".".join(map(str, place))
    first, *others = errors
    if first["type"] == UNKNOWN:
        near = did_you_mean(place[-1], _valid(section, first["loc"]))
        return f"unknown {called} {key!r}.{near}"
    if first["type"] in MISSING:
        return f"the {called} {key!r} is missing. Add it."
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    for other in others:  # a value may be of several types, and is of none
        message += f" or {other['msg'].removeprefix('Input should be ')}"
    message = message[0].lower() + message[1:]
    return f"{key or 'the section'} is {shortened(first['input'])}: {message}. Correct the value."


def _valid(section: type, location: tuple[Any, ...]) -> list[str]:
    """Return the keys that are valid beside one."""
    beside = place_in(section, location[:-1])[1]
    return [field.name for field in fields(beside)] if is_dataclass(beside) else []


def place_in(kind: Any, location: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    """Return a place that pydantic names, as keys, and what may stand there.

    Behind a key whose value may be of several types, pydantic also names one of these types.
    """
    if get_origin(kind) is Annotated:
        return place_in(get_args(kind)[0], location)
    if get_origin(kind) in (Union, UnionType):
        kinds = [each for each in get_args(kind) if each is not NoneType]
        nested = [each for each in kinds if is_dataclass(each) or get_args(each)]
        return place_in((nested or kinds)[0], location[1:] if len(kinds) > 1 else location)
    if not location:
        return (), kind
    if is_dataclass(kind):
        below = get_type_hints(kind, include_extras=True).get(location[0])
    else:
        below = (get_args(kind) or (Any,))[-1]
    keys, found = place_in(below, location[1:])
    return (location[0], *keys), found


def _keys(values: Any) -> list[Any]:
    if isinstance(values, Mapping):
        return [*values, *(key for value in values.values() for key in _keys(value))]
    if isinstance(values, list):
        return [key for value in values for key in _keys(value)]
    return []
