"""What git holds of the rounds: a commit for every verdict, a tag for every accepted round.

A verdict's commit holds params.yaml, dvc.lock and the metrics that git keeps, and says in trailers
(`git interpret-trailers`) which round it is about; `tnt log` reads them back.

    Accept round r2

    helpdesk: 19.2% -> 10.6%

    Round: r2
    Verdict: accepted
    Run: by hand
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from tnt import artifacts, layout, project, rounds
from tnt.artifacts import sha256_of
from tnt.params import load_yaml
from tnt.project import Project
from tnt.rounds import accepted, tag
from tnt.shell import alone, output, reproduce

Verdict = Literal["accepted", "rejected", "rolled back", "rebased"]
BY_HAND = "by hand"
KEPT_BY_GIT = (
    ":(glob)data/.gitignore",
    *(
        f":(glob){folder}/**/.gitignore"
        for folder in (layout.MODELS, layout.ROUNDS, layout.EVALUATIONS, layout.TEST_PROMPTS.parent)
    ),
    f":(glob){layout.EVALUATIONS}/*/metrics.json",
)
"""What DVC and the stages write for git to keep, as pathspecs."""
MAKING = ("prepare", "generate", "detect", "mask", "train")
"""The stages that make a round's model; measuring it again changes nothing that builds on it."""
BASES = ((layout.BASE, "base"), (layout.BASE, "prepare"), (layout.BASE, "respond"))
_GONE = "`dvc pull` or `dvc checkout` brings it back."
_REMEDY = (
    "Undo the change, let `dvc repro` build the round again, or make its model the base: "
    "`tnt rounds rebase {name}`."
)
REBASED = Path("data/bases")
"""Where the models of rounds live that became a base."""


def accept(name: str, *, run: str = BY_HAND) -> str:
    """Make a round immutable: check its gate, write out what it obeys, commit, tag; return the tag.

    Args:
        name: The last listed round.
        run: Which run of a flow did it.

    Raises:
        ValueError: It failed its gate, is not up to date, is not the last round, or its parent is
            not accepted; or git or DVC failed. params.yaml then stays as it is.
    """
    with alone(f"`tnt rounds accept {name}`"):
        rounds.refuse_unknown(name, project.load())
        if not accepted(name) and (commit := _commit_of(name, "accepted")):
            output("git", "tag", tag(name), commit)  # a kill came between commit and tag
            return tag(name)
        _refuse_unfit(name)
        gate = rounds.read_metrics(name)["gate"]
        if not gate["passed"]:
            raise ValueError(
                f"The round {name!r} failed its gate: {gate['reasons']}. Change its params or "
                "prompts and train it again."
            )
        _settle(name, "accepted", f"Accept round {name}", run=run)
        output("git", "tag", tag(name))
    return tag(name)


def reject(name: str, reason: str, *, run: str = BY_HAND) -> None:
    """Commit a round with the reason why nothing is to build on it; it gets no tag.

    Raises:
        ValueError: It is not up to date or not the last round, or its parent is not accepted.
    """
    with alone(f"the rejection of {name}"):
        _refuse_unfit(name)
        _settle(name, "rejected", f"Reject round {name}", run=run, reason=reason)


def roll_back(name: str, *, run: str = BY_HAND) -> list[str]:
    """List the rounds as the tag of one has them, so that the next builds on it; commit.

    Tags and the cache keep the rounds that go. `base` is the state before the first round.

    Returns:
        The rounds that are no longer listed.

    Raises:
        ValueError: The round is not accepted, an accepted one is out of date, or files are changed.
    """
    with alone(f"`tnt rollback {name}`"):
        if name != layout.BASE and not accepted(name):
            raise ValueError(
                f"The round {name!r} is not accepted: there is no tag {tag(name)}. `tnt log` shows "
                "those that are."
            )
        refuse_outdated()
        refuse_changes()
        before = [*project.load().rounds]
        listed = params_at(tag(name))["rounds"] if name != layout.BASE else CommentedMap()
        if [*listed] == before:
            raise ValueError(f"The round {name!r} is the last one already. Nothing to roll back.")
        with _put_back_on_failure():
            with rounds.edited_params() as params:
                params["rounds"] = listed
            rounds.prune()
            _commit(f"Roll back to {name}", _trailers(name, "rolled back", run))
    return [other for other in before if other not in listed]


