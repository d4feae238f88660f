"""Each word of a round's sentence follows from a number."""

from __future__ import annotations

import measured
import pytest

from tnt.report import words


def rate(flagged, total):
    return measured.rate(flagged, total, 0.07, 0.21)


def of_set(before, after, same, *, p=0.001, detector="boilerplate"):
    return measured.of_set({detector: measured.change(before, after, p)}, same)


def round_(sets, learned=("replies",), parent="base", name="r1", reasons=""):
    metrics = measured.metrics(sets, reasons=reasons)
    return {"name": name, "parent": parent, "learned": [*learned], "metrics": metrics}


FELL = of_set(rate(76, 100), rate(13, 100), rate(14, 23))


def test_a_fall_what_stayed_and_what_nothing_was_trained_on():
    """14 of 23 are 61%, 94 of 104 are 90%."""
    summaries = of_set(rate(0, 104), rate(0, 104), rate(94, 104), p=1.0)
    questions = of_set(rate(6, 100), rate(3, 100), rate(66, 94), p=0.25)
    sets = {"questions": questions, "replies": FELL, "summaries": summaries}
    assert words.sentence(round_(sets, ["replies", "summaries"])) == (
        "r1: boilerplate in replies fell from 76% to 13% (95% interval 7% to 21%); 61% of the "
        "replies that were fine before are word for word the same; summaries hardly changed (90% "
        "word for word the same); 70% of the questions (nothing trained on) that were fine before "
        "are word for word the same."
    )


def test_a_rise_is_called_one_also_where_nothing_was_trained_on():
    risen = of_set(rate(3, 100), rate(15, 100), rate(90, 97))
    assert words.sentence(round_({"questions": risen}, [])) == (
        "r1: boilerplate in questions (nothing trained on) rose from 3% to 15% (95% interval 7% to "
        "21%); questions hardly changed (93% of those that were fine before word for word the "
        "same)."
    )


def test_what_chance_may_have_done_is_no_fall():
    found = of_set(rate(13, 100), rate(7, 100), rate(70, 87), p=0.18)
    said = words.sentence(round_({"replies": found}, parent="r1", name="r2"))
    assert said.startswith(
        "r2, built on r1: boilerplate in replies did not clearly change (13% before, 7% after);"
    )
    assert "fell" not in said


@pytest.mark.parametrize(
    ("same", "said"),
    [
        (rate(104, 104), "summaries untouched (all 104 word for word the same)"),
        (rate(1000, 1001), "summaries hardly changed (over 99% word for word the same)"),
        (rate(9, 10), "summaries hardly changed (90% word for word the same)"),
        (rate(8, 10), "80% of the summaries are word for word the same"),
        (rate(0, 10), "0% of the summaries are word for word the same"),
        (rate(0, 0), "no summaries were fine before, so none could stay the same"),
    ],
)
def test_untouched_is_all_of_them_and_none_is_none(same, said):
    assert words.unchanged("summaries", same, flagged_before=False) == said


def test_gate_says_which_bound_failed():
    reasons = "40% of the clean replies are unchanged, under 50%"
    assert words.gate(round_({"replies": FELL}, reasons=reasons)) == f"Gate failed: {reasons}."
    assert words.gate(round_({"replies": FELL})).startswith("Gate passed")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0%"), (0.005, "under 1%"), (0.128, "13%"), (0.996, "over 99%"), (1, "100%")],
)
def test_share_rounds_neither_to_none_nor_to_all(value, said):
    assert words.share(value) == said
