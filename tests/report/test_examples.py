"""Examples: every mark stands where it belongs, and no text is lost between the marks."""

from __future__ import annotations

import csv
import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnt.core.records import Completion, Flag
from tnt.report import examples
from tnt.report.examples import Piece


def completion(text, ids=(1,), prompt_id="p/<b>", sample=0):
    return Completion(prompt_id, sample, "m", "Why?", [1], list(ids), text, True)


def flag(start, end, detector="d", prompt_id="p/<b>"):
    return Flag(prompt_id, 0, detector, "", start, end, "", 1.0)


def words(text, spans):
    return [text[start:end] for start, end in spans]


def test_cut_where_flags_and_changes_begin_and_end():
    assert examples.cut("I'm sorry, no", [flag(0, 9, "boilerplate")], [(4, 9)]) == [
        Piece("I'm ", ("boilerplate",), False),
        Piece("sorry", ("boilerplate",), True),
        Piece(", no"),
    ]


def test_cut_names_all_that_overlap():
    pieces = examples.cut("abcdef", [flag(1, 4, "x"), flag(2, 6, "y"), flag(2, 3, "x")])
    assert [(p.text, *p.detectors) for p in pieces] == [
        ("a",), ("b", "x"), ("c", "x", "y"), ("d", "x", "y"), ("ef", "y"),
    ]  # fmt: skip


@given(st.text(), st.text(), st.data())
def test_pieces_add_up_to_the_text_and_unchanged_words_are_the_same(before, after, data):
    place = st.integers(0, len(before))
    spans = data.draw(st.lists(st.tuples(place, place)))
    flags = [flag(min(span), max(span)) for span in spans]
    removed, added = examples.differences(before, after)
    sides = examples.cut(before, flags, removed), examples.cut(after, [], added)
    assert ["".join(piece.text for piece in side) for side in sides] == [before, after]
    kept = ["".join(piece.text for piece in side if not piece.changed) for side in sides]
    assert "".join(kept[0].split()) == "".join(kept[1].split())


def test_differences_are_words():
    before, after = "I'm sorry, we close at nine.", "We close at ten, always."
    removed, added = examples.differences(before, after)
    assert words(before, removed) == ["I'm sorry, we", "nine."]
    assert words(after, added) == ["We", "ten, always."]
    assert examples.differences("a  b\n", "a b") == ([], [])  # white space is no word
    assert words("我很抱歉", examples.differences("我很抱歉", "我很好")[0]) == ["抱歉"]


def test_few_equal_words_between_many_changed_ones_are_chance():
    before, after = "kept one two the three four kept", "kept five six the seven eight kept"
    assert words(before, examples.differences(before, after)[0]) == ["one two the three four"]
    before, after = "kept one the two kept", "kept three the four kept"
    assert words(before, examples.differences(before, after)[0]) == ["one", "two"]


def test_texts_too_long_to_align_differ_between_their_common_ends():
    """Aligning them word by word would take hours."""
    begun = time.process_time()
    before = "same " + "a b " * 25_000 + "end"
    after = "same " + "b a " * 25_000 + "end"
    removed, _ = examples.differences(before, after)
    assert removed == [(len("same "), len(before) - len(" end"))]
    flags = [flag(start, start + 1) for start in range(0, len(before), 2)]
    assert len(examples.cut(before, flags)) == len(before)
    assert time.process_time() - begun < 30


@pytest.mark.parametrize(
    ("old", "new", "ids", "kind"),
    [
        ([flag(0, 1)], [], [1], "fixed"),
        ([flag(0, 1)], [flag(0, 1)], [1], "still flagged"),
        ([], [flag(0, 1)], [2], "newly flagged"),
        ([], [], [1], "clean and unchanged"),
        ([], [], [2], "clean but changed"),
    ],
)
def test_kind_of_a_pair(old, new, ids, kind):
    [found] = examples.pair([completion("ab")], [completion("ab", ids)], old, new)
    assert found.kind == kind
    assert (found.prompt_id, found.prompt_set, found.input) == ("p/<b>", "p", "Why?")


def test_answers_and_flags_are_joined_by_prompt_and_sample():
    before = [completion(name, prompt_id=f"p/{name}") for name in "ab"]
    before.append(completion("c", prompt_id="p/b", sample=1))
    found = examples.pair(before, before[::-1], [flag(0, 1, prompt_id="p/b")], [])
    assert [(e.prompt_id, e.sample, e.kind) for e in found] == [
        ("p/a", 0, "clean and unchanged"),
        ("p/b", 0, "fixed"),
        ("p/b", 1, "clean and unchanged"),
    ]
    assert [e["id"] for e in examples.embedded(found, ["d"])["examples"]] == ["p/a", "p/b", "p/b#1"]


def test_table_holds_every_text_as_it_is():
    text = 'a "quoted", text\r\nwith\x00 all <b>sorts</b>\n= of 😀\u202e'
    flags = [flag(0, 3, "y"), flag(2, 4, "x")]
    rows = examples.pair([completion(text)], [completion("")], flags, [])
    [row] = csv.DictReader(io.StringIO(examples.table(rows), newline=""))
    assert tuple(row) == examples.COLUMNS
    assert (row["before"], row["after"], row["kind"]) == (text, "", "fixed")
    assert (row["detectors_before"], row["detectors_after"]) == ("x, y", "")
