"""The commands: `tnt X` is the module X here, and its line in `tnt.cli`.

A module has a function `command`, or a typer `app` if X is a group. `tnt --help` imports all of
them, so they import inside functions what takes long to load.
"""

from __future__ import annotations

from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="The round, like r3.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def separated(names: str) -> list[str]:
    """Return names that were given with commas between them."""
    return [name.strip() for name in names.split(",")]
