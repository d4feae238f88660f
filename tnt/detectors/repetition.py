"""Detector `repetition`: loops.

Flags the second and later occurrences of a run of words that occurs often enough, and of a sentence
that is said again. Words are compared without case and punctuation.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from tnt.core.params import STRICT
from tnt.detectors.span import Span

WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class RepetitionParams:
    """What counts as a loop."""

    ngram: Annotated[int, Field(ge=2)] = 4
    """Words of the shortest run that counts."""
    times: Annotated[int, Field(ge=2)] = 3
    """Occurrences from which a run is a loop; they may overlap, as in `ha ha ha ha ha ha`."""
    sentence_times: Annotated[int, Field(ge=2)] = 2
    """Occurrences from which a sentence is a loop."""
    sentence_words: Annotated[int, Field(ge=1)] = 3
    """Words of the shortest sentence that counts: `Yes. Yes.` is emphasis."""


def build(params: RepetitionParams) -> Callable[[str, str], list[Span]]:
    """Return a detector that flags what a completion repeats."""

    def detect(text: str, prompt_input: str) -> list[Span]:
        words = [(m.group().lower(), m.start(), m.end()) for m in WORD.finditer(text)]
        looped = [*_repeated_runs(words, params), *_repeated_sentences(text, params)]
        return [Span(start, end, label) for start, end, label in merged(looped)]

    return detect


def _repeated_runs(
    words: list[tuple[str, int, int]], params: RepetitionParams
) -> Iterator[tuple[int, int, str]]:
    n = params.ngram
    occurrences: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in range(len(words) - n + 1):
        occurrences[tuple(word for word, _, _ in words[i : i + n])].append(i)
    for starts in occurrences.values():
        if len(starts) >= params.times:
            for i in starts[1:]:
                yield words[i][1], words[i + n - 1][2], "n-gram"


def _repeated_sentences(text: str, params: RepetitionParams) -> Iterator[tuple[int, int, str]]:
    occurrences: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for sentence in _SENTENCE.finditer(text):
        words = tuple(w.lower() for w in WORD.findall(sentence.group()))
        if len(words) >= params.sentence_words:
            start = sentence.start() + len(sentence.group()) - len(sentence.group().lstrip())
            occurrences[words].append((start, sentence.end()))
    for spans in occurrences.values():
        if len(spans) >= params.sentence_times:
            for start, end in spans[1:]:
                yield start, end, "sentence"


def merged(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Return the union of spans that overlap, labelled as the first of them."""
    found: list[tuple[int, int, str]] = []
    for start, end, label in sorted(spans):
        if found and start < found[-1][1]:
            first, last, name = found[-1]
            found[-1] = (first, max(last, end), name)
        else:
            found.append((start, end, label))
    return found
