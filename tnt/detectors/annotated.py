"""Detector `annotations`: what people flagged.

A label belongs to a text given an input: it holds for every model that answers with exactly this
text. A text that nobody saw is not flagged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic.dataclasses import dataclass

from tnt.annotations.files import read_annotations
from tnt.core.params import STRICT
from tnt.detectors.span import Span


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class AnnotationsParams:
    """Which people's labels are used, and for what."""

    file: str
    """JSON Lines or Label Studio's export, under `data/annotations/`; see docs/detectors.md."""
    corrective: bool = False
    """Whether rounds also train on the corrected texts, as T5Patches' corrective training does."""


def build(params: AnnotationsParams) -> Callable[[str, str], list[Span]]:
    """Return a detector that flags what people flagged, in the texts that they saw."""
    found = {(a.input, a.text): a for a in read_annotations(Path(params.file))}

    def detect(text: str, prompt_input: str) -> list[Span]:
        annotation = found.get((prompt_input, text))
        return [Span(*span) for span in annotation.flagged()] if annotation else []

    detect.recalls = True  # type: ignore[attr-defined]
    return detect
