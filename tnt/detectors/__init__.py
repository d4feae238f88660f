"""Detectors: callables that say which characters of a completion are unwanted; their table.

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
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as params_dataclass

from tnt import layout
from tnt.artifacts import sha256_of
from tnt.detectors import phrases, repetition
from tnt.detectors.span import Span
from tnt.imports import closure, module_files
from tnt.params import STRICT, did_you_mean, parse
from tnt.records import Completion, Flag

Detect = Callable[[str, str], list[Span]]
"""(completion text, prompt input) -> spans, in any order."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of detector: its params and how they become a callable."""

    params: type
    build: Callable[[Any], Detect]
    inputs: tuple[str, ...] = ()
    """Names of the params that hold the path of a file the detector reads."""


DETECTORS = {
    "phrases": Kind(phrases.PhrasesParams, phrases.build, inputs=("list",)),
    "repetition": Kind(repetition.RepetitionParams, repetition.build),
}


@params_dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class DetectorsParams:
    """Detector instances as `resolve` writes them out, with the hash of every file they read."""

    instances: dict[str, dict[str, Any]]
    inputs: dict[str, str]
    """Path -> sha256. A changed file changes this, and so re-runs what reads it."""


def build(name: str, config: Mapping[str, Any]) -> Detect:
    """Return the detector that one entry of `detectors:` in params.yaml describes.

    Args:
        name: The instance's name, which becomes `Flag.detector`.
        config: `kind` and the kind's own params.

    Raises:
        ValueError: The kind is unknown, or its params do not fit.
    """
    kind, params = _parsed(name, config)
    if str(config["kind"]) in DETECTORS:
        return kind.build(params)
    try:
        return kind.build(params)
    except Exception as error:  # a user's own code
        raise ValueError(
            f"detectors.{name} cannot be built: {type(error).__name__}: {error}. Correct it."
        ) from error


def build_pinned(params: DetectorsParams) -> dict[str, Detect]:
    """Return the resolved detectors by name.

    Raises:
        ValueError: A file they read is not the one that was pinned.
    """
    for path, pinned in params.inputs.items():
        if sha256_of(Path(path)) != pinned:
            raise ValueError(
                f"{path} changed after it was resolved. Run `dvc repro` from the start."
            )
    return {name: build(name, config) for name, config in params.instances.items()}


def input_files(name: str, config: Mapping[str, Any]) -> list[Path]:
    """Return the files whose content decides what an instance flags: its inputs, a plugin's code.

    Raises:
        ValueError: An input lies outside `data/lists/` and `data/annotations/`, or does not exist.
    """
    kind, params = _parsed(name, config)
    files = [Path(getattr(params, field)) for field in kind.inputs]
    folders = (layout.LISTS, layout.ANNOTATIONS)
    for file in files:
        inside = any(file.is_relative_to(folder) for folder in folders)
        if not inside or ".." in file.parts:
            raise ValueError(
                f"detectors.{name} reads {str(file)!r}. What detectors read lies under "
                f"{' or '.join(map(str, folders))}, so that DVC can follow it: move it there."
            )
        if not file.is_file():
            raise ValueError(
                f"detectors.{name} reads {str(file)!r}, which does not exist. Create it."
            )
    module = str(config["kind"]).partition(":")[0]
    if module.split(".")[0] == str(layout.PLUGINS):
        for file in module_files(module, Path()):
            files += closure(file, Path())
    return files


def find_flags(detectors: Mapping[str, Detect], completions: Iterable[Completion]) -> list[Flag]:
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


def _parsed(name: str, config: Mapping[str, Any]) -> tuple[Kind, Any]:
    where = f"detectors.{name}"
    if "kind" not in config:
        raise ValueError(f"{where} has no 'kind'. Add one of: {', '.join(DETECTORS)}.")
    kind = _kind(str(config["kind"]), where)
    values = {key: value for key, value in config.items() if key != "kind"}
    return kind, parse(values, kind.params, where=where)


def _kind(kind: str, where: str) -> Kind:
    if kind in DETECTORS:
        return DETECTORS[kind]
    if ":" in kind:
        module_name, _, attribute = kind.partition(":")
        try:
            loaded = getattr(importlib.import_module(module_name), attribute)
        except Exception as error:  # whatever a user's own module does when it is imported
            raise ValueError(
                f"{where}.kind {kind!r} cannot be imported: {type(error).__name__}: {error}. "
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
            "a callable, with its params dataclass as the attribute `params` (see the README)."
        )
    return Kind(params, build, inputs=tuple(getattr(build, "inputs", ())))
