"""Edit the rounds in params.yaml, comments and all, and accept one for good."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from tnt import layout, project
from tnt.artifacts import read_json
from tnt.params import edited
from tnt.shell import output


def add(name: str, *, parent: str | None, detectors: list[str]) -> str:
    """Append a round to params.yaml; return its parent.

    It learns from the prompt files of the last round, or of all evaluated sets if it is the first.

    Args:
        name: Of the new round.
        parent: None is the last round, or the base if there is none.
        detectors: Added to those of the parent, so that what it fixed stays fixed.

    Raises:
        ValueError: The result would not be a valid params.yaml, which then stays as it is.
    """
    loaded = project.load()
    if name in loaded.rounds:
        raise ValueError(f"The round {name!r} exists already. Choose another name.")
    last = next(reversed(loaded.rounds), layout.BASE)
    parent = parent or last
    inherited = loaded.rounds[parent].detectors if parent in loaded.rounds else []
    files = loaded.rounds[last].prompts if last in loaded.rounds else loaded.evaluate.prompts
    entry = {
        "parent": parent,
        "detectors": list(dict.fromkeys([*inherited, *detectors])),
        "prompts": files,
    }
    with _edited() as params:
        if not params["rounds"]:  # `{}` is in flow style
            params["rounds"] = CommentedMap()
        params["rounds"][name] = CommentedMap(entry)
    return parent


def remove(name: str) -> list[Path]:
    """Take a round out of params.yaml and delete its folders; return those. The cache keeps them.

    Raises:
        ValueError: There is no such round, another builds on it, or it is accepted.
    """
    loaded = project.load()
    _refuse_unknown(name, loaded)
    if heirs := [other for other, r in loaded.rounds.items() if r.parent == name]:
        raise ValueError(f"The round {heirs[0]!r} builds on {name!r}. Remove {heirs[0]!r} first.")
    if accepted(name):
        raise ValueError(
            f"The round {name!r} is accepted. `git tag -d {tag(name)}` first, if you mean it."
        )
    with _edited() as params:
        del params["rounds"][name]
        if not params["rounds"]:
            params["rounds"] = CommentedMap()
    return _delete([folder for folder in layout.owned_folders(name) if folder.exists()])


def prune() -> list[Path]:
    """Delete the data folders that belong to no listed round; return them. The cache keeps them."""
    return _delete(project.stray_folders(project.load().rounds))


def accept(name: str) -> str:
    """Make a round immutable: check its gate, write out what it obeys, commit, tag; return the tag.

    Raises:
        ValueError: It failed its gate, is not up to date, is not the last round, or its parent is
            not accepted; or git or DVC failed. params.yaml then stays as it is.
    """
    loaded = project.load()
    _refuse_unknown(name, loaded)
    if accepted(name):
        raise ValueError(f"The round {name!r} is accepted already, as tag {tag(name)}.")
    if name != next(reversed(loaded.rounds)):
        later = next(reversed(loaded.rounds))
        raise ValueError(
            f"{layout.PARAMS} lists {later!r} after {name!r}. Rounds are accepted one at a time: "
            f"remove {later!r}, accept {name!r}, add {later!r} again; the cache has its results."
        )
    if (parent := loaded.rounds[name].parent) != layout.BASE and not accepted(parent):
        raise ValueError(f"The parent {parent!r} of {name!r} is not accepted. Accept it first.")
    gate = read_metrics(name)["gate"]
    if not gate["passed"]:
        raise ValueError(f"The round {name!r} failed its gate: {gate['reasons']}. Train it again.")
    if outdated():
        raise ValueError("There are stages to run. `dvc repro` first, then accept.")
    _refuse_other_changes()
    before = {path: path.read_bytes() for path in (layout.PARAMS, layout.LOCK)}
    try:
        with _edited() as params:
            for section in project.OVERRIDABLE:
                values = asdict(loaded.section(name, section))
                params["rounds"][name][section] = CommentedMap(values)
        output("dvc", "repro", "--quiet", "compare")
        output("git", "add", "--", *_committed())
        output("git", "commit", "--quiet", "-m", f"Accept round {name}")
        output("git", "tag", tag(name))
    except BaseException:
        for path, content in before.items():
            path.write_bytes(content)
        raise
    return tag(name)


def accepted(name: str) -> bool:
    """Whether a round is tagged."""
    return bool(output("git", "tag", "--list", tag(name)))


def tag(name: str) -> str:
    """Return the git tag of an accepted round."""
    return f"round/{name}"


def read_metrics(name: str) -> dict[str, Any]:
    """Return a round's metrics.

    Raises:
        ValueError: It was not evaluated yet, or the file is damaged.
    """
    path = layout.metrics(name)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {name!r} is not evaluated. Run `dvc repro`.")
    return read_json(path, "learned", "sets", "gate")


def outdated() -> dict[str, Any]:
    """Return the stages that `dvc repro` would run, with what changed; nothing if up to date."""
    changes: dict[str, Any] = json.loads(output("dvc", "status", "--json") or "{}")
    return changes


def _committed() -> list[str]:
    """Return the files that a round's commit holds: params, lock, the metrics that git keeps.

    Those of a round that was removed are among them, so that the commit deletes them.
    """
    found = [":(glob)data/**/.gitignore", f":(glob){layout.EVALUATIONS}/*/metrics.json"]
    changed = output("git", "ls-files", "--others", "--modified", "--", *found)
    kept = [layout.PARAMS, layout.LOCK, layout.METRICS, layout.ROUNDS_CSV]
    return [*map(str, kept), *changed.split()]


def _refuse_other_changes() -> None:
    """Raise if there are changes that the commit would miss, or that were staged for another."""
    ours = set(_committed())
    for line in output("git", "status", "--porcelain", "--untracked-files=all").splitlines():
        path = line[2:].strip().strip('"')
        if path not in ours:
            raise ValueError(
                f"{path} is changed but not committed, and the tag could not rebuild the round. "
                "Commit it first."
            )


def _refuse_unknown(name: str, loaded: project.Project) -> None:
    if name not in loaded.rounds:
        listed = ", ".join(loaded.rounds) or "none"
        raise ValueError(f"There is no round {name!r}. Listed in {layout.PARAMS}: {listed}.")


def _edited() -> contextlib.AbstractContextManager[CommentedMap]:
    return edited(layout.PARAMS, project.load)


def _delete(folders: list[Path]) -> list[Path]:
    for folder in folders:
        shutil.rmtree(folder)
    return folders
