"""What may stand in a section of params.yaml: read from the dataclass that the section becomes."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args

from pydantic import TypeAdapter

from tnt.core.errors import did_you_mean
from tnt.core.params import place_in
from tnt.detectors import DETECTORS
from tnt.project.sections import Project

NUMBERS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
TYPES = {
    "integer": "whole number",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
}


def explain(name: str) -> str:
    """Return the keys of a section: what each may be, its default, what it is for.

    Args:
        name: Like `gate`, `train.patch`, `rounds` (each of them), `detectors.phrases` (a kind).

    Raises:
        ValueError: There is no such section.
    """
    section = _section(name)
    lines = [f"{name}: {_paragraph(section.__doc__ or '', 2)}"]
    docs, schema = _docstrings(section), TypeAdapter(section).json_schema()
    for field in fields(section):
        found = schema["properties"][field.name]
        default = f"default {json.dumps(found['default'])}" if "default" in found else "optional"
        if field.name in schema.get("required", ()):
            default = "required"
        words = _words(found, f"{name}.{field.name}")
        lines += ["", f"  {_paragraph(f'{field.name}: {words}; {default}', 4)}"]
        if field.name in docs:
            lines.append(f"      {_paragraph(docs[field.name], 6)}")
    return "\n".join(lines)


def _section(name: str) -> Any:
    first, _, rest = name.partition(".")
    if first == "detectors":
        if rest not in DETECTORS:
            raise ValueError(
                f"{name!r} is no kind of detector; name one as `detectors.phrases`."
                f"{did_you_mean(rest, DETECTORS)}"
            )
        return DETECTORS[rest].params
    kind: Any = Project
    for part in name.split("."):
        found = place_in(kind, (part,))[1]
        kind = (get_args(found) or (found,))[-1]  # of a mapping, what each of its values is
    if not is_dataclass(kind):
        raise ValueError(
            f"{name!r} is no section of params.yaml."
            f"{did_you_mean(first, [field.name for field in fields(Project)])}"
        )
    return kind


def _docstrings(section: type) -> dict[str, str]:
    """Return the texts below a dataclass's fields, inherited ones too."""
    found: dict[str, str] = {}
    for each in reversed(section.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in itertools.pairwise(tree.body):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = text
    return found


def _words(schema: Mapping[str, Any], name: str) -> str:
    """Return a JSON schema in words."""
    match schema:
        case {"anyOf": kinds}:
            return " or ".join(_words(kind, name) for kind in kinds)
        case {"$ref": _}:
            return f"a section (--explain {name})"
        case {"enum": values}:
            return " or ".join(map(str, values))
        case {"const": value}:
            return str(value)
        case {"type": "array", "items": each} | {"type": "array", "prefixItems": [each, *_]}:
            return f"list of: {_words(each, name)}"
        case {"type": "object", "additionalProperties": Mapping() as each}:
            return f"mapping to: {_words(each, name)}"
    bounds = [said.format(schema[key]) for key, said in NUMBERS.items() if key in schema]
    kind = schema.get("type", "anything")
    return f"{TYPES.get(kind, kind)} {' and '.join(bounds)}".rstrip()


def _paragraph(text: str, indent: int) -> str:
    lines = textwrap.wrap(" ".join(text.split()), width=100 - indent)
    return f"\n{' ' * indent}".join(lines)
