"""A run that is cut off leaves a note; whoever runs next puts everything back and goes on.

The note stands in DVC's own folder for temporary files from the moment a run changes anything until
the round it works on has its verdict in git. What was finished of the round stays in DVC's cache,
so that going over it again is free.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tnt import layout, ledger, project, rounds
from tnt.artifacts import read_json, write_text
from tnt.params import load_yaml
from tnt.shell import output

NOTE = Path(".dvc/tmp/tnt-run.json")
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
    later: list[str]
    """Rounds that params.yaml listed after it and that were taken out until it has its verdict."""
    run: str


def begin(name: str, later: list[str], run: str) -> Note:
    """Leave the note, before anything is changed."""
    note = Note(output("git", "rev-parse", "HEAD"), name, later, run)
    write_text(json.dumps(asdict(note), indent=1) + "\n", NOTE)
    return note


def end(note: Note) -> None:
    """List the later rounds again, commit that, and take the note away."""
    missing = [name for name in note.later if name not in project.load().rounds]
    if missing:
        was = ledger.params_at(note.commit)["rounds"]
        with rounds.edited_params() as params:
            for name in missing:
                rounds.put(params, name, was[name])
        ledger.commit_params(f"List {', '.join(missing)} after {note.round}")
    NOTE.unlink()


def recover(log: Callable[[str], None]) -> None:
    """Put back what a run that was cut off had changed; do nothing if there was none.

    Raises:
        ValueError: params.yaml was changed by a person since.
    """
    if not NOTE.is_file():
        return
    found = read_json(NOTE, "commit", "round", "later", "run")
    note = Note(found["commit"], found["round"], found["later"], found["run"])
    log(f"The run {note.run!r} was cut off at {note.round}: putting back what it changed.")
    _refuse_edited(note)
    settled = ledger.complete(note.round, note.commit)
    restore(log)
    if settled:
        end(note)
    else:
        NOTE.unlink()


def restore(log: Callable[[str], None]) -> None:
    """Bring params.yaml, dvc.lock and all that the stages made back to the last commit."""
    tracked = {*output("git", "ls-tree", "-r", "--name-only", "HEAD").splitlines()}
    indexed = {*output("git", "ls-files").splitlines()}
    ours = ledger.kept_by_git()
    if paths := [path for path in ours if path in tracked | indexed]:
        output("git", "restore", "--source=HEAD", "--staged", "--worktree", "--", *paths)
    for path in {*ours} - tracked:
        Path(path).unlink(missing_ok=True)
    unknown = output("git", "ls-files", "-z", "--others", "--exclude-standard", "--", *STAGES_OWN)
    for path in filter(None, unknown.split("\0")):
        Path(path).unlink()
    for folder in project.stray_folders(project.load().rounds):
        shutil.rmtree(folder)
    for parent in (layout.MODELS, layout.ROUNDS, layout.EVALUATIONS):
        for folder in parent.glob("*/"):
            if not any(folder.iterdir()):
                folder.rmdir()
    try:
        if stages := _locked():
            output("dvc", "checkout", "--force", *stages)
    except ValueError as error:
        log(f"Not everything is in the cache; `dvc repro` makes the rest again. {error}")


def _locked() -> list[str]:
    """Return the stages that have results in dvc.lock and a place in the pipeline."""
    if not layout.LOCK.is_file():
        return []
    listed = {"", layout.BASE, *project.load().rounds}
    return [s for s in load_yaml(layout.LOCK)["stages"] if s.partition("@")[2] in listed]


def _refuse_edited(note: Note) -> None:
    """Raise if params.yaml differs from the last commit's in more than the run's own rounds."""
    own = {note.round, *note.later}
    now, then = load_yaml(layout.PARAMS), ledger.plain(ledger.params_at("HEAD"))
    for values in (now, then):
        values["rounds"] = {n: r for n, r in values["rounds"].items() if n not in own}
    if now != then:
        raise ValueError(
            f"{layout.PARAMS} was edited after the run {note.run!r} was cut off at {note.round}. "
            f"Commit or undo what you changed; that the round {note.round} comes or goes is the "
            "run's own doing and will be put back."
        )
