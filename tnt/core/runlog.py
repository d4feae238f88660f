"""What each stage took when it last ran here."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

RUNS_FILE = Path("work/runs.jsonl")
"""Untracked: what a run took depends on the machine and its load, so it is no output of a stage."""


def report(name: str, wall: float) -> None:
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
