"""Blot out what must not be shown: `report.redact` names the detectors whose findings these are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tnt.core.records import Completion
from tnt.detectors import Detect
from tnt.detectors.running import find_flags

BLOT = "\u2588"


def blot(text: str, spans: Iterable[tuple[int, int]] | None = None) -> str:
    """Return a text of the same length in which the spans show nothing but their white space.

    "call 0161 496 0001" with 5:18 becomes the same text with blocks for digits. None is all of it.
    """
    for start, end in [(0, len(text))] if spans is None else spans:
        text = text[:start] + re.sub(r"\S", BLOT, text[start:end]) + text[end:]
    return text


def redacted(
    detectors: Mapping[str, Detect], completions: Sequence[Completion]
) -> list[Completion]:
    """Return completions with what the detectors find blotted out of inputs and texts.

    Each text is looked at by itself, so that a detector which lets a completion say again what
    stands in its input hides it in both.
    """
    texts = [replace(c, input="") for c in completions]
    inputs = [replace(c, text=c.input, input="") for c in completions]
    hidden: list[dict[tuple[str, int], list[tuple[int, int]]]] = []
    for rows in (texts, inputs):
        spans: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for flag in find_flags(detectors, rows):
            spans.setdefault((flag.prompt_id, flag.sample), []).append((flag.start, flag.end))
        hidden.append(spans)
    in_text, in_input = hidden
    return [
        replace(
            c, text=blot(c.text, in_text.get(key, ())), input=blot(c.input, in_input.get(key, ()))
        )
        for c in completions
        for key in [(c.prompt_id, c.sample)]
    ]
