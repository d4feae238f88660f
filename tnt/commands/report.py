"""`tnt report`: the report with what only this machine knows, in work/report/.

`data/report/` is an output of the pipeline, so nothing in it depends on time, load or git. The copy
adds run times and memory, the git revision, versions, and DVC experiments.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import webbrowser
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tnt.core.artifacts import read_json
from tnt.core.runlog import last_runs
from tnt.evaluation import round_metrics
from tnt.project import layout
from tnt.report import provenance, site
from tnt.rounds import programs

FOLDER = Path("work/report")
VERSIONS = ("torch", "transformers", "dvc")
COMMITS = 10
"""Experiments of so many commits are shown, from HEAD back."""


def command(
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write the report to work/report/, with run times, revision, versions and experiments."""
    page = build().resolve().as_uri()
    print(page)
    if open_it and not webbrowser.open(page):
        print("No browser could be started. Open the address above.", file=sys.stderr)


def build() -> Path:
    """Write work/report/ anew; return its first page.

    Raises:
        ValueError: The pipeline has not made a report yet.
    """
    if not (layout.REPORT / "index.html").is_file():
        raise ValueError(f"{layout.REPORT}/ holds no report. Run `dvc repro`, which makes it.")
    data = read_json(layout.REPORT / site.DATA, "rounds", "rows", "params", "split")
    with _replaced(FOLDER) as partial:
        shutil.copytree(layout.REPORT, partial, copy_function=shutil.copyfile)
        site.write_index(data, partial, local())
    return FOLDER / "index.html"


def local() -> dict[str, Any]:
    """Return what this machine knows of the pipeline and itself."""
    found, note = experiments()
    return {
        "stages": [_complete(run) for run in last_runs().values()],
        "revision": revision(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {
            "Python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in VERSIONS},
        },
        "experiments": found,
        "note": note,
    }


def revision() -> str:
    """Return the git commit, and whether what is here is what it holds."""
    try:
        commit = programs.output("git", "rev-parse", "HEAD").strip()
        changed = programs.output("git", "status", "--porcelain").splitlines()
    except (ValueError, OSError):
        return "not in git, or no commit yet"
    state = f"{len(changed)} uncommitted changes" if changed else "nothing uncommitted"
    return f"{commit}, {state}"


def experiments() -> tuple[list[dict[str, Any]], str]:
    """Return DVC's experiments that were evaluated, and why there are none if DVC fails."""
    try:
        shown = json.loads(programs.output("dvc", "exp", "show", "--json", "--num", str(COMMITS)))
        return [*_parsed(shown)], ""
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        return [], " ".join(f"DVC's experiments cannot be shown: {error}".split())


def _parsed(shown: list[Any]) -> Iterator[dict[str, Any]]:
    for commit in shown:
        for experiment in commit.get("experiments") or []:
            made = (experiment.get("revs") or [{}])[0]
            data = made.get("data") or {}
            if rounds := _rounds(data.get("metrics") or {}):
                yield {
                    "name": experiment.get("name") or made.get("name") or made["rev"][:7],
                    "rounds": rounds,
                    "params": _changed(commit.get("data") or {}, data),
                }


def _rounds(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the last round of an experiment and those that it is built on, the last at the end."""
    by_name = {}
    for path, found in metrics.items():
        if Path(path).is_relative_to(layout.EVALUATIONS):
            with contextlib.suppress(ValueError):  # of another version, whose round is not shown
                by_name[Path(path).parent.name] = round_metrics.made(found.get("data") or {})
    latest = (metrics.get(layout.METRICS.as_posix(), {}).get("data") or {}).get("round")
    chain: list[dict[str, Any]] = []
    while latest in by_name and len(chain) < len(by_name):
        measured = by_name[latest]
        chain.append(
            {
                "name": latest,
                "parent": measured.parent,
                "detectors": [*measured.learned],
                "metrics": measured,
            }
        )
        latest = measured.parent
    return chain[::-1]


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the params in which an experiment differs from its commit, one a line.

    Of detectors only the names are shown: what they look for may be what must not be.
    """
    old, new = (
        dict(provenance.flat(((data.get("params") or {}).get("params.yaml") or {}).get("data")))
        for data in (before, after)
    )
    lines = []
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) != new.get(key):
            value = "changed" if "detectors" in key else provenance.text(new.get(key))
            lines.append(f"{'.'.join(key)}: {value}")
    return "\n".join(lines)


def _complete(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the run log; 0 for a figure that is not in it."""
    numbers = {}
    for name in ("cpu_s", "wall_s", "peak_gib"):
        value = run.get(name)
        numbers[name] = value if isinstance(value, int | float) else 0.0
    return {"stage": run["stage"], "ended": str(run.get("ended", "")), **numbers}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yield a name beside a folder to build at; put it in the folder's place if that succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
