"""How a commit says which round it is about: git trailers, and the tags of accepted rounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from tnt.rounds.programs import output

Verdict = Literal["accepted", "rejected", "rolled back", "rebased"]
BY_HAND = "by hand"


def written(name: str, given: Verdict, run: str, reason: str = "") -> str:
    """Return the trailers of a verdict's commit, a paragraph."""
    values = {"Round": name, "Verdict": given, "Reason": reason, "Run": run}
    return "\n".join(f"{key}: {' '.join(value.split())}" for key, value in values.items() if value)


def placeholder(key: str) -> str:
    """Return git's placeholder for the value of a trailer."""
    return f"%(trailers:key={key},valueonly,unfold,separator=%x20)"


def verdicts_in(revisions: str = "HEAD") -> Iterator[tuple[str, str, str]]:
    """Yield (commit, round, verdict), the latest first."""
    line = f"%H%x00{placeholder('Round')}%x00{placeholder('Verdict')}"
    arguments = ("--ignore-missing", f"--format={line}", revisions)  # HEAD, before any commit
    for found in output("git", "log", *arguments).splitlines():
        commit, name, given = found.split("\0")
        if name:
            yield commit, name, given


def set_tag(name: str, commit: str) -> None:
    """Tag a round as accepted; the tag is a plain one, whatever `tag.gpgSign` says."""
    output("git", "update-ref", f"refs/tags/{tag(name)}", commit, "")


def tag(name: str) -> str:
    """Return the git tag of an accepted round."""
    return f"round/{name}"
