"""The whole of params.yaml: its sections, its rounds, and what each stage of each round obeys.

`load` checks everything that can be checked without loading a model; `resolved` splits it into one
small mapping per stage, so that a change re-runs only the stages that obey what changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from tnt import detectors, layout, models, prompts
from tnt.artifacts import sha256_of
from tnt.expectations import ExpectParams
from tnt.gate import GateParams
from tnt.masking import MaskParams
from tnt.models import BaseParams, RuntimeParams
from tnt.params import STRICT, did_you_mean, load_yaml, merge, parse
from tnt.prompts import PromptSetParams
from tnt.records import Split
from tnt.sampling import SamplingParams
from tnt.training import TrainParams

OVERRIDABLE = {
    "generate": SamplingParams,
    "mask": MaskParams,
    "train": TrainParams,
    "expect": ExpectParams,
    "gate": GateParams,
}
"""Sections of which a round may override any key."""

Overrides = dict[str, Any] | None
PromptFiles = dict[str, list[str]]
"""Prompt set -> file names in `data/prompts/<set>/`."""
WATCHED = 16
"""Validation prompts of each prompt set that a round's training is watched on."""


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class RoundParams:
    """One targeted update."""

    parent: str
    """`base` or an earlier round: the round's original."""
    detectors: list[str]
    """What is flagged for training; names in `detectors:`."""
    prompts: PromptFiles
    """The prompt files it learns from."""
    generate: Overrides = None
    mask: Overrides = None
    train: Overrides = None
    expect: Overrides = None
    gate: Overrides = None


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class EvaluateParams:
    """What every model is measured on."""

    prompts: PromptFiles
    """Pinned too: extending it measures every model again."""
    split: Split = "test"
    """Search settings on `validation`; `test` is for the gate and the final numbers."""
    divergence_prompts: PositiveInt
    """Prompts of each set, chosen by hash, on which divergences are computed."""
    divergence_batch_size: PositiveInt = 8


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class ReportParams:
    """What `compare` shows besides the metrics."""

    probe: str | None = None
    """People's labels of test completions, in `data/annotations/`: reported, never trained on."""
    redact: list[str] = field(default_factory=list)
    """Detectors whose findings are blotted out in reports, logs and flags.parquet; prompts and
    completions stay whole, since a model learns from them."""


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class Project:
    """params.yaml, section by section; `generate`, `mask`, `train` and `gate` are the defaults."""

    runtime: RuntimeParams
    base: BaseParams
    prompt_sets: dict[str, PromptSetParams]
    detectors: dict[str, dict[str, Any]]
    generate: SamplingParams
    mask: MaskParams
    train: TrainParams
    respond: SamplingParams
    evaluate: EvaluateParams
    expect: ExpectParams
    gate: GateParams
    report: ReportParams
    rounds: dict[str, RoundParams]

    def section(self, round_name: str, section: str) -> Any:
        """Return a section as a round obeys it: the default with the round's overrides."""
        override = getattr(self.rounds[round_name], section) or {}
        where = f"{layout.PARAMS}: rounds.{round_name}.{section}"
        default = asdict(getattr(self, section))
        return parse(merge(default, override), OVERRIDABLE[section], where=where)

    def ancestors(self, round_name: str) -> list[str]:
        """Return the rounds that a round builds on, nearest first."""
        parent = self.rounds[round_name].parent
        return [] if parent == layout.BASE else [parent, *self.ancestors(parent)]


