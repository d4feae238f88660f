"""The HTML report: what each round changed, in a page one can open from the file system."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tnt.artifacts import write_text
from tnt.records import Completion, Flag

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt, answered before and after a round."""

    prompt_id: str
    input: str
    before: list[tuple[str, str]]
    """Pieces of the text, each with the names of the detectors that flag it, or nothing."""
    after: list[tuple[str, str]]
    kind: str
    """`fixed`, `still flagged`, `newly flagged`, `unchanged` or `changed`."""


@dataclass(frozen=True, slots=True)
class RoundPage:
    """What the report shows of one round."""

    name: str
    parent: str
    detectors: list[str]
    metrics: Mapping[str, Any]
    pairs: Sequence[Pair]


def write(pages: Sequence[RoundPage], context: Mapping[str, Any], folder: Path) -> None:
    """Write `index.html` and one page per round.

    Args:
        pages: The rounds, in order.
        context: What the index shows besides: `rows` over all models, `probe`, `split`.
        folder: Where to.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    index = environment.get_template("index.html").render(pages=pages, **context)
    write_text(index, folder / "index.html")
    for page in pages:
        write_text(
            environment.get_template("round.html").render(page=page), folder / f"{page.name}.html"
        )


def pair(
    before: Completion, after: Completion, flags_before: Sequence[Flag], flags_after: Sequence[Flag]
) -> Pair:
    """Return one prompt's two answers, with what is flagged in them."""
    match bool(flags_before), bool(flags_after):
        case True, False:
            kind = "fixed"
        case True, True:
            kind = "still flagged"
        case False, True:
            kind = "newly flagged"
        case _:
            kind = "unchanged" if before.completion_ids == after.completion_ids else "changed"
    return Pair(
        prompt_id=before.prompt_id,
        input=before.input,
        before=marked(before.text, flags_before),
        after=marked(after.text, flags_after),
        kind=kind,
    )


def marked(text: str, flags: Sequence[Flag]) -> list[tuple[str, str]]:
    """Cut a text where flags begin and end.

    "I'm sorry, no" with 0:9 flagged by `boilerplate`: [("I'm sorry", "boilerplate"), (", no", "")].
    """
    cuts = sorted({0, len(text), *(f.start for f in flags), *(f.end for f in flags)})
    pieces = []
    for start, end in itertools.pairwise(cuts):
        names = sorted({f.detector for f in flags if f.start <= start and end <= f.end})
        pieces.append((text[start:end], ", ".join(names)))
    return pieces
