"""What a round did: how much is flagged, what changed, how alike completions are, with intervals.

What ends up in a JSON file passes `rounded`. Completions of one prompt are not independent: with
several samples per prompt, intervals come from resampling prompts (Efron 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tnt.core.records import Completion

if TYPE_CHECKING:
    import numpy as np

Key = tuple[str, int]
"""(prompt_id, sample)."""
RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Rate:
    """A share with its 95% interval: Wilson's unless another `interval` is given.

    1 of 10 is 0.1 with the interval 0.018 to 0.404 (Wilson 1927, no continuity correction); 0 of 0
    is 0.0, between 0.0 and 1.0.

    Raises:
        ValueError: `flagged` does not lie between 0 and `total`.
    """

    flagged: int
    """How many of `total` have the property: are flagged, or for `clean_unchanged` are the same."""
    total: int
    interval: InitVar[tuple[float, float] | None] = None
    rate: float = field(init=False)
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self, interval: tuple[float, float] | None) -> None:
        """Fill in the rate and its interval."""
        if not 0 <= self.flagged <= self.total:
            raise ValueError(f"{self.flagged} of {self.total} is no share. Count the same rows.")
        low, high = interval or (0.0, 1.0)
        if self.total and interval is None:
            from scipy.stats import binomtest

            low, high = binomtest(self.flagged, self.total).proportion_ci(method="wilson")
        rate = self.flagged / max(self.total, 1)
        for name, value in (("rate", rate), ("low", low), ("high", high)):
            object.__setattr__(self, name, float(value))

    @classmethod
    def stored(cls, *, flagged: int, total: int, rate: float, low: float, high: float) -> Rate:
        """Return a rate that a file holds, its rounded numbers as they are."""
        stored = cls(flagged, total, (low, high))
        object.__setattr__(stored, "rate", rate)
        return stored


class Paired(NamedTuple):
    """Prompts that changed, and the probability of so lopsided a change by chance."""

    fixed: int
    """Flagged before, not after."""
    broken: int
    """Not flagged before, flagged after."""
    p_value: float


class Change(NamedTuple):
    """A flag rate after minus the one before; below 0 is better."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class CountedChange:
    """How a flag rate changed, with one completion per prompt: prompts are counted."""

    difference: float
    """After minus before; below 0 is better."""
    fixed: int
    """Prompts flagged before, not after."""
    broken: int
    """Prompts not flagged before, flagged after."""
    p_value: float
    """McNemar's, exact."""