def load(path: Path = layout.PARAMS) -> Project:
    """Return the project that params.yaml describes.

    Raises:
        ValueError: Something in it cannot work; one sentence with the key, the value, the remedy.
    """
    values = load_yaml(path)
    for key in values:
        names = [field.name for field in fields(Project)]
        if key not in names:
            raise ValueError(f"{path}: unknown section {key!r}.{did_you_mean(key, names)}")
    _refuse_round_names(values.get("rounds"), path)
    project = parse(values, Project, where=str(path))
    _refuse_rounds(project, path)
    for name, config in project.detectors.items():
        for file in detectors.input_files(name, config):
            _refuse_link(file, f"{path}: detectors.{name}")
        detectors.build(name, config)
    for name in project.report.redact:
        if name not in project.detectors:
            raise ValueError(
                f"{path}: report.redact names {name!r}, which `detectors:` does not define."
                f"{did_you_mean(name, project.detectors)}"
            )
    probe = Path(project.report.probe or layout.ANNOTATIONS / "none")
    if not probe.is_relative_to(layout.ANNOTATIONS) or ".." in probe.parts or probe.is_dir():
        raise ValueError(
            f"{path}: report.probe is {project.report.probe!r}. Name a file under "
            f"{layout.ANNOTATIONS}."
        )
    _refuse_link(probe, f"{path}: report.probe")
    return project


def resolved(project: Project) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what every stage obeys, by (round, stage); what all rounds share stands in `base`.

    `auto` is written out, and every file that is named is pinned by its hash.
    """
    runtime = asdict(project.runtime)
    if runtime["threads"] == "auto":
        runtime["threads"] = os.cpu_count() or 1
    if runtime["device"] == "auto":
        runtime["device"] = models.available_device()
    model_runtime = {**runtime, "autocast": "none"}  # generation and evaluation run in float32
    evaluated = project.evaluate
    found: dict[tuple[str, str], dict[str, Any]] = {
        (layout.BASE, "base"): asdict(project.base),
        (layout.BASE, "prepare"): _prepare(project, evaluated.prompts, evaluated.split, 0),
        (layout.BASE, "respond"): {
            "runtime": model_runtime,
            "sampling": _of_sets(project.respond, "max_new_tokens", evaluated.prompts),
            "max_empty": project.expect.max_empty,
        },
        (layout.BASE, "compare"): {
            "rounds": {name: round_.parent for name, round_ in project.rounds.items()},
            "trained": {name: round_.detectors for name, round_ in project.rounds.items()},
            "detectors": _shown(project, list(project.detectors)),
            "split": evaluated.split,
            "probe": _pinned([Path(project.report.probe)]) if project.report.probe else {},
        },
    }
    for name, round_ in project.rounds.items():
        ancestors = project.ancestors(name)
        inherited = [d for a in ancestors for d in project.rounds[a].detectors]
        measured = list(dict.fromkeys([*round_.detectors, *inherited]))
        mask = asdict(project.section(name, "mask"))
        expect = project.section(name, "expect")
        stages: dict[str, dict[str, Any]] = {
            "prepare": _prepare(project, round_.prompts, "train", WATCHED),
            "generate": {
                "runtime": model_runtime,
                "sampling": _of_sets(
                    project.section(name, "generate"), "max_new_tokens", round_.prompts
                ),
                "max_empty": expect.max_empty,
            },
            "detect": _shown(project, round_.detectors),
            "mask": {
                "mask": mask,
                "corrections": _corrections(project, round_.detectors),
                "negative_share": [expect.min_negative_share, expect.max_negative_share],
            },
            "train": {"runtime": runtime, "train": asdict(project.section(name, "train"))},
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


def check_prompts(project: Project, tokenizer: Any = None, config: Any = None) -> int:
    """Read every prompt file that the project names; return the number of prompts.

    Raises:
        ValueError: A file is broken, a prompt too long, or the same input is learned from in one
            prompt set and measured in another.

    Args:
        project: Whose prompt files.
        tokenizer: If given, prompts are also rendered with its chat template and counted.
        config: The model's; goes with the tokenizer.
    """
    from tnt.sampling import refuse_long

    seen: set[tuple[str, str]] = set()
    measured: dict[str, str] = {}
    users = [(layout.BASE, project.evaluate.prompts, project.respond)]
    for name, round_ in project.rounds.items():
        users.append((name, round_.prompts, project.section(name, "generate")))
    for user, files, sampling in users:
        rows = list(prompts.read_sets(files, layout.PROMPTS))
        seen |= {(name, row.id) for name, row in rows}
        if user == layout.BASE:
            measured = _inputs(project, rows, project.evaluate.split)
        else:
            _refuse_shared(_inputs(project, rows, "train"), measured, user)
        if tokenizer is not None:
            rendered = [
                prompts.render(row, name, project.prompt_sets[name], tokenizer)
                for name, row in rows
            ]
            refuse_long(rendered, config, sampling)
    return len(seen)


def _inputs(
    project: Project, rows: list[tuple[str, prompts.RawPrompt]], split: Split
) -> dict[str, str]:
    """Return the inputs of one split, as duplicates are told by, each with its prompt's id."""
    return {
        prompts.normalised(row.input): f"{name}/{row.id}"
        for name, row in rows
        if prompts.split_of(row.input, project.prompt_sets[name].shares) == split
    }


