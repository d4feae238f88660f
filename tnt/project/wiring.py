"""Whether dvc.yaml lists what each stage reads: DVC does not notice a missing dependency."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tnt.project import layout

SOURCES = (
    layout.PROMPTS, layout.LISTS, layout.ANNOTATIONS, layout.PATCHES, layout.PLUGINS, layout.CODE
)  # fmt: skip
"""What `resolve` pins the files of."""
STAGE = re.compile(r"python -m tnt\.stages\.(\w+)")


def refuse_unwired(stages: Mapping[str, Any]) -> None:
    """Check that each stage depends on what it is given, and `resolve` on our code.

    Args:
        stages: As dvc.yaml has them. Those of the user's own are left alone.

    Raises:
        ValueError: A dependency is missing; names the stage and the file.
    """
    for name, stage in stages.items():
        body = stage.get("do", stage)
        command = str(body.get("cmd"))
        if not (module := STAGE.match(command)):
            continue
        written = {*_paths(body, "outs"), *_paths(body, "metrics"), *_paths(body, "plots")}
        needed = {*command.split()[3:]} - written
        if module[1] == "resolve":
            needed = {path.as_posix() for path in SOURCES}
        if missing := sorted(needed - {*_paths(body, "deps")}):
            raise ValueError(
                f"{layout.PIPELINE}: the stage {name!r} reads {missing[0]!r}, which is not among "
                "its deps. Add it."
            )


def _paths(body: Mapping[str, Any], kind: str) -> list[str]:
    """Return what a stage lists under `deps`, `outs` and so on, without how it is kept."""
    return [
        path
        for entry in body.get(kind, [])
        for path in ([entry] if isinstance(entry, str) else entry)
    ]
