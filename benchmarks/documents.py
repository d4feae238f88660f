"""What the studies' documents are made with: tables between markers, figures as SVG."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import vl_convert

COLOURS = {  # Okabe and Ito's palette, grey for its yellow, and one more; shapes tell them apart
    "tnff": ("#0072B2", "circle"),
    "tnrr": ("#009E73", "square"),
    "tnrf": ("#004D40", "diamond"),
    "tnfll": ("#E69F00", "triangle-up"),
    "tnrll": ("#CC79A7", "triangle-down"),
    "ul": ("#D55E00", "cross"),
    "nl": ("#999999", "triangle-left"),
    "sft_clean": ("#000000", "triangle-right"),
}
"""Loss -> its colour and shape in every figure."""
WIDTH = 120
"""The longest line of a document, tables aside."""


def filled(text: str, study: str, lines: Callable[[str], Iterable[str]]) -> str:
    """Return a document with every block of a study as its results have it.

    A block stands between `<!-- STUDY NAME -->` and `<!-- end -->`; `lines` gives those of a name.
    A row of a table stays one line; any other line is wrapped.
    """

    def wrapped(line: str) -> list[str]:
        if line.startswith("|"):
            return [line]
        return textwrap.wrap(line, WIDTH, break_long_words=False, break_on_hyphens=False)

    def block(match: re.Match[str]) -> str:
        found = [part for line in lines(match["name"]) for part in wrapped(line)]
        return "\n".join([match["start"], *found, "<!-- end -->"])

    pattern = rf"(?P<start><!-- {study} (?P<name>\w+) -->)\n.*?<!-- end -->"
    return re.sub(pattern, block, text, flags=re.DOTALL)


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table."""
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(map(str, row)) + " |"


def svg(chart: Any) -> str:
    """Return an Altair chart as SVG, on white."""
    look = chart.configure(background="white", aria=False).configure_axis(
        labelFontSize=11, titleFontSize=11
    )
    drawn = vl_convert.vegalite_to_svg(look.configure_title(fontSize=11).to_json())
    # The clips are numbered through all figures of a process: here, within one.
    numbers = {
        clip: str(i) for i, clip in enumerate(dict.fromkeys(re.findall(r"clip(\d+)", drawn)))
    }
    return re.sub(r"clip(\d+)", lambda match: f"clip{numbers[match[1]]}", drawn)
