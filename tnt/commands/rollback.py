"""`tnt rollback`: go on from an earlier round."""

from __future__ import annotations

from typing import Annotated

import typer

from tnt.rounds import ledger


def command(name: Annotated[str, typer.Argument(help="An accepted round, or base.")]) -> None:
    """Let the next round build on an earlier one, and commit; tags keep those that go."""
    gone = ledger.roll_back(name)
    print(f"The next round builds on {name}. Not listed any more: {', '.join(gone) or 'none'}.")
