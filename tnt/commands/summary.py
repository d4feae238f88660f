"""`tnt summary`: what each round changed, in a short table."""

from __future__ import annotations

from collections.abc import Iterator

from tnt.core.artifacts import read_json
from tnt.core.runlog import last_runs
from tnt.core.tables import aligned
from tnt.project import checks, layout
from tnt.rounds.listed import read_metrics


def command() -> None:
    """Show what each round changed, what the stages took, and where the results are."""
    print(summary())


def summary() -> str:
    """Return, as text, what each round changed, what the stages took, and where the results are.

    Raises:
        ValueError: A round was not evaluated yet.
    """
    loaded = checks.load()
    rows = [("round", "prompts", "detector", "before", "after", "95% interval", "clean_unchanged")]
    verdicts = []
    for name, round_ in loaded.rounds.items():
        metrics = read_metrics(name)
        for prompt_set, found in metrics["sets"].items():
            same = found["clean_unchanged"]
            for detector, change in found["detectors"].items():
                after = change["after"]
                rows.append(
                    (
                        name,
                        prompt_set,
                        detector,
                        f"{change['before']['rate']:.1%}",
                        f"{after['rate']:.1%}",
                        f"{after['low']:.1%} to {after['high']:.1%}",
                        f"{same['rate']:.1%} of {same['total']}",
                    )
                )
        gate = metrics["gate"]
        verdict = "passed" if gate["passed"] else f"rejected: {gate['reasons']}"
        verdicts.append(f"{name} (from {round_.parent}): gate {verdict}")
        sets = " and ".join(round_.prompts)
        for detector, change in metrics["learned"].items():
            verdicts.append(
                f"  {detector} on {sets}: {change['before']['rate']:.1%} -> "
                f"{change['after']['rate']:.1%}, p = {change['change']['p_value']:.2g}"
            )
    return "\n".join([*aligned(rows), "", *verdicts, *_probe(), "", *_costs(), *_places()])


def _probe() -> Iterator[str]:
    if not layout.METRICS.is_file():
        return
    probe = read_json(layout.METRICS).get("probe", {})
    if probe:
        rates = ", ".join(f"{model} {rate:.1%}" for model, rate in probe.items())
        yield f"Independent labels of test completions, flagged: {rates}"


def _costs() -> Iterator[str]:
    runs = last_runs()
    if runs:
        each = ", ".join(f"{stage} {run['cpu_s']:.0f}" for stage, run in runs.items())
        total = sum(run["cpu_s"] for run in runs.values())
        yield f"CPU seconds when each stage last ran here: {each}; {total:.0f} in all"


def _places() -> Iterator[str]:
    yield f"Report: {layout.REPORT}/index.html  models: {layout.MODELS}/  metrics: {layout.METRICS}"
