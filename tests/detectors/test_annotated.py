"""The `annotations` detector: people's spans, where they saw them."""

from __future__ import annotations

import json

import pytest

from tnt import detectors
from tnt.detectors.span import Span
from tnt.project import pins

ROWS = [
    {"text": "Good cake, bad tea.", "spans": [{"start": 11, "end": 18, "label": "rude"}]},
    {"text": "Good tea.", "spans": []},
    {"text": "Bad tea indeed.", "corrected": "Good tea indeed."},
    {"text": "Tea.", "spans": [{"start": 0, "end": 3}]},
]


@pytest.fixture
def detect(tmp_path):
    path = tmp_path / "people.jsonl"
    row = {"prompt_id": "p/1", "sample": 0, "input": "in"}
    path.write_text("".join(json.dumps({**row, **own}) + "\n" for own in ROWS))
    return detectors.build("people", {"kind": "annotations", "file": str(path)})


def test_spans_are_those_of_the_text(detect):
    assert detect("Good cake, bad tea.", "in") == [Span(11, 18, "rude")]
    assert detect("Tea.", "in") == [Span(0, 3, "annotation")]
    assert detect("Good tea.", "in") == []


def test_a_correction_flags_what_it_takes_back(detect):
    assert detect("Bad tea indeed.", "in") == [Span(0, 3, "corrected")]


def test_a_label_belongs_to_a_text_given_an_input(detect):
    for text, prompt_input in (("Tea.", "other"), ("Tea. ", "in"), ("tea.", "in")):
        assert detect(text, prompt_input) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"detectors\.people: the key 'file' is missing"),
        ({"file": "x.jsonl", "corrective": 1}, r"corrective is 1"),
        ({"file": "x.jsonl"}, r"x\.jsonl does not exist"),
    ],
)
def test_bad_params_are_errors(config, message):
    with pytest.raises(ValueError, match=message):
        detectors.build("people", {"kind": "annotations", **config})


def test_what_it_reads_lies_where_dvc_follows_it(tmp_path):
    config = {"kind": "annotations", "file": str(tmp_path / "people.jsonl")}
    with pytest.raises(ValueError, match="lies under data/lists or data/annotations"):
        pins.input_files(detectors.parse("people", config))
