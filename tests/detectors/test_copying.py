"""The `copying` detector: which runs it flags, spans by hand."""

from __future__ import annotations

import pytest

from tnt.detectors import build as build_named
from tnt.detectors.copying import CopyingParams, build

INPUT = "The bakery on Mill Road closes at noon, says its owner."


def found(text, given=INPUT, **params):
    spans = build(CopyingParams(**params))(text, given)
    return [(text[span.start : span.end], span.label) for span in spans]


def test_a_run_of_the_inputs_words_is_flagged_whatever_its_case_and_punctuation():
    text = "We heard the Bakery on Mill Road closes: at noon. Sad!"
    spans = build(CopyingParams(words=5))(text, INPUT)
    assert [(s.start, s.end, s.label) for s in spans] == [(9, 48, "copy")]
    assert text[9:48] == "the Bakery on Mill Road closes: at noon"


def test_a_shorter_run_is_no_copy():
    assert found("the bakery on Mill Road", words=5) == [("the bakery on Mill Road", "copy")]
    assert found("the bakery on Mill Road", words=6) == []
    assert found(INPUT) == []  # ten words, and the default is twelve


def test_words_in_another_order_are_no_copy():
    assert found("closes at noon, the bakery on Mill Road", words=6) == []


def test_two_copies_are_two_spans():
    text = "At noon, says its owner? Yes: at noon, says its owner."
    assert found(text, words=5) == [
        ("At noon, says its owner", "copy"),
        ("at noon, says its owner", "copy"),
    ]


@pytest.mark.parametrize(("text", "given"), [("", INPUT), (INPUT, ""), ("", "")])
def test_nothing_is_no_copy(text, given):
    assert found(text, given, words=2) == []


def test_it_is_in_the_table():
    detect = build_named("copies", {"kind": "copying", "words": 3})
    assert [(s.start, s.end) for s in detect("on Mill Road", INPUT)] == [(0, 12)]
    with pytest.raises(ValueError, match=r"detectors\.copies: words is 1: .* 2"):
        build_named("copies", {"kind": "copying", "words": 1})
