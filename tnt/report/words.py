"""What a round did, in words for people who read no tables.

    sentence({"name": "r1", "parent": "base", "learned": ["replies"], "metrics": metrics})

gives "r1: boilerplate in replies fell from 76% to 13% (95% interval 7% to 21%); 61% of the replies
that were fine before are word for word the same." Each word follows from a number: a rate "fell" or
"rose" only where the paired test says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tnt.evaluation.metrics import LEVEL, NONE, Change, Rate
from tnt.evaluation.round_metrics import RoundMetrics, SetMetrics

HARDLY = 0.9
"""From this share of unchanged answers on, a prompt set "hardly changed"."""


def share(value: float | None) -> str:
    """Return a share as whole per cent; 0% and 100% only where it is none or all.

    0.128 is "13%", 0.004 "under 1%", 0.998 "over 99%"; a share of nothing is "none".
    """
    if value is None:
        return NONE
    said = f"{value:.0%}"
    if said == "0%" and value > 0:
        return "under 1%"
    return "over 99%" if said == "100%" and value < 1 else said


def direction(change: Change) -> str:
    """Return `fell`, `rose` or, where chance alone may have done it, nothing."""
    if change.p_value >= LEVEL or not change.difference:
        return ""
    return "fell" if change.difference < 0 else "rose"


def sentence(round_: Mapping[str, Any]) -> str:
    """Return what a round changed from its parent, on the test prompts.

    Args:
        round_: `name`, `parent`, `learned` (the prompt sets trained on) and `metrics` of evaluate.
    """
    parent = round_["parent"]
    subject = round_["name"] if parent == "base" else f"{round_['name']}, built on {parent}"
    metrics: RoundMetrics = round_["metrics"]
    sets = metrics.sets
    trained = [name for name in sets if name in round_["learned"]]
    parts = [part for name in trained for part in _of_set(name, sets[name], trained_on=True)]
    rest = [
        part
        for name in sets
        if name not in trained
        for part in _of_set(name, sets[name], trained_on=False)
    ]
    said = f"{subject}: {'; '.join(parts + rest)}."
    return f"{said} {gates(metrics)}".rstrip()


def gate(round_: Mapping[str, Any]) -> str:
    """Return whether a round's gate passed, and which bound failed if not."""
    metrics: RoundMetrics = round_["metrics"]
    if metrics.gate.passed:
        return "Gate passed: every bound that was set for this round holds."
    return f"Gate failed: {metrics.gate.reasons.rstrip('.') or 'no reason was recorded'}."


def gates(metrics: RoundMetrics) -> str:
    """Return where a patch acts on what should stay as it is; nothing if the round is no patch."""
    found = [of_set.gates for of_set in metrics.sets.values() if of_set.gates is not None]
    if not found:
        return ""
    kept, fired, changed = (
        sum(getattr(g, name) for g in found) for name in ("kept", "fired", "changed")
    )
    return (
        f"Of the {kept:,} words and word parts that should stay as they are, the patch acts on "
        f"{fired:,} and changes which comes first at {changed:,}. At all others the model is the "
        "one it started from, bit for bit."
    )


def unchanged(prompt_set: str, found: Rate, *, flagged_before: bool) -> str:
    """Return how much of what was fine before a prompt set keeps.

    Args:
        prompt_set: Its name.
        found: The rate `clean_unchanged`.
        flagged_before: Whether anything in the set was flagged before; if not, all was fine.
    """
    if found.rate is None:
        return f"no {prompt_set} were fine before, so none could stay the same"
    same, rate = share(found.rate), found.rate
    if rate == 1:
        all_of = f"all {found.total}" + (" that were fine before" if flagged_before else "")
        return f"{prompt_set} untouched ({all_of} word for word the same)"
    of_fine = " of those that were fine before" if flagged_before else ""
    if rate >= HARDLY:
        return f"{prompt_set} hardly changed ({same}{of_fine} word for word the same)"
    which = f"{prompt_set} that were fine before" if flagged_before else prompt_set
    return f"{same} of the {which} are word for word the same"


def _of_set(name: str, found: SetMetrics, *, trained_on: bool) -> Iterator[str]:
    said = False
    flagged_before = False
    for detector, change in found.detectors.items():
        before, after = change.before, change.after
        flagged_before |= before.flagged > 0
        moved = direction(change.change)
        subject = f"{detector} in {name}"
        if not trained_on and not said:
            subject += " (nothing trained on)"
        if moved:
            interval = f"95% interval {share(after.low)} to {share(after.high)}"
            yield (
                f"{subject} {moved} from {share(before.rate)} to {share(after.rate)} ({interval})"
            )
            said = True
        elif trained_on and (before.flagged or after.flagged):
            yield (
                f"{subject} did not clearly change ({share(before.rate)} before, "
                f"{share(after.rate)} after)"
            )
            said = True
    kept = unchanged(name, found.clean_unchanged, flagged_before=flagged_before)
    if not trained_on and not said:
        kept = kept.replace(name, f"{name} (nothing trained on)", 1)
    yield kept
