r"""Stage `compare`: every detector over every model, side by side.

    python -m tnt.stages.compare data/prepared data/evaluations data/rounds data/report \
        data/metrics.json data/rounds.csv data/resolved/base/compare.yaml

Runs all detectors that any round names over all models' test completions, so that a later round
which undoes an earlier one shows. Needs no model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from tnt.core import artifacts, validation
from tnt.core.command import command
from tnt.core.expected import one_of, suite, true, unique
from tnt.core.params import STRICT
from tnt.core.records import BASE, Completion, Split
from tnt.core.tables import as_csv, read_numbers
from tnt.core.validation import Expected, Suite
from tnt.detectors import pinned, redaction, running
from tnt.detectors.pinned import DetectorsParams
from tnt.evaluation import metrics, round_metrics
from tnt.report import examples, probe, provenance, site
from tnt.report.comparison import (
    COLUMNS,
    latest_round,
    learned,
    learned_from,
    refuse_unequal,
    rows_of,
    validated_files,
    with_changes,
)


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
    obeyed: dict[str, dict[str, dict[str, Any]]]
    """`base` or a round -> stage -> its params, to be shown."""


def compare(
    prepared_path: Path,
    evaluations_path: Path,
    rounds_path: Path,
    report_path: Path,
    metrics_path: Path,
    table_path: Path,
    *,
    params: CompareParams,
) -> None:
    """Write the report, the latest round's metrics, and the table of all models."""
    artifacts.refuse_foreign((evaluations_path, rounds_path), params.rounds)
    models = [BASE, *params.rounds]
    completions = {
        name: artifacts.read(evaluations_path / name / "completions.parquet", Completion)
        for name in models
    }
    refuse_unequal(completions)
    found, redacting = pinned.build_pinned(params.detectors)
    flags = {
        name: running.find_flags(found, rows, title=f"detect in {name}")
        for name, rows in completions.items()
    }
    measured = {
        name: round_metrics.read(evaluations_path / name / "metrics.json") for name in params.rounds
    }
    rows = rows_of(models, completions, flags, list(found), measured)
    suite = comparison_suite(rows, learned(params.rounds, rounds_path, completions[BASE]))
    validation.validate(suite, table_path)
    labels = probe.read(params.probe)
    own = probe.own(labels, completions)
    probed = {
        name: {**asdict(probe.rate(labels, completions[name])), "own": own[name]}
        for name in models
        if labels
    }

    shown = {name: redaction.redacted(redacting, rows) for name, rows in completions.items()}
    shutil.rmtree(report_path, ignore_errors=True)
    pages = [
        site.RoundPage(
            name=name,
            parent=parent,
            detectors=params.trained[name],
            metrics=measured[name],
            examples=examples.pair(shown[parent], shown[name], flags[parent], flags[name]),
            looked_for=list(found),
            learned_from=learned_from(rounds_path / name / "prompts.parquet"),
            neurons=artifacts.read_json(evaluations_path / name / "neurons.json", "neurons")[
                "neurons"
            ],
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
                "learned": params.obeyed[name]["evaluate"]["learned"],
                "metrics": measured[name],
                "training": read_numbers(rounds_path / name / "training.csv")[1],
            }
            for name, parent in params.rounds.items()
        ],
        "rows": with_changes(rows, params.rounds, completions, flags),
        "probe": probed,
        "split": params.split,
        "validated": validated_files(
            *table_path.parent.glob(f"*{validation.SUFFIX}"),
            *(p for folder in folders for p in folder.rglob(f"*{validation.SUFFIX}")),
        ),
        "params": {
            name: provenance.obeyed(params.obeyed[name], redacting) for name in params.rounds
        },
        "base": provenance.obeyed(params.obeyed[BASE], redacting),
        "hashes": provenance.hashes(folders),
    }
    site.write(pages, metrics.rounded(data), report_path)
    table = as_csv(rows, COLUMNS)
    artifacts.write_text(table, report_path / "rounds.csv")
    artifacts.write_text(table, table_path)
    latest = latest_round(rows, measured, params.rounds, probed)
    artifacts.write_text(json.dumps(latest, indent=1, ensure_ascii=False) + "\n", metrics_path)


def comparison_suite(rows: Sequence[Mapping[str, Any]], learned: Mapping[str, set[str]]) -> Suite:
    """Return what is expected of the table of all models.

    Args:
        rows: One per model, prompt set and detector.
        learned: Round -> those of the prompts that all models are measured on, which it learned
            from. There must be none.
    """
    table = [
        {
            "model": row["model"],
            "prompt_set": row["prompt_set"],
            "detector": row["detector"],
            "within_interval": not row["total"] or row["low"] <= row["flag_rate"] <= row["high"],
            "is_a_share": 0 <= row["flagged"] <= row["total"],
            "measured_prompts_it_learned_from": len(learned.get(row["model"], ())),
        }
        for row in rows
    ]
    key = ("model", "prompt_set", "detector")
    bug = "This is a fault in the measurement: please report it with the file."
    return suite(
        "comparison",
        key,
        table,
        Expected("TableRowCountToBeBetween", bug, {"min_value": 1}),
        unique(key, bug),
        true("within_interval", bug),
        true("is_a_share", bug),
        one_of(
            "measured_prompts_it_learned_from",
            [0],
            "A round must not learn from what measures it: check prompt_sets.<set>.shares and "
            "evaluate.split.",
        ),
    )


if __name__ == "__main__":
    command(compare)
