"""Annotation files: what people said about completions.

JSON Lines, with spans or with the text as it should have been:

    {"prompt_id": "replies/r001", "sample": 0, "input": "...", "text": "I'm sorry, we are closed.",
     "spans": [{"start": 0, "end": 9, "label": "apology"}]}
    {"prompt_id": "replies/r002", "sample": 0, "input": "...", "text": "I'm sorry, we are closed.",
     "corrected": "We are closed."}

or the JSON export of Label Studio. An empty list of spans states that the text is clean. What is
said belongs to a text given an input: it holds for every model that said exactly that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnt.artifacts import refuse_changed
from tnt.corrections import Corrections, changed_spans
from tnt.params import did_you_mean

Labelled = tuple[int, int, str]
"""Characters [start, end) of a text, and their label."""

LABEL = "annotation"
"""Of a span without one."""
CORRECTED = "corrected"
"""Label of what a correction takes back."""
_IDENTITY = {"prompt_id": str, "sample": int, "input": str, "text": str}
_FIELDS = (*_IDENTITY, "spans", "corrected")
_SPAN_FIELDS = ("start", "end", "label")


@dataclass(frozen=True, slots=True)
class Annotation:
    """What people said about one completion: spans, or the corrected text."""

    prompt_id: str
    sample: int
    input: str
    text: str
    spans: tuple[Labelled, ...] = ()
    """Sorted, each once; empty beside a correction."""
    corrected: str | None = None

    def flagged(self) -> list[Labelled]:
        """Return the spans, or those that the correction takes back."""
        if self.corrected is None:
            return [*self.spans]
        return [(*span, CORRECTED) for span in changed_spans(self.text, self.corrected)]


def read_annotations(path: Path) -> list[Annotation]:
    """Return the annotations of a file, in its order.

    Raises:
        ValueError: The file is missing or empty, a line or task of it cannot be read or names
            characters that are not there, or two say different things about one text; names the
            file, the line or task and the remedy, never what a text says: it may be private.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist. Create it or correct its name.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Convert it.") from error
    if content.lstrip().startswith("["):
        found = _label_studio(_parsed(content, str(path)), path)
    else:
        found = _json_lines(content, path)
    annotations: list[Annotation] = []
    said: dict[tuple[str, str], tuple[str, Annotation]] = {}
    for where, annotation in found:
        key = annotation.input, annotation.text
        first_where, first = said.setdefault(key, (where, annotation))
        if (first.spans, first.corrected) != (annotation.spans, annotation.corrected):
            raise ValueError(
                f"{where} ({annotation.prompt_id!r}, sample {annotation.sample}) contradicts "
                f"{first_where}: same input, same text, another verdict. Keep one."
            )
        annotations.append(annotation)
    if not annotations:
        raise ValueError(f"{path} holds no annotation. Add some, or do not name it.")
    return annotations


def read_corrections(pinned: Mapping[str, str]) -> Corrections:
    """Return the corrections of the pinned files, `{path: sha256}`.

    Raises:
        ValueError: A file changed after it was pinned, or two correct one text differently.
    """
    corrections: Corrections = {}
    refuse_changed(pinned)
    for name in pinned:
        for annotation in read_annotations(Path(name)):
            key, corrected = (annotation.input, annotation.text), annotation.corrected
            if corrected is not None and corrections.setdefault(key, corrected) != corrected:
                raise ValueError(
                    f"{name} corrects what {annotation.prompt_id!r}, sample "
                    f"{annotation.sample}, says otherwise than another file does. Keep one."
                )
    return corrections


def _json_lines(content: str, path: Path) -> Iterator[tuple[str, Annotation]]:
    """Yield where each annotation stands, and the annotation."""
    for number, line in enumerate(content.split("\n"), start=1):  # JSON may hold U+2028 unescaped
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _parsed(line, where)
        if not isinstance(row, dict):
            raise ValueError(f"{where} is {_kind(row)}, not a JSON object. Correct the line.")
        _refuse_unknown(row, _FIELDS, where)
        identity = _identity(row, where)
        if ("spans" in row) == ("corrected" in row):
            both = "both 'spans' and 'corrected'" if "spans" in row else "no 'spans'"
            raise ValueError(
                f"{where} has {both}. Give either spans, [] where the text is clean, or the "
                "corrected text."
            )
        if "spans" in row:
            spans = _list(row["spans"], f"{where}: 'spans'")
            spans = [_span(span, identity["text"], where) for span in spans]
            yield where, Annotation(**identity, spans=tuple(sorted({*spans})))
        elif not isinstance(row["corrected"], str):
            raise ValueError(
                f"{where}: 'corrected' is {_kind(row['corrected'])}. It must be the whole text as "
                "it should have been."
            )
        else:
            yield where, Annotation(**identity, corrected=row["corrected"])


