"""CPU time of masking 100,000 completions, beside that of decoding their ids.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/masking.py [--json] [--completions 100000]

Takes the completions of a round that have 40 tokens or more (59 on average), shuffled and repeated,
and flags them as the round's flags are: as many spans a completion, as long. Prints, for every
completion flagged and for every third, the CPU seconds of `mask_all` and of `batch_decode` on the
same ids, slice by slice in turn so that both meet the same machine, and their ratio. The bars, for
every completion flagged: 60 s, and a ratio of 10.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read when tokenizers first works

from tnt import models
from tnt.core import artifacts
from tnt.core.records import Completion, Flag
from tnt.masks.flagged import mask_all
from tnt.masks.params import MaskParams

ROOT = Path(__file__).parent.parent
SLICES = 10
SHORTEST = 40
SHARES = {"every completion flagged": 1, "every third": 3}


def sample(
    real: list[Completion], flags: list[Flag], count: int, every: int
) -> tuple[list[Completion], list[Flag]]:
    """Return `count` completions, every `every`-th with flags, drawn with a fixed seed."""
    rng = random.Random(0)
    long = [c for c in real if len(c.completion_ids) >= SHORTEST and c.text]
    numbers = [*Counter((f.prompt_id, f.sample) for f in flags).values()]
    lengths = [f.end - f.start for f in flags]
    completions, found = [], []
    for i in range(count):
        if i % len(long) == 0:
            rng.shuffle(long)
        c = replace(long[i % len(long)], sample=i)
        completions.append(c)
        for _ in range(rng.choice(numbers) if i % every == 0 else 0):
            length = min(rng.choice(lengths), len(c.text))
            start = rng.randint(0, len(c.text) - length)
            end = start + length
            found.append(Flag(c.prompt_id, i, "d", "", start, end, c.text[start:end], 1.0))
    return completions, found


def measure(tokenizer: Any, completions: list[Completion], flags: list[Flag]) -> dict[str, float]:
    """Return the CPU seconds of both, and their ratio."""
    seconds = {"decode": 0.0, "mask": 0.0}
    for part in range(SLICES):
        rows = completions[part::SLICES]
        keys = {row.sample for row in rows}
        of_rows = [flag for flag in flags if flag.sample in keys]
        ids = [row.completion_ids for row in rows]
        seconds["decode"] += _cpu_time(
            lambda ids=ids: tokenizer.batch_decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
        seconds["mask"] += _cpu_time(
            lambda rows=rows, of_rows=of_rows: mask_all(rows, of_rows, tokenizer, MaskParams())
        )
    return {
        "completions": len(completions),
        "tokens_per_completion": sum(len(c.completion_ids) for c in completions) / len(completions),
        "flags": len(flags),
        "mask_all_cpu_s": seconds["mask"],
        "batch_decode_cpu_s": seconds["decode"],
        "ratio": seconds["mask"] / seconds["decode"],
    }


def _cpu_time(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--completions", type=int, default=100_000)
    parser.add_argument("--model", type=Path, default=ROOT / "data/models/base")
    parser.add_argument("--round", type=Path, default=ROOT / "data/rounds/r1")
    args = parser.parse_args()
    tokenizer = models.load_tokenizer(args.model)
    real = artifacts.read(args.round / "completions.parquet", Completion)
    flags = artifacts.read(args.round / "flags.parquet", Flag)
    report = {
        name: measure(tokenizer, *sample(real, flags, args.completions, every))
        for name, every in SHARES.items()
    }
    if args.json:
        print(json.dumps(report))
        return
    for name, row in report.items():
        print(
            f"{name}: {row['completions']} completions of {row['tokens_per_completion']:.1f} "
            f"tokens, {row['flags']} flags: mask_all {row['mask_all_cpu_s']:.2f} s, batch_decode "
            f"{row['batch_decode_cpu_s']:.2f} s, ratio {row['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
