"""What every cell of the study measures: the base's answers beside the new ones, in one dict."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tnt import detectors, models, prompts, sampling
from tnt.core import artifacts, hashes
from tnt.core.params import load_yaml, parse
from tnt.core.records import Completion, Prompt
from tnt.detectors import running
from tnt.detectors.repetition import RepetitionParams
from tnt.detectors.repetition import build as build_repetition
from tnt.evaluation import metrics
from tnt.prompts import PromptSetParams
from tnt.sampling import SamplingParams

ROOT = Path(__file__).parents[2]
BASE = ROOT / "data/models/base"
ROUND = ROOT / "data/rounds/r1"
"""What the first round learnt from: the base's completions of the training prompts."""
DRAW = SamplingParams(max_new_tokens=64, batch_size=128)
"""Greedy, as the default project answers."""
PARAMS = load_yaml(Path(__file__).with_name("params.yaml"))


def start() -> tuple[Any, Any]:
    """Return the base model and its tokenizer, on one thread: cells run side by side."""
    torch.set_num_threads(1)
    return models.load(BASE), models.load_tokenizer(BASE)


def boilerplate() -> dict[str, detectors.Detect]:
    """Return the detector that says what is unwanted, by name."""
    config = {"kind": "phrases", "list": str(ROOT / "data/lists/boilerplate.txt")}
    return {"boilerplate": detectors.build("boilerplate", config)}


def flagged(
    completions: Sequence[Completion], found: Mapping[str, detectors.Detect] | None = None
) -> set[metrics.Key]:
    """Return the keys of the completions in which detectors find something: the boilerplate's."""
    flags = running.find_flags(found or boilerplate(), completions)
    return {(f.prompt_id, f.sample) for f in flags}


def asked(size: Mapping[str, Any], tokenizer: Any) -> list[Prompt]:
    """Return the prompts that a cell answers."""
    sets = load_yaml(ROOT / "params.yaml")["prompt_sets"]
    chosen: list[Prompt] = []
    for name, count in size["asked"].items():
        params = parse(sets[name], PromptSetParams, where=f"prompt_sets.{name}")
        rows = prompts.read_file(ROOT / "data/prompts" / name / "first.jsonl")
        rendered = [prompts.render(row, name, params, tokenizer) for row in rows]
        of_split = [prompt for prompt in rendered if prompt.split == size["split"]]
        chosen += hashes.lowest_hashes(of_split, count)
    return chosen


def answers(model: Any, tokenizer: Any, asked: Sequence[Prompt]) -> list[Completion]:
    """Return the model's greedy answers."""
    return sampling.complete(model, tokenizer, asked, DRAW, name="study")


def compared(
    before: Sequence[Completion],
    after: Sequence[Completion],
    found: Mapping[str, detectors.Detect] | None = None,
) -> dict[str, Any]:
    """Return, by prompt set, what the new answers are like beside the base's."""
    old = {(c.prompt_id, c.sample): c for c in before}
    by_set: dict[str, Any] = {}
    for name in sorted({c.prompt_set for c in after}):
        new = [c for c in after if c.prompt_set == name]
        base = [old[c.prompt_id, c.sample] for c in new]
        wrong, was_wrong = flagged(new, found), flagged(base, found)
        loops = flagged(new, {"loops": build_repetition(RepetitionParams())})
        clean = [
            (o.text, n.text)
            for o, n in zip(base, new, strict=True)
            if (o.prompt_id, o.sample) not in was_wrong
        ]
        by_set[name] = {
            "flagged_before": metrics.flag_rate(base, was_wrong),
            "flagged": metrics.flag_rate(new, wrong),
            "clean_unchanged": metrics.clean_unchanged(base, new, was_wrong),
            "similarity": metrics.similarity([c.text for c in base], [c.text for c in new]),
            "similarity_clean": metrics.similarity(*map(list, zip(*clean, strict=True))),
            "repetition": metrics.flag_rate(new, loops),
            **metrics.length_and_finish(new),
        }
    return metrics.rounded(by_set)


def cpu_seconds() -> float:
    """Return what this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def write(cell: Mapping[str, Any], path: Path) -> None:
    """Write a cell's result."""
    artifacts.write_text(json.dumps(metrics.rounded(cell), indent=1) + "\n", path)
