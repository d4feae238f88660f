"""Read params.yaml and check all that can be checked without loading a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tnt import detectors, prompts
from tnt.core import artifacts, hashes
from tnt.core.errors import Collected
from tnt.core.params import load_yaml, parse
from tnt.core.records import BASE, Split
from tnt.project import layout, pins, references, sections
from tnt.project.sections import Project

OF_ROUNDS = (layout.MODELS, layout.ROUNDS, layout.EVALUATIONS)
"""Where each round has a folder of its own."""


def load(path: Path = layout.PARAMS) -> Project:
    """Return the project that params.yaml describes.

    Raises:
        Faults: Things in it that cannot work; one sentence for each with the key, the value, the
            remedy. What its names stand for is only looked at where all sections are valid.
    """
    values = load_yaml(path)
    collected, project = Collected(), None
    names = values.get("rounds")
    collected.lines += _faults_of_names(names, path)
    values["rounds"] = {str(k): v for k, v in names.items()} if isinstance(names, dict) else {}
    with collected:
        project = parse(values, Project, where=str(path), called="section")
    collected.lines += (overrides := sections.faults_of_overrides(values, path))
    configs = values.get("detectors")
    for name, config in configs.items() if isinstance(configs, dict) else ():
        if isinstance(config, dict):
            with collected:
                _refuse_detector(name, config, path)
    if project is not None and not overrides:
        references.collect(project, path, collected)
    collected.refuse()
    assert project is not None
    return project


def _refuse_detector(name: str, config: dict[str, Any], path: Path) -> None:
    """Raise if a detector cannot be built, or reads what lies elsewhere."""
    detector = detectors.parse(name, config)
    for file in pins.input_files(detector):
        references.refuse_link(file, f"{path}: detectors.{name}")
    detector.build()


def check_prompts(project: Project, tokenizer: Any = None, config: Any = None) -> int:
    """Read every prompt file that the project names; return the number of prompts.

    Raises:
        Faults: A file is broken, a prompt too long, or the same input is learned from in one
            prompt set and measured in another; the first fault of each round's files.

    Args:
        project: Whose prompt files.
        tokenizer: If given, prompts are also rendered with its chat template and counted.
        config: The model's; goes with the tokenizer.
    """
    from tnt.sampling import refuse_long

    seen: set[tuple[str, str]] = set()
    measured: dict[str, str] = {}
    learned: dict[str, tuple[str, str]] = {}
    users = [(BASE, project.evaluate.prompts, project.respond)]
    for name, round_ in project.rounds.items():
        users.append((name, round_.prompts, project.section(name, "generate")))
    collected = Collected()
    for user, files, sampling in users:
        with collected:
            rows = list(prompts.read_sets(layout.prompt_files(files)))
            seen |= {(name, row.id) for name, row in rows}
            if user == BASE:
                measured = _inputs(project, rows, project.evaluate.split)
            else:
                for text, prompt in _inputs(project, rows, "train").items():
                    learned.setdefault(text, (prompt, user))
            if tokenizer is not None:
                rendered = [
                    prompts.render(row, name, project.prompt_sets[name], tokenizer)
                    for name, row in rows
                ]
                refuse_long(rendered, config, sampling)
    with collected:
        _refuse_shared(learned, measured)
    collected.refuse()
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


def _refuse_shared(learned: dict[str, tuple[str, str]], measured: dict[str, str]) -> None:
    """Raise if a round learns from an input that it is measured by, under whatever id."""
    for text in sorted(learned.keys() & measured.keys()):
        prompt, name = learned[text]
        raise ValueError(
            f"The prompts {prompt!r} and {measured[text]!r} have the same input: {name} would "
            "learn from the first and be measured by the second. Give both prompt sets the same "
            "shares, or leave one of the two out."
        )


def stray_folders(rounds: Mapping[str, Any]) -> list[Path]:
    """Return the data folders that belong to no listed round."""
    return artifacts.foreign(OF_ROUNDS, rounds)


def refuse_stray_folders(rounds: Mapping[str, Any]) -> None:
    """Raise if a data folder belongs to no listed round."""
    artifacts.refuse_foreign(OF_ROUNDS, rounds)


def _faults_of_names(rounds: Any, path: Path) -> Iterator[str]:
    """Yield what is wrong with names that DVC's templating would drop without a word."""
    if not isinstance(rounds, dict):
        yield f"{path}: rounds is {rounds!r}, not a mapping. Write `rounds: {{}}` for none."
        return
    for name in rounds:
        if not isinstance(name, str):
            yield (
                f"{path}: the round {name!r} is a number, and DVC would drop its stages without a "
                f"word. Call it 'r{name}'."
            )
        elif not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == BASE:
            yield (
                f"{path}: a round cannot be called {name!r}. Use lower-case letters, digits and _, "
                "like 'r1'; 'base' is taken."
            )
