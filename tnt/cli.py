"""The command `tnt`: a line for each module of `tnt.commands`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from tnt.commands import (
    annotate,
    check,
    diff,
    docs,
    export,
    ingest,
    log,
    plan,
    publish,
    report,
    rollback,
    rounds,
    summary,
    update,
)
from tnt.core.errors import one_line_errors

app = typer.Typer(
    help="Stop a language model from saying what it must not, and prove that nothing else moved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("check")(check.command)
app.command("plan")(plan.command)
app.command("summary")(summary.command)
app.command("docs")(docs.command)
app.command("report")(report.command)
app.command("rollback")(rollback.command)
app.command("update")(update.command)
app.command("log")(log.command)
app.command("diff")(diff.command)
app.command("export")(export.command)
app.command("publish")(publish.command)
app.command("ingest")(ingest.command)
app.add_typer(rounds.app, name="rounds")
app.add_typer(annotate.app, name="annotate")


@app.callback()
def main(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Set up what all commands share."""
    sys.path.insert(0, os.getcwd())  # users' own detectors live in plugins/
    if debug:
        os.environ["TNT_DEBUG"] = "1"


def run() -> None:
    """Run the command; what a person can cause is one line and exit status 1."""
    with one_line_errors("tnt"):
        app()
