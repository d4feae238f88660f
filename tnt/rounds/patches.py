"""Patches of rounds: what their neurons do, and rounds made of them without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from tnt import models
from tnt.core import artifacts
from tnt.project import checks, layout
from tnt.project.sections import Project
from tnt.rounds.listed import edited_params, put, refuse_taken, refuse_unknown
from tnt.rounds.programs import alone


def neurons(name: str) -> list[dict[str, Any]]:
    """Return what each neuron of a round's patch does, as `evaluate` found it.

    Raises:
        ValueError: There is no such round, it is not evaluated, or it is no patch.
    """
    refuse_unknown(name, checks.load())
    path = layout.EVALUATIONS / name / "neurons.json"
    found: list[dict[str, Any]] = artifacts.read_json(path, "neurons")["neurons"]
    if not found:
        raise ValueError(
            f"{name!r} is no patch: it was trained without train.patch, or nothing was flagged."
        )
    return found


def neuron(name: str, number: int) -> dict[str, Any]:
    """Return what one neuron does.

    Raises:
        ValueError: As in `neurons`, or there is no such neuron.
    """
    found = neurons(name)
    _refuse_numbers([number], len(found), name)
    return found[number]


def drop(name: str, numbers: Sequence[int], new: str) -> int:
    """Add a round that is another without some neurons; return how many are left.

    Raises:
        ValueError: One of the two names, or a number, cannot be.
    """
    from tnt.patches import artifact

    loaded = checks.load()
    patch = artifact.read(_patch_of(name, loaded))
    _refuse_numbers(numbers, len(patch), name)
    left = [k for k in range(len(patch)) if k not in numbers]
    if not left:
        raise ValueError(f"{name!r} has {len(patch)} neurons, and none would be left. Drop fewer.")
    round_ = loaded.rounds[name]
    _add(new, loaded, patch.only(left), round_.parent, [name])
    return len(left)


def merge(name: str, other: str, new: str) -> None:
    """Add a round that has one round's patch on top of another's.

    Raises:
        ValueError: One of the names cannot be, or the two have different parents.
    """
    from tnt.patches import artifact

    loaded = checks.load()
    for one in (name, other):
        _patch_of(one, loaded)
    parents = [loaded.rounds[one].parent for one in (name, other)]
    if parents[0] != parents[1] or name == other:
        raise ValueError(
            f"{name!r} was made for {parents[0]!r}, and {other!r} for {parents[1]!r}. Merge two "
            "patches of one parent."
        )
    _add(new, loaded, artifact.read(_patch_of(other, loaded)), name, [name, other])


def _patch_of(name: str, loaded: Project) -> Path:
    """Return the file of a round's patch."""
    refuse_unknown(name, loaded)
    path = layout.model(name) / models.PATCH_FILE
    if not path.is_file():
        raise ValueError(
            f"{layout.model(name)} holds no {models.PATCH_FILE}: {name!r} is not trained yet "
            f"(`dvc repro train@{name}`), or was trained without train.patch."
        )
    return path


def _refuse_numbers(numbers: Sequence[int], count: int, name: str) -> None:
    for number in numbers:
        if not 0 <= number < count:
            raise ValueError(
                f"{name!r} has no neuron {number}. It has {count}, from 0 to {count - 1}."
            )


def _add(new: str, loaded: Project, patch: Any, parent: str, of: Sequence[str]) -> None:
    """Write a patch and append a round that takes it as it is."""
    from tnt.patches import artifact

    refuse_taken(new, loaded)
    file = layout.PATCHES / f"{new}.safetensors"
    if file.exists():
        raise ValueError(f"{file} exists already. Choose another name, or delete it.")
    rounds = [loaded.rounds[name] for name in of]
    detectors = [detector for round_ in rounds for detector in round_.detectors]
    prompts: dict[str, list[str]] = {}
    for round_ in rounds:
        for prompt_set, files in round_.prompts.items():
            prompts[prompt_set] = [*dict.fromkeys([*prompts.get(prompt_set, []), *files])]
    entry = {
        "parent": parent,
        "detectors": [*dict.fromkeys(detectors)],
        "prompts": prompts,
        "train": {"patch": {"file": file.as_posix()}},
    }
    with alone(f"`tnt patch ... --as {new}`"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with artifacts.complete(file) as partial:
            artifact.write(patch, partial)
        try:
            with edited_params() as params:
                put(params, new, CommentedMap(entry))
        except BaseException:
            file.unlink()
            raise
