"""People's labels: strict reading, and a label that belongs to a text."""

from __future__ import annotations

import json

import pytest

from tnt.core.hashes import sha256_of
from tnt.core.records import Completion
from tnt.evaluation.metrics import Rate
from tnt.report import probe

LABEL = {"prompt_id": "p/1", "text": "I'm sorry\u2028é", "flag": True}


def pinned(tmp_path, text, name="labels.jsonl"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return {str(path): sha256_of(path)}


def line(**changes):
    return json.dumps({**LABEL, **changes}, ensure_ascii=False) + "\n"


def completion(prompt_id, text):
    return Completion(prompt_id, 0, "m", "in", [1], [2], text, True)


def test_labels_of_all_files_are_read(tmp_path):
    files = pinned(tmp_path, line() + line(text="b", flag=False))
    files |= pinned(tmp_path, line(prompt_id="p/2"), "more.jsonl")
    assert probe.read(files) == {
        ("p/1", LABEL["text"]): True,
        ("p/1", "b"): False,
        ("p/2", LABEL["text"]): True,
    }
    assert probe.read({}) == {}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"is no label \(JSONDecodeError: "),
        ("[]", r"is no label \(TypeError: "),
        ('{"prompt_id": "p/1", "text": "a"}', r"is no label \(KeyError: 'flag'\)"),
        ('{"prompt_id": "p/1", "text": "a", "flag": 1}', r": flag is 1\. Write true or false"),
    ],
)
def test_line_that_is_no_label_is_named(tmp_path, bad, message):
    with pytest.raises(ValueError, match=rf"labels\.jsonl, line 2:? ?{message}"):
        probe.read(pinned(tmp_path, line() + bad + "\n"))


def test_file_that_changed_is_an_error(tmp_path):
    files = pinned(tmp_path, line())
    pinned(tmp_path, line(flag=False))
    with pytest.raises(ValueError, match=r"labels\.jsonl changed after it was resolved"):
        probe.read(files)


def test_label_counts_for_exactly_its_text():
    labels = {("p/1", "a"): True, ("p/2", "b"): False, ("p/3", "c"): True}
    completions = [
        completion("p/1", "a"),
        completion("p/1", "a "),
        completion("p/2", "b"),
        completion("p/3", "other"),
        completion("p/4", "a"),
    ]
    assert probe.rate(labels, completions) == Rate(1, 2)
    assert probe.rate(labels, []) == Rate(0, 0)


def test_an_answer_that_an_earlier_model_gave_is_not_a_models_own():
    labels = {("p/1", "a"): True, ("p/1", "b"): False, ("p/2", "c"): True}
    answers = {
        "base": [completion("p/1", "a"), completion("p/2", "c")],
        "r1": [completion("p/1", "b"), completion("p/2", "c")],
        "r2": [completion("p/1", "a"), completion("p/2", "new")],
        "r3": [completion("p/1", "new"), completion("p/2", "new")],
    }
    assert probe.own(labels, answers) == {"base": 2, "r1": 1, "r2": 0, "r3": 0}
    assert [probe.rate(labels, rows).total for rows in answers.values()] == [2, 2, 1, 0]
