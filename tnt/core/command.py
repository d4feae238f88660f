"""Run one stage as a command: its arguments, its errors in one line, what it cost.

Every stage module ends with `command(its_function)`. The function's `Path` parameters are the
command's arguments, in order; the last argument is the file of its resolved params.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

from tnt.core.errors import one_line_errors
from tnt.core.locks import held
from tnt.core.params import load_section
from tnt.core.runlog import report

LOCKS = Path("work/locks")
LOCK_WAIT_S = 15.0
"""What a stage whose dvc was killed may take to end."""


def command(stage: Callable[..., None], arguments: list[str] | None = None) -> None:
    """Run `stage` with the process's command-line arguments."""
    given = sys.argv[1:] if arguments is None else arguments
    with stage_run(stage.__name__):
        hints = get_type_hints(stage)
        paths = [name for name in inspect.signature(stage).parameters if hints[name] is Path]
        sections = [] if "params" not in hints else ["params"]
        if len(given) != len(paths) + len(sections):
            expected = " ".join(name.upper() for name in [*paths, *sections])
            raise ValueError(f"takes the arguments {expected}, not {' '.join(given) or 'none'}.")
        named: dict[str, Any] = {p: Path(v) for p, v in zip(paths, given, strict=False)}
        if sections:
            named["params"] = load_section(Path(given[-1]), hints["params"])
        stage(**named)


@contextlib.contextmanager
def stage_run(name: str) -> Iterator[None]:
    """Run the body as a stage: alone on its round, errors in one line, its cost printed and logged.

    Args:
        name: Of the stage, where DVC does not give it.
    """
    stage = os.environ.get("DVC_STAGE", name)
    lock = LOCKS / f"{stage.rpartition('@')[2]}.lock"
    with one_line_errors(name), held(lock, doing=f"The stage {stage}", wait_s=LOCK_WAIT_S):
        started = time.monotonic()
        yield
        report(stage, time.monotonic() - started)
