"""One annotation: what people marked or corrected in one completion, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tnt.annotations.corrections import changed_spans
from tnt.core.errors import did_you_mean
from tnt.core.jsonl import as_mapping, kind_of, quoted


def row_of(annotation: Annotation) -> dict[str, Any]:
    """Return an annotation as the object that its line in a file holds."""
    row: dict[str, Any] = {
        name: getattr(annotation, name) for name in ("prompt_id", "sample", "input", "text")
    }
    if annotation.corrected is not None:
        return {**row, "corrected": annotation.corrected}
    spans = [{"start": s, "end": e, "label": label} for s, e, label in annotation.spans]
    return {**row, "spans": spans}


Labelled = tuple[int, int, str]
"""Characters [start, end) of a text, and their label."""
LABEL = "annotation"
"""Of a span without one."""
CORRECTED = "corrected"
"""Label of what a correction changes."""
IDENTITY = {"prompt_id": str, "sample": int, "input": str, "text": str}
FIELDS = (*IDENTITY, "spans", "corrected")
SPAN_FIELDS = ("start", "end", "label")


@dataclass(frozen=True, slots=True)
class Annotation:
    """What people marked or corrected in one completion: spans, or the corrected text."""

    prompt_id: str
    sample: int
    input: str
    text: str
    spans: tuple[Labelled, ...] = ()
    """Sorted, each once; empty beside a correction."""
    corrected: str | None = None

    def flagged(self) -> list[Labelled]:
        """Return the spans, or those that the correction changes."""
        if self.corrected is None:
            return [*self.spans]
        return [(*span, CORRECTED) for span in changed_spans(self.text, self.corrected)]


def span_of(value: Any, text: str, where: str) -> Labelled:
    """Return a span as a file has it; raise if it does not lie in the text."""
    value = as_mapping(value, f"{where}: a span")
    refuse_unknown_keys(value, SPAN_FIELDS, where)
    start, end, label = value.get("start"), value.get("end"), value.get("label", LABEL)
    if type(start) is not int or type(end) is not int:
        raise ValueError(
            f"{where}: a span's start is {kind_of(start)} and its end {kind_of(end)}. They must be "
            "integers, the characters [start, end) of the text."
        )
    if not isinstance(label, str) or not label:
        raise ValueError(f"{where}: a label is {kind_of(label)}. It must be one with characters.")
    return (*checked_span(start, end, text, where), label)


def checked_span(start: int, end: int, text: str, where: str) -> tuple[int, int]:
    """Return a span that lies in the text and holds something."""
    if not 0 <= start <= end <= len(text):
        raise ValueError(
            f"{where}: the span {start}:{end} lies outside the text, which has {len(text)} "
            "characters. Correct the offsets."
        )
    if not text[start:end].strip():
        raise ValueError(
            f"{where}: the span {start}:{end} is empty or holds only white space, which no token "
            "is flagged for. Widen it or delete it."
        )
    return start, end


def identity_of(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what an annotation is about."""
    for key, kind in IDENTITY.items():
        if key not in values:
            raise ValueError(f"{where}: {key!r} is missing. Add it, as in the completion.")
        if type(values[key]) is not kind:
            wanted = "an integer" if kind is int else "a text"
            raise ValueError(f"{where}: {key!r} is {kind_of(values[key])}. It must be {wanted}.")
    return {key: values[key] for key in IDENTITY}


def refuse_unknown_keys(values: Mapping[str, Any], valid: tuple[str, ...], where: str) -> None:
    """Raise if an object has a key that is not in `valid`."""
    for key in values:
        if key not in valid:
            raise ValueError(f"{where}: unknown key {quoted(key)}.{did_you_mean(key, valid)}")
