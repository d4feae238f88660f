"""Heretic's search, with this study's prompts and phrases: it is a program of its own.

    python -m venv work/heretic-venv
    work/heretic-venv/bin/pip install heretic-llm==1.4.0
    python heretic_search.py work/heretic-venv/bin/heretic heretic heretic_search.json

Heretic (heretic-llm, AGPL) draws directions and weights of directional ablation by Optuna, counts
how many answers to `bad` prompts hold a marker, and how far the first token's distribution moves on
`good` ones. Here `bad` prompts are those whose replies are flagged, `good` ones those whose answers
are clean: replies to training prompts for the directions, replies and summaries of validation
prompts for the search. Markers are the phrases that were flagged in the training prompts' replies.

It asks at a terminal what to do with what it found; where it takes itself to be in a notebook it
reads the answers from its input. What it has searched it keeps, so that it goes on after a stop.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure

from tnt import models
from tnt.core import artifacts
from tnt.core.params import load_yaml
from tnt.core.records import Completion, Flag, Prompt

SEARCH = measure.PARAMS["rivals"]["search"]
WORK = Path("work/heretic")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""The chat template's own: Heretic always gives one."""
CONTINUE, SAVE, RETURN = "1", "1", "5"
"""In its menus."""
TRIAL = re.compile(
    r"\[(\d+)\] \[Trial +(\d+)\] Refusals: +(\d+)/(\d+), KL +divergence: +([\d.]+)", re.DOTALL
)


def main(program: str, adapters: Path, out: Path) -> None:
    """Search, and leave the adapters of the fewest refusals and of what moved little."""
    prepare()
    searched = ask(program, [CONTINUE] if any(WORK.glob("checkpoints/*.jsonl")) else [])
    trials = found(searched)
    chosen = {"fewest": trials[0], "gentle": gentle(trials)}
    answers = [CONTINUE]
    for name, trial in chosen.items():
        answers += [trial["number"], SAVE, str((adapters / name).resolve()), RETURN]
    ask(program, answers)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    cell = {
        **SEARCH,
        "best": trials,
        "chosen": {name: trial["trial"] for name, trial in chosen.items()},
        "cpu_s": spent.ru_utime + spent.ru_stime,
    }
    measure.write(cell, out)


def prepare() -> None:
    """Write the prompts and Heretic's configuration."""
    tokenizer = models.load_tokenizer(measure.BASE)
    flags = artifacts.read(measure.ROUND / "flags.parquet", Flag)
    wrong = {flag.prompt_id for flag in flags}
    prompts = artifacts.read(measure.ROUND / "prompts.parquet", Prompt)
    train = [p for p in prompts if (p.prompt_set, p.split) == ("replies", "train")]
    asked = {"split": "validation", "asked": {"replies": None, "summaries": None}}
    validation = measure.asked(asked, tokenizer)
    said = artifacts.read(Path("base/screen.parquet"), Completion)
    was_wrong = {prompt_id for prompt_id, _ in measure.flagged(said)}
    sets = {
        ("bad_prompts", "learnt"): [p for p in train if p.prompt_id in wrong],
        ("good_prompts", "learnt"): [p for p in train if p.prompt_id not in wrong],
        ("bad_evaluation_prompts", "judged"): [p for p in validation if p.prompt_id in was_wrong],
        ("good_evaluation_prompts", "moved"): [
            p for p in validation if p.prompt_id not in was_wrong
        ],
    }
    markers = {" ".join(flag.text.lower().replace("\u2019", "'").split()) for flag in flags}
    config: dict[str, Any] = {
        "model": str(measure.BASE),
        "dtypes": ["float32"],
        "device_map": "cpu",
        "batch_size": 64,
        "max_response_length": SEARCH["tokens"],
        "response_prefix": "",
        "n_trials": SEARCH["trials"],
        "n_startup_trials": SEARCH["startup_trials"],
        "seed": SEARCH["seed"],
        "export_strategy": "adapter",
        "system_prompt": SYSTEM,
        "refusal_markers": sorted(markers),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.items()]
    for (name, most), of_set in sets.items():
        (WORK / name).mkdir(parents=True, exist_ok=True)
        rows = [json.dumps({"text": message(prompt)}) + "\n" for prompt in of_set[: SEARCH[most]]]
        (WORK / name / "train.jsonl").write_text("".join(rows), encoding="utf-8")
        lines += [f"[{name}]", f'dataset = "{name}"', 'split = "train"', 'column = "text"']
    (WORK / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def message(prompt: Prompt) -> str:
    """Return what the user says in a prompt."""
    template = load_yaml(measure.ROOT / "params.yaml")["prompt_sets"][prompt.prompt_set]["template"]
    return template.replace("{input}", prompt.input)


def ask(program: str, answers: Sequence[str]) -> str:
    """Run Heretic, give its menus some answers and then no more; return what it printed."""
    environment = {**os.environ, "KAGGLE_KERNEL_RUN_TYPE": "Batch", "COLUMNS": "200"}
    environment.pop("PYTHONPATH", None)
    log = WORK / "printed.txt"
    with log.open("w", encoding="utf-8") as printed:
        subprocess.run(
            [Path(program).absolute()],
            cwd=WORK,
            env=environment,
            input="".join(f"{answer}\n" for answer in answers),
            stdout=printed,
            text=True,
        )
    return log.read_text(encoding="utf-8")


def found(printed: str) -> list[dict[str, Any]]:
    """Return the trials that Heretic offers, those with the fewest refusals first.

    Raises:
        ValueError: It offers none.
    """
    offered = TRIAL.findall(printed.rpartition("Optimization finished!")[2])
    if not offered:
        raise ValueError(f"Heretic offers no trial. It ended with: {printed[-500:]}")
    names = ("number", "trial", "refusals", "of", "kl_divergence")
    return [
        {**dict(zip(names, row, strict=True)), "kl_divergence": float(row[-1])} for row in offered
    ]


def gentle(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the trial with the fewest refusals of those that moved at most `most_moved`."""
    near = [trial for trial in trials if trial["kl_divergence"] <= SEARCH["most_moved"]]
    return near[0] if near else trials[-1]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
