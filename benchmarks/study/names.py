"""The harder behaviour: names and numbers that a summary adds to what it summarises.

    python names.py corpus names/completions.parquet
    python names.py cell n50 names/n50.json

Each invented name is its own, so what is learnt from one says little about the next. How much is
learnt is therefore measured over the number of annotated completions: the base's greedy summaries
of all training prompts, then samples of the same prompts. Beside the flag rate stands the
probability that the updated model gives to the tokens with which invented names began in the base's
summaries of the test prompts: the same question with far less noise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
from train import WORK

from tnt import artifacts, detectors, masking, sampling, training
from tnt.divergence import divergence
from tnt.masking import MaskParams
from tnt.prompts import lowest_hashes
from tnt.records import Completion, Mask, Prompt
from tnt.training import TrainParams

NAMES = measure.PARAMS["names"]
CORPUS = Path("names/completions.parquet")
TEST = measure.ROOT / "data/evaluations/base/completions.parquet"
"""What the default project says the base answers to the test prompts."""


def corpus(out: Path) -> None:
    """Write the base's completions of the training prompts: greedy as sample 0, then others."""
    model, tokenizer = measure.start()
    prompts = artifacts.read(measure.ROUND / "prompts.parquet", Prompt)
    chosen = [p for p in prompts if p.prompt_set == "summaries"]
    found = measure.answers(model, tokenizer, chosen)
    learnt = [p for p in chosen if p.split == "train"]
    params = replace(measure.DRAW, samples=NAMES["samples"], temperature=NAMES["temperature"])
    drawn = sampling.complete(model, tokenizer, learnt, params, name="study")
    found += [replace(c, sample=c.sample + 1) for c in drawn]
    artifacts.write(found, out, Completion)


def cell(name: str, out: Path) -> None:
    """Train on so many completions, ask, and write what came of it."""
    settings = {**NAMES["default"], **NAMES["cells"][name]}
    model, tokenizer = measure.start()
    learnt, watched = annotated(tokenizer, settings)
    params = TrainParams(
        negative_weight=settings["negative_weight"],
        learning_rate=settings["learning_rate"],
        epochs=max(1, settings["passes"] // len(learnt)),
        batch_size=8,
        trainable=measure.PARAMS["trainable"],
    )
    before = measure.cpu_seconds()
    trained = training.train(
        model,
        [*learnt, *watched],
        params,
        workdir=WORK / f"names-{settings['completions']}" / name,
        held_out=frozenset(row.prompt_id for row in watched),
    )
    learnt_at = measure.cpu_seconds()
    base = [c for c in artifacts.read(TEST, Completion) if c.prompt_set == "summaries"]
    flags = detectors.find_flags(unsupported(), base)
    starts = masking.mask_all(base, flags, tokenizer, MaskParams(span_tokens="first"))
    flagged = [row for row in starts if any(row.negative_mask)]
    original, _ = measure.start()
    asked = measure.asked({"split": "test", "asked": {"summaries": None}}, tokenizer)
    answers = measure.answers(trained.model, tokenizer, asked)
    result = {
        "cell": name,
        **settings,
        "epochs": params.epochs,
        "negative_completions": sum(any(row.negative_mask) for row in learnt),
        "negative_tokens": sum(sum(row.negative_mask) for row in learnt),
        "steps": len(trained.logs),
        "stopped": trained.stopped,
        "learnt_negative_mass": trained.logs[-1].negative_mass,
        "negative_mass_before": masses(original, original, flagged),
        "negative_mass": masses(original, trained.model, flagged),
        "divergence_watched": trained.logs[-1].validation_divergence,
        "training_cpu_s": learnt_at - before,
        **measure.compared(base, answers, unsupported())["summaries"],
    }
    measure.write(result, out)
    training.forget(WORK / f"names-{settings['completions']}")


def annotated(tokenizer: Any, settings: dict[str, Any]) -> tuple[list[Mask], list[Mask]]:
    """Return the masks of the first so many completions, greedy ones first, and the watched."""
    completions = artifacts.read(CORPUS, Completion)
    flags = detectors.find_flags(unsupported(), completions, title="detect")
    params = MaskParams(
        span_tokens=settings["span_tokens"], after_negative=settings["after_negative"]
    )
    masks = masking.mask_all(completions, flags, tokenizer, params)
    prompts = artifacts.read(measure.ROUND / "prompts.parquet", Prompt)
    validation = {p.prompt_id for p in prompts if p.split == "validation"}
    watched = [row for row in masks if row.prompt_id in validation][: measure.PARAMS["watched"]]
    learnt: list[Mask] = []
    for sample in range(NAMES["samples"] + 1):
        of_sample = [r for r in masks if r.sample == sample and r.prompt_id not in validation]
        learnt += lowest_hashes(of_sample, None)
    if len(learnt) < settings["completions"]:
        raise ValueError(
            f"{len(learnt)} completions are annotated, {settings['completions']} are asked for. "
            "Raise names.samples."
        )
    return learnt[: settings["completions"]], watched


def unsupported() -> dict[str, detectors.Detect]:
    """Return the detector of what the input does not give, by name."""
    return {"entities": detectors.build("entities", {"kind": "entities"})}


def masses(original: Any, model: Any, flagged: Sequence[Mask]) -> float | None:
    """Return the mean probability of the flagged tokens behind the base's prefixes."""
    found = divergence(original, model, flagged, batch_size=8, title="invented names")
    return found.negative_mass


if __name__ == "__main__":
    what, *given, out = sys.argv[1:]
    if what == "corpus":
        corpus(Path(out))
    else:
        cell(given[0], Path(out))
