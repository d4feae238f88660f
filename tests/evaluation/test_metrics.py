"""Intervals and tests against their formulas by hand, and a set of completions against itself."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from tnt.core.records import Completion
from tnt.evaluation import metrics


def completion(prompt, sample=0, ids=(1, 2, 3), text="a b c", finished=True):
    return Completion(prompt, sample, "base", f"What of {prompt}?", [9], [*ids], text, finished)


def wilson(hits, total, z=1.959963984540054):
    p = hits / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total**2))
    return middle - half, middle + half


@pytest.mark.parametrize(("hits", "total"), [(1, 10), (2, 8), (0, 7), (7, 7), (150, 300)])
def test_rate_is_wilsons(hits, total):
    rate = metrics.Rate(hits, total)
    assert rate.rate == hits / total
    assert (rate.low, rate.high) == pytest.approx(wilson(hits, total), abs=1e-12)


def test_rate_of_nothing_could_be_anything():
    expected = {"flagged": 0, "total": 0, "rate": None, "low": 0.0, "high": 1.0}
    assert asdict(metrics.Rate(0, 0)) == expected
    assert metrics.flag_rate([], set()) == metrics.Rate(0, 0)
    assert metrics.clean_unchanged([], [], set()) == metrics.Rate(0, 0)
    assert (metrics.Rate(0, 0).percent, metrics.Rate(0, 0).between) == ("none", "none")
    assert (metrics.Rate(0, 7).percent, metrics.Rate(0, 7).between) == ("0.0%", "0.0% to 35.4%")


@pytest.mark.parametrize(("hits", "total"), [(3, 2), (-1, 2)])
def test_rate_refuses_what_is_no_share(hits, total):
    with pytest.raises(ValueError, match=f"{hits} of {total}"):
        metrics.Rate(hits, total)


def test_flag_rate_of_greedy_completions_ignores_other_keys():
    completions = [completion(f"p/{i}") for i in range(8)]
    flagged = {("p/0", 0), ("p/5", 0), ("p/5", 1), ("q/1", 0)}
    assert metrics.flag_rate(completions, flagged) == metrics.Rate(2, 8)


def test_flag_rate_counts_inputs_not_completions():
    # All 4 samples of a prompt agree, so 80 completions say no more than 20 prompts do.
    completions = [completion(f"p/{i}", s) for i in range(20) for s in range(4)]
    flagged = {(f"p/{i}", s) for i in range(8) for s in range(4)}
    rate = metrics.flag_rate(completions, flagged)
    assert (rate.flagged, rate.total, rate.rate) == (32, 80, 0.4)
    assert rate == metrics.flag_rate(completions[::-1], flagged)
    assert (rate.low, rate.high) == pytest.approx(wilson(8, 20), abs=1e-12)


def again(completions, flagged, times):
    """Ask every prompt some more times, under other ids, in other case and spacing."""
    copies = [
        replace(c, prompt_id=f"{c.prompt_id}-{n}", input=f"  {c.input.upper()} ")
        for c in completions
        for n in range(1, times)
    ]
    return [*completions, *copies], flagged | {
        (f"{prompt}-{n}", sample) for prompt, sample in flagged for n in range(1, times)
    }


def test_an_input_that_is_asked_five_times_is_one():
    completions = [completion(f"p/{i}") for i in range(12)]
    before, after = {(f"p/{i}", 0) for i in range(8)}, {("p/7", 0)}
    once = metrics.change(completions, completions, before, after)
    assert (once.inputs, once.fixed, once.broken, once.p_value) == (12, 7, 0, 2 / 2**7)
    five, before_five = again(completions, before, 5)
    _, after_five = again(completions, after, 5)
    assert metrics.change(five, five, before_five, after_five) == once
    rate, of_five = metrics.flag_rate(completions, before), metrics.flag_rate(five, before_five)
    assert (of_five.flagged, of_five.total) == (5 * 8, 5 * 12)
    assert (of_five.rate, of_five.low, of_five.high) == (rate.rate, rate.low, rate.high)


def test_the_same_input_in_two_prompt_sets_is_two():
    """Each set has a template of its own, so the model was asked two things."""
    completions = [replace(completion(f"{name}/1"), input="Why?") for name in ("p", "q")]
    assert metrics.change(completions, completions, {("p/1", 0)}, set()).inputs == 2


def test_an_input_asked_more_often_weighs_more_and_is_still_one():
    completions = [completion(f"p/{i}") for i in range(10)]
    seven = [replace(completion(f"p/again{n}"), input="What of p/0?") for n in range(6)]
    rate = metrics.flag_rate(
        [*completions, *seven], {(c.prompt_id, 0) for c in seven} | {("p/0", 0)}
    )
    assert (rate.flagged, rate.total) == (7, 16)
    assert rate.high - rate.low > np.diff(wilson(1, 10))[0]


def test_samples_of_one_prompt_that_disagree_have_an_interval():
    """3 of 8 by hand: two flagged and two clean prompts are added to the one of 3/8."""
    completions = [completion("p/1", s) for s in range(8)]
    rate = metrics.flag_rate(completions, {("p/1", s) for s in range(3)})
    middle = (3 / 8 + 2) / 5
    off = (3 / 8 - middle) ** 2 + 2 * (1 - middle) ** 2 + 2 * middle**2
    half = 1.959963984540054 * math.sqrt(off) / 5
    assert (rate.low, rate.high) == pytest.approx((middle - half, middle + half))
    assert rate.low < 0.09
    assert rate.high > 0.86


SIMULATED = 200
"""Trials of each simulation."""
BY_CHANCE = 181
"""Intervals that cover: at a coverage of 95%, fewer have a probability below 0.5%."""


@pytest.mark.parametrize(("prompts", "samples"), [(20, 1), (5, 4), (20, 4)])
@pytest.mark.parametrize(("a", "b"), [(2, 3), (0.3, 0.3), (1, 4)])
def test_the_interval_of_a_rate_covers(prompts, samples, a, b):
    """Prompts differ in how often they are flagged, by a beta distribution: a / (a + b) overall."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(SIMULATED):
        hits = generator.binomial(samples, generator.beta(a, b, size=prompts))
        outcomes = [(("p", str(i)), s < hits[i]) for i in range(prompts) for s in range(samples)]
        rate = metrics._rate(outcomes)
        covered += rate.low <= a / (a + b) <= rate.high
    assert covered >= BY_CHANCE