def rebase(name: str, *, run: str = BY_HAND) -> Path:
    """Make a round's model the base and list no round any more; return the folder of the model.

    What the rounds removed stays removed, but nothing measures it unless the next rounds name the
    same detectors. The model is put under DVC's care in `data/bases/`.

    Raises:
        ValueError: The round is not accepted, not listed, its model not the accepted one, or files
            are changed.
    """
    from tnt.export import save_plain

    with alone(f"`tnt rounds rebase {name}`"):
        loaded = project.load()
        rounds.refuse_unknown(name, loaded)
        if not accepted(name):
            raise ValueError(f"The round {name!r} is not accepted. Accept it first.")
        refuse_changes()
        model = layout.model(name)
        if any(c.startswith(f"{model} is ") for c in rounds.outdated().get(f"train@{name}", [])):
            raise ValueError(f"{model} is not the accepted model. `dvc checkout` restores it.")
        folder = REBASED / name
        pointer = folder.with_suffix(".dvc")
        with _put_back_on_failure(folder, pointer, REBASED / ".gitignore"):
            save_plain(name, folder)
            output("dvc", "add", "--quiet", str(folder))
            with rounds.edited_params() as params:
                params["base"] = CommentedMap(
                    source="local", name=folder.as_posix(), sha256=sha256_of(folder)
                )
                params["rounds"] = CommentedMap()
            rounds.prune()
            more = [str(pointer), str(REBASED / ".gitignore")]
            _commit(f"Rebase onto {name}", _trailers(name, "rebased", run), more)
    return folder


def verdict(name: str) -> Verdict | None:
    """Return whether a listed round was accepted or rejected; None if neither, or changed since."""
    if accepted(name):
        return "accepted"
    return "rejected" if _commit_of(name, "rejected") else None


def rejection(name: str) -> str:
    """Return why a round was rejected, in a sentence."""
    commit = next(c for c, named, given in _verdicts() if (named, given) == (name, "rejected"))
    return output("git", "log", "-1", f"--format={_trailer('Reason')}", commit)


def last_accepted(loaded: Project) -> str:
    """Return the last listed round that is accepted, or the base."""
    return next((name for name in reversed(loaded.rounds) if accepted(name)), layout.BASE)


def next_name(loaded: Project) -> str:
    """Return a name that no round ever had: r3 after r1 and r2, tagged, listed or rejected."""
    tags = output("git", "tag", "--list", tag("*")).split()
    known = [*loaded.rounds, *(t.removeprefix(tag("")) for t in tags)]
    known += [name for _, name, _ in _verdicts()]
    numbers = [int(found[1]) for name in known if (found := re.fullmatch(r"r(\d+)", name))]
    return f"r{max(numbers, default=0) + 1}"


def complete(name: str, start: str) -> bool:
    """Give a round the tag that a kill kept it from; return whether its verdict is in git.

    Args:
        name: The round.
        start: The commit before.
    """
    for commit, named, given in _verdicts(f"{start}.."):
        if named == name:
            if given == "accepted" and not accepted(name):
                output("git", "tag", tag(name), commit)
            return True
    return False


def refuse_without_remote() -> None:
    """Raise if there is nowhere to push data to."""
    if not output("dvc", "remote", "list"):
        raise ValueError(
            "No DVC remote is configured, so nothing can be pushed. `dvc remote add -d NAME URL`."
        )


def push() -> Iterator[str]:
    """Send data to the DVC remote, commits and tags to the branch's upstream; yield what was done.

    Without an upstream, commits and tags stay here.
    """
    yield f"dvc push: {output('dvc', 'push')}"
    branch = output("git", "branch", "--show-current")
    wanted = "--format=%(upstream:remotename) %(upstream:remoteref)"
    remote, _, target = output("git", "for-each-ref", wanted, f"refs/heads/{branch}").partition(" ")
    if not remote:
        yield f"The branch {branch or 'HEAD'} has no upstream: commits and tags were not pushed."
        return
    tags = "refs/tags/round/*:refs/tags/round/*"
    output("git", "push", "--quiet", "--atomic", remote, f"HEAD:{target}", tags)
    yield f"git push: {branch} and the tags of the rounds, to {remote}"


