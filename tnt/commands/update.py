"""`tnt update`: rounds, one after the other, until the model is clean."""

from __future__ import annotations

from typing import Annotated

import typer

from tnt.commands import separated
from tnt.rounds.update import update


def command(
    max_rounds: Annotated[int, typer.Option(min=1, help="Rounds to train at most.")] = 1,
    target_flag_rate: Annotated[
        float, typer.Option(min=0, max=1, help="A corpus flagged no more often is clean.")
    ] = 0.02,
    detectors: Annotated[
        str | None, typer.Option(help="For new rounds, besides their parent's; by commas.")
    ] = None,
) -> None:
    """Train, gate and accept rounds until the model is clean."""
    names = separated(detectors) if detectors else None
    update(max_rounds=max_rounds, target_flag_rate=target_flag_rate, detectors=names)
