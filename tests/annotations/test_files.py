"""Annotation files: three forms, read strictly."""

from __future__ import annotations

import json
import re

import pytest

from tnt.annotations.annotation import Annotation
from tnt.annotations.files import read_annotations, read_corrections
from tnt.core.hashes import sha256_of

ROW = {"prompt_id": "p/1", "sample": 0, "input": "in", "text": "I'm sorry\u2028é 😀 no"}
SPAN = {"start": 0, "end": 9, "label": "apology"}


def file(tmp_path, *rows, name="people.jsonl"):
    path = tmp_path / name
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def task(*results, annotators=None, **data):
    annotations = [{"result": list(results)}] if annotators is None else annotators
    return {"id": 7, "data": {**ROW, **data}, "annotations": annotations, "predictions": []}


def label(start, end, text, *labels, type="labels"):
    value = {"start": start, "end": end, "text": text, "labels": [*labels]}
    return {"from_name": "label", "to_name": "text", "type": type, "value": value}


def exported(tmp_path, *tasks):
    path = tmp_path / "export.json"
    path.write_text(json.dumps([*tasks]), encoding="utf-8")
    return path


def test_spans_are_read_sorted_once_and_labelled(tmp_path):
    later = {"start": 10, "end": 11}
    path = file(tmp_path, {**ROW, "spans": [later, SPAN, later]}, "", {**ROW, "spans": [SPAN]})
    with pytest.raises(ValueError, match="contradicts"):
        read_annotations(path)
    path = file(tmp_path, {**ROW, "spans": [later, SPAN, later]})
    (found,) = read_annotations(path)
    assert found == Annotation(**ROW, spans=((0, 9, "apology"), (10, 11, "annotation")))
    assert found.flagged() == [(0, 9, "apology"), (10, 11, "annotation")]


def test_no_spans_say_that_the_text_is_clean(tmp_path):
    (found,) = read_annotations(file(tmp_path, {**ROW, "spans": []}))
    assert found.flagged() == []


def test_a_correction_flags_what_it_takes_back(tmp_path):
    (found,) = read_annotations(file(tmp_path, {**ROW, "corrected": "é 😀 no"}))
    assert (found.corrected, found.spans) == ("é 😀 no", ())
    assert found.flagged() == [(0, 9, "corrected")]


def test_what_is_said_twice_is_no_contradiction(tmp_path):
    row = {**ROW, "spans": [SPAN]}
    found = read_annotations(file(tmp_path, row, row, {**row, "prompt_id": "p/2"}))
    assert [a.prompt_id for a in found] == ["p/1", "p/1", "p/2"]


@pytest.mark.parametrize("other", [{"spans": []}, {"corrected": "no"}])
def test_contradictions_name_both_lines(tmp_path, other):
    with pytest.raises(ValueError, match=r"people\.jsonl, line 2 .*contradicts .*, line 1: .*Keep"):
        read_annotations(file(tmp_path, {**ROW, "spans": [SPAN]}, {**ROW, **other}))


def test_the_same_words_to_another_input_are_another_matter(tmp_path):
    rows = {**ROW, "spans": [SPAN]}, {**ROW, "input": "other", "spans": []}
    assert len(read_annotations(file(tmp_path, *rows))) == 2