def commit_params(message: str) -> None:
    """Commit params.yaml alone."""
    output("git", "commit", "--quiet", "--message", message, "--", str(layout.PARAMS))


def commit_lock(message: str) -> None:
    """Commit dvc.lock, and what else git keeps of the stages that ran, if anything changed."""
    refuse_other_changes()
    _add()
    if output("git", "diff", "--cached", "--name-only"):
        output("git", "commit", "--quiet", "--message", message)


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
    return [*map(str, kept), *files("--others", "--modified", "--", *KEPT_BY_GIT)]


def refuse_changes() -> None:
    """Raise if there is any change, before something that starts from a commit."""
    refuse_detached()
    for path in changes():
        raise ValueError(f"{path} is changed but not committed. Commit or undo that first.")


def refuse_other_changes() -> None:
    """Raise if there are changes that the commit would miss, or that were staged for another."""
    ours = {*kept_by_git()}
    for path in changes():
        if path not in ours:
            raise ValueError(
                f"{path} is changed but not committed, and the tag could not rebuild the round. "
                "Commit it first."
            )


def refuse_detached() -> None:
    """Raise if no branch is checked out, where a commit would soon be lost."""
    if not output("git", "branch", "--show-current"):
        raise ValueError(
            "No branch is checked out, and a commit would belong to none. `git switch` to one."
        )


def refuse_outdated() -> None:
    """Raise if an accepted round is not up to date; say which, what changed and what to do."""
    for name, why in outdated_rounds().items():
        if accepted(name) or (why.endswith(_GONE) and verdict(name)):
            raise ValueError(f"The {verdict(name)} round {name!r} is out of date: {why}")


def outdated_rounds() -> dict[str, str]:
    """Return the listed rounds that `dvc repro` would make again, each with what changed.

    DVC knows only what differs from its lock now, not what differs once `resolve` has run; the
    params that stages obey are therefore compared too.
    """
    loaded, listed = project.load(), load_yaml(layout.PARAMS)["rounds"]
    found = {}
    for name in loaded.rounds:
        if accepted(name) and plain(params_at(tag(name))["rounds"].get(name)) != listed[name]:
            found[name] = (
                f"its entry in {layout.PARAMS} is not that of the tag {tag(name)}. Undo that, or "
                f"give the other round another name, like {next_name(loaded)!r}."
            )
    for stage, changes in rounds.outdated().items():
        if (name := stage.rpartition("@")[2]) in listed:
            found.setdefault(name, _changed(name, stage, changes))
    for (name, stage), keys in _moved(loaded).items():
        why, moved = f"its stage {stage} obeys other params or files than then", [name]
        if (name, stage) == (layout.BASE, "base"):
            why, moved = f"`base` in {layout.PARAMS} is another", [*listed]
        for one in moved:
            if one in listed:
                said = f"{why} ({', '.join(keys)}). {_REMEDY.format(name=one)}"
                found.setdefault(one, said)
    return found


def base_is_outdated() -> bool:
    """Whether the base, its test prompts or its answers to them are to be made again."""
    of_base = {"base", "prepare_test", "respond_base"} & rounds.outdated().keys()
    return bool(of_base) or any(name == layout.BASE for name, _ in _moved(project.load()))


def _moved(loaded: Project) -> dict[tuple[str, str], list[str]]:
    """Return, by (round, stage), what differs from what the stage obeyed when it last ran."""
    moved = {}
    for (name, stage), values in project.resolved(loaded).items():
        path = layout.resolved(name, stage)
        made = stage in MAKING or (name, stage) in BASES
        if made and path.is_file():
            was, now = load_yaml(path), json.loads(json.dumps(values))
            if keys := sorted(key for key in was.keys() | now if was.get(key) != now.get(key)):
                moved[name, stage] = keys
    return moved


def take_out(names: list[str]) -> None:
    """List rounds no more that are neither accepted nor built upon, and commit that."""
    with rounds.edited_params() as params:
        for name in names:
            rounds.take_out(params, name)
    rounds.prune()
    _commit(f"Take out {', '.join(names)}", [])


