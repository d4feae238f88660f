r"""Stage `rollout`: the way of the token ideal from every completion, and the parent along it.

    python -m tnt.stages.rollout data/models/base data/rounds/r1/completions.parquet \
        data/rounds/r1/rollouts.parquet data/rounds/r1/features.safetensors \
        data/resolved/r1/rollout.yaml

What is flagged is banned, and the completion goes on without it, until nothing is flagged. With
`train.patch` the features are all that training needs of the parent; else that file is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic.dataclasses import dataclass

from tnt import models
from tnt.core import artifacts, validation
from tnt.core.command import command
from tnt.core.expected import between, one_of, suite, true, unique
from tnt.core.params import STRICT
from tnt.core.records import Completion, Rollout, key_of
from tnt.core.validation import Expected, Suite
from tnt.detectors import pinned
from tnt.detectors.pinned import DetectorsParams
from tnt.models import RuntimeParams
from tnt.rollouts import rivals, walk
from tnt.rollouts.params import RolloutParams
from tnt.sampling import SamplingParams
from tnt.training import features


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class RolloutStageParams:
    """How the token ideal is followed, and on what."""

    runtime: RuntimeParams
    detectors: DetectorsParams
    sampling: SamplingParams
    rollout: RolloutParams
    walk: bool
    """Whether completions are continued, or taken as they are."""
    patch: bool
    """Whether a patch is trained on the rollouts."""


def rollout(
    parent_path: Path,
    completions_path: Path,
    rollouts_path: Path,
    features_path: Path,
    *,
    params: RolloutStageParams,
) -> None:
    """Write one rollout for each completion, and the parent's features at their tokens."""
    completions = artifacts.read(completions_path, Completion)
    found, _ = pinned.build_pinned(params.detectors)
    walked, seen = walk.as_is(completions), None
    if params.walk or params.patch:
        model = models.load(parent_path, device=models.use(params.runtime))
        tokenizer = models.load_tokenizer(parent_path)
    if params.walk:
        walked = walk.walk(model, tokenizer, completions, found, params.rollout, params.sampling)
    if params.patch and any(any(r.banned) or r.end == "as_is" for r in walked):
        seen = features.features(
            model,
            [(r.prompt_ids, r.completion_ids) for r in walked],
            batch_size=min(params.sampling.batch_size, features.LARGEST),
            autocast=params.runtime.autocast,
            title=f"run {parent_path.name} over the rollouts",
        )
        if params.walk and params.rollout.rivals:
            walked = rivals.with_rivals(
                walked, seen, model, tokenizer, completions, found, params.rollout
            )
    validation.validate(rollouts_suite(walked, completions, params.rollout.max_bans), rollouts_path)
    artifacts.write(walked, rollouts_path, Rollout)
    features.write(seen, features_path)


def rollouts_suite(
    rows: Sequence[Rollout], completions: Sequence[Completion], max_bans: int
) -> Suite:
    """Return what is expected of rollouts.

    Args:
        rows: The rollouts.
        completions: Where they began.
        max_bans: Tokens that may be banned in one.
    """
    of = {key_of(c): c for c in completions}
    table = []
    for row in rows:
        ids, completion = row.completion_ids, of.get(key_of(row))
        left = next((i for i, banned in enumerate(row.banned) if banned), len(ids))
        taken = [i for i, token in enumerate(ids) if token in row.banned[i]]
        stopped = row.end in ("bound", "exhausted")
        table.append(
            {
                "prompt_id": row.prompt_id,
                "sample": row.sample,
                "of_a_completion": completion is not None
                and row.prompt_ids == completion.prompt_ids,
                "begins_as_it": completion is not None
                and ids[:left] == completion.completion_ids[:left]
                and (left < len(ids) or ids == completion.completion_ids),
                "length_difference": max(
                    abs(len(sets) - len(ids)) for sets in (row.banned, row.rivals)
                ),
                "bans": sum(map(len, row.banned)),
                "says_what_is_banned": taken != ([len(ids) - 1] if stopped else []),
            }
        )
    again = "Delete the file and run `dvc repro`, which makes it again."
    return suite(
        "rollouts",
        Rollout.KEY,
        table,
        Expected("TableRowCountToEqual", again, {"value": len(completions)}),
        unique(Rollout.KEY, again),
        true("of_a_completion", "Run rollout on the same completions.parquet."),
        true("begins_as_it", "Run rollout on the same completions.parquet."),
        one_of("length_difference", [0], again),
        between("bans", 0, max_bans, again),
        one_of("says_what_is_banned", [False], again),
    )


if __name__ == "__main__":
    command(rollout)
