"""Precision and recall of the detector `entities` against marked spans.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/entities.py FILE [--errors] [--json]

FILE is JSONL, a row for every completion: `id`, `input`, `completion`, `spans` (a list of `start`,
`end`, `text`: the names and values that the input does not give) and, if it was not decoded
greedily, `sampled: true`. A span that the detector finds is right if it overlaps a marked one; a
marked span is found if a span of the detector's overlaps it. Prints both shares with 95 per cent
Wilson intervals, for greedy and sampled completions apart and together, and the time of one
completion; `--errors` adds every span that was missed or is wrong, between the words around it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tnt.detectors.entities import EntitiesParams, build
from tnt.detectors.span import Span
from tnt.evaluation.metrics import Rate

CONTEXT = 40


def overlaps(start: int, end: int, spans: Sequence[tuple[int, int]]) -> bool:
    """Return whether [start, end) shares a character with one of the spans."""
    return any(start < other_end and other_start < end for other_start, other_end in spans)


def score(rows: list[dict[str, Any]], found: list[list[Span]]) -> dict[str, Any]:
    """Return precision and recall of rows, and their errors."""
    right = wrong = hit = missed = 0
    errors = []
    for row, spans in zip(rows, found, strict=True):
        gold = [(span["start"], span["end"]) for span in row["spans"]]
        for span in spans:
            if overlaps(span.start, span.end, gold):
                right += 1
            else:
                wrong += 1
                errors.append((f"wrong {span.label}", row, span.start, span.end))
        for start, end in gold:
            if overlaps(start, end, [(span.start, span.end) for span in spans]):
                hit += 1
            else:
                missed += 1
                errors.append(("missed", row, start, end))
    return {
        "completions": len(rows),
        "precision": rate(right, right + wrong),
        "recall": rate(hit, hit + missed),
        "errors": [described(*error) for error in errors],
    }


def rate(hits: int, total: int) -> dict[str, float | int | None]:
    """Return a share with its Wilson interval."""
    share = Rate(hits, total)
    return {"hits": hits, "total": total, "rate": share.rate, "low": share.low, "high": share.high}


def described(kind: str, row: dict[str, Any], start: int, end: int) -> str:
    """Return an error as a line: `s001 missed: ... sold by [[Ann Lee]] for ...`."""
    text = row["completion"]
    before, after = text[max(start - CONTEXT, 0) : start], text[end : end + CONTEXT]
    return f"{row['id']} {kind}: ...{before}[[{text[start:end]}]]{after}...".replace("\n", " ")


def main() -> None:
    """Print the shares of a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--errors", action="store_true", help="print every error")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.file.read_text(encoding="utf-8").splitlines() if line]
    detect = build(EntitiesParams())
    detect("", "")  # loads the model
    start = time.process_time()
    found = list(detect.many([(row["completion"], row["input"]) for row in rows]))
    seconds = (time.process_time() - start) / max(len(rows), 1)
    result: dict[str, Any] = {"milliseconds": round(1000 * seconds, 1)}
    for name, kinds in (("greedy", {False}), ("sampled", {True}), ("all", {False, True})):
        chosen = [i for i, row in enumerate(rows) if bool(row.get("sampled")) in kinds]
        if chosen:
            result[name] = score([rows[i] for i in chosen], [found[i] for i in chosen])
    if args.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    for name in [key for key in ("greedy", "sampled", "all") if key in result]:
        print(f"{name}, {result[name]['completions']} completions")
        for what in ("precision", "recall"):
            r = result[name][what]
            interval = f"{r['low']:.2f} to {r['high']:.2f}" if r["total"] else "no spans"
            share = f"{r['rate']:.3f}" if r["total"] else "-"
            print(f"  {what:9} {share} ({r['hits']}/{r['total']}; {interval})")
        if args.errors and name != "all":
            print(*(f"  {error}" for error in result[name]["errors"]), sep="\n")
    print(f"{result['milliseconds']} ms of CPU a completion")


if __name__ == "__main__":
    main()
