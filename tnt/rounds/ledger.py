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

from collections.abc import Callable, Sequence, Set
from pathlib import Path

from ruamel.yaml.comments import CommentedMap

from tnt.core.hashes import sha256_of
from tnt.core.records import BASE
from tnt.project import checks, layout
from tnt.rounds import listed, staleness
from tnt.rounds.listed import edited_params, prune
from tnt.rounds.programs import alone, output, reproduce
from tnt.rounds.staleness import refuse_outdated
from tnt.rounds.trailers import BY_HAND, Verdict, set_tag, tag, verdicts_in, written
from tnt.rounds.verdicts import accepted, commit_of
from tnt.rounds.workspace import (
    commit_rounds,
    keep,
    params_at,
    put_back_on_failure,
    refuse_changes,
    refuse_detached,
    refuse_other_changes,
    restored_on_failure,
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
        listed.refuse_unknown(name, checks.load())
        if not accepted(name) and (commit := commit_of(name, "accepted")):
            set_tag(name, commit)  # a kill came between commit and tag
            return tag(name)
        _refuse_unfit(name)
        gate = listed.read_metrics(name).gate
        if not gate.passed:
            raise ValueError(
                f"The round {name!r} failed its gate: {gate.reasons}. Change its params or "
                "prompts and train it again."
            )
        set_tag(name, _settle(name, "accepted", f"Accept round {name}", run=run))
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
        if name != BASE and not accepted(name):
            raise ValueError(
                f"The round {name!r} is not accepted: there is no tag {tag(name)}. `tnt log` shows "
                "those that are."
            )
        refuse_outdated()
        refuse_changes()
        before = [*checks.load().rounds]
        listed = params_at(tag(name))["rounds"] if name != BASE else CommentedMap()
        if [*listed] == before:
            raise ValueError(f"The round {name!r} is the last one already. Nothing to roll back.")
        with put_back_on_failure():
            with edited_params() as params:
                params["rounds"] = listed
            prune()
            _commit([f"Roll back to {name}", written(name, "rolled back", run)])
    return [other for other in before if other not in listed]


def rebase(name: str, *, run: str = BY_HAND) -> Path:
    """Make a round's model the base and list no round any more; return the folder of the model.

    What the rounds removed stays removed, but nothing measures it unless the next rounds name the
    same detectors. The model is put under DVC's care in `data/bases/`.

    Raises:
        ValueError: The round is not accepted, not listed, its model not the accepted one, or files
            are changed.
    """
    from tnt.rounds.plain import save_plain

    with alone(f"`tnt rounds rebase {name}`"):
        loaded = checks.load()
        listed.refuse_unknown(name, loaded)
        if not accepted(name):
            raise ValueError(f"The round {name!r} is not accepted. Accept it first.")
        refuse_changes()
        model = layout.model(name)
        if any(c.startswith(f"{model} is ") for c in staleness.outdated().get(f"train@{name}", [])):
            raise ValueError(f"{model} is not the accepted model. `dvc checkout` restores it.")
        folder = REBASED / name
        pointer = folder.with_suffix(".dvc")
        with put_back_on_failure(folder, pointer):
            save_plain(name, folder)
            output("dvc", "add", "--quiet", str(folder))
            with listed.edited_params() as params:
                params["base"] = CommentedMap(
                    source="local", name=folder.as_posix(), sha256=sha256_of(folder)
                )
                params["rounds"] = CommentedMap()
            listed.prune()
            _commit([f"Rebase onto {name}", written(name, "rebased", run)], [str(pointer)])
    return folder


def complete(name: str, start: str) -> bool:
    """Give a round the tag that a kill kept it from; return whether its verdict is in git.

    Args:
        name: The round.
        start: The commit before.
    """
    for commit, named, given in verdicts_in(f"{start}.."):
        if named == name:
            if given == "accepted" and not accepted(name):
                set_tag(name, commit)
            return True
    return False


def take_out(names: list[str]) -> None:
    """List rounds no more that are neither accepted nor built upon, and commit that."""
    with listed.edited_params() as params:
        for name in names:
            listed.take_out(params, name)
    listed.prune()
    _commit([f"Take out {', '.join(names)}"])


def _refuse_unfit(name: str) -> None:
    """Raise if a round cannot be given a verdict now."""
    refuse_detached()
    loaded = checks.load()
    listed.refuse_unknown(name, loaded)
    if accepted(name):
        raise ValueError(f"The round {name!r} is accepted already, as tag {tag(name)}.")
    if name != next(reversed(loaded.rounds)):
        later = next(reversed(loaded.rounds))
        raise ValueError(
            f"{layout.PARAMS} lists {later!r} after {name!r}. Rounds are accepted one at a time: "
            f"remove {later!r}, accept {name!r}, add {later!r} again; the cache has its results."
        )
    if (parent := loaded.rounds[name].parent) != BASE and not accepted(parent):
        raise ValueError(f"The parent {parent!r} of {name!r} is not accepted. Accept it first.")
    _refuse_stale({"compare"})  # which is run for the verdict's commit
    refuse_other_changes()


def _refuse_stale(besides: Set[str] = frozenset()) -> None:
    """Raise if a stage has to run."""
    if stale := staleness.outdated().keys() - besides:
        raise ValueError(
            f"There are stages to run: {', '.join(sorted(stale))}. `dvc repro` first, then accept."
        )


def _settle(name: str, given: Verdict, subject: str, *, run: str, reason: str = "") -> str:
    """Freeze a round and commit the verdict on it; return the commit."""
    learned = listed.read_metrics(name).learned
    body = "; ".join(
        f"{detector}: {change.before.percent} -> {change.after.percent}"
        for detector, change in learned.items()
    )
    with restored_on_failure():
        listed.freeze(name)
        return _commit([subject, body, written(name, given, run, reason)], unless=_refuse_stale)


def _commit(
    paragraphs: Sequence[str],
    more: Sequence[str] = (),
    unless: Callable[[], None] = lambda: None,
) -> str:
    """Bring `compare` up to date, then commit what git keeps of the rounds; return the commit.

    Args:
        paragraphs: Of the message.
        more: Files to be committed too.
        unless: Raises if the commit is not to be made, once `compare` is up to date.

    Raises:
        ValueError: Somebody edited or staged something else while `compare` ran.
    """
    ours = layout.PARAMS.read_bytes()
    reproduce("compare", log=lambda line: None)
    if layout.PARAMS.read_bytes() != ours:
        raise ValueError(
            f"{layout.PARAMS} was edited before `{paragraphs[0]}` could be committed: what you "
            f"wrote is in {keep(layout.PARAMS)}. Take over from it what you want, and try again."
        )
    unless()
    refuse_other_changes(more)
    return commit_rounds(paragraphs, more)
