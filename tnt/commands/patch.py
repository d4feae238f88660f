"""`tnt patch`: read a round's patch neuron by neuron, take neurons out, put two patches together.

tnt patch show r1                   # what each neuron takes away, and what comes instead
tnt patch show r1 --neuron 7        # where it fires hardest
tnt patch drop r1 7 9 --as r3       # a new round without these two
tnt patch merge r1a r1b --as r3     # a new round with the patches of both
"""

from __future__ import annotations

from typing import Annotated

import typer

from tnt.commands import Name
from tnt.core.tables import aligned
from tnt.rounds import patches

app = typer.Typer(help="Read, thin out and merge the patches of rounds.", no_args_is_help=True)
New = Annotated[str, typer.Option("--as", help="Name of the new round.")]


@app.command("show")
def show(
    name: Name,
    neuron: Annotated[
        int | None, typer.Option(help="Number of one, to see where it fires.")
    ] = None,
) -> None:
    """Show what a round's neurons do to its parent's answers to the test prompts."""
    found = patches.neurons(name)
    if neuron is None:
        rows: list[tuple[str, ...]] = [("neuron", "fires", "kept", "prompts", "takes", "gives")]
        for one in found:
            takes, gives = (" ".join(repr(t) for t, _ in one[k]) for k in ("takes", "gives"))
            counts = (str(one[k]) for k in ("number", "fires", "kept", "prompts"))
            rows.append((*counts, takes, gives))
        print(*aligned(rows), sep="\n")
        print("kept: tokens that should stay as they are, at which it fires all the same.")
        return
    one = patches.neuron(name, neuron)
    for place in one["strongest"]:
        before, after = (
            ", ".join(f"{token!r} {share:.0%}" for token, share in place[side])
            for side in ("before", "after")
        )
        print(f"{place['opening']:.2f}  {place['prompt_id']}  {place['text']!r}")
        print(f"      {before}  ->  {after}")
    if not one["strongest"]:
        print(f"Neuron {neuron} fires nowhere in the answers of {name}'s parent.")


@app.command("drop")
def drop(
    name: Name,
    neurons: Annotated[list[int], typer.Argument(help="Numbers, as `tnt patch show` has them.")],
    new: New,
) -> None:
    """Add a round that is another without some of its neurons."""
    left = patches.drop(name, neurons, new)
    print(f"Added {new}: {name} with {left} neurons left. `dvc repro evaluate@{new}` measures it.")


@app.command("merge")
def merge(name: Name, other: Name, new: New) -> None:
    """Add a round that has one round's patch on top of another's, both made for one parent."""
    patches.merge(name, other, new)
    print(f"Added {new}: {other} on top of {name}. `dvc repro evaluate@{new}` measures it.")