BAD = {
    "json": ("{", r"is not JSON \(.*\)\. Correct"),
    "twice": ('{"text": "a", "text": "b"}', "a key occurs twice"),
    "surrogate": ('{"text": "\\ud83d"}', "is not JSON"),
    "object": ('"a"', "is a text of 1 characters, not a JSON object"),
    "key": ({**ROW, "spans": [], "lable": "x"}, "unknown key 'lable'. Valid: "),
    "missing": ({"prompt_id": "p/1", "spans": []}, "'sample' is missing. Add it"),
    "type": (
        {**ROW, "sample": True, "spans": []},
        "'sample' is a truth value. It must be an integer",
    ),
    "text": ({**ROW, "text": None, "spans": []}, "'text' is null. It must be a text"),
    "neither": (ROW, "has no 'spans'. Give either"),
    "both": ({**ROW, "spans": [], "corrected": ""}, "both 'spans' and 'corrected'"),
    "correction": ({**ROW, "corrected": 3}, "'corrected' is an integer. It must be the whole text"),
    "list": ({**ROW, "spans": {}}, r"'spans' is an object. It must be a JSON list"),
    "span": ({**ROW, "spans": [3]}, "a span is an integer. It must be a JSON object"),
    "span key": ({**ROW, "spans": [{**SPAN, "stop": 1}]}, "unknown key 'stop'. Valid: end, label"),
    "float": (
        {**ROW, "spans": [{"start": 0.0, "end": 1}]},
        "start is a number with a point and its end an integer. They",
    ),
    "empty": ({**ROW, "spans": [{"start": 3, "end": 3}]}, "span 3:3 is empty"),
    "space": ({**ROW, "spans": [{"start": 9, "end": 10}]}, "9:10 is empty or holds only white"),
    "outside": ({**ROW, "spans": [{"start": 3, "end": 99}]}, "3:99 lies outside .* has 16 char"),
    "before": ({**ROW, "spans": [{"start": -1, "end": 9}]}, "-1:9 lies outside"),
    "backwards": ({**ROW, "spans": [{"start": 9, "end": 2}]}, "9:2 lies outside"),
    "label": ({**ROW, "spans": [{**SPAN, "label": ""}]}, "a label is a text of 0 characters"),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_bad_line_is_an_error_that_says_where_and_what_to_do(tmp_path, bad, message):
    good = {**ROW, "input": "other", "spans": []}
    with pytest.raises(ValueError, match=rf"people\.jsonl, line 2:? ?.*{message}"):
        read_annotations(file(tmp_path, good, bad))


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_file_without_an_annotation_is_an_error(tmp_path, content):
    path = tmp_path / "none.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"none\.jsonl holds no annotation"):
        read_annotations(path)


def test_missing_file_and_other_encodings_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        read_annotations(tmp_path / "none.jsonl")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b"\xe9")
    with pytest.raises(ValueError, match=r"latin\.jsonl is not UTF-8"):
        read_annotations(path)


def test_label_studio_spans_of_several_annotators_are_united(tmp_path):
    first = {"result": [label(0, 9, "I'm sorry", "apology")]}
    cancelled = {"result": [label(10, 11, "é", "x")], "was_cancelled": True}
    second = {
        "result": [
            label(4, 9, "sorry", "a", "b"),
            label(0, 9, "I'm sorry", "apology"),
            {"type": "choices", "value": {"choices": ["bad"]}},
        ],
        "was_cancelled": False,
    }
    (found,) = read_annotations(exported(tmp_path, task(annotators=[first, cancelled, second])))
    assert found == Annotation(**ROW, spans=((0, 9, "apology"), (4, 9, "a"), (4, 9, "b")))


def test_label_studio_tasks_that_nobody_finished_say_nothing(tmp_path):
    skipped = task(input="a", annotators=[{"result": [], "was_cancelled": True}])
    untouched = task(input="b", annotators=[])
    (found,) = read_annotations(exported(tmp_path, skipped, untouched, task()))
    assert found == Annotation(**ROW)


@pytest.mark.parametrize(("start", "end"), [(14, 16), (15, 17)], ids=["characters", "UTF-16"])
def test_label_studio_offsets_behind_an_emoji_are_understood(tmp_path, start, end):
    """Old versions counted UTF-16 code units, of which an emoji has two."""
    path = exported(tmp_path, task(label(start, end, "no", "x")))
    assert read_annotations(path)[0].spans == ((14, 16, "x"),)


def test_label_studio_may_have_lost_white_space(tmp_path):
    text = "a  b\nc"
    results = [label(0, 4, "a b", "x"), label(3, 6, "b\\nc", "y")]
    path = exported(tmp_path, task(*results, text=text))
    assert read_annotations(path)[0].spans == ((0, 4, "x"), (3, 6, "y"))