@dataclass(frozen=True, slots=True)
class ResampledChange:
    """How a flag rate changed, with several completions for some prompt: prompts are resampled."""

    difference: float
    """After minus before; below 0 is better."""
    low: float
    """Of the 95% interval of `difference`."""
    high: float
    p_value: float
    """By exchanging before and after at random."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """How alike new and old texts are; None where there are no texts."""

    exact_match: float | None
    """Share of texts that are the same, 0 to 1."""
    bleu: float | None
    """Corpus BLEU, 0 to 100."""
    rouge_l: float | None
    """Mean ROUGE-L F1, 0 to 1."""


def flag_rate(completions: Iterable[Completion], flagged_keys: Collection[Key]) -> Rate:
    """Return the share of the completions that are flagged.

    2 of 8 greedy completions: 0.25, Wilson interval 0.071 to 0.591. With several samples for some
    prompt, a percentile bootstrap over prompts; at a rate of 0 or 1, where that has no width,
    Wilson's for the number of prompts. `flagged_keys` may hold keys of other completions too.
    """
    return _rate((c.prompt_id, (c.prompt_id, c.sample) in flagged_keys) for c in completions)


def clean_unchanged(
    before: Sequence[Completion], after: Sequence[Completion], flagged_keys: Collection[Key]
) -> Rate:
    """Return the share of the unflagged completions of `before` with the same ids in `after`.

    4 completions, 1 flagged, 2 of the other 3 with the same completion_ids: 2/3. The interval is
    that of `flag_rate`.

    Raises:
        ValueError: The two do not hold the same keys.
    """
    ids = {(c.prompt_id, c.sample): c.completion_ids for c in after}
    keys = {(c.prompt_id, c.sample) for c in before}
    if unmatched := sorted(keys ^ ids.keys()):
        raise ValueError(
            f"{len(unmatched)} completions stand on one side only, the first is {unmatched[0]}. "
            "Re-run respond for both models on the same test prompts, with as many samples."
        )
    pairs = (((c.prompt_id, c.sample), c.completion_ids) for c in before)
    return _rate((key[0], ids[key] == old) for key, old in pairs if key not in flagged_keys)


def mcnemar(before: Mapping[str, bool], after: Mapping[str, bool]) -> Paired:
    """Test two models' flags (by prompt_id) on the prompts in both: exact two-sided McNemar.

    9 fixed against 1 broken: p = 2 (1 + 10) / 2**10 = 0.0215. Nothing changed: p = 1. McNemar 1947.
    """
    from scipy.stats import binomtest

    both = before.keys() & after.keys()
    fixed = sum(before[key] and not after[key] for key in both)
    broken = sum(after[key] and not before[key] for key in both)
    changed = fixed + broken
    p_value = float(binomtest(min(fixed, broken), changed, 0.5).pvalue) if changed else 1.0
    return Paired(fixed, broken, p_value)


def paired_change(
    before: Mapping[str, Sequence[bool]], after: Mapping[str, Sequence[bool]]
) -> Change:
    """Compare two models on the prompts in both, several completions each.

    {a: [1, 1], b: [1, 0]} to {a: [0, 0], b: [1, 0]}: 1/4 - 3/4 = -0.5. The interval is a percentile
    bootstrap over prompts. p exchanges before and after by coin per prompt (Fisher 1935): with one
    sample each it is McNemar's up to sampling error; a p read off the bootstrap is far too small on
    few prompts. No prompts: (0, -1, 1, 1).

    Raises:
        ValueError: A prompt has no completions.
    """
    both = sorted(before.keys() & after.keys())
    if not both:
        return Change(0.0, -1.0, 1.0, 1.0)
    if empty := [key for key in both if not before[key] or not after[key]]:
        raise ValueError(f"Prompt {empty[0]!r} has no completions. Leave it out or re-run respond.")
    import numpy as np

    rows = np.array(
        [(sum(before[k]), len(before[k]), sum(after[k]), len(after[k])) for k in both], np.int64
    )

    def shift(rows: np.ndarray) -> float:
        flagged, total, flagged_after, total_after = rows.sum(0)
        return float(flagged_after / total_after - flagged / total)

    difference = shift(rows)
    low, high = _bootstrap(rows, shift)
    generator = np.random.default_rng(SEED)
    exchanged = rows[:, [2, 3, 0, 1]]
    extreme = 0
    for _ in range(RESAMPLES):
        coins = generator.integers(2, size=(len(rows), 1), dtype=bool)
        extreme += abs(shift(np.where(coins, exchanged, rows))) >= abs(difference) - 1e-12
    return Change(difference, low, high, (1 + extreme) / (1 + RESAMPLES))


def change(
    before: Sequence[Completion],
    after: Sequence[Completion],
    flagged_before: Collection[Key],
    flagged_after: Collection[Key],
) -> CountedChange | ResampledChange:
    """Return how a flag rate changed, and whether by more than chance.

    One sample per prompt: counts and p of `mcnemar`; several: interval and p of `paired_change`.
    """
    sides = []
    for completions, flagged in ((before, flagged_before), (after, flagged_after)):
        by_prompt: dict[str, list[bool]] = {}
        for c in completions:
            by_prompt.setdefault(c.prompt_id, []).append((c.prompt_id, c.sample) in flagged)
        sides.append(by_prompt)
    old, new = sides
    if all(len(flags) == 1 for side in sides for flags in side.values()):
        paired = mcnemar({k: v[0] for k, v in old.items()}, {k: v[0] for k, v in new.items()})
        difference = (paired.broken - paired.fixed) / max(len(old.keys() & new.keys()), 1)
        return CountedChange(difference, *paired)
    return ResampledChange(*paired_change(old, new))


def similarity(before_texts: Sequence[str], after_texts: Sequence[str]) -> Similarity:
    """Compare new texts (hypotheses) with old ones (references), in the same order.

    A set against itself: exact match 1, BLEU 100 (0 if every text is empty), ROUGE-L 1. BLEU is
    sacrebleu's (Post 2018), without the n-gram orders that no text is long enough for.

    Raises:
        ValueError: There are not as many new texts as old ones.
    """
    _check_lengths(before_texts, after_texts)
    if not before_texts:
        return Similarity(None, None, None)
    from sacrebleu.metrics.bleu import BLEU

    same = sum(old == new for old, new in zip(before_texts, after_texts, strict=True))
    bleu = BLEU(effective_order=True, force=True).corpus_score(after_texts, [before_texts]).score
    return Similarity(
        exact_match=same / len(before_texts),
        bleu=min(float(bleu), 100.0),  # sacrebleu says 100.00000000000004
        rouge_l=rouge_l_to_references(after_texts, before_texts),
    )


def rouge_l_to_references(texts: Sequence[str], references: Sequence[str | None]) -> float | None:
    """Return the mean ROUGE-L F1, 0 to 1, over the texts that have a reference; None if none has.

    "a b c" against "a c d": the longest common subsequence is "a c", F1 = 2/3. Lin 2004, as in
    rouge-score, without stemming. It sees ASCII letters and digits only; equal texts count as 1.

    Raises:
        ValueError: There are not as many references as texts.
    """
    _check_lengths(references, texts)
    pairs = [(r, t) for r, t in zip(references, texts, strict=True) if r is not None]
    if not pairs:
        return None
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    scores = (1.0 if r == t else scorer.score(r, t)["rougeL"].fmeasure for r, t in pairs)
    return math.fsum(scores) / len(pairs)


def length_and_finish(completions: Sequence[Completion]) -> dict[str, float | None]:
    """Return the mean number of tokens, the end token included, and the share that ended by itself.

    3 tokens finished and 5 tokens cut off: mean_tokens 4.0, finished_share 0.5. None for none.
    """
    if not completions:
        return {"mean_tokens": None, "finished_share": None}
    return {
        "mean_tokens": sum(len(c.completion_ids) for c in completions) / len(completions),
        "finished_share": sum(c.finished for c in completions) / len(completions),
    }


def rounded(metrics: Any, digits: int = 6) -> Any:
    """Return nested dicts, lists and results of this module as dicts and lists, floats rounded.

    {"a": 2/3, "b": 1e-9 / 3} becomes {"a": 0.666667, "b": 3.33333e-10}: `digits` are significant
    ones, so that only what is 0 reads as 0.
    """
    if is_dataclass(metrics) and not isinstance(metrics, type):
        metrics = asdict(metrics)
    elif hasattr(metrics, "_asdict"):
        metrics = metrics._asdict()
    if isinstance(metrics, Mapping):
        return {name: rounded(item, digits) for name, item in metrics.items()}
    if isinstance(metrics, list | tuple):
        return [rounded(item, digits) for item in metrics]
    if isinstance(metrics, float):
        return float(f"{metrics:.{digits}g}") + 0.0  # no -0.0
    return metrics


def _rate(outcomes: Iterable[tuple[str, bool]]) -> Rate:
    """The rate of (prompt_id, hit) pairs."""
    by_prompt: dict[str, list[int]] = {}
    for prompt_id, hit in outcomes:
        counts = by_prompt.setdefault(prompt_id, [0, 0])
        counts[0] += hit
        counts[1] += 1
    hits, total = (sum(counts[i] for counts in by_prompt.values()) for i in (0, 1))
    prompts = len(by_prompt)
    if total == prompts:
        return Rate(hits, total)
    if hits in (0, total):
        wilson = Rate(prompts if hits else 0, prompts)
        return Rate(hits, total, (wilson.low, wilson.high))
    import numpy as np

    rows = np.array([by_prompt[key] for key in sorted(by_prompt)], np.int64)
    return Rate(hits, total, _bootstrap(rows, lambda rows: float(np.divide(*rows.sum(0)))))


def _bootstrap(rows: np.ndarray, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """95% percentile interval of a statistic of rows, one row per prompt."""
    import numpy as np

    generator = np.random.default_rng(SEED)
    draws = (generator.integers(len(rows), size=len(rows)) for _ in range(RESAMPLES))
    low, high = np.percentile([statistic(rows[draw]) for draw in draws], (2.5, 97.5))
    return float(low), float(high)


def _check_lengths(before: Sequence[str | None], after: Sequence[str | None]) -> None:
    if len(before) != len(after):
        raise ValueError(
            f"{len(after)} texts are to be compared with {len(before)}. Join them by prompt first."
        )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that chance puts one below 0.05 in at most 1 of 20 tables.

    0.01, 0.04, 0.03 become 0.03, 0.06, 0.06: the smallest times 3, the next times 2, and none less
    than one before it. Holm 1979.
    """
    import numpy as np

    order = np.argsort(p_values)
    raised = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(p) for p in adjusted]