def _label_studio(tasks: Any, path: Path) -> Iterator[tuple[str, Annotation]]:
    """Yield where each annotated task stands, and what its annotators say together.

    Tasks that nobody has submitted, or only cancelled, say nothing.
    """
    for number, task in enumerate(tasks, start=1):
        where = f"{path}, task {number}"
        if not isinstance(task, dict) or not {"data", "annotations"} <= task.keys():
            raise ValueError(
                f"{where} has no 'data' and 'annotations'. Export the project as JSON, not as "
                "JSON-MIN."
            )
        identity = _identity(_mapping(task["data"], f"{where}: 'data'"), where)
        spans: set[Labelled] = set()
        submitted = False
        for annotation in _list(task["annotations"], f"{where}: 'annotations'"):
            annotation = _mapping(annotation, f"{where}: an annotation")
            if annotation.get("was_cancelled"):
                continue
            submitted = True
            for result in _list(annotation.get("result"), f"{where}: 'result'"):
                result = _mapping(result, f"{where}: a result")
                spans |= {*_label_studio_spans(result, identity["text"], where)}
        if submitted:
            yield where, Annotation(**identity, spans=tuple(sorted(spans)))


def _label_studio_spans(
    result: Mapping[str, Any], text: str, where: str
) -> Iterator[tuple[int, int, str]]:
    """Yield the spans of one result, one for each of its labels; choices and the like have none."""
    kind = result.get("type")
    if kind != "labels":
        if str(kind).endswith("labels"):
            raise ValueError(
                f"{where} has a result of type {kind!r}. Show the text with <Text> and mark it "
                "with <Labels>, whose results are of type 'labels'."
            )
        return
    value = _mapping(result.get("value"), f"{where}: 'value'")
    start, end, said = value.get("start"), value.get("end"), value.get("text")
    labels = _list(value.get("labels"), f"{where}: 'labels'")
    if type(start) is not int or type(end) is not int or not isinstance(said, str):
        raise ValueError(
            f"{where} has a label whose start is {_kind(start)}, end {_kind(end)} and text "
            f"{_kind(said)}. It must have two integers and a text: leave <Text>'s saveTextResult "
            "at 'yes'."
        )
    for label in labels:
        if not isinstance(label, str) or not label:
            raise ValueError(f"{where}: a label is {_kind(label)}. It must be one with characters.")
        found = _located(start, end, said, text)
        if found is None:
            raise ValueError(
                f"{where}: the label at {start}:{end} is on {len(said)} characters that do not "
                f"stand there in the text, which has {len(text)}. Import into Label Studio what "
                "`tnt annotate export` wrote, unchanged."
            )
        yield *_checked(*found, text, where), label


def _located(start: int, end: int, said: str, text: str) -> tuple[int, int] | None:
    """Return the characters that Label Studio means, or None if `said` is not there.

    Its offsets count characters or, in older versions, UTF-16 code units (its issue 1347), so that
    all that follows an emoji is one further on. Its copy of the text may have lost white space.
    """
    units = [i for i, character in enumerate(text) for _ in range(1 + (ord(character) > 0xFFFF))]
    for places in (range(len(text) + 1), [*units, len(text)]):
        if 0 <= start < end < len(places):
            found = places[start], places[end]
            if _squeezed(text[slice(*found)]) == _squeezed(said):
                return found
    return None


def _squeezed(text: str) -> str:
    return " ".join(text.replace("\\n", " ").split())


def _span(value: Any, text: str, where: str) -> Labelled:
    value = _mapping(value, f"{where}: a span")
    _refuse_unknown(value, _SPAN_FIELDS, where)
    start, end, label = value.get("start"), value.get("end"), value.get("label", LABEL)
    if type(start) is not int or type(end) is not int:
        raise ValueError(
            f"{where}: a span's start is {_kind(start)} and its end {_kind(end)}. They must be "
            "integers, the characters [start, end) of the text."
        )
    if not isinstance(label, str) or not label:
        raise ValueError(f"{where}: a label is {_kind(label)}. It must be one with characters.")
    return (*_checked(start, end, text, where), label)


def _checked(start: int, end: int, text: str, where: str) -> tuple[int, int]:
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


def _identity(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what an annotation is about."""
    for key, kind in _IDENTITY.items():
        if key not in values:
            raise ValueError(f"{where}: {key!r} is missing. Add it, as in the completion.")
        if type(values[key]) is not kind:
            wanted = "an integer" if kind is int else "a text"
            raise ValueError(f"{where}: {key!r} is {_kind(values[key])}. It must be {wanted}.")
    return {key: values[key] for key in _IDENTITY}


def _refuse_unknown(values: Mapping[str, Any], valid: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in valid:
            raise ValueError(f"{where}: unknown key {_named(key)}.{did_you_mean(key, valid)}")


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {_kind(value)}. It must be a JSON object.")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is {_kind(value)}. It must be a JSON list.")
    return value


def _kind(value: Any) -> str:
    """Return what is said of a value in an error: a text there may be private."""
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int():
            return "an integer"
        case float():
            return "a number with a point"
        case str():
            return f"a text of {len(value)} characters"
    return "a list" if isinstance(value, list) else "an object"


def _named(key: str) -> str:
    """Return what is said of a key: it is shown if it looks like a field's, and is no text."""
    return repr(key) if re.fullmatch(r"[a-z_]{1,20}", key) else f"of {len(key)} characters"


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}). Correct it.") from None
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(_named(key) for key, _ in pairs)}")
    return row
