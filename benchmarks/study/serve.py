"""What can be done without training: the base is kept, and asked or decoded in another way.

    python serve.py system_forbids full/system_forbids.json

- `base`: nothing at all.
- `default`: what `make repro` trains in its first round.
- `system_forbids`: a system message that forbids the boilerplate, for the chat template's own.
- `system_asks`: one that says what to write, and nothing of what not to.
- `bad_words`: `bad_words_ids` of transformers, from every phrase flagged in the training prompts'
  completions, with and without a space before it.
- `ban`: ban and continue. Greedy; where something is flagged, the token with which it starts is
  banned behind that prefix, and the answer is continued from there, until it is clean.
- `reject`: greedy; what is flagged is drawn again, at a temperature, until it is clean.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import measure
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tnt import detectors, models, sampling
from tnt.core import artifacts
from tnt.core.params import load_yaml
from tnt.core.records import Completion, Flag, Prompt
from tnt.detectors import running
from tnt.masks.flagged import mask_all
from tnt.masks.params import MaskParams
from tnt.models import decode

SERVE = measure.PARAMS["serve"]
LIMIT = measure.DRAW.max_new_tokens

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
    """Ban the token with which something flagged starts, and continue, until nothing is flagged."""
    answers = measure.answers(model, tokenizer, asked)
    *_, last = islice(bans(model, tokenizer, answers, measure.boilerplate()), LIMIT + 1)
    return last


def bans(
    model: Any, tokenizer: Any, answers: Sequence[Completion], found: Mapping[str, detectors.Detect]
) -> Iterator[Served]:
    """Yield greedy answers as they are, and after each token banned, until nothing is flagged."""
    by_id = {c.prompt_id: c for c in answers}
    generated = sum(len(c.completion_ids) for c in answers)
    banned: dict[tuple[str, tuple[int, ...]], set[int]] = defaultdict(set)
    while True:
        yield [*by_id.values()], generated
        starts = first_flagged([*by_id.values()], tokenizer, found)
        if not starts:
            return
        prefixes = {}
        for prompt_id, start in starts.items():
            ids = by_id[prompt_id].completion_ids
            prefixes[prompt_id] = prefix = tuple(ids[:start])
            banned[prompt_id, prefix].add(ids[start])
        rows = [by_id[prompt_id] for prompt_id in prefixes]
        more = continued(model, rows, prefixes, banned)
        for row, ids in zip(rows, more, strict=True):
            generated += len(ids)
            whole = [*prefixes[row.prompt_id], *ids]
            by_id[row.prompt_id] = replace(
                row,
                completion_ids=whole,
                text=decode(tokenizer, whole),
                finished=whole[-1] == model.generation_config.eos_token_id,
            )


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


def first_flagged(
    answers: Sequence[Completion], tokenizer: Any, found: Mapping[str, detectors.Detect]
) -> dict[str, int]:
    """Return, by prompt id, where in a flagged answer's tokens the first flagged one stands."""
    flags = running.find_flags(found, answers)
    masks = mask_all(answers, flags, tokenizer, MaskParams(span_tokens="first"))
    return {m.prompt_id: m.negative_mask.index(True) for m in masks if any(m.negative_mask)}


class BanAtStart(LogitsProcessor):
    """Forbids some tokens as the next one, for each row others, and nothing after that."""

    def __init__(self, width: int, banned: Sequence[set[int]]) -> None:
        """Set the length of the rows so far, and what each must not go on with."""
        self.width, self.banned = width, banned

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores, -inf at what is banned."""
        if input_ids.shape[1] == self.width:
            scores = scores.clone()
            for row, tokens in zip(scores, self.banned, strict=True):
                row[[*tokens]] = -torch.inf
        return scores


def continued(
    model: Any,
    rows: Sequence[Completion],
    prefixes: dict[str, tuple[int, ...]],
    banned: dict[tuple[str, tuple[int, ...]], set[int]],
) -> list[list[int]]:
    """Return the greedy continuations of the prefixes, not with what is banned behind them."""
    starts = [[*row.prompt_ids, *prefixes[row.prompt_id]] for row in rows]
    width, end = max(map(len, starts)), model.generation_config.eos_token_id
    input_ids = torch.full((len(rows), width), end)
    attention_mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(starts):
        input_ids[i, width - len(ids) :] = torch.tensor(ids)
        attention_mask[i, width - len(ids) :] = 1
    left = [LIMIT - len(prefixes[row.prompt_id]) for row in rows]
    processor = BanAtStart(width, [banned[r.prompt_id, prefixes[r.prompt_id]] for r in rows])
    with torch.inference_mode():
        output = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max(left),
            do_sample=False,
            pad_token_id=end,
            logits_processor=LogitsProcessorList([processor]),
        )
    found = []
    for ids, count in zip(output[:, width:].tolist(), left, strict=True):
        ends = (i + 1 for i, token in enumerate(ids) if token == end)
        found.append(ids[: min(next(ends, count), count)])
    return found


def _counted(answers: list[Completion]) -> Served:
    return answers, sum(len(c.completion_ids) for c in answers)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
