"""The gate: every bound, on both sides of it."""

from __future__ import annotations

from dataclasses import replace

import measured
import pytest
from measured import share

from tnt.evaluation.gate import judge
from tnt.evaluation.metrics import Rate
from tnt.evaluation.params import GateParams

BOUNDS = GateParams(
    min_drop=0.5, min_clean_unchanged={"replies": 0.8, "news": 0.9}, max_ancestor_rise=0.05
)


def rates(before, after):
    return measured.change(share(before), share(after))


def metrics(own=(0.4, 0.1), ancestor=(0.2, 0.2), unchanged=0.9, total=100, prompt_set="replies"):
    changes = {"own": rates(*own), "old": rates(*ancestor)}
    sets = {prompt_set: measured.of_set(changes, share(unchanged, total))}
    return measured.metrics(sets, changes)


def judged(**changes):
    return judge(metrics(**changes), BOUNDS, ["old"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"own": (0.4, 0.2)},  # half of what it was, exactly
        {"unchanged": 0.8},
        {"unchanged": 0.0, "total": 0},  # nothing was clean, so nothing clean changed
        {"unchanged": 0.0, "prompt_set": "questions"},  # no bound is set for it
        {"ancestor": (0.25, 0.3)},
        {"ancestor": (0.9, 0.0)},
    ],
)
def test_metrics_within_the_bounds_pass(changes):
    assert judged(**changes) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"own": (0.4, 0.21)}, "own went from 40.0% to 21.0%, not down by 50% of what it was"),
        ({"own": (0.0, 0.01)}, "own went from 0.0% to 1.0%, not down by 50% of what it was"),
        (
            {"own": (0.0, 0.0)},
            "own in none of the test answers before, so that no drop is shown",
        ),
        ({"unchanged": 0.79}, "79% of the clean replies are unchanged, under 80%"),
        (
            {"ancestor": (0.2, 0.26)},
            "old, fixed by an earlier round, rose by 6.0% on replies, more than 5%",
        ),
    ],
)
def test_each_bound_that_is_broken_is_one_sentence(changes, reason):
    assert judged(**changes) == [reason]


def test_all_reasons_are_given():
    assert len(judged(own=(0.4, 0.4), unchanged=0.1, ancestor=(0.0, 1.0))) == 3


def test_rise_in_one_set_is_not_hidden_by_the_others():
    found = metrics()
    changes = {"own": rates(0.4, 0.1), "old": rates(0.0, 0.3)}
    news = measured.of_set(changes, share(1.0, 5))
    found = replace(found, sets={**found.sets, "news": news})
    assert judge(found, BOUNDS, ["old"]) == [
        "old, fixed by an earlier round, rose by 30.0% on news, more than 5%"
    ]
    assert judge(found, BOUNDS, []) == [
        "old went from 20.0% to 20.0%, not down by 50% of what it was",
        "old rose by 30.0% on news, more than 5%",
    ]


def learned(before, after):
    """Return metrics of which the new detector's counts are (flagged, total)."""
    change = measured.change(Rate(*before), Rate(*after))
    return measured.metrics({}, {"own": change})


@pytest.mark.parametrize("total", [3, 6, 7, 30, 97])
@pytest.mark.parametrize("drop", [0.1, 0.3, 0.35, 0.5, 0.7, 0.9])
def test_the_drop_that_is_asked_for_is_enough(total, drop):
    """Every pair of counts, against whole numbers: hundredths of what is left of the rate."""
    bounds = replace(BOUNDS, min_drop=drop)
    for before in range(1, total + 1):
        for after in {before * round(100 - 100 * drop) // 100 + n for n in (0, 1)}:
            if after <= total:
                passed = 100 * after <= (100 - round(100 * drop)) * before
                found = learned((before, total), (after, total))
                assert (judge(found, bounds, []) == []) == passed, (before, after)


def test_a_bound_that_is_met_to_the_count_is_met():
    """0.15 + 0.05 is more than 0.2 as floats, and 0.07 of 100 is more than 7."""
    assert judged(ancestor=(0.15, 0.2)) == []
    sets = {"replies": measured.of_set({}, Rate(7, 100))}
    bounds = replace(BOUNDS, min_clean_unchanged={"replies": 0.07})
    assert judge(measured.metrics(sets), bounds, []) == []


def test_a_set_that_was_learned_from_and_not_measured_is_no_drop():
    said = "own was measured on no prompt set that it was learned from"
    assert judge(learned((0, 0), (0, 0)), BOUNDS, []) == [said]


def test_a_detector_that_cannot_find_anything_needs_one_beside_it_that_can():
    """People's labels are of other texts than the test answers."""
    nothing, fell = rates(0.0, 0.0), rates(0.4, 0.1)
    alone = measured.metrics({}, {"people": nothing, "words": nothing})
    said = "people and words in none of the test answers before, so that no drop is shown"
    assert judge(alone, BOUNDS, []) == [said]
    assert judge(measured.metrics({}, {"people": nothing, "words": fell}), BOUNDS, []) == []


def test_a_drop_of_0_asks_for_nothing_to_fall():
    bounds = replace(BOUNDS, min_drop=0.0)
    assert judge(learned((0, 50), (0, 50)), bounds, []) == []


def test_a_new_detector_may_rise_nowhere():
    """It fell where it was learned, and is now in every answer of another set."""
    changes = {"own": rates(0.0, 1.0)}
    sets = {"questions": measured.of_set(changes, share(1.0, 5))}
    found = measured.metrics(sets, {"own": rates(0.4, 0.1)})
    assert judge(found, BOUNDS, []) == ["own rose by 100.0% on questions, more than 5%"]


def test_bounds_are_shares():
    with pytest.raises(ValueError, match="min_drop"):
        GateParams(min_drop=30, min_clean_unchanged={}, max_ancestor_rise=0.0)
