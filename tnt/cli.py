"""The command `tnt`: check, plan, edit rounds, show results; imports what is heavy inside."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

app = typer.Typer(
    help="Stop a language model from saying what it must not, and prove that nothing else moved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
rounds_app = typer.Typer(help="List, add, remove and accept rounds.", no_args_is_help=True)
app.add_typer(rounds_app, name="rounds")

Name = Annotated[str, typer.Argument(help="The round, like r3.")]


@app.callback()
def main(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Set up what all commands share."""
    sys.path.insert(0, os.getcwd())  # users' own detectors live in plugins/
    if debug:
        os.environ["TNT_DEBUG"] = "1"


@app.command()
def check(
    pin: Annotated[bool, typer.Option(help="Write hashes of the models into params.yaml.")] = False,
) -> None:
    """Check params.yaml, the prompt files and the rounds, before anything runs."""
    from tnt.commands import check as checks

    if pin:
        print("\n".join(checks.pin()))
    print(checks.check())


@app.command()
def plan() -> None:
    """Show what `dvc repro` would run, and about how long and how much disk it would take."""
    from tnt.commands.plan import plan as make_plan

    planned = make_plan()
    for stage in planned:
        source = "last time" if stage.measured else "estimate"
        disk = f"{stage.disk_gb:6.2f} GB" if stage.disk_gb else ""
        print(f"{stage.stage:<16} {stage.cpu_s:7.0f} CPU s ({source}) {disk}")
    total, disk_gb = sum(s.cpu_s for s in planned), sum(s.disk_gb for s in planned)
    print(
        f"{len(planned)} stages at most, about {total / 60:.0f} CPU minutes, "
        f"{disk_gb:.1f} GB in data/ and as much in the cache."
        if planned
        else "Nothing to run: everything is up to date."
    )


@app.command()
def summary() -> None:
    """Show what each round changed, what the stages took, and where the results are."""
    from tnt.commands.summary import summary as make_summary

    print(make_summary())


@app.command()
def docs() -> None:
    """Validate all artifacts anew; build Great Expectations' pages of it in work/docs/."""
    from tnt.commands.docs import build

    print(f"Open {build()}.")


