"""Detectors: callables that say which characters of a completion are unwanted; their table.

    boilerplate = build("boilerplate", {"kind": "phrases", "list": "data/lists/boilerplate.txt"})
    boilerplate("I'm sorry, the shop is closed.", "")   # [Span(start=0, end=9, ...)]

To add one: a module with a params dataclass and a function that takes it and returns a callable,
and a line in `DETECTORS`. Anything else is named by a dotted path, `kind: plugins.shouting:build`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as params_dataclass
from tqdm import tqdm

from tnt import layout
from tnt.artifacts import refuse_changed
from tnt.detectors import annotated, classifier, entities, phrases, pii, repetition
from tnt.detectors.span import Span
from tnt.imports import closure, module_files
from tnt.params import STRICT, did_you_mean, parse
from tnt.records import Completion, Flag
from tnt.redaction import blot

Detect = Callable[[str, str], list[Span]]
"""(completion text, prompt input) -> spans, in any order.

A detector that is faster on many texts at once may also have a method `many`, from a list of such
pairs to an iterator over their spans, in the same order; it is then called instead. A method
`prepare`, without arguments, is called before any text is shown to it: errors in it are reported
in full, later ones by their type only, because they may quote the text."""


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
    "entities": Kind(entities.EntitiesParams, entities.build, packages=("spacy",), package="model"),
    "phrases": Kind(phrases.PhrasesParams, phrases.build, inputs=("list",)),
    "pii": Kind(
        pii.PiiParams, pii.build, packages=("presidio-analyzer", "spacy"), package="spacy_model"
    ),
    "repetition": Kind(repetition.RepetitionParams, repetition.build),
}


@params_dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class DetectorsParams:
    """Detector instances as `resolve` writes them out, with the hash of every file they read."""

    instances: dict[str, dict[str, Any]]
    inputs: dict[str, str]
    """Path -> sha256. A changed file changes this, and so re-runs what reads it."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package -> version, of those whose code and data decide what is found."""
    redact: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Instances whose findings must not be shown, whether they are asked for flags or not."""


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


def build_pinned(params: DetectorsParams) -> tuple[dict[str, Detect], dict[str, Detect]]:
    """Return the resolved detectors by name: those that flag, and those that redact.

    Raises:
        ValueError: A file they read, or a package they need, is not the one that was pinned.
    """
    refuse_changed(params.inputs)
    for package, pinned in params.versions.items():
        if (found := version(package)) != pinned:
            raise ValueError(
                f"{package} {pinned} was resolved, but {found} is installed. Run `dvc repro`."
            )
    flagging, redacting = (
        {name: build(name, config) for name, config in instances.items()}
        for instances in (params.instances, params.redact)
    )
    return flagging, redacting


def input_files(name: str, config: Mapping[str, Any]) -> list[Path]:
    """Return the files whose content decides what an instance flags: its inputs, a plugin's code.

    Raises:
        ValueError: An input lies outside `data/lists/` and `data/annotations/`, or does not exist.
    """
    kind, params = _parsed(name, config)
    given = [getattr(params, field) for field in kind.inputs]
    files = [Path(file) for file in given if file is not None]
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


def package_versions(name: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the installed versions of the packages that decide what an instance flags."""
    kind, params = _parsed(name, config)
    packages = [*kind.packages]
    if kind.package and not Path(getattr(params, kind.package)).is_dir():
        packages.append(getattr(params, kind.package))
    return {package: version(package) for package in packages}


def find_flags(
    detectors: Mapping[str, Detect],
    completions: Sequence[Completion],
    *,
    title: str | None = None,
) -> list[Flag]:
    """Return every finding of every detector.

    Args:
        detectors: By name.
        completions: What they look at.
        title: Shown in a progress bar; None shows none.

    Raises:
        ValueError: A detector failed or returned a span outside the text; names both.
    """
    flags = []
    for name, detect in detectors.items():
        bar = tqdm(
            total=len(completions), desc=f"{title}: {name}", unit="completion", disable=not title
        )
        with bar:
            for completion, spans in _found(name, detect, completions):
                bar.update()
                for span in _refuse_outside(name, spans, completion):
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


def _found(
    name: str, detect: Detect, completions: Sequence[Completion]
) -> Iterator[tuple[Completion, list[Span]]]:
    """Yield every completion with the spans a detector finds in it.

    A detector with a method `prepare` loads there what it needs: what fails before it saw a text
    quotes none, and is shown. Of what fails later only the type is.
    """
    if completions and hasattr(detect, "prepare"):
        try:
            detect.prepare()
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ValueError(f"Detector {name!r} cannot be loaded: {kind}{error}") from error
    done = 0
    if hasattr(detect, "many"):
        # A failing batch does not say which of its texts is at fault: that one is found below.
        try:
            spans = iter(detect.many([(c.text, c.input) for c in completions]))
            for completion in completions:
                yield completion, list(next(spans))
                done += 1
        except Exception as error:
            tqdm.write(
                f"Detector {name!r}: `many` stopped after {done} of {len(completions)} completions "
                f"({type(error).__name__}). The others are looked at one by one.",
                file=sys.stderr,
            )
    for completion in completions[done:]:
        try:
            found = list(detect(completion.text, completion.input))
        except Exception as error:
            raise ValueError(
                f"Detector {name!r} failed on {_where(completion)}: {type(error).__name__}: "
                "TNT_DEBUG=1 shows the rest, which may quote the text. Correct the detector; "
                "nothing was written."
            ) from error
        yield completion, found


def _refuse_outside(name: str, spans: list[Any], completion: Completion) -> set[Span]:
    for span in spans:
        if wrong := _not_a_span(span):
            raise ValueError(
                f"Detector {name!r} returned {wrong} for {_where(completion)}. Correct the "
                "detector: tnt.detectors.span.Span has an int as start and as end, a str as label "
                "and a float from 0 to 1 as score."
            )
        if not 0 <= span.start < span.end <= len(completion.text):
            raise ValueError(
                f"Detector {name!r} returned the span {span.start}:{span.end} for "
                f"{_where(completion)}, which has {len(completion.text)} characters. Correct the "
                "detector."
            )
    return set(spans)


def _not_a_span(span: Any) -> str | None:
    """Return what is wrong with the types of what a detector returned, if anything is."""
    if not isinstance(span, Span):
        return f"a {type(span).__name__}, which is no Span,"
    for key, wanted in {"start": int, "end": int, "label": str, "score": float | int}.items():
        value = getattr(span, key)
        if not isinstance(value, wanted) or isinstance(value, bool):
            return f"a Span whose {key} is a {type(value).__name__}"
    return None if 0 <= span.score <= 1 else f"a Span whose score is {span.score}"


def _where(completion: Completion) -> str:
    return f"completion {completion.prompt_id!r}, sample {completion.sample}"


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
            "a callable, with its params dataclass as the attribute `params` (see the README)."
        )
    inputs, known = getattr(build, "inputs", ()), {each.name for each in fields(params)}
    if not isinstance(inputs, tuple | list) or not {*inputs} <= known:
        raise ValueError(
            f"{kind!r} is not a detector: its `inputs` is {inputs!r}. It must be a tuple of names "
            f"among those of its params: {', '.join(sorted(known))}."
        )
    return Kind(params, build, inputs=tuple(inputs))
