"""Intervals and tests against their formulas by hand, and a set of completions against itself."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from tnt.core.records import Completion
from tnt.evaluation import metrics


def completion(prompt, sample=0, ids=(1, 2, 3), text="a b c", finished=True):
    return Completion(prompt, sample, "base", "input", [9], list(ids), text, finished)


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
    expected = {"flagged": 0, "total": 0, "rate": 0.0, "low": 0.0, "high": 1.0}
    assert asdict(metrics.Rate(0, 0)) == expected
    assert metrics.flag_rate([], set()) == metrics.Rate(0, 0)
    assert metrics.clean_unchanged([], [], set()) == metrics.Rate(0, 0)


@pytest.mark.parametrize(("hits", "total"), [(3, 2), (-1, 2)])
def test_rate_refuses_what_is_no_share(hits, total):
    with pytest.raises(ValueError, match=f"{hits} of {total}"):
        metrics.Rate(hits, total)


def test_flag_rate_of_greedy_completions_ignores_other_keys():
    completions = [completion(f"p/{i}") for i in range(8)]
    flagged = {("p/0", 0), ("p/5", 0), ("p/5", 1), ("q/1", 0)}
    assert metrics.flag_rate(completions, flagged) == metrics.Rate(2, 8)


def test_flag_rate_bootstraps_prompts_not_completions():
    # All 4 samples of a prompt agree, so 80 completions say no more than 20 prompts do.
    completions = [completion(f"p/{i}", s) for i in range(20) for s in range(4)]
    flagged = {(f"p/{i}", s) for i in range(8) for s in range(4)}
    rate = metrics.flag_rate(completions, flagged)
    assert (rate.flagged, rate.total, rate.rate) == (32, 80, 0.4)
    assert rate == metrics.flag_rate(completions[::-1], flagged)  # the same seed, any order
    # A resample has Binomial(20, 0.4) flagged prompts: its 2.5% and 97.5% points, by its sums.
    terms = [math.comb(20, k) * 0.4**k * 0.6 ** (20 - k) for k in range(21)]
    low, high = (next(k for k in range(21) if sum(terms[: k + 1]) >= q) for q in (0.025, 0.975))
    assert rate.low == pytest.approx(low / 20, abs=0.051)
    assert rate.high == pytest.approx(high / 20, abs=0.051)
    low_of_80, high_of_80 = wilson(32, 80)
    assert rate.high - rate.low > 1.5 * (high_of_80 - low_of_80)


def test_bootstrap_covers():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        hits = generator.binomial(3, generator.beta(2, 3, size=40))  # the true rate is 2 / (2 + 3)
        completions = [completion(f"p/{i}", s) for i in range(40) for s in range(3)]
        flagged = {(f"p/{i}", s) for i in range(40) for s in range(hits[i])}
        rate = metrics.flag_rate(completions, flagged)
        covered += rate.low <= 0.4 <= rate.high
    assert covered >= 34  # of 40 at 95%: fewer has a probability below 0.5%


@pytest.mark.parametrize("all_flagged", [False, True])
def test_flag_rate_of_none_or_all_still_has_an_interval(all_flagged):
    completions = [completion(f"p/{i}", s) for i in range(5) for s in range(3)]
    flagged = {(c.prompt_id, c.sample) for c in completions if all_flagged}
    rate = metrics.flag_rate(completions, flagged)
    assert rate.rate == float(all_flagged)
    assert (rate.low, rate.high) == pytest.approx(wilson(5 * all_flagged, 5), abs=1e-12)


def flags(pattern):
    return {f"p/{i}": bool(int(flag)) for i, flag in enumerate(pattern)}


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
    result = metrics.mcnemar(flags(before), flags(after))
    assert result == (fixed, broken, pytest.approx(p_value, abs=1e-12))


def test_mcnemar_looks_at_prompts_in_both_only():
    assert metrics.mcnemar({"a": True, "b": True}, {"a": False, "c": True}) == (1, 0, 1.0)


def test_paired_change_with_one_sample_is_mcnemar():
    before, after = flags("1111111110" + "0" * 20), flags("0000000001" + "0" * 20)
    lists = ({k: [v] for k, v in side.items()} for side in (before, after))
    change = metrics.paired_change(*lists)
    p = 2 * (1 + 10) / 2**10
    assert change.difference == pytest.approx(1 / 30 - 9 / 30)
    assert change.low < change.difference < change.high < 0
    assert change.p == pytest.approx(p, abs=4 * math.sqrt(p / metrics.RESAMPLES))


def test_paired_change_by_hand_deterministic_and_symmetric():
    before = {"a": [True, True], "b": [True, False], "gone": [True]}
    after = {"b": [True, False], "a": [False, False]}
    change = metrics.paired_change(before, after)
    assert change == metrics.paired_change(before, after)
    # Resamples: aa -1 (1/4), ab -0.5, bb 0 (1/4). One changed prompt proves nothing either way.
    assert change == (-0.5, -1.0, 0.0, 1.0)
    assert metrics.paired_change(after, before) == (0.5, 0.0, 1.0, 1.0)


def test_paired_change_of_nothing_and_of_no_change():
    assert metrics.paired_change({}, {}) == (0.0, -1.0, 1.0, 1.0)
    same = {"a": [True, False], "b": [False]}
    assert metrics.paired_change(same, same) == (0.0, 0.0, 0.0, 1.0)


def test_paired_change_refuses_a_prompt_without_completions():
    with pytest.raises(ValueError, match="'a' has no completions"):
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
        "test": metrics.Paired(1, 0, 1.0),
        "list": [1e-9 / 3, True, 7, None, "x"],
        "zero": -0.0,
        "numpy": np.float64(200 / 3),
    }
    result = metrics.rounded(nested)
    low, high = (float(f"{bound:.6g}") for bound in wilson(2, 3))
    assert json.loads(json.dumps(result)) == {
        "rate": {"flagged": 2, "total": 3, "rate": 0.666667, "low": low, "high": high},
        "test": {"fixed": 1, "broken": 0, "p_value": 1.0},
        "list": [3.33333e-10, True, 7, None, "x"],
        "zero": 0.0,
        "numpy": 66.6667,
    }
    assert "-0.0" not in json.dumps(result)
    assert metrics.rounded({"a": 2 / 3}, digits=2) == {"a": 0.67}