def _refuse_shared(learned: dict[str, str], measured: dict[str, str], name: str) -> None:
    """Raise if a round learns from an input that it is measured by, under whatever id."""
    for text in sorted(learned.keys() & measured.keys()):
        raise ValueError(
            f"The prompts {learned[text]!r} and {measured[text]!r} have the same input: {name} "
            "would learn from the first and be measured by the second. Give both prompt sets the "
            "same shares, or leave one of the two out."
        )


def stray_folders(rounds: Mapping[str, Any]) -> list[Path]:
    """Return the data folders that belong to no listed round."""
    return layout.foreign((layout.MODELS, layout.ROUNDS, layout.EVALUATIONS), rounds)


def refuse_stray_folders(rounds: Mapping[str, Any]) -> None:
    """Raise if a data folder belongs to no listed round."""
    if stray := stray_folders(rounds):
        raise ValueError(
            f"{stray[0]} belongs to no round in {layout.PARAMS} (which lists {[*rounds]}). "
            "`tnt rounds prune` deletes such folders; the cache keeps what was in them."
        )


def _refuse_round_names(rounds: Any, path: Path) -> None:
    """Raise on keys that DVC's templating would drop without a word."""
    if not isinstance(rounds, dict):
        raise ValueError(
            f"{path}: rounds is {rounds!r}, not a mapping. Write `rounds: {{}}` for none."
        )
    for name in rounds:
        if not isinstance(name, str):
            raise ValueError(
                f"{path}: the round {name!r} is a number, and DVC would drop its stages without a "
                f"word. Call it 'r{name}'."
            )
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == layout.BASE:
            raise ValueError(
                f"{path}: a round cannot be called {name!r}. Use lower-case letters, digits and _, "
                "like 'r1'; 'base' is taken."
            )


def _refuse_rounds(project: Project, path: Path) -> None:
    """Raise on an unknown parent, detector or prompt set, and on overrides that do not fit."""
    listed: list[str] = [layout.BASE]
    for name, round_ in project.rounds.items():
        where = f"{path}: rounds.{name}"
        if round_.parent not in listed:
            later = round_.parent in project.rounds
            why = "listed at or after it, which makes a cycle" if later else "no round"
            raise ValueError(
                f"{where}.parent is {round_.parent!r}, which is {why}."
                + (" Name an earlier round." if later else did_you_mean(round_.parent, listed))
            )
        if not round_.detectors:
            raise ValueError(
                f"{where}.detectors is []. Name at least one of {[*project.detectors]}."
            )
        for detector in round_.detectors:
            if detector not in project.detectors:
                raise ValueError(
                    f"{where}.detectors names {detector!r}, which `detectors:` does not define."
                    f"{did_you_mean(detector, project.detectors)}"
                )
        _refuse_prompts(project, round_.prompts, f"{where}.prompts")
        for section in OVERRIDABLE:
            project.section(name, section)
        _refuse_sets(project, name, where)
        listed.append(name)
    _refuse_prompts(project, project.evaluate.prompts, f"{path}: evaluate.prompts")
    _refuse_limits(project.respond, project.evaluate.prompts, f"{path}: respond")
    for prompt_set in project.prompt_sets:
        if not re.fullmatch(r"[\w-]+", prompt_set):
            raise ValueError(
                f"{path}: a prompt set cannot be called {prompt_set!r}. Use letters, digits, _, -."
            )


