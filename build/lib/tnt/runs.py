"""Run one stage as a command: its arguments, its errors in one line, what it cost.

Every stage module ends with `command(its_function)`. The function's `Path` parameters are the
command's arguments, in order; the last argument is the file of its resolved params.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

from tnt.locks import held
from tnt.params import load_section

RUNS_FILE = Path("work/runs.jsonl")
"""Untracked: what a run took depends on the machine and its load, so it is no output of a stage."""
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
        _report(stage, time.monotonic() - started)


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Print what a person can cause (ValueError, OSError) as one line and exit with status 1.

    TNT_DEBUG=1 in the environment shows the traceback too. A bug shows it always.
    """
    try:
        yield
    except Exception as error:
        expected = isinstance(error, ValueError | OSError) or _is_full_disk(error)
        if os.environ.get("TNT_DEBUG") == "1" or not expected:
            traceback.print_exc()
        message = " ".join(str(error).split())
        if not isinstance(error, ValueError):
            message = f"{type(error).__name__}: {message.rstrip('.')}."
        if isinstance(error, OSError) or _is_full_disk(error):
            message += " Check free space and permissions."
            message += " `dvc checkout --force` restores earlier outputs."
        sys.exit(f"{name}: {message}")


def _is_full_disk(error: Exception) -> bool:
    """Whether a writer that has its own exceptions, safetensors or torch, ran out of space."""
    name, message = type(error).__name__, str(error)
    return (name == "SafetensorError" and "I/O" in message) or (
        name == "RuntimeError" and "inline_container" in message
    )


def _report(name: str, wall: float) -> None:
    """Print what the stage took and append it to the untracked run log."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in used)
    peak = max(usage.ru_maxrss for usage in used) / 1024**2
    line = {
        "stage": name,
        "cpu_s": round(cpu, 1),
        "wall_s": round(wall, 1),
        "peak_gib": round(peak, 2),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    RUNS_FILE.parent.mkdir(parents=True, exist_ok=True)
    with RUNS_FILE.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{name}: {cpu:.1f} CPU s, {wall:.1f} s, peak memory {peak:.2f} GiB", file=sys.stderr)


def last_runs() -> dict[str, dict[str, Any]]:
    """Return what each stage took when it last ran here."""
    if not RUNS_FILE.is_file():
        return {}
    runs = {}
    for line in RUNS_FILE.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a line cut off by a kill
            run = json.loads(line)
            runs[run["stage"]] = {**run, "cpu_s": float(run["cpu_s"])}
    return runs
