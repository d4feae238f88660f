"""Which stages an edit re-runs, before it is made.

    tnt affects tnt/losses/table.py

A stage runs again when a file that its own file in data/resolved/ pins is another: code, prompts,
lists, annotations, plugins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tnt.core.records import BASE
from tnt.project import checks
from tnt.project.resolved import resolved


def command(
    files: Annotated[list[Path], typer.Argument(help="Of tnt/, plugins/, data/prompts/, ...")],
) -> None:
    """Say which stages an edit of a file re-runs."""
    for file in files:
        found = affected(file)
        print(f"{file}: {', '.join(found) or 'none'}")


def affected(file: Path) -> list[str]:
    """Return the stages, as dvc.yaml has them, that read a file or run it.

    Raises:
        ValueError: There is no such file in the project.
    """
    if not file.is_file() or not file.resolve().is_relative_to(Path.cwd()):
        raise ValueError(f"{file} is no file of this project. Name one, from the project's root.")
    path = file.resolve().relative_to(Path.cwd()).as_posix()
    loaded = checks.load()
    found = [key for key, values in resolved(loaded).items() if _pins(values, path)]
    return [name for key in found for name in _names(*key, [*loaded.rounds])]


def _pins(values: Any, path: str) -> bool:
    """Whether what a stage obeys holds the hash of a file."""
    if not isinstance(values, Mapping):
        return False
    return path in values or any(_pins(below, path) for below in values.values())


def _names(name: str, stage: str, rounds: list[str]) -> list[str]:
    """Return DVC's names of the stages that obey `data/resolved/<name>/<stage>.yaml`."""
    if name != BASE:
        return [f"{stage}@{name}"]
    shared = {"prepare": ["prepare_test"], "respond": ["respond_base"]}
    more = [f"respond@{one}" for one in rounds] if stage == "respond" else []
    return [*shared.get(stage, [stage]), *more]
