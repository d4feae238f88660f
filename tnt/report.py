"""The HTML report: what each round changed, in a page one can open from the file system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnt import examples
from tnt.artifacts import write_text
from tnt.examples import Example
from tnt.pages import environment


@dataclass(frozen=True, slots=True)
class RoundPage:
    """What the report shows of one round."""

    name: str
    parent: str
    detectors: list[str]
    """Those it was trained on."""
    metrics: Mapping[str, Any]
    examples: Sequence[Example]
    looked_for: list[str]
    """All detectors that ran over the examples."""
    learned_from: Mapping[str, int]
    """Prompt set -> number of prompts whose completions it was trained on."""


def write(pages: Sequence[RoundPage], context: Mapping[str, Any], folder: Path) -> None:
    """Write `index.html`, and one page and one CSV of examples per round.

    Args:
        pages: The rounds, in order.
        context: What the index shows besides: `rows` over all models, `probe`, `split`.
        folder: Where to.
    """
    jinja = environment()
    index = jinja.get_template("index.html").render(pages=pages, **context)
    write_text(index, folder / "index.html")
    template = jinja.get_template("round.html")
    for number, page in enumerate(pages):
        html = template.render(
            page=page,
            earlier=pages[number - 1] if number else None,
            later=pages[number + 1] if number + 1 < len(pages) else None,
            kinds=examples.KINDS,
            data=examples.embedded(page.examples, page.looked_for),
        )
        write_text(html, folder / f"{page.name}.html")
        write_text(examples.table(page.examples), folder / f"{page.name}.csv")
