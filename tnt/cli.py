"""The command `tnt`: a line for each module of `tnt.commands`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated

import typer

from tnt.core.errors import one_line_errors

app = typer.Typer(
    help="Stop a language model from saying what it must not, and prove that nothing else moved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    "check",
    "plan",
    "summary",
    "docs",
    "report",
    "rollback",
    "update",
    "affects",
    "log",
    "diff",
    "export",
    "publish",
    "ingest",
    "rounds",
    "annotate",
    "patch",
)
"""In the order of `tnt --help`. A module has a function `command`, or an `app` of several."""
for name in COMMANDS:
    module = importlib.import_module(f"tnt.commands.{name}")
    if hasattr(module, "app"):
        app.add_typer(module.app, name=name)
    else:
        app.command(name)(module.command)


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