@pytest.mark.parametrize("prompts", [5, 20])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("fixed", [0.0, 0.8])
@pytest.mark.parametrize(("a", "b"), [(2, 3), (0.3, 0.3)])
def test_the_interval_of_a_change_covers(prompts, samples, fixed, a, b):
    """A share of the prompts is never flagged after; the others as often as before."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(SIMULATED):
        rates = generator.beta(a, b, size=prompts)
        kept = rates * (generator.random(prompts) >= fixed)
        sides = [
            {str(i): [bool(s < n) for s in range(samples)] for i, n in enumerate(hits)}
            for hits in (generator.binomial(samples, rates), generator.binomial(samples, kept))
        ]
        change = metrics.paired_change(*sides)
        covered += change.low <= -fixed * a / (a + b) <= change.high
    assert covered >= BY_CHANCE


def test_the_interval_of_a_change_says_what_its_test_says():
    """Every table of up to 24 prompts that changed, among up to 60."""
    for prompts in (1, 5, 8, 24, 60):
        for changed in range(min(prompts, 24) + 1):
            for fixed in range(changed + 1):
                before = [True] * fixed + [False] * (prompts - fixed)
                after = [False] * fixed + [True] * (changed - fixed)
                after += [False] * (prompts - changed)
                sides = ({str(i): [v] for i, v in enumerate(side)} for side in (before, after))
                change = metrics.paired_change(*sides)
                assert change.low <= change.difference <= change.high
                assert (change.low <= 0 <= change.high) == (change.p_value >= 0.05)


def test_with_several_samples_it_ends_at_0_where_the_test_rejects():
    """6 prompts of 4 samples, of each one fixed: p = 2 / 2**6, below 0.05."""
    sides = ({str(i): [flag] + [False] * 3 for i in range(6)} for flag in (True, False))
    change = metrics.paired_change(*sides)
    assert change.p_value == 2 / 2**6
    assert change.low < -0.25 < change.high == 0


@pytest.mark.parametrize("all_flagged", [False, True])
def test_flag_rate_of_none_or_all_still_has_an_interval(all_flagged):
    completions = [completion(f"p/{i}", s) for i in range(5) for s in range(3)]
    flagged = {(c.prompt_id, c.sample) for c in completions if all_flagged}
    rate = metrics.flag_rate(completions, flagged)
    assert rate.rate == float(all_flagged)
    assert (rate.low, rate.high) == pytest.approx(wilson(5 * all_flagged, 5), abs=1e-12)


def flags(pattern):
    return {f"p/{i}": [bool(int(flag))] for i, flag in enumerate(pattern)}


@pytest.mark.parametrize(
    ("before", "after", "fixed", "broken", "p_value"),
    [
        ("1111111110" + "11" + "000", "0000000001" + "11" + "000", 9, 1, 2 * (1 + 10) / 2**10),
        ("11111", "00000", 5, 0, 2 / 2**5),
        ("10", "01", 1, 1, 1.0),
        ("1100", "1100", 0, 0, 1.0),
        ("", "", 0, 0, 1.0),
    ],
)
def test_mcnemar_by_binomial_sums(before, after, fixed, broken, p_value):
    result = metrics.paired_change(flags(before), flags(after))
    assert (result.fixed, result.broken) == (fixed, broken)
    assert result.p_value == pytest.approx(p_value, abs=1e-12)


def test_a_change_is_of_prompts_in_both_only():
    result = metrics.paired_change({"a": [True], "b": [True]}, {"a": [False], "c": [True]})
    assert (result.inputs, result.fixed, result.broken, result.p_value) == (1, 1, 0, 1.0)


def test_a_change_of_one_sample_each_is_bonett_and_prices():
    """9 of 30 fixed, 1 broken: 10 and 2 of 32."""
    change = metrics.paired_change(flags("1111111110" + "0" * 20), flags("0000000001" + "0" * 20))
    assert change.difference == pytest.approx(1 / 30 - 9 / 30)
    middle = (2 - 10) / 32
    half = 1.959963984540054 * math.sqrt((12 / 32 - middle**2) / 32)
    assert (change.low, change.high) == pytest.approx((middle - half, middle + half))


def test_paired_change_by_hand_and_symmetric():
    before = {"a": [True, True], "b": [True, False], "gone": [True]}
    after = {"b": [True, False], "a": [False, False]}
    change = metrics.paired_change(before, after)
    # One changed prompt proves nothing either way. -1 and 0, with one of -1 and one of 1 added.
    middle = -1 / 4
    half = 1.959963984540054 * math.sqrt(3 - 4 * middle**2) / 4
    assert asdict(change) == {
        "difference": -0.5, "low": -1.0, "high": pytest.approx(middle + half), "inputs": 2,
        "fixed": 1, "broken": 0, "p_value": 1.0,
    }  # fmt: skip
    back = metrics.paired_change(after, before)
    assert (back.difference, back.low, back.high) == (0.5, -change.high, 1.0)


def test_paired_change_of_nothing_and_of_no_change():
    assert metrics.paired_change({}, {}) == metrics.Change(None, -1.0, 1.0, 0, 0, 0, 1.0)
    same = {"a": [True, False], "b": [False]}
    change = metrics.paired_change(same, same)
    assert (change.difference, change.p_value) == (0.0, 1.0)
    half = 1.959963984540054 * math.sqrt(2) / 4  # the two that are added
    assert (change.low, change.high) == pytest.approx((-half, half))


def test_paired_change_refuses_a_prompt_without_completions():
    with pytest.raises(ValueError, match="'a' has 0 completions before and 1 after"):
        metrics.paired_change({"a": []}, {"a": [True]})


def test_clean_unchanged_counts_unflagged_completions_by_token_ids():
    before = [completion(f"p/{i}") for i in range(4)]
    after = [
        completion("p/3", text="another decoding"),
        completion("p/2", ids=(1, 2)),
        completion("p/1", text="same ids"),
        completion("p/0", ids=(7,)),
    ]
    assert metrics.clean_unchanged(before, after, {("p/0", 0)}) == metrics.Rate(2, 3)


def test_a_set_against_itself_is_unchanged():
    completions = [completion(f"p/{i}", ids=[i, 5]) for i in range(6)]
    rate = metrics.clean_unchanged(completions, completions, {("p/2", 0)})
    assert (rate.rate, rate.total) == (1.0, 5)
    texts = ["The cat sat on the mat.", "It rained all day long."]
    assert metrics.similarity(texts, texts) == metrics.Similarity(1.0, 100.0, 1.0)


@pytest.mark.parametrize("texts", [["yes", "no"], ["", "fine"], ["是的", "不"]])
def test_short_empty_and_non_ascii_texts_equal_themselves(texts):
    # Plain corpus BLEU gives 0 where no text has four words, ROUGE-L where none has ASCII letters.
    assert metrics.similarity(texts, texts) == metrics.Similarity(1.0, pytest.approx(100.0), 1.0)


def test_clean_unchanged_refuses_unmatched_keys():
    before = [completion("p/0"), completion("p/1")]
    after = [completion("p/0"), completion("p/0", 1), completion("p/2")]
    with pytest.raises(ValueError, match=r"^3 completions .*\('p/0', 1\).* Re-run respond"):
        metrics.clean_unchanged(before, after, set())


def test_similarity_by_hand():
    before, after = ["a b c d e", "x y"], ["a b c d f", "x y"]
    result = metrics.similarity(before, after)
    assert result.exact_match == 0.5
    # n-gram matches of the hypotheses: 6 of 7, 4 of 5, 2 of 3, 1 of 2; equal lengths, no penalty.
    assert result.bleu == pytest.approx(100 * (6 / 7 * 4 / 5 * 2 / 3 * 1 / 2) ** 0.25)
    assert result.rouge_l == pytest.approx((4 / 5 + 1) / 2)


def test_new_texts_are_the_hypotheses():
    # Shorter than the reference: every n-gram matches, brevity penalty exp(1 - 8 / 4).
    result = metrics.similarity(["a b c d e f g h"], ["a b c d"])
    assert result.bleu == pytest.approx(100 * math.exp(-1))


def test_no_texts_have_no_similarity():
    assert metrics.similarity([], []) == metrics.Similarity(None, None, None)
    assert metrics.rouge_l_to_references([], []) is None


def test_rouge_l_skips_texts_without_a_reference():
    assert metrics.rouge_l_to_references(["a b c", "z"], ["a c d", None]) == pytest.approx(2 / 3)
    assert metrics.rouge_l_to_references(["z"], [None]) is None


@pytest.mark.parametrize("function", [metrics.similarity, metrics.rouge_l_to_references])
def test_texts_must_pair_up(function):
    with pytest.raises(ValueError, match="Join them by prompt"):
        function(["a"], ["a", "b"])


def test_length_and_finish():
    completions = [completion("p/0", ids=range(3)), completion("p/1", ids=range(5), finished=False)]
    assert metrics.length_and_finish(completions) == {"mean_tokens": 4.0, "finished_share": 0.5}
    assert metrics.length_and_finish([]) == {"mean_tokens": None, "finished_share": None}


def test_rounded_reaches_every_float_and_nothing_else():
    nested = {
        "rate": metrics.Rate(2, 3),
        "test": metrics.Change(-1 / 3, -2 / 3, 0.1, 3, 1, 0, 1.0),
        "list": [1e-9 / 3, True, 7, None, "x"],
        "zero": -0.0,
        "numpy": np.float64(200 / 3),
    }
    result = metrics.rounded(nested)
    low, high = (float(f"{bound:.6g}") for bound in wilson(2, 3))
    assert json.loads(json.dumps(result)) == {
        "rate": {"flagged": 2, "total": 3, "rate": 0.666667, "low": low, "high": high},
        "test": {
            "difference": -0.333333,
            "low": -0.666667,
            "high": 0.1,
            "inputs": 3,
            "fixed": 1,
            "broken": 0,
            "p_value": 1.0,
        },
        "list": [3.33333e-10, True, 7, None, "x"],
        "zero": 0.0,
        "numpy": 66.6667,
    }
    assert "-0.0" not in json.dumps(result)
    assert metrics.rounded({"a": 2 / 3}, digits=2) == {"a": 0.67}
