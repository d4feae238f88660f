"""`tnt log`: what became of every round."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from tnt.commands import Json
from tnt.core.tables import aligned
from tnt.evaluation.metrics import percent
from tnt.rounds import history
from tnt.rounds.history import Entry

WIDTH = 140
"""Columns of the table, as far as what matters fits."""
SHORT = 7
"""Characters that the table shows of a hash."""


def command(as_json: Json = False) -> None:
    """Show every round that got a verdict: when, by which run, what it changed; from git alone."""
    entries = history.log()
    print(to_json(entries) if as_json else table(entries))
    if history.is_cut():
        print(
            "This clone is shallow and lacks what is older. `git fetch --unshallow --tags` brings "
            "it.",
            file=sys.stderr,
        )


def table(entries: Sequence[Entry]) -> str:
    """Return one line per verdict; hashes are short, and what is empty throughout is left out."""
    if not entries:
        return "No round was accepted or rejected yet."
    columns = {
        "when (UTC)": [e.when[:16].replace("T", " ") for e in entries],
        "round": [e.round for e in entries],
        "verdict": [e.verdict for e in entries],
        "tag": ["yes" if e.tag else "none" for e in entries],
        "parent": [e.parent or "" for e in entries],
        "flagged, before->after": [_rates(e) for e in entries],
        "commit": [e.commit[:SHORT] for e in entries],
        "model": [(e.model or "")[:SHORT] for e in entries],
        "lock": [(e.lock or "")[:SHORT] for e in entries],
        "run": [(e.run or "").rpartition("/")[2] for e in entries],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [*aligned([[*columns], *zip(*columns.values(), strict=True)])]
    left = max(WIDTH - 2 - max(map(len, rows)), SHORT)
    last = ["gate", *(e.reason or e.gate or "" for e in entries)]
    cells = [_cut(text, left) for text in last]
    return "\n".join(aligned([*zip(rows, cells, strict=True)]))


def to_json(entries: Sequence[Entry]) -> str:
    """Return all of it as JSON, hashes and reasons in full."""
    return json.dumps([asdict(entry) for entry in entries], indent=1, ensure_ascii=False)


def _rates(entry: Entry) -> str:
    """Return `boilerplate 7.1->1.5%`, or the names alone of detectors that were not measured."""
    shown = {
        d: f" {percent(old).rstrip('%')}->{percent(new)}"
        for d, (old, new) in entry.flag_rates.items()
    }
    return ", ".join(detector + shown.get(detector, "") for detector in entry.detectors)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
