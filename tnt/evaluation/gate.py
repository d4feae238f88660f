"""The gate: may a round be accepted, given its metrics?

It compares counts, so that a rate at its bound is within it: 2 of 6 to 1 of 6 is down by 50%.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

from tnt.evaluation.metrics import Rate
from tnt.evaluation.params import GateParams
from tnt.evaluation.round_metrics import DetectorChange, RoundMetrics


def judge(metrics: RoundMetrics, params: GateParams, inherited: list[str]) -> list[str]:
    """Return why a round is rejected, one sentence each; nothing if it passes.

    Args:
        metrics: A round's metrics; what their `gate` says is ignored.
        params: The bounds.
        inherited: Names of the ancestors' detectors, whose fixes must hold; the others are new.
    """
    new = {name: change for name, change in metrics.learned.items() if name not in inherited}
    reasons = [*_no_drop(new, params.min_drop)]
    for prompt_set, found in metrics.sets.items():
        same = found.clean_unchanged
        least = params.min_clean_unchanged.get(prompt_set, 0.0)
        if same.rate is not None and same.flagged < _exact(least) * same.total:
            reasons.append(
                f"{same.rate:.0%} of the clean {prompt_set} are unchanged, under {least:.0%}"
            )
        for detector, change in found.detectors.items():
            rise = _share(change.after) - _share(change.before)
            if rise > _exact(params.max_ancestor_rise):
                fixed = ", fixed by an earlier round," if detector in inherited else ""
                reasons.append(
                    f"{detector}{fixed} rose by {float(rise):.1%} on {prompt_set}, "
                    f"more than {params.max_ancestor_rise:.0%}"
                )
    return reasons


def _no_drop(new: Mapping[str, DetectorChange], least: float) -> Iterator[str]:
    """Yield why it is not shown that what a round learned fell by a share of what it was."""
    for name, change in new.items():
        before, after = change.before, change.after
        if not before.total:
            yield f"{name} was measured on no prompt set that it was learned from"
        elif _share(after) > (1 - _exact(least)) * _share(before):
            yield (
                f"{name} went from {before.percent} to {after.percent}, "
                f"not down by {least:.0%} of what it was"
            )
    sides = [side for change in new.values() for side in (change.before, change.after)]
    if least and any(side.total for side in sides) and not any(side.flagged for side in sides):
        yield f"{' and '.join(new)} in none of the test answers before, so that no drop is shown"


def _share(rate: Rate) -> Fraction:
    """Return a rate as its counts have it, 0 for a rate of nothing."""
    return Fraction(rate.flagged, rate.total or 1)


def _exact(bound: float) -> Fraction:
    """Return a bound as it is written: 0.3 is 3/10, which no float is."""
    return Fraction(str(bound))
