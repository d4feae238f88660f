"""The gate: may a round be accepted, given its metrics?"""

from __future__ import annotations

from tnt.evaluation.params import GateParams
from tnt.evaluation.round_metrics import RoundMetrics


def judge(metrics: RoundMetrics, params: GateParams, inherited: list[str]) -> list[str]:
    """Return why a round is rejected, one sentence each; nothing if it passes.

    Args:
        metrics: A round's metrics, rounded as they are written; what their `gate` says is ignored.
        params: The bounds.
        inherited: Names of the ancestors' detectors, whose fixes must hold; the others are new.
    """
    reasons = []
    for detector, change in metrics.learned.items():
        before, after = change.before.rate, change.after.rate
        if detector not in inherited and after > (1 - params.min_drop) * before:
            reasons.append(
                f"{detector} went from {before:.1%} to {after:.1%}, "
                f"not down by {params.min_drop:.0%} of what it was"
            )
    for prompt_set, found in metrics.sets.items():
        same = found.clean_unchanged
        least = params.min_clean_unchanged.get(prompt_set, 0.0)
        if same.total and same.rate < least:
            reasons.append(
                f"{same.rate:.0%} of the clean {prompt_set} are unchanged, under {least:.0%}"
            )
        for detector, change in found.detectors.items():
            rise = change.after.rate - change.before.rate
            if detector in inherited and rise > params.max_ancestor_rise:
                reasons.append(
                    f"{detector}, fixed by an earlier round, rose by {rise:.1%} on {prompt_set}, "
                    f"more than {params.max_ancestor_rise:.0%}"
                )
    return reasons
