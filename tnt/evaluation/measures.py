"""What `evaluate` measures, prompt set by prompt set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tnt.core import hashes
from tnt.core.records import Completion, Flag, Mask
from tnt.detectors import repetition, running
from tnt.detectors.repetition import RepetitionParams
from tnt.evaluation import metrics
from tnt.evaluation.divergence import divergence
from tnt.evaluation.metrics import Rate, Similarity
from tnt.evaluation.round_metrics import DetectorChange, Divergence, Quality
from tnt.masks.flagged import mask_all
from tnt.masks.params import MaskParams

Key = tuple[str, int]
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


def divergences(
    original: Any,
    updated: Any,
    tokenizer: Any,
    completions: list[Completion],
    flags: list[Flag],
    mask: MaskParams,
    *,
    prompts_per_set: int,
    batch_size: int,
    name: str,
) -> dict[str, Divergence]:
    """Return how far `updated` is from `original`, by prompt set, on the latter's completions.

    Args:
        original: The model that gave the completions.
        updated: The model that is measured.
        tokenizer: Of both.
        completions: What the original answered.
        flags: What is negative in them, as
        mask: says.
        prompts_per_set: Chosen by hash.
        batch_size: Completions that are passed at once.
        name: Of the original, for the progress bar.
    """
    masks = mask_all(completions, flags, tokenizer, mask)
    by_set: dict[str, list[Mask]] = {}
    for completion, masked in zip(completions, masks, strict=True):
        by_set.setdefault(completion.prompt_set, []).append(masked)
    return {
        prompt_set: divergence(
            original,
            updated,
            hashes.lowest_hashes(members, prompts_per_set),
            batch_size=batch_size,
            title=f"divergence from {name} on {prompt_set}",
        )
        for prompt_set, members in by_set.items()
    }


def key_of(flag: Flag) -> Key:
    """Return which completion a flag is about."""
    return flag.prompt_id, flag.sample
