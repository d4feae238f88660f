"""Detectors: callables that say which characters of a completion are unwanted, and the table of them.

    boilerplate = build("boilerplate", {"kind": "phrases", "list": "data/lists/boilerplate.txt"})
    boilerplate("I'm sorry, the shop is closed.", "")   # [Span(start=0, end=9, ...)]

To add one: a module with a params dataclass and a function that takes it and returns a callable,
and a line in `DETECTORS`. Anything else is named by a dotted path, `kind: plugins.shouting:build`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from tnt.detectors import phrases, repetition
from tnt.detectors.span import Span
from tnt.params import did_you_mean, parse
from tnt.records import Completion, Flag

Detect = Callable[[str, str], list[Span]]
"""(completion text, prompt input) -> spans, in any order."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of detector: its params and how they become a callable."""

    params: type
    build: Callable[[Any], Detect]


DETECTORS = {
    "phrases": Kind(phrases.PhrasesParams, phrases.build),
    "repetition": Kind(repetition.RepetitionParams, repetition.build),
}


def build(name: str, config: Mapping[str, Any]) -> Detect:
    """Return the detector that one entry of `detectors:` in params.yaml describes.

    Args:
        name: The instance's name, which becomes `Flag.detector`.
        config: `kind` and the kind's own params.

    Raises:
        ValueError: The kind is unknown, or its params do not fit.
    """
    where = f"detectors.{name}"
    if "kind" not in config:
        raise ValueError(f"{where} has no 'kind'. Add one of: {', '.join(DETECTORS)}.")
    kind = _kind(str(config["kind"]), where)
    values = {key: value for key, value in config.items() if key != "kind"}
    return kind.build(parse(values, kind.params, where=where))


def is_local(kind: str) -> bool:
    """Whether a kind is a dotted path into this project's `plugins/` folder."""
    return kind.startswith("plugins.")


def find_flags(
    detectors: Mapping[str, Detect], completions: Iterable[Completion]
) -> list[Flag]:
    """Return every finding of every detector.

    Raises:
        ValueError: A detector failed or returned a span outside the text; names both.
    """
    flags = []
    for completion in completions:
        for name, detect in detectors.items():
            for span in _spans(name, detect, completion):
                flags.append(
                    Flag(
                        prompt_id=completion.prompt_id,
                        sample=completion.sample,
                        detector=name,
                        label=span.label,
                        start=span.start,
                        end=span.end,
                        text=completion.text[span.start : span.end],
                        score=span.score,
                    )
                )
    return flags


def _spans(name: str, detect: Detect, completion: Completion) -> set[Span]:
    where = f"completion {completion.prompt_id!r}, sample {completion.sample}"
    try:
        spans = set(detect(completion.text, completion.input))
    except Exception as error:
        raise ValueError(
            f"Detector {name!r} failed on {where}: {type(error).__name__}: {error}. "
            "Correct the detector; nothing was written."
        ) from error
    for span in spans:
        if not 0 <= span.start < span.end <= len(completion.text):
            raise ValueError(
                f"Detector {name!r} returned the span {span.start}:{span.end} for {where}, which "
                f"has {len(completion.text)} characters. Correct the detector."
            )
    return spans


def _kind(kind: str, where: str) -> Kind:
    if kind in DETECTORS:
        return DETECTORS[kind]
    if ":" in kind:
        module_name, _, attribute = kind.partition(":")
        try:
            loaded = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"{where}.kind {kind!r} cannot be imported: {error}. "
                "It must read 'package.module:name', of something installed or under plugins/."
            ) from error
        return _third_party(loaded, kind)
    installed = {point.name: point for point in entry_points(group="tnt.detectors")}
    if kind in installed:
        return _third_party(installed[kind].load(), kind)
    raise ValueError(
        f"{where}.kind is {kind!r}, which is no detector."
        f"{did_you_mean(kind, {*DETECTORS, *installed})}"
    )


def _third_party(build: Any, kind: str) -> Kind:
    params = getattr(build, "params", None)
    if not callable(build) or not isinstance(params, type):
        raise ValueError(
            f"{kind!r} is not a detector: it must be a function that takes its params and returns "
            "a callable, with its params dataclass as the attribute `params`."
        )
    return Kind(params, build)
