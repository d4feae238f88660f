"""A run that is cut off leaves a note; whoever runs next puts everything back and goes on.

The note stands in DVC's own folder for temporary files from the moment a run changes anything until
the round it works on has its verdict in git. What was finished of the round stays in DVC's cache,
so that going over it again is free.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tnt import layout, ledger, project, rounds
from tnt.artifacts import read_json, write_text
from tnt.params import load_yaml, merge
from tnt.shell import output

Log = Callable[[str], None]
NOTE = Path(".dvc/tmp/tnt-run.json")
KEPT = Path("work/params")
"""Where params.yaml goes before it is put back: a person may have edited it."""
STAGES_OWN = (
    *map(str, (layout.MODELS, layout.ROUNDS, layout.EVALUATIONS, layout.RESOLVED, layout.REPORT)),
    str(layout.TEST_PROMPTS.parent),
    "data/comparison.validation.json",
)
"""Where stages alone write, as git's pathspecs."""


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
    if ledger.changes():
        if str(layout.PARAMS) in ledger.changes():
            kept = KEPT.with_suffix(f".{note.round}.yaml")
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(layout.PARAMS, kept)
            if edited(note):
                log(f"{layout.PARAMS} was edited during the run: what you wrote is in {kept}.")
        restore(log)
    missing = [name for name in note.later if name not in project.load().rounds]
    if settled and missing:
        was = ledger.params_at(note.commit)["rounds"]
        with rounds.edited_params() as params:
            for name in missing:
                rounds.put(params, name, was[name])
        ledger.commit_params(f"List {', '.join(missing)} after {note.round}")
    NOTE.unlink()


def restore(log: Log) -> None:
    """Bring params.yaml, dvc.lock and all that the stages made back to the last commit."""
    output("git", "reset", "--quiet")
    tracked = {*ledger.files()}
    ours = {*ledger.kept_by_git()}
    if ours & tracked:
        output("git", "restore", "--", *sorted(ours & tracked))
    for path in ours - tracked:
        Path(path).unlink(missing_ok=True)
    for path in ledger.files("--others", "--exclude-standard", "--", *STAGES_OWN):
        Path(path).unlink()
    for folder in project.stray_folders(project.load().rounds):
        shutil.rmtree(folder)
    for parent in (layout.MODELS, layout.ROUNDS, layout.EVALUATIONS):
        for folder in parent.glob("*/"):
            if not any(folder.iterdir()):
                folder.rmdir()
    try:
        ledger.checkout()
    except ValueError as error:
        log(f"Not everything is in the cache; `dvc repro` makes the rest again. {error}")


def edited(note: Note) -> bool:
    """Whether params.yaml differs from the last commit's in more than what the run does to it.

    It may add or take out its rounds, and write out what one of them obeys.
    """
    now, then = load_yaml(layout.PARAMS), ledger.plain(ledger.params_at("HEAD"))
    for name in {note.round, *note.later}:
        mine, theirs = (values["rounds"].pop(name, None) for values in (now, then))
        if mine and theirs and merge(mine, theirs) != mine:
            return True
        if mine and theirs and mine.keys() - theirs.keys() - project.OVERRIDABLE.keys():
            return True
    return now != then
