"""Run detectors over completions: flags, or one sentence on what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tnt.core.records import Completion, Flag
from tnt.detectors import Detect
from tnt.detectors.span import Span


def judging(detectors: Mapping[str, Detect]) -> dict[str, Detect]:
    """Return the detectors that can judge a new text; others only recall what people flagged."""
    return {name: d for name, d in detectors.items() if not getattr(d, "recalls", False)}


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
    from tqdm import tqdm

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
            from tqdm import tqdm

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
