"""JSON and JSON Lines, read strictly: no key twice, and one sentence on what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """Return what a text file of a person's holds, line ends as they are.

    Raises:
        ValueError: It is missing, or not UTF-8.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist. Create it or correct its name.") from error
    return decoded(content, str(path))


def decoded(content: bytes, name: str) -> str:
    """Return the text of a file's bytes, without a byte order mark; raise if they are none."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 ({error}). Convert it.") from error


def lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield where each line that is not blank stands, as `file, line 3`, and the line.

    `splitlines` would cut at U+2028 too, which JSON may hold unescaped.
    """
    for number, line in enumerate(re.split(r"\r\n?|\n", text), start=1):
        if line.strip():
            yield f"{name}, line {number}", line


def rows(text: str, name: str, *, private: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each object of JSON Lines stands, and the object.

    Args:
        text: One object a line; blank lines are skipped.
        name: The file's, for errors.
        private: Whether errors must not show what a line says.

    Raises:
        ValueError: A line is not JSON, or no object.
    """
    remedy = "Correct the line."
    for where, line in lines(text, name):
        shown = repr(line[:60])
        value = parsed(line, where, shown="" if private else f": {shown}", remedy=remedy)
        if not isinstance(value, dict):
            seen = kind_of(value) if private else shown
            raise ValueError(f"{where} is {seen}, not a JSON object. {remedy}")
        yield where, value


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


def parsed(text: str, where: str, *, shown: str = "", remedy: str = "Correct it.") -> Any:
    """Return what a JSON text holds; raise if it is none, or if a key occurs twice."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}){shown}. {remedy}") from None
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(quoted(key) for key, _ in pairs)}")
    return row