def _refuse_sets(project: Project, name: str, where: str) -> None:
    """Raise on bounds of prompt sets that there are not, and on sets without a bound they need."""
    generate, gate = project.section(name, "generate"), project.section(name, "gate")
    _refuse_limits(generate, project.rounds[name].prompts, f"{where}.generate")
    for prompt_set in project.rounds[name].prompts:
        if not project.prompt_sets[prompt_set].shares.train:
            raise ValueError(
                f"{where} learns from {prompt_set!r}, but prompt_sets.{prompt_set}.shares.train is "
                "0. Raise it, or leave the set out."
            )
    for prompt_set in gate.min_clean_unchanged:
        if prompt_set not in project.prompt_sets:
            raise ValueError(
                f"{where}: gate.min_clean_unchanged names {prompt_set!r}, which is no prompt set."
                f"{did_you_mean(prompt_set, project.prompt_sets)}"
            )


def _refuse_limits(sampling: SamplingParams, prompt_sets: Iterable[str], where: str) -> None:
    """Raise if a prompt set is drawn from without a bound on its completions."""
    for prompt_set in prompt_sets:
        try:
            sampling.limit(prompt_set)
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from error


def _refuse_prompts(project: Project, files: PromptFiles, where: str) -> None:
    if not any(files.values()):
        raise ValueError(f"{where} names no prompt file. Name one under {layout.PROMPTS}/<set>/.")
    for prompt_set, names in files.items():
        if prompt_set not in project.prompt_sets:
            raise ValueError(
                f"{where} names {prompt_set!r}, which `prompt_sets:` does not define."
                f"{did_you_mean(prompt_set, project.prompt_sets)}"
            )
        for name in names:
            file = layout.PROMPTS / prompt_set / name
            if Path(name).name != name or not os.path.lexists(file):
                raise ValueError(f"{where} names {name!r}, but {file} does not exist. Create it.")
            _refuse_link(file, where)
            if not file.is_file():
                raise ValueError(
                    f"{where} names {name!r}, but {file} is no file. Write one prompt a line to it."
                )


def _refuse_link(file: Path, where: str) -> None:
    """Raise if a file is, or lies behind, a link out of the project."""
    try:
        real = Path(os.path.realpath(file, strict=True))
    except OSError as error:
        if not file.is_symlink():
            return  # it does not exist: that is said elsewhere
        raise ValueError(f"{where} names {str(file)!r}, a link to nothing. Mend it.") from error
    if not real.is_relative_to(Path().resolve()):
        raise ValueError(
            f"{where} names {str(file)!r}, a link to {str(real)!r}. That is outside the project, "
            "where neither DVC nor a clone follows it. Put a copy in its place."
        )


def _prepare(project: Project, files: PromptFiles, split: str, watched: int) -> dict[str, Any]:
    pinned = {
        prompt_set: {name: sha256_of(layout.PROMPTS / prompt_set / name) for name in names}
        for prompt_set, names in files.items()
    }
    used = {name: asdict(project.prompt_sets[name]) for name in files}
    return {"prompt_sets": used, "files": pinned, "split": split, "watched": watched}


def _of_sets(section: Any, field: str, used: Iterable[str]) -> dict[str, Any]:
    """Return a section whose `field` may be a mapping by prompt set, without sets not in use."""
    values = asdict(section)
    if isinstance(values[field], dict):
        values[field] = {name: values[field][name] for name in used if name in values[field]}
    return values


def _detectors(project: Project, names: list[str]) -> dict[str, Any]:
    files = [f for name in names for f in detectors.input_files(name, project.detectors[name])]
    return {
        "instances": {name: project.detectors[name] for name in names},
        "inputs": _pinned(sorted(set(files))),
        "versions": {
            package: version
            for name in names
            for package, version in detectors.package_versions(
                name, project.detectors[name]
            ).items()
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
    return _pinned(sorted({Path(config["file"]) for config in corrective}))


def _pinned(files: list[Path]) -> dict[str, str]:
    return {file.as_posix(): sha256_of(file) for file in files}
