r"""Stage `mask`: turn flagged spans into token masks.

python -m tnt.stages.mask data/models/base data/rounds/r1/completions.parquet \
        data/rounds/r1/flags.parquet data/rounds/r1/rollouts.parquet \
        data/rounds/r1/masks.parquet data/resolved/r1/mask.yaml

Where a completion was continued without what is flagged, its row is the rollout.
Where people corrected a completion, and the round is to learn from that, their text is a row too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pydantic.dataclasses import dataclass
from tqdm import tqdm

from tnt import models
from tnt.annotations.files import read_corrections
from tnt.core import artifacts, validation
from tnt.core.command import command
from tnt.core.expected import ROUND_OFF, one_of, suite, true, unique
from tnt.core.params import STRICT
from tnt.core.records import Completion, Flag, Mask, Rollout, key_of
from tnt.core.validation import Expected, Suite
from tnt.masks import flagged
from tnt.masks.corrected import corrected_masks
from tnt.masks.params import MaskParams


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class MaskStageParams:
    """How spans become masks, and which corrections are learned from."""

    mask: MaskParams
    corrections: dict[str, str]
    """Annotation file -> sha256, of the round's detectors that are corrective."""
    negative_share: tuple[float, float]
    """Between which shares of the completions' tokens may be negative."""


def mask(
    model_path: Path,
    completions_path: Path,
    flags_path: Path,
    rollouts_path: Path,
    masks_path: Path,
    *,
    params: MaskStageParams,
) -> None:
    """Write one row of token masks per completion, and one per correction of a completion.

    `model_path` gives the tokenizer.
    """
    tokenizer = models.load_tokenizer(model_path)
    completions = artifacts.read(completions_path, Completion)
    flags = artifacts.read(flags_path, Flag)
    rollouts = artifacts.read(rollouts_path, Rollout)
    walked = {key_of(r): r for r in rollouts if any(r.banned) or any(r.rivals)}
    as_they_are = [c for c in completions if key_of(c) not in walked]
    masks = flagged.mask_all(
        tqdm(as_they_are, desc="mask", unit="completion"),
        [flag for flag in flags if key_of(flag) not in walked],
        tokenizer,
        params.mask,
    )
    masks += map(flagged.mask_rollout, walked.values())
    if params.corrections:
        corrected = corrected_masks(completions, read_corrections(params.corrections), tokenizer)
        print(f"{len(corrected)} of the {len(completions)} completions have a correction.")
        masks += corrected
    suite = masks_suite(masks, completions, flags, rollouts, params.negative_share)
    validation.validate(suite, masks_path)
    artifacts.write(masks, masks_path, Mask)


def masks_suite(
    rows: Sequence[Mask],
    completions: Sequence[Completion],
    flags: Sequence[Flag],
    rollouts: Sequence[Rollout],
    bounds: tuple[float, float],
) -> Suite:
    """Return what is expected of masks.

    Args:
        rows: The masks.
        completions: What they are about.
        flags: What made tokens negative.
        rollouts: What the completions became.
        bounds: Least and greatest share of negative tokens in the tokens of all completions.
    """
    of = {key_of(c): c for c in completions}
    ids_of = {key_of(r): r.completion_ids for r in rollouts}
    flagged = {key_of(flag) for flag in flags if flag.text.strip()}
    table, tokens = [], 0
    for row in rows:
        key = key_of(row)
        completion = of.get(key)
        own = row.source != "corrected"
        tokens += len(row.completion_ids) if own else 0
        both = [a and b for a, b in zip(row.negative_mask, row.kept_mask, strict=False)]
        table.append(
            {
                **{name: getattr(row, name) for name in Mask.KEY},
                "own": int(own),
                "of_a_completion": completion is not None
                and row.prompt_ids == completion.prompt_ids
                and (not own or row.completion_ids == ids_of.get(key)),
                "length_difference": max(
                    abs(len(mask) - len(row.completion_ids))
                    for mask in (row.negative_mask, row.kept_mask, row.sets())
                ),
                "negative_and_kept": sum(both),
                "negative": sum(row.negative_mask),
                "negative_if_flagged": any(row.negative_mask) == (own and key in flagged),
            }
        )
    again = "Delete the file and run `dvc repro`, which makes it again."
    low, high = bounds
    return suite(
        "masks",
        Mask.KEY,
        table,
        Expected("TableRowCountToBeBetween", "Give the round prompts.", {"min_value": 1}),
        Expected(
            "ColumnSumToBeBetween",
            again,
            {"column": "own", "min_value": len(completions), "max_value": len(completions)},
        ),
        unique(Mask.KEY, again),
        true("of_a_completion", again),
        one_of("length_difference", [0], again),
        one_of("negative_and_kept", [0], again),
        true("negative_if_flagged", "Run all stages on the same completions.parquet."),
        Expected(
            "ColumnSumToBeBetween",
            f"Of {tokens} completion tokens between {low:.0%} and {high:.0%} may be negative: "
            "correct the detectors, or expect.min_negative_share and expect.max_negative_share.",
            {
                "column": "negative",
                "min_value": math.ceil(low * tokens - ROUND_OFF),
                "max_value": math.floor(high * tokens + ROUND_OFF),
            },
        ),
    )


if __name__ == "__main__":
    command(mask)
