"""A run that is cut off leaves a note; whoever runs next puts everything back and goes on.

The note stands in DVC's own folder for temporary files from the moment a run changes anything until
the round it works on has its verdict in git. What was finished of the round stays in DVC's cache,
so that going over it again is free.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tnt.core.artifacts import read_json, write_text
from tnt.core.params import load_yaml, merge
from tnt.project import checks, layout, sections
from tnt.rounds import ledger, listed, workspace
from tnt.rounds.programs import output
from tnt.rounds.workspace import Log, restore

NOTE = Path(".dvc/tmp/tnt-run.json")
KEPT = Path("work/params")
"""Where params.yaml goes before it is put back: a person may have edited it."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a run is about to do."""

    commit: str
    """Where it started."""
    round: str
    """Which it works on, or what else it brings up to date."""
    later: list[str]
    """Rounds that params.yaml listed after it and that were taken out until it has its verdict."""
    run: str


@contextlib.contextmanager
def guarded(name: str, later: list[str], run: str, log: Log) -> Iterator[Note]:
    """Leave the note while the body works on a round; afterwards see to it that all is in order.

    If the round has no verdict in git by then, everything is put back. An interruption that is no
    Exception (Ctrl-C, a cancelled run) leaves the note to the next run.

    Args:
        name: The round, or what else is brought up to date.
        later: Rounds that the body takes out of params.yaml, to be listed again in the end.
        run: Which run it is.
        log: Is given lines for people.
    """
    note = Note(output("git", "rev-parse", "HEAD"), name, later, run)
    write_text(json.dumps(asdict(note), indent=1) + "\n", NOTE)
    try:
        yield note
    except Exception:
        _finish(note, log)
        raise
    _finish(note, log)


def recover(log: Log) -> None:
    """Put back what a run that was cut off had changed; do nothing if there was none.

    Raises:
        ValueError: params.yaml was changed by a person since.
    """
    if not NOTE.is_file():
        return
    found = read_json(NOTE, "commit", "round", "later", "run")
    note = Note(found["commit"], found["round"], found["later"], found["run"])
    log(f"The run {note.run!r} was cut off at {note.round}: putting back what it changed.")
    if edited(note):
        raise ValueError(
            f"{layout.PARAMS} was edited after the run {note.run!r} was cut off at {note.round}. "
            f"Commit or undo what you changed; that the round {note.round} comes or goes is the "
            "run's own doing and will be put back."
        )
    _finish(note, log)


def _finish(note: Note, log: Log) -> None:
    """Put back what has no verdict, list the later rounds again, and take the note away."""
    settled = ledger.complete(note.round, note.commit)
    if workspace.changes():
        if str(layout.PARAMS) in workspace.changes():
            kept = KEPT.with_suffix(f".{note.round}.yaml")
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(layout.PARAMS, kept)
            if edited(note):
                log(f"{layout.PARAMS} was edited during the run: what you wrote is in {kept}.")
        restore(log)
    missing = [name for name in note.later if name not in checks.load().rounds]
    if settled and missing:
        was = workspace.params_at(note.commit)["rounds"]
        with listed.edited_params() as params:
            for name in missing:
                listed.put(params, name, was[name])
        workspace.commit_params(f"List {', '.join(missing)} after {note.round}")
    NOTE.unlink()


def edited(note: Note) -> bool:
    """Whether params.yaml differs from the last commit's in more than what the run does to it.

    It may add or take out its rounds, and write out what one of them obeys.
    """
    now, then = load_yaml(layout.PARAMS), workspace.plain(workspace.params_at("HEAD"))
    for name in {note.round, *note.later}:
        mine, theirs = (values["rounds"].pop(name, None) for values in (now, then))
        if mine and theirs and merge(mine, theirs) != mine:
            return True
        if mine and theirs and mine.keys() - theirs.keys() - sections.OVERRIDABLE.keys():
            return True
    return now != then
