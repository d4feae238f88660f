"""How far the two passes agree that marked the completions the detector `entities` is measured by.

    .venv/bin/python benchmarks/agreement.py

Reads `entities_passes.jsonl` beside it: the spans of both passes, before a third settled what they
saw differently. Prints F1 of one pass against the other, for equal spans and for any overlap.
"""

from __future__ import annotations

import json
from pathlib import Path

PASSES = Path(__file__).with_name("entities_passes.jsonl")


def main() -> None:
    """Print both shares."""
    total = equal = overlapping = 0
    for line in PASSES.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        first, second = ([tuple(span) for span in row[name]] for name in ("first", "second"))
        total += len(first) + len(second)
        equal += 2 * len({*first} & {*second})
        for own, others in ((first, second), (second, first)):
            overlapping += sum(any(a < d and c < b for c, d in others) for a, b in own)
    print(f"{total} spans in both passes; F1 {equal / total:.2f} equal, ", end="")
    print(f"{overlapping / total:.2f} overlapping")


if __name__ == "__main__":
    main()
