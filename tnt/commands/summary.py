"""`tnt summary`: what each round changed, in a short table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tnt.core.artifacts import read_json
from tnt.core.runlog import last_runs
from tnt.core.tables import aligned
from tnt.evaluation.metrics import percent
from tnt.project import checks, layout
from tnt.rounds.listed import read_metrics

if TYPE_CHECKING:
    from tnt.evaluation.round_metrics import RoundMetrics

COLUMNS = ("round", "prompts", "detector", "before", "after", "95% interval", "clean_unchanged")
"""Those of `table` that fit on a screen."""


def command() -> None:
    """Show what each round changed, what the stages took, and where the results are."""
    print(summary())


def summary() -> str:
    """Return, as text, what each round changed, what the stages took, and where the results are.

    Raises:
        ValueError: A round was not evaluated yet.
    """
    loaded = checks.load()
    rows: list[dict[str, str]] = []
    verdicts = []
    for name, round_ in loaded.rounds.items():
        metrics = read_metrics(name)
        rows += table(metrics)
        gate = metrics.gate
        verdict = "passed" if gate.passed else f"rejected: {gate.reasons}"
        verdicts.append(f"{name} (from {round_.parent}): gate {verdict}")
        sets = " and ".join(round_.prompts)
        for detector, change in metrics.learned.items():
            verdicts.append(
                f"  {detector} on {sets}: {change.before.percent} -> "
                f"{change.after.percent}, p = {change.change.p_value:.2g}"
            )
    shown = aligned([COLUMNS, *(tuple(row[column] for column in COLUMNS) for row in rows)])
    return "\n".join([*shown, "", *verdicts, *_probe(), "", *_costs(), *_places()])


def table(metrics: RoundMetrics) -> list[dict[str, str]]:
    """Return what a round changed from its parent, one row per prompt set and detector."""
    return [
        {
            "round": metrics.round,
            "prompts": prompt_set,
            "detector": detector,
            "before": change.before.percent,
            "after": change.after.percent,
            "95% interval": change.after.between,
            "p": f"{change.change.p_value:.2g}",
            "clean_unchanged": f"{found.clean_unchanged.percent} of {found.clean_unchanged.total}",
        }
        for prompt_set, found in metrics.sets.items()
        for detector, change in found.detectors.items()
    ]


def _probe() -> Iterator[str]:
    if not layout.METRICS.is_file():
        return
    probe = read_json(layout.METRICS).get("probe", {})
    if probe:
        rates = (f"{m} {percent(found['rate'])} of {found['total']}" for m, found in probe.items())
        yield f"Independent labels of test completions, flagged: {', '.join(rates)}"
    if unlabelled := [model for model, found in probe.items() if not found["own"]]:
        yield (
            f"  Of {' and '.join(unlabelled)} no answer is labelled but what an earlier model gave "
            "too, word for word: label test completions anew."
        )


def _costs() -> Iterator[str]:
    runs = last_runs()
    if runs:
        each = ", ".join(f"{stage} {run['cpu_s']:.0f}" for stage, run in runs.items())
        total = sum(run["cpu_s"] for run in runs.values())
        yield f"CPU seconds when each stage last ran here: {each}; {total:.0f} in all"


def _places() -> Iterator[str]:
    yield f"Report: {layout.REPORT}/index.html  models: {layout.MODELS}/  metrics: {layout.METRICS}"
