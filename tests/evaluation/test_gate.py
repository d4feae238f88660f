"""The gate: every bound, on both sides of it."""

from __future__ import annotations

from dataclasses import replace

import measured
import pytest
from measured import share

from tnt.evaluation.gate import judge
from tnt.evaluation.params import GateParams

BOUNDS = GateParams(
    min_drop=0.5, min_clean_unchanged={"replies": 0.8, "news": 0.9}, max_ancestor_rise=0.05
)


def rates(before, after):
    return measured.change(share(before), share(after))


def metrics(own=(0.4, 0.1), ancestor=(0.2, 0.2), unchanged=0.9, total=10, prompt_set="replies"):
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
        {"own": (0.0, 0.0)},
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
        ({"own": (0.0, 0.1)}, "own went from 0.0% to 10.0%, not down by 50% of what it was"),
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
        "old went from 20.0% to 20.0%, not down by 50% of what it was"
    ]


def test_bounds_are_shares():
    with pytest.raises(ValueError, match="min_drop"):
        GateParams(min_drop=30, min_clean_unchanged={}, max_ancestor_rise=0.0)
