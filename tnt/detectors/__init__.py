"""Detectors: callables that say which characters of a completion are unwanted; their table.

    boilerplate = build("boilerplate", {"kind": "phrases", "list": "data/lists/boilerplate.txt"})
    boilerplate("I'm sorry, the shop is closed.", "")   # [Span(start=0, end=9, ...)]

To add one: a module with a params dataclass and a function that takes it and returns a callable,
and a line in `DETECTORS`. Anything else is named by a dotted path, `kind: plugins.shouting:build`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from tnt.core.errors import did_you_mean
from tnt.core.params import STRICT
from tnt.core.params import parse as parse_params
from tnt.detectors import annotated, classifier, copying, entities, phrases, pii, repetition
from tnt.detectors.span import Span

__all__ = ["DETECTORS", "STRICT", "Detect", "Instance", "Kind", "Span", "build", "parse"]

Detect = Callable[[str, str], list[Span]]
"""(completion text, prompt input) -> spans, in any order.

A detector that is faster on many texts at once may also have a method `many`, from a list of such
pairs to an iterator over their spans, in the same order; it is then called instead. A method
`prepare`, without arguments, is called before any text is shown to it: errors in it are reported
in full, later ones by their type only, because they may quote the text. An attribute `recalls`,
True, says that it knows only the texts that people saw, and cannot judge another."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of detector: its params and how they become a callable."""

    params: type
    build: Callable[[Any], Detect]
    inputs: tuple[str, ...] = ()
    """Names of the params that hold the path of a file the detector reads."""
    packages: tuple[str, ...] = ()
    """Packages whose version decides what is found."""
    package: str | None = None
    """Name of the param that holds one more, unless it is a folder."""


DETECTORS = {
    "annotations": Kind(annotated.AnnotationsParams, annotated.build, inputs=("file",)),
    "classifier": Kind(classifier.ClassifierParams, classifier.build),
    "copying": Kind(copying.CopyingParams, copying.build),
    "entities": Kind(entities.EntitiesParams, entities.build, packages=("spacy",), package="model"),
    "phrases": Kind(phrases.PhrasesParams, phrases.build, inputs=("list",)),
    "pii": Kind(
        pii.PiiParams, pii.build, packages=("presidio-analyzer", "spacy"), package="spacy_model"
    ),
    "repetition": Kind(repetition.RepetitionParams, repetition.build),
}


@dataclass(frozen=True, slots=True)
class Instance:
    """One entry of `detectors:` in params.yaml, checked."""

    name: str
    """Becomes `Flag.detector`."""
    kind: Kind
    params: Any
    named: str
    """What params.yaml calls the kind: a key of `DETECTORS`, a dotted path or an entry point."""

    def build(self) -> Detect:
        """Return the detector.

        Raises:
            ValueError: Its params do not fit, or a user's own code failed.
        """
        if self.named in DETECTORS:
            return self.kind.build(self.params)
        try:
            return self.kind.build(self.params)
        except Exception as error:  # a user's own code
            raise ValueError(
                f"detectors.{self.name} cannot be built: {type(error).__name__}: {error}. "
                "Correct it."
            ) from error

    def inputs(self) -> list[Path]:
        """Return the files that its params name."""
        given = [getattr(self.params, field) for field in self.kind.inputs]
        return [Path(file) for file in given if file is not None]

    def versions(self) -> dict[str, str]:
        """Return the installed versions of the packages that decide what it flags."""
        packages = [*self.kind.packages]
        if self.kind.package and not Path(getattr(self.params, self.kind.package)).is_dir():
            packages.append(getattr(self.params, self.kind.package))
        return {package: version(package) for package in packages}


def parse(name: str, config: Mapping[str, Any]) -> Instance:
    """Return one entry of `detectors:`, checked.

    Args:
        name: The entry's name.
        config: `kind` and the kind's own params.

    Raises:
        ValueError: The kind is unknown, or its params do not fit.
    """
    where = f"detectors.{name}"
    if "kind" not in config:
        raise ValueError(f"{where} has no 'kind'. Add one of: {', '.join(DETECTORS)}.")
    named = str(config["kind"])
    kind = _kind(named, where)
    values = {key: value for key, value in config.items() if key != "kind"}
    return Instance(name, kind, parse_params(values, kind.params, where=where), named)


def build(name: str, config: Mapping[str, Any]) -> Detect:
    """Return the detector that one entry of `detectors:` describes; see `parse` and `Instance`."""
    return parse(name, config).build()


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
        try:
            return _third_party(installed[kind].load(), kind)
        except Exception as error:  # of another package
            raise ValueError(
                f"{where}.kind {kind!r} cannot be loaded: {type(error).__name__}: {error}. "
                f"Reinstall or correct {installed[kind].value}."
            ) from error
    raise ValueError(
        f"{where}.kind is {kind!r}, which is no detector."
        f"{did_you_mean(kind, {*DETECTORS, *installed})}"
    )


def _third_party(build: Any, kind: str) -> Kind:
    params = getattr(build, "params", None)
    if not callable(build) or not isinstance(params, type) or not is_dataclass(params):
        raise ValueError(
            f"{kind!r} is not a detector: it must be a function that takes its params and returns "
            "a callable, with its params dataclass as the attribute `params` (see the docs)."
        )
    inputs, known = getattr(build, "inputs", ()), {each.name for each in fields(params)}
    if not isinstance(inputs, tuple | list) or not {*inputs} <= known:
        raise ValueError(
            f"{kind!r} is not a detector: its `inputs` is {inputs!r}. It must be a tuple of names "
            f"among those of its params: {', '.join(sorted(known))}."
        )
    return Kind(params, build, inputs=tuple(inputs))