@app.command()
def report(
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write the report to work/report/, with run times, revision, versions and experiments."""
    import webbrowser

    from tnt.commands.report import build

    page = build().resolve().as_uri()
    print(page)
    if open_it and not webbrowser.open(page):
        print("No browser could be started. Open the address above.", file=sys.stderr)


@rounds_app.command("list")
def list_rounds() -> None:
    """Show the rounds: parent, detectors, prompts, whether accepted."""
    from tnt.project import checks
    from tnt.rounds import trailers, verdicts

    loaded = checks.load()
    for name, round_ in loaded.rounds.items():
        files = "; ".join(f"{s}: {', '.join(f)}" for s, f in round_.prompts.items())
        state = f"accepted as {trailers.tag(name)}" if verdicts.accepted(name) else "not accepted"
        print(f"{name}: from {round_.parent}, {', '.join(round_.detectors)}, on {files} ({state})")
    if not loaded.rounds:
        print("No rounds. `tnt rounds add r1 --detectors NAME` adds one.")


@rounds_app.command("add")
def add_round(
    name: Name,
    detectors: Annotated[str, typer.Option(help="Names in `detectors:`, separated by commas.")],
    parent: Annotated[
        str | None, typer.Option(help="base or a round; the last by default.")
    ] = None,
) -> None:
    """Append a round to params.yaml, with its parent's detectors and the given ones."""
    from tnt.rounds import listed

    chosen = listed.add(name, parent=parent, detectors=_listed(detectors))
    print(f"Added {name} on top of {chosen}. `tnt plan` shows what it takes, `dvc repro` runs it.")


@rounds_app.command("remove")
def remove_round(name: Name) -> None:
    """Take a round out of params.yaml and delete its folders; the cache keeps what was in them."""
    from tnt.rounds import listed

    deleted = listed.remove(name)
    print(f"Removed {name}" + "".join(f", {folder}" for folder in deleted) + ".")


@rounds_app.command("prune")
def prune_rounds(
    cache: Annotated[
        bool, typer.Option(help="Clear the cache too of what no tag or experiment uses.")
    ] = False,
) -> None:
    """Delete data folders that belong to no listed round; the cache keeps what was in them."""
    from tnt.rounds import listed

    deleted = listed.prune(cache=cache)
    print(f"Deleted {', '.join(map(str, deleted))}." if deleted else "Nothing to delete.")


@rounds_app.command("accept")
def accept_round(name: Name) -> None:
    """Check a round's gate, write what it obeys into params.yaml, commit, and tag it."""
    from tnt.rounds import ledger

    print(f"Accepted {name}: tag {ledger.accept(name)}.")


@rounds_app.command("rebase")
def rebase_round(name: Name) -> None:
    """Make a round's model the base, list no round any more, and commit."""
    from tnt.rounds import ledger

    print(f"{ledger.rebase(name)} is the base now. The next round starts from it.")


@app.command()
def rollback(name: Annotated[str, typer.Argument(help="An accepted round, or base.")]) -> None:
    """Let the next round build on an earlier one, and commit; tags keep those that go."""
    from tnt.rounds import ledger

    gone = ledger.roll_back(name)
    print(f"The next round builds on {name}. Not listed any more: {', '.join(gone) or 'none'}.")


@app.command()
def update(
    max_rounds: Annotated[int, typer.Option(min=1, help="Rounds to train at most.")] = 1,
    target_flag_rate: Annotated[
        float, typer.Option(min=0, max=1, help="A corpus flagged no more often is clean.")
    ] = 0.02,
    detectors: Annotated[
        str | None, typer.Option(help="For new rounds, besides their parent's; by commas.")
    ] = None,
) -> None:
    """Train, gate and accept rounds until the model is clean."""
    from tnt.rounds import update as updates

    names = _listed(detectors) if detectors else None
    updates.update(max_rounds=max_rounds, target_flag_rate=target_flag_rate, detectors=names)


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("log")
def show_log(as_json: Json = False) -> None:
    """Show every round that got a verdict: when, by which run, what it changed; from git alone."""
    from tnt.commands import log
    from tnt.rounds import history

    entries = history.log()
    print(log.to_json(entries) if as_json else log.table(entries))
    if history.is_cut():
        print(
            "This clone is shallow and lacks what is older. `git fetch --unshallow --tags` brings "
            "it.",
            file=sys.stderr,
        )


@app.command("diff")
def show_diff(
    a: Annotated[str, typer.Argument(help="base or a round.")],
    b: Annotated[str, typer.Argument(help="base or a round.")],
    as_json: Json = False,
) -> None:
    """Compare two models' test completions: flag rates, what else changed, how sure that is."""
    from tnt.commands import diff

    compared = diff.diff(a, b)
    print(diff.to_json(compared) if as_json else diff.table(compared))


@app.command("export")
def export_round(
    name: Name,
    folder: Annotated[str, typer.Argument(help="A new or empty folder.")],
    ungated: Annotated[
        bool, typer.Option(help="Even if it failed its gate or is not accepted.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
) -> None:
    """Write a round as a plain transformers folder with a model card."""
    from pathlib import Path

    from tnt.commands.export import export

    print(f"Exported {name} to {export(name, Path(folder), ungated=ungated, force=force)}.")


@app.command("ingest")
def ingest_prompts(
    source: Annotated[str, typer.Argument(help="A file, folder, glob or URL.")],
    to: Annotated[str, typer.Option(help="A prompt set.")],
) -> None:
    """Bring new prompts into a prompt set, in a commit of its own."""
    from tnt.commands import ingest

    print(ingest.sentence(ingest.ingest(source, to)))


annotate_app = typer.Typer(
    help="Send completions out for labelling, and take people's work back.", no_args_is_help=True
)
app.add_typer(annotate_app, name="annotate")
Force = Annotated[bool, typer.Option(help="Replace the file if it exists.")]


@annotate_app.command("export")
def export_for_labelling(
    name: Name,
    to: Annotated[str | None, typer.Option(help="By default a file in work/annotate/.")] = None,
    format: Annotated[str, typer.Option(help="jsonl or label-studio.")] = "jsonl",
    force: Force = False,
) -> None:
    """Write a round's completions for labelling, with its current flags as a start."""
    from pathlib import Path

    from tnt.annotations import label_studio
    from tnt.commands import annotate

    done = annotate.export(name, to=Path(to) if to else None, format=format, force=force)
    print(f"Wrote {done.texts} texts with {done.spans} flags to {done.path}.")
    if format == "label-studio":
        print(
            f"The labelling interface of the project:\n{label_studio.labelling_config(done.labels)}"
        )


@annotate_app.command("import")
def import_annotations(
    name: Name,
    file: Annotated[str, typer.Argument(help="JSON Lines, or Label Studio's JSON export.")],
    to: Annotated[str, typer.Option(help="A .jsonl file in data/annotations/.")],
    force: Force = False,
) -> None:
    """Check people's annotations of a round's completions and keep them for a detector."""
    from pathlib import Path

    from tnt.commands import annotate

    found = annotate.bring_in(name, Path(file), to=Path(to), force=force)
    corrected = sum(a.corrected is not None for a in found)
    flagged = sum(bool(a.flagged()) for a in found)
    entry = annotate.params_entry(Path(to), corrective=bool(corrected))
    print(
        f"Wrote {len(found)} annotations to {to}: {flagged} texts flagged, {len(found) - flagged} "
        f"clean, {corrected} with a correction. Add to params.yaml, and name it in the detectors "
        f"of the round that is to learn from it:\n{entry}"
    )


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]


def run() -> None:
    """Run the command; what a person can cause is one line and exit status 1."""
    from tnt.core.errors import one_line_errors

    with one_line_errors("tnt"):
        app()
