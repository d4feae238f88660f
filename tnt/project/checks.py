"""Read params.yaml and check all that can be checked without loading a model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tnt import detectors, prompts
from tnt.core import artifacts, hashes
from tnt.core.errors import did_you_mean
from tnt.core.params import load_yaml, parse
from tnt.core.records import BASE, PromptFiles, Split
from tnt.project import layout, pins
from tnt.project.sections import OVERRIDABLE, Project
from tnt.sampling import SamplingParams

OF_ROUNDS = (layout.MODELS, layout.ROUNDS, layout.EVALUATIONS)
"""Where each round has a folder of its own."""


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
        detector = detectors.parse(name, config)
        for file in pins.input_files(detector):
            _refuse_link(file, f"{path}: detectors.{name}")
        detector.build()
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
    users = [(BASE, project.evaluate.prompts, project.respond)]
    for name, round_ in project.rounds.items():
        users.append((name, round_.prompts, project.section(name, "generate")))
    for user, files, sampling in users:
        rows = list(prompts.read_sets(layout.prompt_files(files)))
        seen |= {(name, row.id) for name, row in rows}
        if user == BASE:
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
    """Return the normalised inputs of one split, each with its prompt's id."""
    return {
        hashes.normalised(row.input): f"{name}/{row.id}"
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
    return artifacts.foreign(OF_ROUNDS, rounds)


def refuse_stray_folders(rounds: Mapping[str, Any]) -> None:
    """Raise if a data folder belongs to no listed round."""
    artifacts.refuse_foreign(OF_ROUNDS, rounds)


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
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == BASE:
            raise ValueError(
                f"{path}: a round cannot be called {name!r}. Use lower-case letters, digits and _, "
                "like 'r1'; 'base' is taken."
            )


def _refuse_rounds(project: Project, path: Path) -> None:
    """Raise on an unknown parent, detector or prompt set, and on overrides that do not fit."""
    listed: list[str] = [BASE]
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
        _refuse_patch(project, name, where)
        _refuse_sets(project, name, where)
        listed.append(name)
    _refuse_prompts(project, project.evaluate.prompts, f"{path}: evaluate.prompts")
    _refuse_limits(project.respond, project.evaluate.prompts, f"{path}: respond")
    for prompt_set in project.prompt_sets:
        if not re.fullmatch(r"[\w-]+", prompt_set):
            raise ValueError(
                f"{path}: a prompt set cannot be called {prompt_set!r}. Use letters, digits, _, -."
            )


def _refuse_patch(project: Project, name: str, where: str) -> None:
    """Raise on a patch file that is not there, and on corrections that a patch should learn."""
    patch = project.section(name, "train").patch
    if patch is None:
        return
    for detector in project.rounds[name].detectors:
        if project.detectors[detector].get("corrective"):
            raise ValueError(
                f"{where} trains a patch, and detectors.{detector} is corrective: a patch cannot "
                "learn texts that the model does not say. Set one of the two to null or false."
            )
    if patch.file is not None:
        file = Path(patch.file)
        if not file.is_relative_to(layout.PATCHES) or ".." in file.parts or not file.is_file():
            raise ValueError(
                f"{where}.train.patch.file is {patch.file!r}. Name a file that is there, under "
                f"{layout.PATCHES}."
            )
        _refuse_link(file, f"{where}.train.patch.file")


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
