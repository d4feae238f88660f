"""The gate: may a round be accepted, given its metrics?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from tnt.params import STRICT

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class GateParams:
    """Bounds that a round's metrics must keep. They are rates on the evaluation prompts."""

    min_drop: Share
    """Share of its flag rate that each new detector must lose, on the sets learned from."""
    min_clean_unchanged: dict[str, Share]
    """Prompt set -> least share of originally clean completions that stay the same by token."""
    max_ancestor_rise: Share
    """How far the flag rate of an ancestor's detector may rise in any prompt set."""


def judge(metrics: Mapping[str, Any], params: GateParams, inherited: list[str]) -> list[str]:
    """Return why a round is rejected, one sentence each; nothing if it passes.

    Args:
        metrics: A round's metrics.
        params: The bounds.
        inherited: Names of the ancestors' detectors, whose fixes must hold; the others are new.
    """
    reasons = []
    for detector, change in metrics["learned"].items():
        before, after = change["before"]["rate"], change["after"]["rate"]
        if detector not in inherited and after > (1 - params.min_drop) * before:
            reasons.append(
                f"{detector} went from {before:.1%} to {after:.1%}, "
                f"not down by {params.min_drop:.0%} of what it was"
            )
    for prompt_set, found in metrics["sets"].items():
        same = found["clean_unchanged"]
        least = params.min_clean_unchanged.get(prompt_set, 0.0)
        if same["total"] and same["rate"] < least:
            reasons.append(
                f"{same['rate']:.0%} of the clean {prompt_set} are unchanged, under {least:.0%}"
            )
        for detector, change in found["detectors"].items():
            rise = change["after"]["rate"] - change["before"]["rate"]
            if detector in inherited and rise > params.max_ancestor_rise:
                reasons.append(
                    f"{detector}, fixed by an earlier round, rose by {rise:.1%} on {prompt_set}, "
                    f"more than {params.max_ancestor_rise:.0%}"
                )
    return reasons
