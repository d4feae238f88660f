"""Which rounds were accepted or rejected, and why."""

from __future__ import annotations

import re

from tnt.core.params import load_yaml
from tnt.core.records import BASE
from tnt.project import layout
from tnt.project.sections import Project
from tnt.rounds.programs import output
from tnt.rounds.trailers import Verdict, placeholder, tag, verdicts_in
from tnt.rounds.workspace import params_at, plain


def verdict(name: str) -> Verdict | None:
    """Return whether a listed round was accepted or rejected; None if neither, or changed since."""
    if accepted(name):
        return "accepted"
    return "rejected" if commit_of(name, "rejected") else None


def rejection(name: str) -> str:
    """Return why a round was rejected, in a sentence."""
    commit = next(c for c, named, given in verdicts_in() if (named, given) == (name, "rejected"))
    return output("git", "log", "-1", f"--format={placeholder('Reason')}", commit)


def last_accepted(loaded: Project) -> str:
    """Return the last listed round that is accepted, or the base."""
    return next((name for name in reversed(loaded.rounds) if accepted(name)), BASE)


def next_name(loaded: Project) -> str:
    """Return a name that no round ever had: r3 after r1 and r2, tagged, listed or rejected."""
    tags = output("git", "tag", "--list", tag("*")).split()
    known = [*loaded.rounds, *(t.removeprefix(tag("")) for t in tags)]
    known += [name for _, name, _ in verdicts_in()]
    numbers = [int(found[1]) for name in known if (found := re.fullmatch(r"r(\d+)", name))]
    return f"r{max(numbers, default=0) + 1}"


def commit_of(name: str, given: Verdict) -> str | None:
    """Return the commit of a round's last verdict, if that is `given` and the round the same."""
    entry = load_yaml(layout.PARAMS)["rounds"][name]
    for commit, named, verdict in verdicts_in():
        if named == name and verdict in ("accepted", "rejected"):
            same = plain(params_at(commit)["rounds"].get(name)) == entry
            return commit if verdict == given and same else None
    return None


def accepted(name: str) -> bool:
    """Whether a round is tagged."""
    return bool(output("git", "tag", "--list", tag(name)))