def _changed(name: str, stage: str, said: list[str]) -> str:
    """Say what DVC finds changed of a stage, and what to do."""
    gone = all(line.endswith("is deleted") for line in said)
    remedy = _GONE if gone else _REMEDY.format(name=name)
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    return f"{stage} ({', '.join(said[:3])}{more}). {remedy}"


def _refuse_unfit(name: str) -> None:
    """Raise if a round cannot be given a verdict now."""
    refuse_detached()
    loaded = project.load()
    rounds.refuse_unknown(name, loaded)
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
    stale = rounds.outdated().keys() - {"compare"}  # which is run for the verdict's commit
    if stale:
        raise ValueError(
            f"There are stages to run: {', '.join(sorted(stale))}. `dvc repro` first, then accept."
        )
    refuse_other_changes()


def _commit_of(name: str, given: Verdict) -> str | None:
    """Return the commit of a round's last verdict, if that is `given` and the round the same."""
    entry = load_yaml(layout.PARAMS)["rounds"][name]
    for commit, named, verdict in _verdicts():
        if named == name and verdict in ("accepted", "rejected"):
            same = plain(params_at(commit)["rounds"].get(name)) == entry
            return commit if verdict == given and same else None
    return None


def _settle(name: str, given: Verdict, subject: str, *, run: str, reason: str = "") -> None:
    """Freeze a round and commit the verdict on it."""
    learned = rounds.read_metrics(name)["learned"]
    body = "; ".join(
        f"{detector}: {change['before']['rate']:.1%} -> {change['after']['rate']:.1%}"
        for detector, change in learned.items()
    )
    with _restored_on_failure():
        rounds.freeze(name)
        _commit(f"{subject}\n\n{body}", _trailers(name, given, run, reason))


def _commit(message: str, trailers: list[str], more: list[str] | None = None) -> None:
    """Bring `compare` up to date, then commit what git keeps of the rounds, and nothing else."""
    reproduce("compare", log=lambda line: None)
    _add(more)
    paragraphs = [message, "\n".join(trailers)] if trailers else [message]
    output("git", "commit", "--quiet", *(w for text in paragraphs for w in ("--message", text)))


def _add(more: list[str] | None = None) -> None:
    paths = [*kept_by_git(), *(more or [])]
    known = {*files()}
    output("git", "add", "--", *(path for path in paths if path in known or Path(path).exists()))


@contextlib.contextmanager
def _restored_on_failure() -> Iterator[None]:
    before = {p: p.read_bytes() for p in (layout.PARAMS, layout.LOCK) if p.is_file()}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            with artifacts.complete(path) as partial:
                partial.write_bytes(content)
        raise


@contextlib.contextmanager
def _put_back_on_failure(*made: Path) -> Iterator[None]:
    """On a failure, delete what was made anew and bring all else back to the last commit."""
    from tnt.recovery import restore  # which settles rounds with this module

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

    Rounds count whose data the last commit tells git to ignore: dvc.lock keeps those that are gone.

    Raises:
        ValueError: Something of it is not in the cache.
    """
    if layout.LOCK.is_file():
        ran = (r for r in project.load().rounds if (layout.ROUNDS / r / ".gitignore").is_file())
        listed = {"", layout.BASE, *ran}
        stages = [s for s in load_yaml(layout.LOCK)["stages"] if s.partition("@")[2] in listed]
        output("dvc", "checkout", "--force", *stages)


def _trailers(name: str, given: Verdict, run: str, reason: str = "") -> list[str]:
    said = {"Round": name, "Verdict": given, "Reason": reason, "Run": run}
    return [f"{key}: {' '.join(value.split())}" for key, value in said.items() if value]


def _trailer(key: str) -> str:
    """Return git's placeholder for the value of a trailer."""
    return f"%(trailers:key={key},valueonly,unfold,separator=%x20)"


def _verdicts(revisions: str = "HEAD") -> Iterator[tuple[str, str, str]]:
    """Yield (commit, round, verdict), the latest first."""
    line = f"%H%x00{_trailer('Round')}%x00{_trailer('Verdict')}"
    for found in output("git", "log", f"--format={line}", revisions).splitlines():
        commit, name, given = found.split("\0")
        if name:
            yield commit, name, given
