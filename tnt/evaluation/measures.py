"""What `evaluate` measures, prompt set by prompt set."""

from __future__ import annotations

from collections.abc import Iterable

from tnt.core.records import Completion, Flag, Key, key_of
from tnt.detectors import repetition, running
from tnt.detectors.repetition import RepetitionParams
from tnt.evaluation import metrics
from tnt.evaluation.metrics import Rate, Similarity
from tnt.evaluation.round_metrics import DetectorChange, Quality

SIDES = ("base", "before", "after")
"""The base's completions, the parent's and the round's."""


def changes(
    names: Iterable[str], sides: list[list[Completion]], flags: dict[str, list[Flag]]
) -> dict[str, DetectorChange]:
    """Return, per detector, the flag rates of base, parent and round, and the paired test."""
    completions = dict(zip(SIDES, sides, strict=True))
    before, after = completions["before"], completions["after"]
    changes = {}
    for name in names:
        keys = {side: {key_of(f) for f in flags[side] if f.detector == name} for side in SIDES}
        rates = {side: metrics.flag_rate(completions[side], keys[side]) for side in SIDES}
        changes[name] = DetectorChange(
            **rates,
            change=metrics.change(before, after, keys["before"], keys["after"]),
            clean_unchanged=metrics.clean_unchanged(before, after, keys["before"]),
        )
    return changes


def similarity(
    before: list[Completion], after: list[Completion], flagged: set[Key]
) -> tuple[Rate, Similarity, Similarity]:
    """Return how alike new and old completions are.

    Returns:
        `clean_unchanged`, `similarity` and `similarity_clean` of the prompt set's metrics.
    """
    old = {(c.prompt_id, c.sample): c.text for c in before}
    new = {(c.prompt_id, c.sample): c.text for c in after}
    clean = [key for key in old if key not in flagged]
    return (
        metrics.clean_unchanged(before, after, flagged),
        metrics.similarity(list(old.values()), [new[key] for key in old]),
        metrics.similarity([old[key] for key in clean], [new[key] for key in clean]),
    )


def quality(completions: list[Completion], references: dict[str, str | None]) -> Quality:
    """Return what may get worse unflagged: length, end, loops, closeness to references."""
    loops = running.find_flags({"loops": repetition.build(RepetitionParams())}, completions)
    return Quality(
        **metrics.length_and_finish(completions),
        repetition=metrics.flag_rate(completions, {key_of(f) for f in loops}).rate,
        rouge_l_to_references=metrics.rouge_l_to_references(
            [c.text for c in completions], [references[c.prompt_id] for c in completions]
        ),
    )
