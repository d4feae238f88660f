"""How the models of a report were made: what each round obeyed, and the files that say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tnt.core.hashes import sha256_of
from tnt.core.records import Completion
from tnt.detectors import Detect, redaction
from tnt.detectors.redaction import blot

NOT_SET = "not set"
SECTIONS = {"instances", "redact"}
"""Where detectors stand in what `resolve` writes."""
SHOWN = ("kind", "list", "file")
"""What is shown of a detector whose findings are not."""


def obeyed(stages: Mapping[str, Any], redacting: Mapping[str, Detect]) -> dict[str, str]:
    """Return what a round's stages obeyed, `train.train.epochs` -> "4".

    Args:
        stages: Stage -> its params, as `resolve` wrote them.
        redacting: What these find is blotted out, and so is what they are told to look for.
    """
    found: dict[str, str] = {}
    for stage, params in stages.items():
        for key, value in flat(params):
            said = text(value)
            hidden = key[-1] not in SHOWN and {*key} & redacting.keys() and {*key} & SECTIONS
            found[".".join([stage, *key])] = blot(said) if hidden else said
    return dict(zip(found, _blotted([*found.values()], redacting), strict=True))


def side_by_side(rounds: Mapping[str, Mapping[str, str]]) -> tuple[list[Any], list[Any]]:
    """Return the rows of a table of all rounds' params: those that differ, and the others.

    {"r1": {"epochs": "4", "seed": "0"}, "r2": {"epochs": "3", "seed": "0"}} gives
    [("epochs", ["4", "3"])] and [("seed", ["0", "0"])].
    """
    names = dict.fromkeys(name for params in rounds.values() for name in params)
    rows = [(name, [params.get(name, NOT_SET) for params in rounds.values()]) for name in names]
    differ = [row for row in rows if len(set(row[1])) > 1]
    return differ, [row for row in rows if len(set(row[1])) == 1]


def hashes(folders: Sequence[Path]) -> list[dict[str, str]]:
    """Return the SHA-256 of every artifact in the folders, named from the folder on."""
    return [
        {
            "path": f"{folder.name}/{path.relative_to(folder).as_posix()}",
            "sha256": sha256_of(path),
        }
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]


def flat(value: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the leaves of nested params: {"a": {"b": 1}} gives (("a", "b"), 1)."""
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from flat(below, (*key, str(name)))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for number, below in enumerate(value):
            yield from flat(below, (*key, str(number)))
    elif not (isinstance(value, Mapping | list) and not value):
        yield key, value


def text(value: Any) -> str:
    """Return a param as a table shows it."""
    if value is None:
        return NOT_SET
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _blotted(texts: list[str], redacting: Mapping[str, Detect]) -> list[str]:
    """Return texts without what detectors find in them."""
    rows = [Completion(str(n), 0, "", "", [], [], text, True) for n, text in enumerate(texts)]
    return [row.text for row in redaction.redacted(redacting, rows)]
