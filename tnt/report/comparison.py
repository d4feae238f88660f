"""All models side by side: the rows that `compare` writes and the report shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tnt.core import artifacts
from tnt.core.hashes import normalised
from tnt.core.records import BASE, Completion, Flag, Prompt
from tnt.evaluation import metrics
from tnt.evaluation.round_metrics import RoundMetrics

COLUMNS = (
    "order", "model", "prompt_set", "detector", "flagged", "total", "flag_rate", "low", "high",
    "clean_unchanged",
)  # fmt: skip


def refuse_unequal(completions: dict[str, list[Completion]]) -> None:
    """Raise if a model answered other prompts than the base did."""
    expected = {(c.prompt_id, c.sample) for c in completions[BASE]}
    for name, rows in completions.items():
        if other := sorted(expected ^ {(c.prompt_id, c.sample) for c in rows}):
            raise ValueError(
                f"The completions of {name!r} and of {BASE!r} differ in {other[0]}. Run `dvc "
                "repro`, which makes both again."
            )


def learned(
    parents: Mapping[str, str], rounds_path: Path, measured: list[Completion]
) -> dict[str, set[str]]:
    """Return, per round, the inputs that measure it and that it or an ancestor learned from."""
    tests = {normalised(c.input) for c in measured}
    found: dict[str, set[str]] = {}
    for name, parent in parents.items():
        asked = artifacts.read(rounds_path / name / "prompts.parquet", Prompt)
        watched = {p.prompt_id for p in asked if p.split == "validation"}
        rows = artifacts.read(rounds_path / name / "completions.parquet", Completion)
        inputs = {normalised(c.input) for c in rows if c.prompt_id not in watched}
        found[name] = (tests & inputs) | found.get(parent, set())
    return found


def learned_from(path: Path) -> dict[str, int]:
    """Return how many prompts of each prompt set a round learned from."""
    asked = artifacts.read(path, Prompt)
    return dict(Counter(p.prompt_set for p in asked if p.split == "train"))


def validated_files(*paths: Path) -> list[dict[str, Any]]:
    """Return what was checked of every artifact, from the files that say so."""
    results = []
    for path in sorted(paths):
        found = artifacts.read_json(path, "suite", "rows", "results")
        results.append(
            {
                "folder": path.parent.as_posix(),
                "suite": found["suite"],
                "rows": found["rows"],
                "met": sum(one["success"] for one in found["results"]),
                "expectations": len(found["results"]),
            }
        )
    return results


def rows_of(
    models: list[str],
    completions: dict[str, list[Completion]],
    flags: dict[str, list[Flag]],
    names: list[str],
    measured: dict[str, RoundMetrics],
) -> list[dict[str, Any]]:
    """Return one row per model, prompt set and detector."""
    rows = []
    for order, model in enumerate(models):
        sets = measured[model].sets if model in measured else {}
        for prompt_set in sorted({c.prompt_set for c in completions[model]}):
            of_set = [c for c in completions[model] if c.prompt_set == prompt_set]
            for detector in names:
                keys = {(f.prompt_id, f.sample) for f in flags[model] if f.detector == detector}
                found = metrics.rounded(metrics.flag_rate(of_set, keys))
                of_round = sets.get(prompt_set)
                rows.append(
                    {
                        "order": order,
                        "model": model,
                        "prompt_set": prompt_set,
                        "detector": detector,
                        "flagged": found["flagged"],
                        "total": found["total"],
                        "flag_rate": found["rate"],
                        "low": found["low"],
                        "high": found["high"],
                        "clean_unchanged": of_round.clean_unchanged.rate if of_round else None,
                    }
                )
    return rows


def with_changes(
    rows: list[dict[str, Any]],
    parents: dict[str, str],
    completions: dict[str, list[Completion]],
    flags: dict[str, list[Flag]],
) -> list[dict[str, Any]]:
    """Return the rows, each with its paired test against the model's parent; None for the base."""
    found = []
    for row in rows:
        change = None
        if parent := parents.get(row["model"]):
            change = metrics.change(
                _of_set(row, completions[parent]),
                _of_set(row, completions[row["model"]]),
                _flagged(row, flags[parent]),
                _flagged(row, flags[row["model"]]),
            )
        found.append({**row, "change": change})
    return found


def _of_set(row: dict[str, Any], completions: list[Completion]) -> list[Completion]:
    return [c for c in completions if c.prompt_set == row["prompt_set"]]


def _flagged(row: dict[str, Any], flags: list[Flag]) -> set[metrics.Key]:
    return {(f.prompt_id, f.sample) for f in flags if f.detector == row["detector"]}


def latest_round(
    rows: list[dict[str, Any]],
    measured: dict[str, RoundMetrics],
    parents: dict[str, str],
    probed: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Return the latest round's metrics under stable names, and its change from its parent."""
    latest = next(reversed(parents), BASE)
    parent = parents.get(latest)
    rates: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    by_key = {(r["model"], r["prompt_set"], r["detector"]): r["flag_rate"] for r in rows}
    for (model, prompt_set, detector), rate in by_key.items():
        if model == latest:
            rates.setdefault(prompt_set, {})[detector] = rate
            if parent is not None:
                difference = rate - by_key[parent, prompt_set, detector]
                changes.setdefault(prompt_set, {})[detector] = difference
    summary: dict[str, Any] = {"round": latest, "flag_rate": rates}
    if parent is not None:
        own = measured[latest]
        summary |= {
            "parent": parent,
            "change_from_parent": changes,
            "clean_unchanged": {s: f.clean_unchanged.rate for s, f in own.sets.items()},
            "divergence": {s: f.divergence.forward for s, f in own.sets.items()},
            "gate_passed": own.gate.passed,
        }
    if probed:
        kept = ("flagged", "total", "rate", "own")
        summary["probe"] = {n: {key: found[key] for key in kept} for n, found in probed.items()}
    return metrics.rounded(summary)
