"""Detector `copying`: what a completion takes from its prompt's input word for word.

Flags runs of words that stand in the input in the same order. Words are compared without case and
punctuation. Good to watch, without training on it: an update that makes a model repeat its input
leaves no trace in the flag rates of what it was to remove.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from tnt.core.params import STRICT
from tnt.detectors.repetition import WORD, merged
from tnt.detectors.span import Span


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class CopyingParams:
    """What counts as a copy."""

    words: Annotated[int, Field(ge=2)] = 12
    """Words of the shortest run that counts: a name or a figure of speech is no copy."""


def build(params: CopyingParams) -> Callable[[str, str], list[Span]]:
    """Return a detector that flags what a completion copies from the input."""

    def detect(text: str, prompt_input: str) -> list[Span]:
        length = params.words
        given = [m.group().lower() for m in WORD.finditer(prompt_input)]
        runs = {tuple(given[i : i + length]) for i in range(len(given) - length + 1)}
        words = [(m.group().lower(), m.start(), m.end()) for m in WORD.finditer(text)]
        copied = [
            (words[i][1], words[i + length - 1][2], "copy")
            for i in range(len(words) - length + 1)
            if tuple(word for word, _, _ in words[i : i + length]) in runs
        ]
        return [Span(start, end, label) for start, end, label in merged(copied)]

    return detect
