"""One trained cell: a loss, a setting and a seed, on few prompts or on all.

    python train.py screen tnff gentle 0 screened/tnff-gentle.json
    python train.py screen chosen.json:tnff:first 1 seeds/tnff-first-1.json
    python train.py full ranked.json:first 0 full/first.json

What a cell learns from are the base's completions of the default project's first round, masked as
there; a seed chooses the prompts, where not all are taken, and the order of the steps.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure

from tnt.core import artifacts
from tnt.core.records import Completion, Mask, Prompt
from tnt.training import run
from tnt.training.params import TrainParams
from tnt.training.run import Trained

WORK = Path("work")


def main(size: str, *named: str) -> None:
    """Train a cell, ask it, and write what it is like."""
    loss, setting, seed, out = cell_of(*named)
    of_size = measure.PARAMS["sizes"][size]
    model, tokenizer = measure.start()
    before = measure.cpu_seconds()
    trained = trained_on(model, of_size, loss, setting, seed, Path(out).stem)
    learnt = measure.cpu_seconds()
    asked = measure.asked(of_size, tokenizer)
    answers = measure.answers(trained.model, tokenizer, asked)
    answered = measure.cpu_seconds()
    base = artifacts.read(Path("base", f"{of_size.get('base', size)}.parquet"), Completion)
    last = trained.logs[-1]
    cell = {
        "loss": loss,
        "setting": setting,
        "seed": seed,
        **measure.PARAMS["settings"][setting],
        "steps": len(trained.logs),
        "stopped": trained.stopped,
        "divergence_summaries": last.validation_divergence,
        "training_cpu_s": learnt - before,
        "serving_cpu_s": answered - learnt,
        "tokens_per_answer": sum(len(c.completion_ids) for c in answers) / len(answers),
        "sets": measure.compared(base, answers),
    }
    measure.write(cell, Path(out))


def trained_on(
    model: Any, size: Mapping[str, Any], loss: str, setting: str, seed: int, name: str
) -> Trained:
    """Train the base on the completions of a size."""
    rows = artifacts.read(measure.ROUND / "masks.parquet", Mask)
    held_out, learnt = split(rows, size, seed)
    params = TrainParams(
        loss=loss,
        **measure.PARAMS["settings"][setting],
        epochs=1,
        batch_size=size["batch_size"],
        trainable=measure.PARAMS["trainable"],
        seed=seed,
    )
    # Losses that learn from the same rows share what the original said.
    same = f"{size['split']}-{size['summaries']}-{seed}" + ("-clean" if loss == "sft_clean" else "")
    workdir = WORK / same / name
    watched = frozenset(row.prompt_id for row in held_out)
    trained = run.train(model, [*learnt, *held_out], params, workdir=workdir, held_out=watched)
    run.forget(workdir)
    return trained


def split(rows: list[Mask], size: Mapping[str, Any], seed: int) -> tuple[list[Mask], list[Mask]]:
    """Return the validation summaries that are watched, and the rows to learn from."""
    prompts = artifacts.read(measure.ROUND / "prompts.parquet", Prompt)
    splits = {p.prompt_id: (p.prompt_set, p.split) for p in prompts}
    members: dict[tuple[str, str], list[Mask]] = defaultdict(list)
    for row in rows:
        members[splits[row.prompt_id]].append(row)
    learnt: list[Mask] = []
    for name in ("replies", "summaries"):
        of_set = members[name, "train"]
        count = len(of_set) if size[name] is None else size[name]
        learnt += random.Random(seed).sample(of_set, count)
    return members["summaries", "validation"][: measure.PARAMS["watched"]], learnt


def cell_of(*named: str) -> tuple[str, str, int, str]:
    """Return loss, setting, seed and output from either way to name a cell."""
    *what, seed, out = named
    if len(what) == 1:
        file, *keys = what[0].split(":")
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        for key in keys:
            found = found[key]
        what = [found["loss"], found["setting"]]
    loss, setting = what
    return loss, setting, int(seed), out


if __name__ == "__main__":
    main(*sys.argv[1:])
