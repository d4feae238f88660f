r"""Stage `evaluate`: compare a round's model with its parent and with the base on unseen prompts.

    python -m tnt.stages.evaluate PROMPTS BASE_COMPLETIONS PARENT_COMPLETIONS OWN_COMPLETIONS \
        BASE_MODEL PARENT_MODEL OWN_MODEL METRICS NEURONS PARAMS

Measures the round's own detectors and its ancestors', how much else moved, and the gate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from tnt import models
from tnt.core import artifacts, validation
from tnt.core.command import command
from tnt.core.expected import FINITE, ROUND_OFF, SHARE, SHARES, suite, true
from tnt.core.params import STRICT
from tnt.core.records import Completion, Prompt, key_of
from tnt.core.validation import Expected, Suite
from tnt.detectors import pinned, running
from tnt.detectors.pinned import DetectorsParams
from tnt.evaluation import gate, metrics, round_metrics
from tnt.evaluation.distances import distances
from tnt.evaluation.measures import SIDES, changes, quality, similarity
from tnt.evaluation.params import GateParams
from tnt.evaluation.round_metrics import Gate, Qualities, RoundMetrics, SetMetrics
from tnt.masks.params import MaskParams
from tnt.models import RuntimeParams


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
    neurons_path: Path,
    *,
    params: EvaluateStageParams,
) -> None:
    """Write metrics.json, and what each neuron of a patch does."""
    references = {p.prompt_id: p.reference for p in artifacts.read(prompts_path, Prompt)}
    base = artifacts.read(base_completions_path, Completion)
    before = artifacts.read(parent_completions_path, Completion)
    after = artifacts.read(own_completions_path, Completion)
    if unknown := sorted({c.prompt_id for c in (*base, *before, *after)} - references.keys()):
        raise ValueError(
            f"{prompts_path} lacks {unknown[0]!r}, which has completions. Run `dvc repro`, which "
            "makes both again."
        )
    found, _ = pinned.build_pinned(params.detectors)
    sides = dict(zip(SIDES, (base, before, after), strict=True))
    flags = {
        side: running.find_flags(found, sides[side], title=f"detect in {side}")
        for side in ("before", "after")
    }
    first_round = base_completions_path == parent_completions_path
    flags["base"] = flags["before"] if first_round else running.find_flags(found, base)
    names = sorted({c.prompt_set for c in before})
    learned = changes(
        found,
        [[c for c in side if c.prompt_set in params.learned] for side in sides.values()],
        flags,
    )
    own_flags = {key_of(f) for f in flags["before"] if f.detector in params.own}
    distances_from = partial(
        distances,
        updated_path=own_model_path,
        detectors=found,
        mask=params.mask,
        device=models.use(params.runtime),
        prompts=params.divergence_prompts,
        batch_size=params.divergence_batch_size,
    )
    moved = distances_from(parent_model_path, completions=before, flags=flags["before"], whole=True)
    from_base = moved
    if base_model_path != parent_model_path:
        from_base = distances_from(
            base_model_path, completions=base, flags=flags["base"], whole=False
        )
    sets = {}
    for name in names:
        of_set = [[c for c in side if c.prompt_set == name] for side in (base, before, after)]
        unchanged, alike, alike_clean = similarity(of_set[1], of_set[2], own_flags)
        sets[name] = SetMetrics(
            detectors=changes(found, of_set, flags),
            clean_unchanged=unchanged,
            similarity=alike,
            similarity_clean=alike_clean,
            divergence=moved.divergence[name],
            divergence_from_base=from_base.divergence[name],
            quality=Qualities(*(quality(completions, references) for completions in of_set)),
            gates=moved.gates.get(name),
        )
    measured = round_metrics.rounded(
        RoundMetrics(
            round=own_model_path.name, parent=parent_model_path.name, learned=learned, sets=sets
        )
    )
    validation.validate(metrics_suite(asdict(measured)), metrics_path)
    reasons = gate.judge(measured, params.gate, params.inherited)
    measured = replace(measured, gate=Gate(passed=not reasons, reasons="; ".join(reasons)))
    round_metrics.write(measured, metrics_path)
    text = json.dumps(metrics.rounded({"neurons": moved.neurons}), indent=1, ensure_ascii=False)
    artifacts.write_text(text + "\n", neurons_path)


def metrics_suite(report: Mapping[str, Any]) -> Suite:
    """Return what is expected of a round's metrics: numbers that are finite and in range."""
    table = [
        {
            "metric": "/".join(path),
            "finite": math.isfinite(value),
            "in_range": low <= value <= high,
        }
        for path, value in _numbers(report)
        for low, high in [_bounds(path)]
    ]
    bug = "This is a fault in the measurement: please report it with the file."
    return suite(
        "metrics",
        ("metric",),
        table,
        Expected("TableRowCountToBeBetween", bug, {"min_value": 1}),
        true("finite", bug),
        true("in_range", bug),
    )


def _bounds(path: tuple[str, ...]) -> tuple[float, float]:
    """Return between what a metric must lie, given the keys that lead to it."""
    if path[-1] == "difference" or (path[-2:-1] == ("change",) and path[-1] in ("low", "high")):
        return -1.0, 1.0
    if path[-1] in SHARES:
        return SHARE
    if path[-1] == "bleu":
        return 0.0, 100.0 + ROUND_OFF
    return (-ROUND_OFF if path[-2:-1] and path[-2].startswith("divergence") else 0.0), FINITE[1]


def _numbers(
    value: Any, path: tuple[str, ...] = ()
) -> Iterable[tuple[tuple[str, ...], float | int]]:
    """Yield every number in nested mappings with the keys that lead to it."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _numbers(below, (*path, str(key)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


if __name__ == "__main__":
    command(evaluate)
