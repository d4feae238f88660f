"""Corrected texts: what they flag in the original, and the rows that train on them."""

from __future__ import annotations

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from tnt.annotations.corrections import changed_spans
from tnt.core.records import Completion, Mask
from tnt.masks.corrected import corrected_masks

WORDS = st.lists(st.sampled_from(["a", "b", "c", "don't", ","]), max_size=12)


def flagged(text, corrected):
    return [text[start:end] for start, end in changed_spans(text, corrected)]


def flagged_words(said, wanted):
    return [word for run in flagged(" ".join(said), " ".join(wanted)) for word in run.split()]


def longest_common(first, second):
    """By the recursion itself."""
    lengths = {}
    for i in range(len(first), -1, -1):
        for j in range(len(second), -1, -1):
            if i == len(first) or j == len(second):
                lengths[i, j] = 0
            elif first[i] == second[j]:
                lengths[i, j] = 1 + lengths[i + 1, j + 1]
            else:
                lengths[i, j] = max(lengths[i + 1, j], lengths[i, j + 1])
    return lengths[0, 0]


@pytest.mark.parametrize(
    ("text", "corrected", "expected"),
    [
        ("the red fox", "the red fox", []),
        ("the red fox", "the brown fox", ["red"]),
        ("the red fox", "the fox", ["red"]),
        ("the red fox", "the quick red fox", ["red"]),
        ("the red fox", "the red fox ran", []),
        ("the red fox", "the red", ["fox"]),
        ("the red fox", "", ["the red fox"]),
        ("", "the red fox", []),
        ("I'm sorry, we are closed.", "We are closed.", ["I'm sorry, we"]),
        ("I am sorry friend", "I am sorry, friend", ["friend"]),
        ("very very good", "very very very good", ["good"]),
        ("one two three four", "one 2 three 4", ["two", "four"]),
        ("two  spaces\nhere", "two spaces here", []),
        ("don\u2019t go", "don't go", ["don\u2019t"]),
        ("Hi 😀 you", "Hi you", ["😀"]),
    ],
)
def test_spans_by_hand(text, corrected, expected):
    assert flagged(text, corrected) == expected


@given(WORDS, st.sampled_from(["a", "b", "new", ","]), st.data())
def test_one_inserted_word_flags_at_most_one(said, word, data):
    """Compared position by position, it flagged all the rest."""
    at = data.draw(st.integers(0, len(said)))
    found = flagged_words(said, [*said[:at], word, *said[at:]])
    assert len(found) <= 1
    if at == len(said):
        assert found == []
    elif word == "new":
        assert found == [said[at]]


@given(WORDS, st.data())
def test_one_deleted_word_flags_that_word(said, data):
    at = data.draw(st.integers(0, max(0, len(said) - 1)))
    assert flagged_words(said, said[:at] + said[at + 1 :]) == said[at : at + 1]


@given(WORDS, WORDS)
def test_as_many_words_are_left_as_the_texts_share(said, wanted):
    found = flagged_words(said, wanted)
    shared = longest_common(said, wanted)
    gaps = shared  # each word that is left may stand behind an insertion
    assert len(said) - shared <= len(found) <= len(said) - shared + gaps
    assert flagged_words(said, said) == []


@given(st.text(max_size=30), st.text(max_size=30))
def test_spans_are_sorted_apart_and_hold_something(text, corrected):
    end = -1
    for start, following in changed_spans(text, corrected):
        assert end < start < following <= len(text)
        assert text[start:following].strip()
        end = following


def completion(text, *, finished=True, index=0):
    ids = tiny.tokenizer()(text).input_ids
    ids = [*ids, tiny.END] if finished else ids
    return Completion(f"p/{index}", 0, "base", "in", [5, 6], ids, text, finished)


def test_a_corrected_completion_becomes_a_row_that_is_all_kept():
    tokenizer = tiny.tokenizer()
    rows = [completion("sorry, no."), completion("sorry", finished=False, index=1)]
    corrections = {("in", "sorry, no."): "no.", ("in", "sorry"): "é"}
    first, second = corrected_masks(rows, corrections, tokenizer)
    ids = [*tokenizer("no.").input_ids, tiny.END]
    assert first == Mask("p/0", 0, [5, 6], ids, [False] * 4, [True] * 4, "corrected")
    assert second.completion_ids == tokenizer("é").input_ids  # the original did not end either
    assert tokenizer.decode(second.completion_ids) == "é"


def test_only_what_was_said_and_corrected_becomes_a_row():
    corrections = {("in", "same"): "same", ("other", "fine"): "x", ("in", "never said"): "x"}
    rows = [completion("same"), completion("fine", index=1), completion("unseen", index=2)]
    assert corrected_masks(rows, corrections, tiny.tokenizer()) == []


def test_a_correction_that_is_a_special_token_is_refused():
    with pytest.raises(ValueError, match=r"completion 'p/0', sample 0, becomes '<eos>' in part"):
        corrected_masks([completion("no")], {("in", "no"): "a<eos>"}, tiny.tokenizer())