BAD_TASKS = {
    "mini": ({"id": 1, "text": "a", "label": []}, "has no 'data' and 'annotations'. Export"),
    "other words": (
        task(label(0, 9, "You sorry", "x")),
        "0:9 is on 9 characters that do not stand there in the text, which has 16",
    ),
    "shifted": (task(label(1, 10, "I'm sorry", "x")), "1:10 is on"),
    "inclusive": (task(label(0, 8, "I'm sorry", "x")), "0:8 is on"),
    "outside": (task(label(0, 99, ROW["text"], "x")), "0:99 is on"),
    "no text": (task(label(0, 9, None, "x")), "saveTextResult"),
    "hypertext": (task(label(0, 9, "a", type="hypertextlabels")), "type 'hypertextlabels'. Show"),
    "no label": (task(label(0, 9, "I'm sorry", "")), "a label is a text of 0 characters"),
    "no result": (task(annotators=[{}]), "'result' is null. It must be a JSON list"),
    "no value": (task({"type": "labels"}), "'value' is null. It must be a JSON object"),
    "no sample": (task(sample="0"), "'sample' is a text of 1 characters. It must be an integer"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_TASKS.values(), ids=BAD_TASKS)
def test_bad_task_is_an_error_that_says_where_and_what_to_do(tmp_path, bad, message):
    with pytest.raises(ValueError, match=rf"export\.json, task 2:? ?.*{message}"):
        read_annotations(exported(tmp_path, task(input="other"), bad))


NAME = "Peter Hall"
PRIVATE = {**ROW, "input": f"I am {NAME}", "text": f"Hello {NAME}!"}
LEAKS = {
    "broken": f'{{"text": "{NAME}',
    "escape": f'{{"text": "{NAME}\\x"}}',
    "control": f'{{"text": "{NAME}\t"}}',
    "twice": f'{{"{NAME}": 1, "{NAME}": 2}}',
    "no object": f'"{NAME}"',
    "list": f'  ["{NAME}"]',
    "identity": {**PRIVATE, "text": [NAME], "spans": []},
    "sample": {**PRIVATE, "sample": NAME, "spans": []},
    "key": {**PRIVATE, NAME: 1},
    "neither": PRIVATE,
    "correction": {**PRIVATE, "corrected": [NAME]},
    "spans": {**PRIVATE, "spans": NAME},
    "span": {**PRIVATE, "spans": [NAME]},
    "start": {**PRIVATE, "spans": [{"start": NAME, "end": NAME}]},
    "label": {**PRIVATE, "spans": [{"start": 0, "end": 1, "label": [NAME]}]},
    "outside": {**PRIVATE, "spans": [{"start": 0, "end": 99, "label": NAME}]},
}
TASK_LEAKS = {
    "other words": task(label(0, 10, NAME, "x"), **PRIVATE),
    "offsets": task(label(NAME, None, NAME, "x"), **PRIVATE),
    "text": task(label(0, 10, [NAME], "x"), **PRIVATE),
    "label": task(label(6, 16, NAME, {"x": NAME}), **PRIVATE),
    "labels": task({"type": "labels", "value": {"start": 0, "end": 1, "text": NAME}}, **PRIVATE),
    "data": {"data": NAME, "annotations": []},
    "annotations": {"data": PRIVATE, "annotations": NAME},
    "annotation": task(annotators=[NAME], **PRIVATE),
    "result": task(NAME, **PRIVATE),
    "type": task({"type": [NAME], "value": {}}, NAME, **PRIVATE),
    "value": task({"type": "labels", "value": NAME}, **PRIVATE),
}


@pytest.mark.parametrize("row", LEAKS.values(), ids=LEAKS)
def test_no_error_shows_a_text(tmp_path, row):
    good = {**ROW, "spans": []}
    with pytest.raises(ValueError, match=r"people\.jsonl, line 2") as caught:
        read_annotations(file(tmp_path, good, row))
    assert not {"Peter", "Hall"} & {*re.findall(r"\w+", str(caught.value))}


@pytest.mark.parametrize("bad", TASK_LEAKS.values(), ids=TASK_LEAKS)
def test_no_error_about_a_task_shows_a_text(tmp_path, bad):
    with pytest.raises(ValueError, match=r"export\.json, task 2") as caught:
        read_annotations(exported(tmp_path, task(), bad))
    assert not {"Peter", "Hall"} & {*re.findall(r"\w+", str(caught.value))}


def test_corrections_of_pinned_files_are_read(tmp_path):
    path = file(tmp_path, {**ROW, "corrected": "no"}, {**ROW, "input": "b", "spans": [SPAN]})
    pinned = {str(path): sha256_of(path)}
    assert read_corrections(pinned) == {("in", ROW["text"]): "no"}
    other = file(tmp_path, {**ROW, "corrected": "yes"}, name="other.jsonl")
    with pytest.raises(
        ValueError, match=r"other\.jsonl corrects what 'p/1', sample 0, says otherwise"
    ):
        read_corrections({**pinned, str(other): sha256_of(other)})
    file(tmp_path, {**ROW, "corrected": "maybe"})
    with pytest.raises(ValueError, match=r"people\.jsonl changed after it was resolved"):
        read_corrections(pinned)
