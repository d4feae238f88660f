"""The rows that travel between stages, each with its Arrow schema and its sort key.

Token ids are the model's own, as generated; nothing is ever re-tokenised, and only corrections,
which people wrote, are tokenised at all. Character offsets count Python characters of
`Completion.text`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa

BASE = "base"


PromptFiles = dict[str, list[str]]
"""Prompt set -> file names in `data/prompts/<set>/`."""


Split = Literal["train", "validation", "test"]
Source = Literal["generated", "corrected"]
_IDS = pa.list_(pa.field("element", pa.int32(), nullable=False))
_BOOLS = pa.list_(pa.field("element", pa.bool_(), nullable=False))


def _schema(**types: pa.DataType) -> pa.Schema:
    """Build a schema whose fields are all required, except those named `..._or_none`."""
    return pa.schema(
        [
            pa.field(name.removesuffix("_or_none"), type_, nullable=name.endswith("_or_none"))
            for name, type_ in types.items()
        ]
    )


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready for the model."""

    prompt_id: str
    """`<prompt set>/<id in its file>`."""
    prompt_set: str
    split: Split
    input: str
    """The raw input, as written in the prompt file."""
    prompt: str
    """The input after the prompt set's template and, where asked for, the chat template."""
    prompt_ids: list[int]
    reference: str | None = None

    KEY: ClassVar = ("prompt_id",)
    SCHEMA: ClassVar = _schema(
        prompt_id=pa.string(),
        prompt_set=pa.string(),
        split=pa.string(),
        input=pa.string(),
        prompt=pa.string(),
        prompt_ids=_IDS,
        reference_or_none=pa.string(),
    )


@dataclass(frozen=True, slots=True)
class Completion:
    """What one model answered to one prompt."""

    prompt_id: str
    sample: int
    model: str
    """`base` or a round."""
    input: str
    """The prompt's raw input, which detectors read beside the text."""
    prompt_ids: list[int]
    completion_ids: list[int]
    """As generated, the end-of-sequence token included when the model emitted it."""
    text: str
    """The completion decoded without special tokens and without clean-up of spaces."""
    finished: bool
    """Whether the model ended by itself, before `max_new_tokens`."""

    KEY: ClassVar = ("prompt_id", "sample")
    SCHEMA: ClassVar = _schema(
        prompt_id=pa.string(),
        sample=pa.int32(),
        model=pa.string(),
        input=pa.string(),
        prompt_ids=_IDS,
        completion_ids=_IDS,
        text=pa.string(),
        finished=pa.bool_(),
    )

    @property
    def prompt_set(self) -> str:
        """The prompt set, which is the first part of the prompt's id."""
        return self.prompt_id.split("/", 1)[0]


@dataclass(frozen=True, slots=True)
class Flag:
    """One detector's finding: characters [start, end) of a completion's text."""

    prompt_id: str
    sample: int
    detector: str
    label: str
    start: int
    end: int
    text: str
    score: float

    KEY: ClassVar = ("prompt_id", "sample", "detector", "start", "end", "label")
    SCHEMA: ClassVar = _schema(
        prompt_id=pa.string(),
        sample=pa.int32(),
        detector=pa.string(),
        label=pa.string(),
        start=pa.int32(),
        end=pa.int32(),
        text=pa.string(),
        score=pa.float64(),
    )


@dataclass(frozen=True, slots=True)
class Mask:
    """Which tokens of a completion are negative and which are kept; a token may be neither.

    Beside what the model generated there may be a row with what people would have had it say.
    """

    prompt_id: str
    sample: int
    prompt_ids: list[int]
    completion_ids: list[int]
    negative_mask: list[bool]
    kept_mask: list[bool]
    source: Source = "generated"
    """`corrected`: people's text. Its tokens are all kept, and learned by cross-entropy."""

    KEY: ClassVar = ("prompt_id", "sample", "source")
    SCHEMA: ClassVar = _schema(
        prompt_id=pa.string(),
        sample=pa.int32(),
        prompt_ids=_IDS,
        completion_ids=_IDS,
        negative_mask=_BOOLS,
        kept_mask=_BOOLS,
        source=pa.string(),
    )


Record = Prompt | Completion | Flag | Mask
