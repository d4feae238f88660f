"""Detector `phrases`: patterns from a list file.

A list file holds one pattern a line. `#` starts a comment line, `[label]` a section whose name
labels what follows. A plain line is matched as words, in any case and with any white space
between them; a line that starts with `re:` is a regular expression. Typographic apostrophes
match plain ones.

A section `[definitions]` at the top holds lines `name = fragment`. In the fragments below it and in
`re:` lines, `{name}` stands for that fragment as a group (`{0,2}` is a count, as ever).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pydantic.dataclasses import dataclass

from tnt.core.params import STRICT
from tnt.detectors.span import Span

_APOSTROPHES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "\uff07": "'"})
"""Character for character, so that offsets stay what they are."""

_DEFINITION = re.compile(r"([A-Za-z_]\w*)\s*=\s*(.+)")
_REFERENCE = re.compile(r"(?<!\\)\{([A-Za-z_]\w*)\}")


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class PhrasesParams:
    """Which patterns to look for."""

    list: str
    """The list file, under `data/lists/`."""


def build(params: PhrasesParams) -> Callable[[str, str], list[Span]]:
    """Return a detector that flags every match of the list's patterns."""
    patterns = read_patterns(Path(params.list))

    def detect(text: str, prompt_input: str) -> list[Span]:
        plain = text.translate(_APOSTROPHES)
        return [
            Span(*match.span(), label=label)
            for label, pattern in patterns
            for match in pattern.finditer(plain)
            if match.group()
        ]

    return detect


def read_patterns(path: Path) -> list[tuple[str, re.Pattern[str]]]:
    """Return the labelled, compiled patterns of a list file.

    Raises:
        ValueError: The file is missing or empty, or a line of it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"The list file {path} does not exist. Create it or correct the path.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"The list file {path} is not UTF-8 ({error}). Convert it.") from error
    label, patterns = path.stem, []
    fragments: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            label = line[1:-1]
            continue
        try:
            if label == "definitions":
                _define(line.translate(_APOSTROPHES), fragments)
            else:
                patterns.append((label, _compile(line.translate(_APOSTROPHES), fragments)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not patterns:
        raise ValueError(f"The list file {path} holds no pattern. Add one a line.")
    return patterns


def _define(line: str, fragments: dict[str, str]) -> None:
    """Add the definition on a line to the fragments."""
    definition = _DEFINITION.fullmatch(line)
    if not definition:
        raise ValueError(f"{line!r} is no definition. Write `name = fragment`.")
    name, fragment = definition.groups()
    if name in fragments:
        raise ValueError(f"{name!r} is defined twice. Rename or delete one.")
    fragments[name] = _expand(fragment, fragments)
    _regex(fragments[name], line)


def _compile(line: str, fragments: dict[str, str]) -> re.Pattern[str]:
    """Turn a plain or `re:` line into a pattern."""
    if line.startswith("re:"):
        return _regex(_expand(line.removeprefix("re:").strip(), fragments), line)
    return _regex(_words(line), line)


def _expand(source: str, fragments: dict[str, str]) -> str:
    """Put the fragments in place of the references to them."""

    def fragment(reference: re.Match[str]) -> str:
        name = reference[1]
        if name not in fragments:
            raise ValueError(f"{{{name}}} is not defined. Define it above, under [definitions].")
        return f"(?:{fragments[name]})"

    return _REFERENCE.sub(fragment, source)


def _regex(source: str, line: str) -> re.Pattern[str]:
    """Compile a regular expression; an error names the line it was written as."""
    try:
        return re.compile(source, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{line!r} is not a regular expression ({error}). Correct it.") from error


def _words(phrase: str) -> str:
    """Turn a plain phrase into a pattern that matches whole words."""
    body = r"\s+".join(re.escape(word) for word in phrase.split())
    return rf"(?<!\w){body}(?!\w)"
