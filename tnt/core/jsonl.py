"""JSON and JSON Lines, read strictly: no key twice, no NaN, and one sentence on what is wrong."""

from __future__ import annotations

import json
import re
from typing import Any


def as_mapping(value: Any, what: str) -> dict[str, Any]:
    """Return a value that must be an object."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {kind_of(value)}. It must be a JSON object.")
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """Return a value that must be a list."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {kind_of(value)}. It must be a JSON list.")
    return value


def kind_of(value: Any) -> str:
    """Return how an error describes a value: a text there may be private."""
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int():
            return "an integer"
        case float():
            return "a number with a point"
        case str():
            return f"a text of {len(value)} characters"
    return "a list" if isinstance(value, list) else "an object"


def quoted(key: str) -> str:
    """Return how an error describes a key: shown if it looks like a field's, and is no text."""
    return repr(key) if re.fullmatch(r"[a-z_]{1,20}", key) else f"of {len(key)} characters"


def parsed(text: str, where: str) -> Any:
    """Return what a JSON text holds; raise if it is none, or if a key occurs twice."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}). Correct it.") from None
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(quoted(key) for key, _ in pairs)}")
    return row
