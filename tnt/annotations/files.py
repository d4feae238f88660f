"""Annotation files: what people marked or corrected in completions.

JSON Lines, with spans or with the text as it should have been:

    {"prompt_id": "replies/r001", "sample": 0, "input": "...", "text": "I'm sorry, we are closed.",
     "spans": [{"start": 0, "end": 9, "label": "apology"}]}
    {"prompt_id": "replies/r002", "sample": 0, "input": "...", "text": "I'm sorry, we are closed.",
     "corrected": "We are closed."}

or the JSON export of Label Studio. An empty list of spans states that the text is clean. An
annotation belongs to a text given an input: it holds for every model that answers with exactly this
text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tnt.annotations.annotation import (
    FIELDS,
    Annotation,
    identity_of,
    refuse_unknown_keys,
    row_of,
    span_of,
)
from tnt.annotations.corrections import Corrections
from tnt.annotations.label_studio import read_tasks
from tnt.core.hashes import refuse_changed
from tnt.core.jsonl import as_list, kind_of, parsed, read_text, rows


def read_annotations(path: Path) -> list[Annotation]:
    """Return the annotations of a file, in its order.

    Raises:
        ValueError: The file is missing or empty, a line or task of it cannot be read or names
            characters that are not there, or two disagree about one text; names the
            file, the line or task and the remedy, never the text, which may be private.
    """
    content = read_text(path)
    if content.lstrip().startswith("["):
        found = read_tasks(parsed(content, str(path)), path)
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
                f"{first_where}: same input, same text, another annotation. Keep one."
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
    for where, row in rows(content, str(path), private=True):
        refuse_unknown_keys(row, FIELDS, where)
        identity = identity_of(row, where)
        if ("spans" in row) == ("corrected" in row):
            both = "both 'spans' and 'corrected'" if "spans" in row else "no 'spans'"
            raise ValueError(
                f"{where} has {both}. Give either spans, [] where the text is clean, or the "
                "corrected text."
            )
        if "spans" in row:
            spans = as_list(row["spans"], f"{where}: 'spans'")
            spans = [span_of(span, identity["text"], where) for span in spans]
            yield where, Annotation(**identity, spans=tuple(sorted({*spans})))
        elif not isinstance(row["corrected"], str):
            raise ValueError(
                f"{where}: 'corrected' is {kind_of(row['corrected'])}. It must be the whole text "
                "as it should have been."
            )
        else:
            yield where, Annotation(**identity, corrected=row["corrected"])


def json_lines(annotations: Iterable[Annotation]) -> str:
    """Return annotations as `read_annotations` reads them, one JSON object a line."""
    return "".join(json.dumps(row_of(a), ensure_ascii=False) + "\n" for a in annotations)
