"""What a round did: how much is flagged, what changed, how alike completions are, with intervals.

What ends up in a JSON file passes `rounded`. Completions of one input are not independent, be they
samples of one prompt or answers to prompts that ask the same: intervals and tests count inputs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tnt.core.hashes import normalised
from tnt.core.records import Completion

if TYPE_CHECKING:
    import numpy as np

Key = tuple[str, int]
"""(prompt_id, sample)."""
Input = tuple[str, str]
"""(prompt_set, its normalised input): what counts as one in intervals and tests."""
Asked = TypeVar("Asked", str, Input)
LEVEL = 0.05
"""A change whose p-value is below it is one; intervals are 1 - LEVEL."""
NONE = "none"
"""What is said of a rate of nothing: it is not 0%."""
Z = 1.959963984540054
"""The 97.5% point of the normal distribution."""


@dataclass(frozen=True)
class Rate:
    """A share with its 95% interval: Wilson's unless another `interval` is given.

    1 of 10 is 0.1 with the interval 0.018 to 0.404 (Wilson 1927, no continuity correction); 0 of 0
    is none, and may be anything between 0.0 and 1.0.

    Raises:
        ValueError: `flagged` does not lie between 0 and `total`.
    """

    flagged: int
    """How many of `total` have the property: are flagged, or for `clean_unchanged` are the same."""
    total: int
    interval: InitVar[tuple[float, float] | None] = None
    rate: float | None = field(init=False)
    """None where there is nothing to measure."""
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
        rate = self.flagged / self.total if self.total else None
        for name, value in (("rate", rate), ("low", float(low)), ("high", float(high))):
            object.__setattr__(self, name, value)

    @classmethod
    def stored(
        cls, *, flagged: int, total: int, rate: float | None, low: float, high: float
    ) -> Rate:
        """Return a rate that a file holds, its rounded numbers as they are."""
        stored = cls(flagged, total, (low, high))
        if (rate is None) != (total == 0):
            raise ValueError(f"rate is {rate}, but {flagged} of {total} is a share or is none.")
        object.__setattr__(stored, "rate", rate)
        return stored

    @property
    def percent(self) -> str:
        """The rate for a table: `12.8%`, or `none` where there is nothing to measure."""
        return percent(self.rate)

    @property
    def between(self) -> str:
        """Its interval for a table: `7.4% to 21.0%`, or `none`."""
        return f"{self.low:.1%} to {self.high:.1%}" if self.total else NONE


@dataclass(frozen=True, slots=True)
class Change:
    """How a flag rate changed on the same inputs, and whether by more than chance."""

    difference: float | None
    """After minus before; below 0 is better. None where there is nothing to compare."""
    low: float
    """Of the 95% interval of `difference`."""
    high: float
    inputs: int
    """Distinct inputs that were answered before and after."""
    fixed: int
    """Inputs flagged less often after: with one completion each, before and not after."""
    broken: int
    """Inputs flagged more often after."""
    p_value: float
    """The probability of as large a difference by chance; with one completion each McNemar's."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """How alike new and old texts are; None where there are no texts."""

    exact_match: float | None
    """Share of texts that are the same, 0 to 1."""
    bleu: float | None
    """Corpus BLEU, 0 to 100."""
    rouge_l: float | None
    """Mean ROUGE-L F1, 0 to 1."""


def percent(share: float | None) -> str:
    """Return a share for a table: `12.8%`, or `none`."""
    return NONE if share is None else f"{share:.1%}"


def flag_rate(completions: Iterable[Completion], flagged_keys: Collection[Key]) -> Rate:
    """Return the share of the completions that are flagged.

    2 of 8 inputs with one completion each: 0.25, Wilson interval 0.071 to 0.591. What several
    completions of an input say alike counts once. `flagged_keys` may hold keys of others too.
    """
    return _rate((input_of(c), (c.prompt_id, c.sample) in flagged_keys) for c in completions)


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
    pairs = ((input_of(c), (c.prompt_id, c.sample), c.completion_ids) for c in before)
    return _rate((asked, ids[key] == old) for asked, key, old in pairs if key not in flagged_keys)


def input_of(completion: Completion) -> Input:
    """Return what was asked: prompts with the same input are one, whatever their ids."""
    return completion.prompt_set, normalised(completion.input)


def change(
    before: Sequence[Completion],
    after: Sequence[Completion],
    flagged_before: Collection[Key],
    flagged_after: Collection[Key],
) -> Change:
    """Return how a flag rate changed, and whether by more than chance: `paired_change` by input."""
    sides = []
    for completions, flagged in ((before, flagged_before), (after, flagged_after)):
        by_input: dict[Input, list[bool]] = {}
        for c in completions:
            by_input.setdefault(input_of(c), []).append((c.prompt_id, c.sample) in flagged)
        sides.append(by_input)
    return paired_change(*sides)


