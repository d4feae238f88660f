"""What can be done without training: the base is kept, and asked or decoded in another way.

    python serve.py system_forbids full/system_forbids.json

- `base`: nothing at all.
- `default`: what `make repro` trains in its first round.
- `system_forbids`: a system message that forbids the boilerplate, for the chat template's own.
- `system_asks`: one that says what to write, and nothing of what not to.
- `bad_words`: `bad_words_ids` of transformers, from every phrase flagged in the training prompts'
  completions, with and without a space before it.
- `ban`: ban and continue. Greedy; where something is flagged, the token that completes it is
  banned behind that prefix, and the answer is continued from there, until it is clean.
- `reject`: greedy; what is flagged is drawn again, at a temperature, until it is clean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure

from tnt import models, sampling
from tnt.core import artifacts
from tnt.core.params import load_yaml
from tnt.core.records import Completion, Flag, Prompt
from tnt.models import decode
from tnt.rollouts.params import RolloutParams
from tnt.rollouts.walk import walk

SERVE = measure.PARAMS["serve"]

Served = tuple[list[Completion], int]
"""Answers, and how many tokens were generated for them in all."""


def main(method: str, out: Path) -> None:
    """Answer the test prompts in one way and write what that is like."""
    model, tokenizer = measure.start()
    asked = measure.asked(measure.PARAMS["sizes"]["full"], tokenizer)
    before = measure.cpu_seconds()
    answers, generated = METHODS[method](model, tokenizer, asked)
    seconds = measure.cpu_seconds() - before
    said = artifacts.read(Path("base/full.parquet"), Completion)
    cell = {
        "method": method,
        "training_cpu_s": 0.0,
        "serving_cpu_s": seconds,
        "tokens_per_answer": generated / len(answers),
        "sets": measure.compared(said, answers),
    }
    measure.write(cell, out)


def base(model: Any, tokenizer: Any, asked: Sequence[Prompt]) -> Served:
    """Change nothing."""
    return _counted(measure.answers(model, tokenizer, asked))


def default(_: Any, tokenizer: Any, asked: Sequence[Prompt]) -> Served:
    """Take the model of the default project's first round; its training is not counted here."""
    model = models.load(measure.ROOT / "data/models/r1")
    return _counted(measure.answers(model, tokenizer, asked))


def system_forbids(model: Any, tokenizer: Any, asked: Sequence[Prompt]) -> Served:
    """Say in a system message what is unwanted."""
    return _told(SERVE["system_prompts"]["forbids"], model, tokenizer, asked)


def system_asks(model: Any, tokenizer: Any, asked: Sequence[Prompt]) -> Served:
    """Say in a system message what is wanted instead."""
    return _told(SERVE["system_prompts"]["asks"], model, tokenizer, asked)


def _told(system: str, model: Any, tokenizer: Any, asked: Sequence[Prompt]) -> Served:
    sets = load_yaml(measure.ROOT / "params.yaml")["prompt_sets"]
    told = []
    for prompt in asked:
        messages = [
            {"role": "system", "content": system},
            {
                "role": "user",
                "content": sets[prompt.prompt_set]["template"].replace("{input}", prompt.input),
            },
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        told.append(replace(prompt, prompt_ids=ids))
    return _counted(measure.answers(model, tokenizer, told))


def bad_words(model: Any, tokenizer: Any, asked: Sequence[Prompt]) -> Served:
    """Forbid the token sequences of the phrases that were flagged in training prompts."""
    flags = artifacts.read(measure.ROUND / "flags.parquet", Flag)
    phrases = {form for flag in flags for form in (flag.text.strip(), f" {flag.text.strip()}")}
    ids = [tokenizer(phrase, add_special_tokens=False).input_ids for phrase in sorted(phrases)]
    model.generation_config.bad_words_ids = ids
    return _counted(measure.answers(model, tokenizer, asked))


def ban(model: Any, tokenizer: Any, asked: Sequence[Prompt]) -> Served:
    """Ban the token that completes something flagged, and continue, until nothing is flagged."""
    answers, generated = _counted(measure.answers(model, tokenizer, asked))
    walked = walk(model, tokenizer, answers, measure.boilerplate(), RolloutParams(), measure.DRAW)
    end_ids = models.end_ids(model)
    for number, rollout in enumerate(walked):
        ids = rollout.completion_ids
        generated += next((len(ids) - i for i, tokens in enumerate(rollout.banned) if tokens), 0)
        answers[number] = replace(
            answers[number],
            completion_ids=ids,
            text=decode(tokenizer, ids),
            finished=ids[-1] in end_ids,
        )
    return answers, generated


def reject(model: Any, tokenizer: Any, asked: Sequence[Prompt]) -> Served:
    """Draw again, from the whole distribution, what is flagged."""
    answers, generated = _counted(measure.answers(model, tokenizer, asked))
    found = {c.prompt_id: c for c in answers}
    by_id = {prompt.prompt_id: prompt for prompt in asked}
    for seed in range(1, SERVE["most_tries"]):
        again = [by_id[prompt_id] for prompt_id, _ in sorted(measure.flagged([*found.values()]))]
        if not again:
            break
        params = replace(measure.DRAW, temperature=SERVE["temperature"], seed=seed)
        drawn = sampling.complete(model, tokenizer, again, params, name="study")
        generated += sum(len(c.completion_ids) for c in drawn)
        found |= {c.prompt_id: c for c in drawn}
    return [found[prompt.prompt_id] for prompt in asked], generated


METHODS: dict[str, Callable[[Any, Any, Sequence[Prompt]], Served]] = {
    "base": base,
    "default": default,
    "system_forbids": system_forbids,
    "system_asks": system_asks,
    "bad_words": bad_words,
    "ban": ban,
    "reject": reject,
}


def _counted(answers: list[Completion]) -> Served:
    return answers, sum(len(c.completion_ids) for c in answers)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
