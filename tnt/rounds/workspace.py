"""The working tree: what is changed, what git keeps, and how it is put back."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from tnt.core import artifacts
from tnt.core.params import load_yaml
from tnt.core.records import BASE
from tnt.project import checks, layout
from tnt.rounds.programs import output

KEPT_BY_GIT = f":(glob){layout.EVALUATIONS}/*/metrics.json"
"""What the stages of rounds write for git to keep, as a pathspec."""
STAGES_OWN = (
    *map(str, (layout.MODELS, layout.ROUNDS, layout.EVALUATIONS, layout.RESOLVED, layout.REPORT)),
    str(layout.TEST_PROMPTS.parent),
    "data/comparison.validation.json",
)
"""Where stages alone write, as git's pathspecs."""
KEPT = Path("work/kept")
"""Where what people wrote goes before something else takes its place."""
Log = Callable[[str], None]


def commit_params(message: str) -> None:
    """Commit params.yaml alone."""
    output("git", "commit", "--quiet", "--message", message, "--", str(layout.PARAMS))


def commit_lock(message: str) -> None:
    """Commit dvc.lock, and what else git keeps of the stages that ran, if anything changed."""
    refuse_other_changes()
    if {*changes()} & {*kept_by_git()}:
        commit_rounds([message])


def commit_rounds(paragraphs: Sequence[str], more: Sequence[str] = ()) -> str:
    """Commit what git keeps of the rounds, `more`, and nothing else that is staged; return it.

    A hook of git's may add to the message. If the last of several paragraphs, the trailers, is then
    none that git reads any more, it is said again at the end.
    """
    known = {*files()}
    paths = [p for p in [*kept_by_git(), *more] if p in known or Path(p).exists()]
    output("git", "add", "--", *paths)
    output("git", "commit", "--quiet", *_message(paragraphs), "--", *paths)
    *before, last = paragraphs
    if before and last not in output("git", "log", "-1", "--format=%(trailers:only,unfold)"):
        again = _message([output("git", "log", "-1", "--format=%B"), last])
        made = output("git", "commit-tree", "HEAD^{tree}", "-p", "HEAD^", *again)
        output("git", "update-ref", "HEAD", made)
    return output("git", "rev-parse", "HEAD")


def _message(paragraphs: Sequence[str]) -> list[str]:
    return [word for text in paragraphs for word in ("-m", text)]


