r"""Stage `compare`: every detector over every model, side by side.

    python -m tnt.stages.compare data/prepared data/evaluations data/rounds data/resolved \
        data/report data/metrics.json data/rounds.csv data/resolved/base/compare.yaml

Runs all detectors that any round names over all models' test completions, so that a later round
which undoes an earlier one shows. Needs no model.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from tnt import (
    artifacts,
    detectors,
    examples,
    expectations,
    metrics,
    probe,
    provenance,
    report,
    validation,
)
from tnt.detectors import DetectorsParams
from tnt.layout import BASE, foreign
from tnt.params import STRICT, load_yaml
from tnt.prompts import normalised
from tnt.records import Completion, Flag, Prompt, Split
from tnt.runs import command

MEASURED = ("learned", "sets", "gate")
"""What `evaluate` writes of a round."""
COLUMNS = (
    "order", "model", "prompt_set", "detector", "flagged", "total", "flag_rate", "low", "high",
    "clean_unchanged",
)  # fmt: skip


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class CompareParams:
    """Which rounds, in order, and what to look for."""

    rounds: dict[str, str]
    """Round -> parent."""
    trained: dict[str, list[str]]
    """Round -> its own detectors."""
    detectors: DetectorsParams
    split: Split
    probe: dict[str, str]
    """People's labels: path -> sha256."""


def compare(
    prepared_path: Path,
    evaluations_path: Path,
    rounds_path: Path,
    resolved_path: Path,
    report_path: Path,
    metrics_path: Path,
    table_path: Path,
    *,
    params: CompareParams,
) -> None:
    """Write the report, the latest round's metrics, and the table of all models."""
    _refuse_unlisted(params, evaluations_path, rounds_path)
    models = [BASE, *params.rounds]
    completions = {
        name: artifacts.read(evaluations_path / name / "completions.parquet", Completion)
        for name in models
    }
    _refuse_unequal(completions)
    found, redacting = detectors.build_pinned(params.detectors)
    flags = {
        name: detectors.find_flags(found, rows, title=f"detect in {name}")
        for name, rows in completions.items()
    }
    measured = {
        name: artifacts.read_json(evaluations_path / name / "metrics.json", *MEASURED)
        for name in params.rounds
    }
    rows = _rows(models, completions, flags, list(found), measured)
    suite = expectations.comparison(rows, _learned(params, rounds_path, completions[BASE]))
    validation.validate(suite, table_path)
    labels = probe.read(params.probe)
    probed = {name: probe.rate(labels, completions[name]) for name in models if labels}

    shown = {name: detectors.redacted(redacting, rows) for name, rows in completions.items()}
    shutil.rmtree(report_path, ignore_errors=True)
    pages = [
        report.RoundPage(
            name=name,
            parent=parent,
            detectors=params.trained[name],
            metrics=measured[name],
            examples=examples.pair(shown[parent], shown[name], flags[parent], flags[name]),
            looked_for=list(found),
            learned_from=_learned_from(rounds_path / name / "prompts.parquet"),
        )
        for name, parent in params.rounds.items()
    ]
    folders = (prepared_path, evaluations_path, rounds_path)
    data = {
        "rounds": [
            {
                "name": name,
                "parent": parent,
                "detectors": params.trained[name],
                "learned": load_yaml(resolved_path / name / "evaluate.yaml").get("learned", []),
                "metrics": measured[name],
                "training": provenance.training(rounds_path / name / "training.csv"),
            }
            for name, parent in params.rounds.items()
        ],
        "rows": _with_changes(rows, params.rounds, completions, flags),
        "probe": {name: asdict(rate) for name, rate in probed.items()},
        "split": params.split,
        "validated": _validated(
            *table_path.parent.glob(f"*{validation.SUFFIX}"),
            *(p for folder in folders for p in folder.rglob(f"*{validation.SUFFIX}")),
        ),
        "params": {
            name: provenance.obeyed(resolved_path / name, redacting) for name in params.rounds
        },
        "base": provenance.obeyed(resolved_path / BASE, redacting),
        "hashes": provenance.hashes(folders),
    }
    report.write(pages, metrics.rounded(data), report_path)
    table = _csv(rows)
    artifacts.write_text(table, report_path / "rounds.csv")
    artifacts.write_text(table, table_path)
    latest = _latest(rows, measured, params, probed)
    artifacts.write_text(json.dumps(latest, indent=1, ensure_ascii=False) + "\n", metrics_path)


