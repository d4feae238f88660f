"""`tnt rounds`: list, add, remove and accept rounds."""

from __future__ import annotations

from typing import Annotated

import typer

from tnt.commands import Name, separated
from tnt.project import checks
from tnt.rounds import ledger, listed, trailers, verdicts

app = typer.Typer(help="List, add, remove and accept rounds.", no_args_is_help=True)


@app.command("list")
def list_rounds() -> None:
    """Show the rounds: parent, detectors, prompts, whether accepted."""
    loaded = checks.load()
    for name, round_ in loaded.rounds.items():
        files = "; ".join(f"{s}: {', '.join(f)}" for s, f in round_.prompts.items())
        state = f"accepted as {trailers.tag(name)}" if verdicts.accepted(name) else "not accepted"
        print(f"{name}: from {round_.parent}, {', '.join(round_.detectors)}, on {files} ({state})")
    if not loaded.rounds:
        print("No rounds. `tnt rounds add r1 --detectors NAME` adds one.")


@app.command("add")
def add_round(
    name: Name,
    detectors: Annotated[str, typer.Option(help="Names in `detectors:`, separated by commas.")],
    parent: Annotated[
        str | None, typer.Option(help="base or a round; the last by default.")
    ] = None,
) -> None:
    """Append a round to params.yaml, with its parent's detectors and the given ones."""
    chosen = listed.add(name, parent=parent, detectors=separated(detectors))
    print(f"Added {name} on top of {chosen}. `tnt plan` shows what it takes, `dvc repro` runs it.")


@app.command("remove")
def remove_round(name: Name) -> None:
    """Take a round out of params.yaml and delete its folders; the cache keeps what was in them."""
    deleted = listed.remove(name)
    print(f"Removed {name}" + "".join(f", {folder}" for folder in deleted) + ".")


@app.command("prune")
def prune_rounds(
    cache: Annotated[
        bool, typer.Option(help="Clear the cache too of what no tag or experiment uses.")
    ] = False,
) -> None:
    """Delete data folders that belong to no listed round; the cache keeps what was in them."""
    deleted = listed.prune(cache=cache)
    print(f"Deleted {', '.join(map(str, deleted))}." if deleted else "Nothing to delete.")


@app.command("accept")
def accept_round(name: Name) -> None:
    """Check a round's gate, write what it obeys into params.yaml, commit, and tag it."""
    print(f"Accepted {name}: tag {ledger.accept(name)}.")


@app.command("rebase")
def rebase_round(name: Name) -> None:
    """Make a round's model the base, list no round any more, and commit."""
    print(f"{ledger.rebase(name)} is the base now. The next round starts from it.")
