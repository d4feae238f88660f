"""What each stage of each round obeys: params.yaml, cut into one small mapping per stage."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tnt import detectors, models
from tnt.core.records import BASE, PromptFiles
from tnt.project import layout, pins
from tnt.project.pins import pinned
from tnt.project.sections import Project

WATCHED = 16
"""Validation prompts of each prompt set that a round's training is watched on."""


Resolved = dict[tuple[str, str], dict[str, Any]]
"""What stages obey, by (round, stage); what all rounds share stands in `base`."""


def resolved(project: Project) -> Resolved:
    """Return all that every stage obeys: its params, and as `code` the files that it runs.

    Every file is pinned by its hash, so that a stage's own file says which change re-runs it.
    `compare` is given what the others obey, because the report shows it.
    """
    found = params(project)
    shown: dict[str, dict[str, Any]] = {}
    for (name, stage), values in sorted(found.items()):
        shown.setdefault(name, {})[stage] = values
    compare = found[BASE, "compare"]
    found[BASE, "compare"] = {**compare, "obeyed": shown}
    code = {stage: pins.code(stage) for stage in {stage for _, stage in found}}
    return {(name, stage): {**found[name, stage], "code": code[stage]} for name, stage in found}


def params(project: Project) -> Resolved:
    """Return the params that every stage obeys, with `auto` written out."""
    runtime = asdict(project.runtime)
    if runtime["threads"] == "auto":
        runtime["threads"] = os.cpu_count() or 1
    if runtime["device"] == "auto":
        runtime["device"] = models.available_device()
    model_runtime = {**runtime, "autocast": "none"}  # generation and evaluation run in float32
    evaluated = project.evaluate
    found: Resolved = {
        (BASE, "base"): asdict(project.base),
        (BASE, "prepare"): _prepare(project, evaluated.prompts, evaluated.split, 0),
        (BASE, "respond"): {
            "runtime": model_runtime,
            "sampling": _of_sets(project.respond, "max_new_tokens", evaluated.prompts),
            "max_empty": project.expect.max_empty,
        },
        (BASE, "compare"): {
            "rounds": {name: round_.parent for name, round_ in project.rounds.items()},
            "trained": {name: round_.detectors for name, round_ in project.rounds.items()},
            "detectors": _shown(project, list(project.detectors)),
            "split": evaluated.split,
            "probe": pinned([Path(project.report.probe)]) if project.report.probe else {},
        },
    }
    for name, round_ in project.rounds.items():
        ancestors = project.ancestors(name)
        inherited = [d for a in ancestors for d in project.rounds[a].detectors]
        measured = list(dict.fromkeys([*round_.detectors, *inherited]))
        mask = asdict(project.section(name, "mask"))
        walks = mask["span_tokens"] == "completing"
        sampling = _of_sets(project.section(name, "generate"), "max_new_tokens", round_.prompts)
        train = asdict(project.section(name, "train"))
        ready = (train["patch"] or {}).get("file")
        expect = project.section(name, "expect")
        stages: dict[str, dict[str, Any]] = {
            "prepare": _prepare(project, round_.prompts, "train", WATCHED),
            "generate": {
                "runtime": model_runtime,
                "sampling": sampling,
                "max_empty": expect.max_empty,
            },
            "detect": _shown(project, round_.detectors),
            "rollout": {
                "runtime": runtime,
                "detectors": _detectors(project, round_.detectors if walks else []),
                "sampling": sampling,
                "rollout": asdict(project.section(name, "rollout")),
                "walk": walks,
                "patch": train["patch"] is not None,
            },
            "mask": {
                "mask": mask,
                "corrections": _corrections(project, round_.detectors),
                "negative_share": [expect.min_negative_share, expect.max_negative_share],
            },
            "train": {
                "runtime": runtime,
                "train": train,
                "patch": pinned([Path(ready)]) if ready else {},
            },
            "evaluate": {
                "runtime": model_runtime,
                "detectors": _detectors(project, measured),
                "own": round_.detectors,
                "learned": list(round_.prompts),
                "inherited": list(dict.fromkeys(inherited)),
                "mask": mask,
                "gate": _of_sets(
                    project.section(name, "gate"), "min_clean_unchanged", evaluated.prompts
                ),
                "divergence_prompts": evaluated.divergence_prompts,
                "divergence_batch_size": evaluated.divergence_batch_size,
            },
        }
        found |= {(name, stage): values for stage, values in stages.items()}
    return found


def _prepare(project: Project, files: PromptFiles, split: str, watched: int) -> dict[str, Any]:
    return {
        "prompt_sets": {name: asdict(project.prompt_sets[name]) for name in files},
        "files": {name: pinned(paths) for name, paths in layout.prompt_files(files).items()},
        "split": split,
        "watched": watched,
    }


def _of_sets(section: Any, field: str, used: Iterable[str]) -> dict[str, Any]:
    """Return a section whose `field` may be a mapping by prompt set, without sets not in use."""
    values = asdict(section)
    if isinstance(values[field], dict):
        values[field] = {name: values[field][name] for name in used if name in values[field]}
    return values


def _detectors(project: Project, names: list[str]) -> dict[str, Any]:
    parsed = [detectors.parse(name, project.detectors[name]) for name in names]
    files = {file for detector in parsed for file in pins.input_files(detector)}
    return {
        "instances": {name: project.detectors[name] for name in names},
        "inputs": pinned(sorted(files)),
        "versions": {
            package: version
            for detector in parsed
            for package, version in detector.versions().items()
        },
    }


def _shown(project: Project, names: list[str]) -> dict[str, Any]:
    """Return detectors for a stage that writes down what they found."""
    redact = project.report.redact
    return {
        **_detectors(project, list(dict.fromkeys([*names, *redact]))),
        "instances": {name: project.detectors[name] for name in names},
        "redact": {name: project.detectors[name] for name in redact},
    }


def _corrections(project: Project, names: list[str]) -> dict[str, str]:
    """Return the annotation files whose corrected texts a round learns from, pinned."""
    configs = [project.detectors[name] for name in names]
    corrective = [c for c in configs if c["kind"] == "annotations" and c.get("corrective")]
    return pinned(sorted({Path(config["file"]) for config in corrective}))