def keep(path: Path) -> Path:
    """Move what a person wrote out of the way; return where in `work/kept/` it is now."""
    kept, number = KEPT / path, 1
    while kept.exists():
        number += 1
        kept = KEPT / path.with_name(f"{path.stem}-{number}{path.suffix}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(path, kept))


def params_at(revision: str) -> CommentedMap:
    """Return params.yaml as a revision of git has it, comments and all."""
    return YAML().load(output("git", "show", f"{revision}:./{layout.PARAMS}"))


def plain(entry: Any) -> Any:
    """Return a node of YAML as plain dicts and lists."""
    if isinstance(entry, dict):
        return {key: plain(value) for key, value in entry.items()}
    return [plain(value) for value in entry] if isinstance(entry, list) else entry


def files(*arguments: str) -> list[str]:
    """Return the paths that `git ls-files` lists."""
    return [path for path in output("git", "ls-files", "-z", *arguments).split("\0") if path]


def changes() -> list[str]:
    """Return the paths that differ from the last commit, of files that git knows or could know.

    Raises:
        ValueError: The project is not the root of its git repository.
    """
    if inside := output("git", "rev-parse", "--show-prefix"):
        raise ValueError(
            f"The project lies in the folder {inside} of its git repository, whose commits and "
            "tags are not its own. Give it a repository of its own."
        )
    lines = output("git", "status", "--porcelain", "--no-renames", "-z", "-uall").split("\0")
    return [line[2:].strip() for line in lines if line]


def kept_by_git() -> list[str]:
    """Return the files that a verdict's commit holds: params, lock, the metrics that git keeps.

    Those of a round that was removed are among them, so that the commit deletes them.
    """
    kept = [layout.PARAMS, layout.LOCK, layout.METRICS, layout.ROUNDS_CSV]
    return [*map(str, kept), *files("--others", "--modified", "--", KEPT_BY_GIT)]


def refuse_changes() -> None:
    """Raise if there is any change, before something that starts from a commit."""
    refuse_detached()
    for path in changes():
        _refuse_output(path)
        raise ValueError(f"{path} is changed but not committed. Commit or undo that first.")


def refuse_other_changes(more: Sequence[str] = ()) -> None:
    """Raise if there are changes that a commit of what git keeps and of `more` would miss."""
    ours = {*kept_by_git(), *more}
    for path in changes():
        if path not in ours:
            _refuse_output(path)
            raise ValueError(
                f"{path} is changed but not committed, and the tag could not rebuild the round. "
                "Commit it first."
            )


def _refuse_output(path: str) -> None:
    """Raise if a change is data of DVC's: committed, it would be in git for good."""
    if path in kept_by_git():
        return
    lock = load_yaml(layout.LOCK) if layout.LOCK.is_file() else {"stages": {}}
    outs = (out["path"] for stage in lock["stages"].values() for out in stage.get("outs", []))
    for out in outs:
        if Path(path).is_relative_to(out):
            raise ValueError(
                f"{path} is data that DVC keeps, and git does not ignore it. Write `/{out}` into "
                ".gitignore; `git rm -r --cached` takes out what git holds already."
            )


def refuse_detached() -> None:
    """Raise if no branch is checked out, where a commit would soon be lost."""
    if not output("git", "branch", "--show-current"):
        raise ValueError(
            "No branch is checked out, and a commit would belong to none. `git switch` to one."
        )


@contextlib.contextmanager
def restored_on_failure() -> Iterator[None]:
    """On a failure, bring params.yaml and dvc.lock back to what they were."""
    before = {p: p.read_bytes() for p in (layout.PARAMS, layout.LOCK) if p.is_file()}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            with artifacts.complete(path) as partial:
                partial.write_bytes(content)
        raise


@contextlib.contextmanager
def put_back_on_failure(*made: Path) -> Iterator[None]:
    """On a failure, delete what was made anew and bring all else back to the last commit."""
    new = [path for path in made if not path.exists()]
    try:
        yield
    except BaseException:
        restore(lambda line: None)
        for path in new:
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        raise


def checkout() -> None:
    """Bring back from DVC's cache what dvc.lock names of the base and the rounds.

    Rounds count whose metrics the last commit has: dvc.lock keeps those that are gone.

    Raises:
        ValueError: Something of it is not in the cache.
    """
    if layout.LOCK.is_file():
        ran = (name for name in checks.load().rounds if layout.metrics(name).is_file())
        listed = {"", BASE, *ran}
        stages = [s for s in load_yaml(layout.LOCK)["stages"] if s.partition("@")[2] in listed]
        output("dvc", "checkout", "--force", *stages)


def restore(log: Log) -> None:
    """Bring params.yaml, dvc.lock and all that the stages made back to the last commit."""
    output("git", "reset", "--quiet")
    tracked = {*files()}
    ours = {*kept_by_git()}
    if ours & tracked:
        output("git", "restore", "--", *sorted(ours & tracked))
    for path in ours - tracked:
        Path(path).unlink(missing_ok=True)
    for path in files("--others", "--exclude-standard", "--", *STAGES_OWN):
        Path(path).unlink()
    for folder in checks.stray_folders(checks.load().rounds):
        shutil.rmtree(folder)
    for parent in (layout.MODELS, layout.ROUNDS, layout.EVALUATIONS):
        for folder in parent.glob("*/"):
            if not any(folder.iterdir()):
                folder.rmdir()
    try:
        checkout()
    except ValueError as error:
        log(f"Not everything is in the cache; `dvc repro` makes the rest again. {error}")
