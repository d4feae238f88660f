"""Whether what params.yaml names is there: rounds, detectors, prompt sets, files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from tnt.core.errors import Collected, did_you_mean
from tnt.core.records import BASE, PromptFiles
from tnt.project import layout
from tnt.project.sections import Project
from tnt.sampling import SamplingParams


def collect(project: Project, path: Path, collected: Collected) -> None:
    """Collect what is wrong with names that stand for something: rounds, detectors, files."""
    _collect_rounds(project, path, collected)
    for name in project.report.redact:
        with collected:
            _refuse_unknown_detector(project, name, f"{path}: report.redact")
    probe = Path(project.report.probe or layout.ANNOTATIONS / "none")
    with collected:
        if not probe.is_relative_to(layout.ANNOTATIONS) or ".." in probe.parts or probe.is_dir():
            raise ValueError(
                f"{path}: report.probe is {project.report.probe!r}. Name a file under "
                f"{layout.ANNOTATIONS}."
            )
        refuse_link(probe, f"{path}: report.probe")


def _collect_rounds(project: Project, path: Path, collected: Collected) -> None:
    """Collect unknown parents, detectors, prompt sets and files, and overrides that do not fit."""
    listed: list[str] = [BASE]
    files: dict[tuple[str, str], str] = {}
    for name, round_ in project.rounds.items():
        where = f"{path}: rounds.{name}"
        with collected:
            _refuse_parent(round_.parent, listed, project, where)
        with collected:
            if not round_.detectors:
                raise ValueError(
                    f"{where}.detectors is []. Name at least one of {[*project.detectors]}."
                )
        for detector in round_.detectors:
            with collected:
                _refuse_unknown_detector(project, detector, f"{where}.detectors")
        _collect_sets(project, round_.prompts, f"{where}.prompts", collected, files)
        with collected:
            _refuse_patch(project, name, where)
        _collect_bounds(project, name, path, collected)
        listed.append(name)
    evaluated = project.evaluate.prompts
    _collect_sets(project, evaluated, f"{path}: evaluate.prompts", collected, files)
    _collect_limits(project.respond, evaluated, f"{path}: respond", collected)
    for (prompt_set, file), where in files.items():
        with collected:
            _refuse_file(prompt_set, file, where)
    for prompt_set in project.prompt_sets:
        with collected:
            if not re.fullmatch(r"[\w-]+", prompt_set):
                raise ValueError(
                    f"{path}: a prompt set cannot be called {prompt_set!r}. Use letters, digits, "
                    "_, -."
                )


def _refuse_parent(parent: str, listed: list[str], project: Project, where: str) -> None:
    if parent not in listed:
        later = parent in project.rounds
        why = "listed at or after it, which makes a cycle" if later else "no round"
        raise ValueError(
            f"{where}.parent is {parent!r}, which is {why}."
            + (" Name an earlier round." if later else did_you_mean(parent, listed))
        )


def _refuse_unknown_detector(project: Project, name: str, where: str) -> None:
    if name not in project.detectors:
        raise ValueError(
            f"{where} names {name!r}, which `detectors:` does not define."
            f"{did_you_mean(name, project.detectors)}"
        )


def _refuse_patch(project: Project, name: str, where: str) -> None:
    """Raise on a patch file that is not there, and on corrections that a patch should learn."""
    patch = project.section(name, "train").patch
    if patch is None:
        return
    for detector in project.rounds[name].detectors:
        if project.detectors.get(detector, {}).get("corrective"):
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
        refuse_link(file, f"{where}.train.patch.file")


def _collect_bounds(project: Project, name: str, path: Path, collected: Collected) -> None:
    """Collect bounds of prompt sets that there are not, and sets without a bound they need."""
    round_, where = project.rounds[name], f"{path}: rounds.{name}"
    generate, gate = project.section(name, "generate"), project.section(name, "gate")
    owner = where if round_.generate else f"{path}"
    known = [name for name in round_.prompts if name in project.prompt_sets]
    _collect_limits(generate, known, f"{owner}: generate", collected)
    for prompt_set in known:
        with collected:
            if not project.prompt_sets[prompt_set].shares.train:
                raise ValueError(
                    f"{where} learns from {prompt_set!r}, but "
                    f"prompt_sets.{prompt_set}.shares.train is 0. Raise it, or leave the set out."
                )
    owner = where if round_.gate else f"{path}"
    for prompt_set in gate.min_clean_unchanged:
        with collected:
            if prompt_set not in project.prompt_sets:
                raise ValueError(
                    f"{owner}: gate.min_clean_unchanged names {prompt_set!r}, which is no prompt "
                    f"set.{did_you_mean(prompt_set, project.prompt_sets)}"
                )


def _collect_limits(
    sampling: SamplingParams, prompt_sets: Iterable[str], where: str, collected: Collected
) -> None:
    """Collect prompt sets that are drawn from without a bound on their completions."""
    for prompt_set in prompt_sets:
        with collected:
            try:
                sampling.limit(prompt_set)
            except ValueError as error:
                raise ValueError(f"{where}.{error}") from error


def _collect_sets(
    project: Project,
    named: PromptFiles,
    where: str,
    collected: Collected,
    files: dict[tuple[str, str], str],
) -> None:
    """Collect what names no prompt file or an unknown set; add to `files` who first names each."""
    with collected:
        if not any(named.values()):
            raise ValueError(
                f"{where} names no prompt file. Name one under {layout.PROMPTS}/<set>/."
            )
    for prompt_set, names in named.items():
        with collected:
            if prompt_set not in project.prompt_sets:
                raise ValueError(
                    f"{where} names {prompt_set!r}, which `prompt_sets:` does not define."
                    f"{did_you_mean(prompt_set, project.prompt_sets)}"
                )
            for name in names:
                files.setdefault((prompt_set, name), where)


def _refuse_file(prompt_set: str, name: str, where: str) -> None:
    """Raise if a prompt file is not there, or not a file of the project."""
    file = layout.PROMPTS / prompt_set / name
    if Path(name).name != name or not os.path.lexists(file):
        raise ValueError(f"{where} names {name!r}, but {file} does not exist. Create it.")
    refuse_link(file, where)
    if not file.is_file():
        raise ValueError(
            f"{where} names {name!r}, but {file} is no file. Write one prompt a line to it."
        )


def refuse_link(file: Path, where: str) -> None:
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
