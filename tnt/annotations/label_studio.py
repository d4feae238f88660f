"""Label Studio's JSON, both ways: tasks to label, and exports of what was labelled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tnt.annotations.annotation import Annotation, Labelled, checked_span, identity_of, row_of
from tnt.core.jsonl import as_list, as_mapping, kind_of


def labelling_config(labels: Iterable[str]) -> str:
    """Return the labelling interface that Label Studio needs for an export."""
    from xml.sax.saxutils import quoteattr

    buttons = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in labels)
    return f"""\
<View>
  <Style>.htx-text {{ white-space: pre-wrap; }}</Style>
  <Header value="$prompt_id"/>
  <Text name="input" value="$input" selectionEnabled="false"/>
  <Labels name="label" toName="text">
{buttons}
  </Labels>
  <Text name="text" value="$text"/>
</View>"""


def tasks(annotations: Sequence[Annotation]) -> str:
    """Return tasks to import into Label Studio, flags as predictions to start from."""
    tasks = []
    for annotation in annotations:
        data = row_of(annotation)
        del data["spans"]
        results = [
            {
                "id": f"flag{number}",
                "from_name": "label",
                "to_name": "text",
                "type": "labels",
                "value": {
                    "start": start,
                    "end": end,
                    "text": annotation.text[start:end],
                    "labels": [label],
                },
            }
            for number, (start, end, label) in enumerate(annotation.spans)
        ]
        predictions = [{"model_version": "tnt", "result": results}] if results else []
        tasks.append({"data": data, "predictions": predictions})
    return json.dumps(tasks, indent=1, ensure_ascii=False) + "\n"


def read_tasks(tasks: Any, path: Path) -> Iterator[tuple[str, Annotation]]:
    """Yield where each annotated task stands, and its annotators' spans together.

    Tasks that nobody has submitted, or only cancelled, are left out.
    """
    for number, task in enumerate(tasks, start=1):
        where = f"{path}, task {number}"
        if not isinstance(task, dict) or not {"data", "annotations"} <= task.keys():
            raise ValueError(
                f"{where} has no 'data' and 'annotations'. Export the project as JSON, not as "
                "JSON-MIN."
            )
        identity = identity_of(as_mapping(task["data"], f"{where}: 'data'"), where)
        spans: set[Labelled] = set()
        submitted = False
        for annotation in as_list(task["annotations"], f"{where}: 'annotations'"):
            annotation = as_mapping(annotation, f"{where}: an annotation")
            if annotation.get("was_cancelled"):
                continue
            submitted = True
            for result in as_list(annotation.get("result"), f"{where}: 'result'"):
                result = as_mapping(result, f"{where}: a result")
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
    value = as_mapping(result.get("value"), f"{where}: 'value'")
    start, end, said = value.get("start"), value.get("end"), value.get("text")
    labels = as_list(value.get("labels"), f"{where}: 'labels'")
    if type(start) is not int or type(end) is not int or not isinstance(said, str):
        raise ValueError(
            f"{where} has a label whose start is {kind_of(start)}, end {kind_of(end)} and text "
            f"{kind_of(said)}. It must have two integers and a text: leave <Text>'s saveTextResult "
            "at 'yes'."
        )
    for label in labels:
        if not isinstance(label, str) or not label:
            raise ValueError(
                f"{where}: a label is {kind_of(label)}. It must be one with characters."
            )
        found = _located(start, end, said, text)
        if found is None:
            raise ValueError(
                f"{where}: the label at {start}:{end} is on {len(said)} characters that do not "
                f"stand there in the text, which has {len(text)}. Import into Label Studio what "
                "`tnt annotate export` wrote, unchanged."
            )
        yield *checked_span(*found, text, where), label


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