def _refuse_unlisted(params: CompareParams, *folders: Path) -> None:
    """Raise if there is data of a round that params.yaml does not list."""
    for path in foreign(folders, params.rounds):
        raise ValueError(
            f"{path} belongs to no round in params.yaml. `tnt rounds prune` deletes it; the cache "
            "keeps what was in it."
        )


def _refuse_unequal(completions: dict[str, list[Completion]]) -> None:
    """Raise if a model answered other prompts than the base did."""
    expected = {(c.prompt_id, c.sample) for c in completions[BASE]}
    for name, rows in completions.items():
        if other := sorted(expected ^ {(c.prompt_id, c.sample) for c in rows}):
            raise ValueError(
                f"The completions of {name!r} and of {BASE!r} differ in {other[0]}. Run `dvc "
                "repro`, which makes both again."
            )


def _learned(
    params: CompareParams, rounds_path: Path, measured: list[Completion]
) -> dict[str, set[str]]:
    """Return, per round, the inputs that measure it and that it or an ancestor learned from."""
    tests = {normalised(c.input) for c in measured}
    found: dict[str, set[str]] = {}
    for name, parent in params.rounds.items():
        asked = artifacts.read(rounds_path / name / "prompts.parquet", Prompt)
        watched = {p.prompt_id for p in asked if p.split == "validation"}
        rows = artifacts.read(rounds_path / name / "completions.parquet", Completion)
        inputs = {normalised(c.input) for c in rows if c.prompt_id not in watched}
        found[name] = (tests & inputs) | found.get(parent, set())
    return found


def _learned_from(path: Path) -> dict[str, int]:
    """Return how many prompts of each prompt set a round learned from."""
    asked = artifacts.read(path, Prompt)
    return dict(Counter(p.prompt_set for p in asked if p.split == "train"))


def _validated(*paths: Path) -> list[dict[str, Any]]:
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


def _rows(
    models: list[str],
    completions: dict[str, list[Completion]],
    flags: dict[str, list[Flag]],
    names: list[str],
    measured: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return one row per model, prompt set and detector."""
    rows = []
    for order, model in enumerate(models):
        for prompt_set in sorted({c.prompt_set for c in completions[model]}):
            of_set = [c for c in completions[model] if c.prompt_set == prompt_set]
            for detector in names:
                keys = {(f.prompt_id, f.sample) for f in flags[model] if f.detector == detector}
                found = metrics.rounded(metrics.flag_rate(of_set, keys))
                same = measured.get(model, {}).get("sets", {}).get(prompt_set, {})
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
                        "clean_unchanged": same.get("clean_unchanged", {}).get("rate"),
                    }
                )
    return rows


def _with_changes(
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


def _latest(
    rows: list[dict[str, Any]],
    measured: dict[str, dict[str, Any]],
    params: CompareParams,
    probed: dict[str, metrics.Rate],
) -> dict[str, Any]:
    """Return the latest round's metrics under stable names, and its change from its parent."""
    latest = next(reversed(params.rounds), BASE)
    parent = params.rounds.get(latest)
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
            "clean_unchanged": {s: f["clean_unchanged"]["rate"] for s, f in own["sets"].items()},
            "divergence": {s: f["divergence"]["forward"] for s, f in own["sets"].items()},
            "gate_passed": own["gate"]["passed"],
        }
    if probed:
        summary["probe"] = {name: rate.rate for name, rate in probed.items()}
    return metrics.rounded(summary)


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    command(compare)