def paired_change(
    before: Mapping[Asked, Sequence[bool]], after: Mapping[Asked, Sequence[bool]]
) -> Change:
    """Compare two models' flags on the inputs in both, one or several completions each.

    {a: [1, 1], b: [1, 0]} to {a: [0, 0], b: [1, 0]}: 1/4 - 3/4 = -0.5. The test exchanges before
    and after of each input in every possible way (Fisher 1935). With one completion each it is
    McNemar's (1947), exact, two-sided: 9 fixed against 1 broken, p = 2 (1 + 10) / 2**10 = 0.0215.

    The interval is Wald's after one input that was fixed and one that was broken are added (Bonett
    and Price 2012), the spread taken over inputs. It says what the test says: it is widened to hold
    0 where p is 0.05 or more, and ends at 0 where p is below.

    Raises:
        ValueError: An input has no completions, or more of them on one side.
    """
    both = sorted(before.keys() & after.keys())
    if not both:
        return Change(None, -1.0, 1.0, 0, 0, 0, 1.0)
    for asked in both:
        if not before[asked] or len(before[asked]) != len(after[asked]):
            raise ValueError(
                f"{asked!r} has {len(before[asked])} completions before and {len(after[asked])} "
                "after. Re-run respond for both models, with as many samples."
            )
    import numpy as np

    moved = np.array([sum(after[asked]) - sum(before[asked]) for asked in both], np.int64)
    counts = np.array([len(before[asked]) for asked in both], np.float64)
    p_value = _by_exchange(moved)
    low, high = _interval(moved, counts, (-1.0, 1.0))
    if p_value >= LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    elif moved.sum() < 0:
        high = min(high, 0.0)
    else:
        low = max(low, 0.0)
    return Change(
        difference=float(moved.sum() / counts.sum()),
        low=max(low, -1.0),
        high=min(high, 1.0),
        inputs=len(both),
        fixed=int((moved < 0).sum()),
        broken=int((moved > 0).sum()),
        p_value=p_value,
    )


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
    if isinstance(metrics, Mapping):
        return {name: rounded(item, digits) for name, item in metrics.items()}
    if isinstance(metrics, list | tuple):
        return [rounded(item, digits) for item in metrics]
    if isinstance(metrics, float):
        return float(f"{metrics:.{digits}g}") + 0.0  # no -0.0
    return metrics


def _rate(outcomes: Iterable[tuple[Input, bool]]) -> Rate:
    """The rate of (input, hit) pairs."""
    by_input: dict[Input, list[bool]] = {}
    for asked, hit in outcomes:
        by_input.setdefault(asked, []).append(hit)
    hits = [sum(found) for found in by_input.values()]
    counts = [len(found) for found in by_input.values()]
    total = sum(counts)
    agree = all(hit in (0, count) for hit, count in zip(hits, counts, strict=True))
    if total == 0 or total == len(counts):
        return Rate(sum(hits), total)
    if agree and len({*counts}) == 1:  # each input counts once
        one = Rate(sum(hits) // counts[0], len(counts))
        return Rate(sum(hits), total, (one.low, one.high))
    import numpy as np

    low, high = _interval(np.array(hits), np.array(counts, np.float64), (0.0, 0.0, 1.0, 1.0))
    return Rate(sum(hits), total, (max(low, 0.0), min(high, 1.0)))


def _interval(
    sums: np.ndarray, counts: np.ndarray, added: tuple[float, ...]
) -> tuple[float, float]:
    """95% interval of a mean over completions: Wald's, by input, after some inputs were added.

    What is added pulls the middle away from the ends, and keeps a width where all inputs agree:
    for a rate two inputs that are flagged and two that are not (Agresti and Coull 1998).

    Args:
        sums: Of the completions of each input.
        counts: How many completions each input has.
        added: The values of the inputs that are added, each of the mean weight.
    """
    import numpy as np

    weights = np.concatenate([counts / counts.mean(), np.ones(len(added))])
    values = np.concatenate([sums / counts, added])
    middle = float(np.average(values, weights=weights))
    spread = float(np.sqrt((weights**2 * (values - middle) ** 2).sum()) / len(values))
    return middle - Z * spread, middle + Z * spread


def _by_exchange(moved: np.ndarray) -> float:
    """Return the share of all ways to give each number a sign whose sum is as far from 0."""
    import numpy as np

    sizes = [int(size) for size in np.abs(moved) if size]
    reach = sum(sizes)
    ways = np.zeros(2 * reach + 1)  # as shares; the middle is the sum 0
    ways[reach] = 1.0
    for size in sizes:
        ways = (np.roll(ways, size) + np.roll(ways, -size)) / 2
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(ways[sums >= abs(moved.sum())].sum()))


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
