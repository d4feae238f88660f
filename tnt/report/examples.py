"""Test prompts with their answers before and after a round: what is flagged, what changed."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from tnt.core.records import Completion, Flag
from tnt.core.tables import as_csv

KINDS = {
    "fixed": "flagged before the round, and no longer",
    "still flagged": "flagged before the round and after it",
    "newly flagged": "fine before the round, flagged after it",
    "clean and unchanged": "fine before and after, and the same answer, token for token",
    "clean but changed": "fine before and after, but no longer the same answer",
}
"""What may become of an answer, and what that means."""
COLUMNS = (
    "prompt_id", "sample", "prompt_set", "kind", "input", "before", "after", "detectors_before",
    "detectors_after",
)  # fmt: skip
MAX_COMPARED = 250_000
"""Words of one text times words of the other, up to which they are aligned word by word."""

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Chinese characters
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an answer in which nothing begins or ends."""

    text: str
    detectors: tuple[str, ...] = ()
    """Those that flag it, sorted."""
    changed: bool = False
    """Whether the other answer has other words here."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt, answered before and after a round."""

    prompt_id: str
    sample: int
    prompt_set: str
    kind: str
    """One of `KINDS`."""
    input: str
    before: list[Piece]
    after: list[Piece]


def pair(
    before: Sequence[Completion],
    after: Sequence[Completion],
    flags_before: Sequence[Flag],
    flags_after: Sequence[Flag],
) -> list[Example]:
    """Return an example for each completion of the first model, in order.

    Args:
        before: What a round's parent answered.
        after: What the round answered to the same prompts, in any order.
        flags_before: All that is flagged in `before`.
        flags_after: All that is flagged in `after`.
    """
    answers = {(c.prompt_id, c.sample): c for c in after}
    found: dict[tuple[str, int], tuple[list[Flag], list[Flag]]] = defaultdict(lambda: ([], []))
    for side, flags in enumerate((flags_before, flags_after)):
        for flag in flags:
            found[flag.prompt_id, flag.sample][side].append(flag)
    examples = []
    for completion in before:
        key = completion.prompt_id, completion.sample
        examples.append(_example(completion, answers[key], *found[key]))
    return examples


def _example(
    before: Completion, after: Completion, flags_before: Sequence[Flag], flags_after: Sequence[Flag]
) -> Example:
    match bool(flags_before), bool(flags_after):
        case True, False:
            kind = "fixed"
        case True, True:
            kind = "still flagged"
        case False, True:
            kind = "newly flagged"
        case _:
            same = before.completion_ids == after.completion_ids
            kind = "clean and unchanged" if same else "clean but changed"
    removed, added = differences(before.text, after.text)
    return Example(
        prompt_id=before.prompt_id,
        sample=before.sample,
        prompt_set=before.prompt_set,
        kind=kind,
        input=before.input,
        before=cut(before.text, flags_before, removed),
        after=cut(after.text, flags_after, added),
    )


def cut(
    text: str, flags: Iterable[Flag] = (), changes: Iterable[tuple[int, int]] = ()
) -> list[Piece]:
    """Cut a text where flags and changes begin and end.

    "I'm sorry, no" with 0:9 flagged by `boilerplate` and 4:9 changed: "I'm " and "sorry", both
    flagged and the second changed, and ", no".
    """
    events: dict[int, list[tuple[str | None, int]]] = defaultdict(list)
    layers = [(flag.detector, flag.start, flag.end) for flag in flags]
    for layer, start, end in [*layers, *((None, start, end) for start, end in changes)]:
        events[start].append((layer, 1))
        events[end].append((layer, -1))
    covering: Counter[str | None] = Counter()
    pieces = []
    for start, end in itertools.pairwise(sorted({0, len(text), *events})):
        for layer, step in events[start]:
            covering[layer] += step
        names = sorted(name for name, count in covering.items() if name is not None and count)
        pieces.append(Piece(text[start:end], tuple(names), covering[None] > 0))
    return pieces


def differences(before: str, after: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the characters [start, end) of the words that only one of two texts has.

    "a b c" and "a x c" give 2:3 in both. Texts too long to be aligned (`MAX_COMPARED`) differ in
    all that lies between the words they begin with and the words they end with.
    """
    if before == after:
        return [], []
    old, new = list(_WORD.finditer(before)), list(_WORD.finditer(after))
    first = _common(old, new)
    last = _common(old[first:][::-1], new[first:][::-1])
    old, new = old[first : len(old) - last], new[first : len(new) - last]
    if len(old) * len(new) > MAX_COMPARED:
        return _spans(old, [(0, len(old))]), _spans(new, [(0, len(new))])
    matcher = SequenceMatcher(None, [w[0] for w in old], [w[0] for w in new], autojunk=False)
    changes = _legible([code[1:] for code in matcher.get_opcodes() if code[0] != "equal"])
    return _spans(old, [c[:2] for c in changes]), _spans(new, [c[2:] for c in changes])


def _legible(changes: Iterable[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Join changes between which fewer words are equal than either of them changes.

    In two unlike sentences every "the" and "a" is equal, which says nothing.
    """
    joined: list[tuple[int, int, int, int]] = []
    for change in changes:
        while joined and change[0] - joined[-1][1] < min(_size(joined[-1]), _size(change)):
            last = joined.pop()
            change = (last[0], change[1], last[2], change[3])
        joined.append(change)
    return joined


def _size(change: tuple[int, int, int, int]) -> int:
    return max(change[1] - change[0], change[3] - change[2])


def _common(old: Sequence[re.Match[str]], new: Sequence[re.Match[str]]) -> int:
    """Return with how many of the same words both begin."""
    same = itertools.takewhile(lambda two: two[0][0] == two[1][0], zip(old, new, strict=False))
    return sum(1 for _ in same)


def _spans(
    words: Sequence[re.Match[str]], ranges: Iterable[tuple[int, int]]
) -> list[tuple[int, int]]:
    return [(words[i].start(), words[j - 1].end()) for i, j in ranges if i < j]


def embedded(examples: Sequence[Example], detectors: Sequence[str]) -> dict[str, Any]:
    """Return what `templates/report.js` reads.

    A piece is its text; or, if it is flagged or changed, a list of the text, 1 or 0 for changed,
    and the places in `detectors` of those that flag it.
    """
    place = {name: number for number, name in enumerate(detectors)}

    def packed(piece: Piece) -> Any:
        if not piece.detectors and not piece.changed:
            return piece.text
        return [piece.text, int(piece.changed), *(place[name] for name in piece.detectors)]

    return {
        "detectors": list(detectors),
        "kinds": list(KINDS),
        "sets": sorted({e.prompt_set for e in examples}),
        "examples": [
            {
                "id": f"{e.prompt_id}#{e.sample}" if e.sample else e.prompt_id,
                "set": e.prompt_set,
                "kind": e.kind,
                "input": e.input,
                "before": [packed(piece) for piece in e.before],
                "after": [packed(piece) for piece in e.after],
            }
            for e in examples
        ],
    }


def table(examples: Sequence[Example]) -> str:
    """Return the examples as CSV."""
    rows = (
        [
            e.prompt_id,
            e.sample,
            e.prompt_set,
            e.kind,
            e.input,
            *("".join(piece.text for piece in side) for side in (e.before, e.after)),
            *(", ".join(_detectors(side)) for side in (e.before, e.after)),
        ]
        for e in examples
    )
    return as_csv((dict(zip(COLUMNS, row, strict=True)) for row in rows), COLUMNS)


def _detectors(pieces: Sequence[Piece]) -> list[str]:
    return sorted({name for piece in pieces for name in piece.detectors})
