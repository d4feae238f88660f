r"""Stage `evaluate`: compare a round's model with its parent and with the base on unseen prompts.

    python -m tnt.stages.evaluate PROMPTS BASE_COMPLETIONS PARENT_COMPLETIONS OWN_COMPLETIONS \
        BASE_MODEL PARENT_MODEL OWN_MODEL METRICS PARAMS

Measures the round's own detectors and its ancestors', how much else moved, and the gate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from tnt import (
    artifacts,
    detectors,
    expectations,
    gate,
    masking,
    metrics,
    models,
    prompts,
    validation,
)
from tnt.detectors import DetectorsParams, repetition
from tnt.detectors.repetition import RepetitionParams
from tnt.divergence import divergence
from tnt.gate import GateParams
from tnt.masking import MaskParams
from tnt.models import RuntimeParams
from tnt.params import STRICT
from tnt.records import Completion, Flag, Mask, Prompt
from tnt.runs import command

Key = tuple[str, int]
SIDES = ("base", "before", "after")
"""The base's completions, the parent's and the round's."""


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class EvaluateStageParams:
    """What is measured, and the bounds."""

    runtime: RuntimeParams
    detectors: DetectorsParams
    """The round's own and its ancestors'."""
    own: list[str]
    """What the round trained on; a completion is clean if none of these flags it."""
    learned: list[str]
    """The prompt sets that the round learned from."""
    inherited: list[str]
    """The ancestors', which the round may train on again."""
    mask: MaskParams
    gate: GateParams
    divergence_prompts: PositiveInt
    divergence_batch_size: PositiveInt


def evaluate(
    prompts_path: Path,
    base_completions_path: Path,
    parent_completions_path: Path,
    own_completions_path: Path,
    base_model_path: Path,
    parent_model_path: Path,
    own_model_path: Path,
    metrics_path: Path,
    *,
    params: EvaluateStageParams,
) -> None:
    """Write metrics.json."""
    references = {p.prompt_id: p.reference for p in artifacts.read(prompts_path, Prompt)}
    base = artifacts.read(base_completions_path, Completion)
    before = artifacts.read(parent_completions_path, Completion)
    after = artifacts.read(own_completions_path, Completion)
    if unknown := sorted({c.prompt_id for c in (*base, *before, *after)} - references.keys()):
        raise ValueError(
            f"{prompts_path} lacks {unknown[0]!r}, which has completions. Run `dvc repro`, which "
            "makes both again."
        )
    found, _ = detectors.build_pinned(params.detectors)
    sides = dict(zip(SIDES, (base, before, after), strict=True))
    flags = {
        side: detectors.find_flags(found, sides[side], title=f"detect in {side}")
        for side in ("before", "after")
    }
    first_round = base_completions_path == parent_completions_path
    flags["base"] = flags["before"] if first_round else detectors.find_flags(found, base)
    names = sorted({c.prompt_set for c in before})
    parent_name = parent_model_path.name
    report: dict[str, Any] = {
        "round": own_model_path.name,
        "parent": parent_name,
        "learned": _changes(
            found,
            [[c for c in side if c.prompt_set in params.learned] for side in sides.values()],
            flags,
        ),
        "sets": {},
    }
    own_flags = {_key(f) for f in flags["before"] if f.detector in params.own}
    device = models.use(params.runtime)
    updated = models.load(own_model_path, device=device)
    original = models.load(parent_model_path, device=device)
    tokenizer = models.load_tokenizer(parent_model_path)
    moved = _divergences(original, updated, tokenizer, before, flags["before"], params, parent_name)
    from_base = moved
    if base_model_path != parent_model_path:
        del original
        first = models.load(base_model_path, device=device)
        from_base = _divergences(first, updated, tokenizer, base, flags["base"], params, "base")
    for name in names:
        of_set = [[c for c in side if c.prompt_set == name] for side in (base, before, after)]
        report["sets"][name] = {
            "detectors": _changes(found, of_set, flags),
            **_similarity(of_set[1], of_set[2], own_flags),
            "divergence": moved[name],
            "divergence_from_base": from_base[name],
            "quality": {
                side: _quality(completions, references)
                for side, completions in zip(SIDES, of_set, strict=True)
            },
        }
    report = metrics.rounded(report)
    validation.validate(expectations.metrics(report), metrics_path)
    reasons = gate.judge(report, params.gate, params.inherited)
    report["gate"] = {"passed": not reasons, "reasons": "; ".join(reasons)}
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    artifacts.write_text(text, metrics_path)


def _changes(
    names: Iterable[str], sides: list[list[Completion]], flags: dict[str, list[Flag]]
) -> dict[str, Any]:
    """Return, per detector, the flag rates of base, parent and round, and the paired test."""
    completions = dict(zip(SIDES, sides, strict=True))
    before, after = completions["before"], completions["after"]
    changes = {}
    for name in names:
        keys = {side: {_key(f) for f in flags[side] if f.detector == name} for side in SIDES}
        rates = {side: metrics.flag_rate(completions[side], keys[side]) for side in SIDES}
        unchanged = metrics.clean_unchanged(before, after, keys["before"])
        changes[name] = {
            **rates,
            "change": metrics.change(before, after, keys["before"], keys["after"]),
            "clean_unchanged": unchanged,
        }
    return changes


def _similarity(
    before: list[Completion], after: list[Completion], flagged: set[Key]
) -> dict[str, Any]:
    """Return how alike new and old completions are: all of them, and the originally clean ones."""
    old = {(c.prompt_id, c.sample): c.text for c in before}
    new = {(c.prompt_id, c.sample): c.text for c in after}
    clean = [key for key in old if key not in flagged]
    return {
        "clean_unchanged": metrics.clean_unchanged(before, after, flagged),
        "similarity": metrics.similarity(list(old.values()), [new[key] for key in old]),
        "similarity_clean": metrics.similarity(
            [old[key] for key in clean], [new[key] for key in clean]
        ),
    }


def _quality(
    completions: list[Completion], references: dict[str, str | None]
) -> dict[str, float | None]:
    """Return what may get worse unflagged: length, end, loops, closeness to references."""
    loops = detectors.find_flags({"loops": repetition.build(RepetitionParams())}, completions)
    return {
        **metrics.length_and_finish(completions),
        "repetition": metrics.flag_rate(completions, {_key(f) for f in loops}).rate,
        "rouge_l_to_references": metrics.rouge_l_to_references(
            [c.text for c in completions], [references[c.prompt_id] for c in completions]
        ),
    }


def _divergences(
    original: Any,
    updated: Any,
    tokenizer: Any,
    completions: list[Completion],
    flags: list[Flag],
    params: EvaluateStageParams,
    name: str,
) -> dict[str, dict[str, Any]]:
    """Return how far `updated` is from `original`, by prompt set, on the latter's completions."""
    masks = masking.mask_all(completions, flags, tokenizer, params.mask)
    by_set: dict[str, list[Mask]] = {}
    for completion, mask in zip(completions, masks, strict=True):
        by_set.setdefault(completion.prompt_set, []).append(mask)
    return {
        prompt_set: asdict(
            divergence(
                original,
                updated,
                prompts.lowest_hashes(members, params.divergence_prompts),
                batch_size=params.divergence_batch_size,
                title=f"divergence from {name} on {prompt_set}",
            )
        )
        for prompt_set, members in by_set.items()
    }


def _key(flag: Flag) -> Key:
    return flag.prompt_id, flag.sample


if __name__ == "__main__":
    command(evaluate)
