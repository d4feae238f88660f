"""Push data, commits and tags."""

from __future__ import annotations

from collections.abc import Iterator

from tnt.rounds.programs import output


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
