"""Which cells go on: each loss's best two to more seeds; the best three and baselines to full size.

    python choose.py two screened chosen.json
    python choose.py three screened seeds ranked.json

A cell's score is the harmonic mean of the share of flagged replies that are no longer flagged and
of the ROUGE-L of the clean replies to what the base said. It was fixed before the first cell ran.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import measure

PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")
BASELINES = ("ul", "nl", "sft_clean")


def score(cell: dict[str, Any]) -> float:
    """Return a cell's score, 0 to 1.

    Half of the flags gone and clean replies with a ROUGE-L of 0.75: 2 * 0.5 * 0.75 / 1.25 = 0.6.
    """
    replies = cell["sets"]["replies"]
    before, after = replies["flagged_before"]["flagged"], replies["flagged"]["flagged"]
    fixed = max(0.0, 1 - after / before)
    alike = replies["similarity_clean"]["rouge_l"]
    return 2 * fixed * alike / (fixed + alike) if fixed + alike else 0.0


def ranked(*folders: Path) -> list[dict[str, Any]]:
    """Return loss and setting of the cells, best first, each with its mean score over seeds."""
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for path in sorted(path for folder in folders for path in folder.glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        scores[cell["loss"], cell["setting"]].append(score(cell))
    means = [
        {"loss": loss, "setting": setting, "score": statistics.fmean(found), "seeds": len(found)}
        for (loss, setting), found in scores.items()
    ]
    most = max(cell["seeds"] for cell in means)  # those that went on
    return sorted((c for c in means if c["seeds"] == most), key=lambda c: -c["score"])


def two(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each loss's best two."""
    best: dict[str, Any] = {}
    for loss in sorted({cell["loss"] for cell in cells}):
        of_loss = [cell for cell in cells if cell["loss"] == loss]
        best[loss] = dict(zip(PLACES, of_loss[:2], strict=False))
    return best


def three(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the best three of the targeted losses, then each baseline's best."""
    targeted = [cell for cell in cells if cell["loss"] not in BASELINES]
    baselines = [next(cell for cell in cells if cell["loss"] == loss) for loss in BASELINES]
    return dict(zip(PLACES, [*targeted[:3], *baselines], strict=True))


if __name__ == "__main__":
    how, *folders, out = sys.argv[1:]
    measure.write({"two": two, "three": three}[how](ranked(*map(Path, folders))), Path(out))
