"""The `repetition` detector: which occurrences it flags, spans by hand."""

from __future__ import annotations

import pytest

from tnt.detectors.repetition import RepetitionParams, build


def found(text, **params):
    spans = build(RepetitionParams(**params))(text, "")
    return [(text[span.start : span.end], span.label) for span in spans]


def test_second_and_later_occurrences_of_a_run_seen_three_times():
    text = "go up the hill, then go up the hill and Go up, the hill"
    spans = build(RepetitionParams())(text, "")
    assert [(s.start, s.end, s.label) for s in spans] == [(21, 35, "n-gram"), (40, 55, "n-gram")]
    assert [text[s.start : s.end] for s in spans] == ["go up the hill", "Go up, the hill"]


def test_run_seen_twice_is_no_loop():
    assert found("go up the hill, then go up the hill") == []
    assert found("go up the hill, then go up the hill", times=2) == [("go up the hill", "n-gram")]


def test_run_of_three_words_is_no_loop():
    assert found("go up there, go up there now, so go up there") == []
    assert len(found("go up there, go up there now, so go up there", ngram=3)) == 2


def test_overlapping_occurrences_count():
    # "ha ha ha ha" stands at words 0, 1 and 2 of six; the later two cover words 1 to 5.
    assert found(" ".join(["ha"] * 6)) == [("ha ha ha ha ha", "n-gram")]
    assert found(" ".join(["ha"] * 5)) == []
    # "a b c a" stands at 0, 3 and 6 of ten words.
    assert [text for text, _ in found("a b c a b c a b c a")] == ["a b c a b c a"]


def test_runs_that_overlap_are_one_span():
    # "one two three four" and "two three four five" are both a loop.
    loop = "one two three four five"
    assert found(f"{loop}, {loop}, {loop}") == [(loop, "n-gram"), (loop, "n-gram")]
    assert found(f"{loop} {loop} {loop} {loop}")[0] == (f"{loop} {loop} {loop}", "n-gram")


def test_second_and_later_occurrences_of_a_sentence():
    text = "Rain all day. We left. rain, all day!  Rain all day"
    assert found(text) == [("rain, all day!", "sentence"), ("Rain all day", "sentence")]


def test_sentence_across_lines_and_with_other_words_is_another():
    assert found("The sun is out.\nThe sun is out.") == [("The sun is out.", "sentence")]
    assert found("The sun is out. The sun is not out.") == []


def test_short_sentences_are_emphasis():
    assert found("Yes. Yes. No way. No way.") == []
    assert found("No way. No way.", sentence_words=2) == [("No way.", "sentence")]


def test_sentence_may_need_more_occurrences():
    text = "It rained all day. It rained all day."
    assert found(text, sentence_times=3, times=3) == []


@pytest.mark.parametrize("text", ["", " ", "...", "!?\n\n", "😀 😀 😀 😀", "one"])
def test_texts_without_words_repeat_nothing(text):
    assert found(text) == []


def test_apostrophes_and_accents_are_parts_of_words():
    text = "Désolé, j'ai oublié. Rien. désolé j'ai oublié."
    assert found(text) == [("désolé j'ai oublié.", "sentence")]


def test_offsets_count_characters():
    text = "😀😀 It rained all day. It rained all day."
    [span] = build(RepetitionParams())(text, "")
    assert (span.start, span.end) == (len(text) - 18, len(text))


@pytest.mark.parametrize("params", [{"ngram": 1}, {"times": 1}, {"sentence_words": 0}])
def test_params_that_flag_everything_are_refused(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        RepetitionParams(**params)
