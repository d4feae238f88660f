"""How far a model is from one that it was made from, on the latter's own completions.

Where nothing but patches lies between the two, one pass of the original tells it for every token;
else both models run over some of the completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from tnt import models
from tnt.core import hashes
from tnt.core.records import Completion, Flag, Mask
from tnt.detectors import Detect
from tnt.evaluation import patched
from tnt.evaluation.divergence import divergence
from tnt.evaluation.patched import Neuron
from tnt.evaluation.round_metrics import Divergence, Gates
from tnt.masks.flagged import mask_all
from tnt.masks.params import MaskParams
from tnt.rollouts.walk import completed
from tnt.training.features import LARGEST, features


@dataclass(frozen=True, slots=True)
class Distances:
    """How far a model is from another, by prompt set."""

    divergence: dict[str, Divergence]
    gates: dict[str, Gates] = field(default_factory=dict)
    """Of patches; of other updates there are none."""
    neurons: list[Neuron] = field(default_factory=list)
    """Of the last patch between the two, over all prompt sets."""


def distances(
    original_path: Path,
    updated_path: Path,
    completions: Sequence[Completion],
    flags: Sequence[Flag],
    detectors: Mapping[str, Detect],
    mask: MaskParams,
    *,
    device: str,
    prompts: PositiveInt,
    batch_size: int,
    whole: bool,
) -> Distances:
    """Return how far the updated model is from the original.

    Args:
        original_path: The model that gave the completions.
        updated_path: The model that is measured.
        completions: What the original answered.
        flags: All findings in them.
        detectors: Which found them, by name.
        mask: What is negative in them.
        device: Where models run.
        prompts: Completions of each set that two models are compared on, chosen by hash.
        batch_size: Completions that two models pass at once.
        whole: Whether patches are measured on all completions, and neuron by neuron.
    """
    original = models.load(original_path, device=device)
    tokenizer = models.load_tokenizer(original_path)
    places = {}
    if mask.span_tokens == "completing":
        places = completed(completions, flags, detectors, tokenizer)
    masks = mask_all(completions, flags, tokenizer, mask, places)
    by_set: dict[str, list[Mask]] = {}
    for completion, masked in zip(completions, masks, strict=True):
        by_set.setdefault(completion.prompt_set, []).append(masked)
    between = models.patches_between(original_path, updated_path)
    if not (whole and between):
        by_set = {name: hashes.lowest_hashes(rows, prompts) for name, rows in by_set.items()}
    if between:
        return _of_patches(original, tokenizer, by_set, between, original_path.name, whole=whole)
    updated = models.load(updated_path, device=device)
    return Distances(
        {
            prompt_set: divergence(
                original,
                updated,
                rows,
                batch_size=batch_size,
                title=f"divergence from {original_path.name} on {prompt_set}",
            )
            for prompt_set, rows in by_set.items()
        }
    )


def _of_patches(
    original: Any,
    tokenizer: Any,
    by_set: Mapping[str, list[Mask]],
    patches: Sequence[Any],
    name: str,
    *,
    whole: bool,
) -> Distances:
    rows = [row for of_set in by_set.values() for row in of_set]
    seen = features(
        original,
        [(row.prompt_ids, row.completion_ids) for row in rows],
        batch_size=LARGEST,
        autocast="none",
        title=f"run {name} over its completions",
    )
    lengths = [sum(len(row.completion_ids) for row in of_set) for of_set in by_set.values()]
    found = {
        prompt_set: patched.measure(original, part, of_set, patches)
        for (prompt_set, of_set), part in zip(by_set.items(), seen.split(lengths), strict=True)
    }
    return Distances(
        divergence={prompt_set: moved for prompt_set, (moved, _) in found.items()},
        gates={prompt_set: gates for prompt_set, (_, gates) in found.items()},
        neurons=patched.neurons(original, tokenizer, seen, rows, patches[-1]) if whole else [],
    )
