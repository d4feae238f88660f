"""The tables and figures of the study of the real model, from the results of its cells alone.

    python benchmarks/study_report.py      # renews docs/evidence.md and its pictures

Its blocks stand in docs/evidence.md between `<!-- study NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
from documents import COLOURS, filled, markdown, svg

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "benchmarks/study"
EVIDENCE = ROOT / "docs/evidence.md"
PICTURES = ROOT / "docs/pictures"
sys.path.insert(0, str(STUDY))

from choose import score  # noqa: E402

Cells = list[dict[str, Any]]
SETTINGS = ("gentle", "weighted", "fast", "fastest")


def read(folder: str) -> Cells:
    """Return the results in one of the study's folders, in the order of the tables."""
    cells = [json.loads(p.read_text(encoding="utf-8")) for p in (STUDY / folder).glob("*.json")]
    return sorted(cells, key=lambda c: ([*COLOURS].index(c["loss"]), SETTINGS.index(c["setting"])))


def screened() -> Iterator[str]:
    """Yield the table of the screening."""
    rows = []
    for cell in read("screened"):
        replies = cell["sets"]["replies"]
        before, after = replies["flagged_before"], replies["flagged"]
        clean, alike = replies["clean_unchanged"], replies["similarity_clean"]
        weight = "" if cell["loss"] == "sft_clean" else f"{cell['negative_weight']:g}"
        rows.append(
            [
                f"`{cell['loss']}`",
                f"{cell['learning_rate']:g}",
                weight,
                f"{before['flagged']} -> {after['flagged']} of {after['total']}",
                f"{clean['flagged']} of {clean['total']}",
                f"{alike['rouge_l']:.2f}",
                f"{1000 * cell['divergence_summaries']:.2f}",
                replies["repetition"]["flagged"],
                f"{score(cell):.2f}",
            ]
        )
    head = "loss,rate,weight,replies flagged,clean ones the same,their ROUGE-L,"
    head += "summaries moved,loops,score"
    yield from markdown(head.split(","), rows)


def cost() -> Iterator[str]:
    """Yield what the cells so far took."""
    cells = read("screened")
    seconds = sum(cell["training_cpu_s"] + cell["serving_cpu_s"] for cell in cells)
    yield f"{len(cells)} cells, {seconds / 60:.0f} CPU minutes."


BLOCKS: dict[str, Callable[[], Iterator[str]]] = {"screened": screened, "cost": cost}


def side_effects() -> alt.LayerChart:
    """Return what is still flagged against what moved on summaries, a line for each loss."""
    points = pd.DataFrame(
        {
            "loss": cell["loss"],
            "setting": cell["setting"],
            "flagged": cell["sets"]["replies"]["flagged"]["rate"],
            "divergence": cell["divergence_summaries"],
        }
        for cell in read("screened")
    )
    colours, shapes = zip(*COLOURS.values(), strict=True)
    base = alt.Chart(points).encode(
        x=alt.X("flagged", title="replies still flagged").axis(format="%"),
        y=alt.Y("divergence", title="KL(base || updated) on summaries, nats per token").scale(
            type="log"
        ),
        color=alt.Color("loss").scale(domain=[*COLOURS], range=[*colours]),
    )
    return alt.layer(
        base.mark_line(strokeWidth=1.2, opacity=0.5).encode(order="divergence"),
        base.mark_point(size=70, filled=True, opacity=1).encode(
            shape=alt.Shape("loss").scale(domain=[*COLOURS], range=[*shapes])
        ),
    ).properties(width=420, height=300)


FIGURES: dict[str, Callable[[], alt.LayerChart]] = {"study_screened": side_effects}


def document(text: str) -> str:
    """Return the document with the study's blocks as its results have them."""
    return filled(text, "study", lambda name: BLOCKS[name]())


if __name__ == "__main__":
    for name, figure in FIGURES.items():
        (PICTURES / f"{name}.svg").write_text(svg(figure()), encoding="utf-8")
    EVIDENCE.write_text(document(EVIDENCE.read_text(encoding="utf-8")), encoding="utf-8")
