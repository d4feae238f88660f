"""What is pinned by hash or version, so that a change re-runs its readers and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tnt.core.hashes import sha256_of
from tnt.core.imports import CODE_ROOT, closure, module_files, with_data
from tnt.detectors import Instance
from tnt.project import layout


def input_files(detector: Instance) -> list[Path]:
    """Return the files whose content decides what a detector flags: its inputs, a plugin's code.

    Raises:
        ValueError: An input lies outside `data/lists/` and `data/annotations/`, or does not exist.
    """
    files = detector.inputs()
    folders = (layout.LISTS, layout.ANNOTATIONS)
    for file in files:
        inside = any(file.is_relative_to(folder) for folder in folders)
        if not inside or ".." in file.parts:
            raise ValueError(
                f"detectors.{detector.name} reads {str(file)!r}. What detectors read lies under "
                f"{' or '.join(map(str, folders))}, so that DVC can follow it: move it there."
            )
        if not file.is_file():
            raise ValueError(
                f"detectors.{detector.name} reads {str(file)!r}, which does not exist. Create it."
            )
    module = detector.named.partition(":")[0]
    if module.split(".")[0] == str(layout.PLUGINS):
        for file in module_files(module, Path.cwd()):
            files += closure(file, Path())
    return files


MODULES = {"respond": "generate"}
"""Stage -> its module in `tnt.stages`, where the names differ."""


def code(stage: str) -> dict[str, str]:
    """Return every file of ours that a stage runs or fills in, each with its hash.

    DVC runs stages as `python -m` in the project, where the project's own copy comes first.
    """
    root = Path.cwd() if layout.CODE.is_dir() else CODE_ROOT
    module = root / layout.CODE / "stages" / f"{MODULES.get(stage, stage)}.py"
    files = with_data(closure(module, root), root)
    return {file.as_posix(): sha256_of(root / file) for file in files}


def pinned(files: Iterable[Path]) -> dict[str, str]:
    """Return the files, each with its hash."""
    return {file.as_posix(): sha256_of(file) for file in files}
