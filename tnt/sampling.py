"""Prompts -> completions.

Prompts are sorted by length and batched with a fixed size, because padding and batch shape change
the last bits of the logits and so, now and then, a greedy token. The batch size is therefore part
of the result.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from tnt import models
from tnt.core.hashes import choose
from tnt.core.params import STRICT
from tnt.core.records import Completion, Prompt
from tnt.models import by_length, decode


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How completions are drawn. Greedy unless a temperature is given."""

    max_new_tokens: PositiveInt | dict[str, PositiveInt]
    """The longest completion: one number, or one for each prompt set."""
    batch_size: PositiveInt
    max_prompts: PositiveInt | None = None
    """Prompts used of each split of each prompt set, chosen by hash; None is all."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy. Annotate what you will serve."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    samples: PositiveInt = 1
    """Completions per prompt; more than 1 needs a temperature."""
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        """Refuse several identical samples."""
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 are all the same at temperature 0; set a temperature")

    def chosen(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Return the prompts that are to be answered, at most `max_prompts` of each."""
        return choose(prompts, self.max_prompts)

    def limit(self, prompt_set: str) -> int:
        """Return `max_new_tokens` for a prompt set.

        Raises:
            ValueError: There is none for it.
        """
        if isinstance(self.max_new_tokens, int):
            return self.max_new_tokens
        if prompt_set not in self.max_new_tokens:
            raise ValueError(
                f"max_new_tokens has no entry for the prompt set {prompt_set!r}, only for "
                f"{[*self.max_new_tokens]}. Add one."
            )
        return self.max_new_tokens[prompt_set]


def complete(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], params: SamplingParams, *, name: str
) -> list[Completion]:
    """Return the model's completions of the prompts.

    Args:
        model: A causal or encoder-decoder model in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Those to be answered, all of them, in whatever order; their `prompt_ids` are fed
            as they are.
        params: How to draw.
        name: Stored as `Completion.model`.

    Raises:
        ValueError: A prompt and `max_new_tokens` together exceed the model's context.
    """
    import torch
    from tqdm import tqdm

    prompts = choose(prompts, None)  # one order, so that batches are the same
    refuse_long(prompts, model.config, params)
    torch.manual_seed(params.seed)
    completions: list[Completion] = []
    with tqdm(
        total=len(prompts) * params.samples, desc=f"generate with {name}", unit="reply"
    ) as bar:
        for sample in range(params.samples):
            for batch in _batches(prompts, params.batch_size):
                drawn = _generate(model, batch, params)
                for prompt, ids in zip(batch, drawn, strict=True):
                    completions.append(_completion(prompt, sample, name, ids, model, tokenizer))
                bar.update(len(batch))
    return completions


def refuse_long(prompts: Sequence[Prompt], config: Any, params: SamplingParams) -> None:
    """Raise if a prompt or `max_new_tokens`, for a causal model both together, exceed its context.

    Args:
        prompts: To be answered.
        config: Of the model.
        params: With the limit.
    """
    context = models.context_length(config)
    together = max if config.is_encoder_decoder else operator.add
    for prompt in prompts:
        limit = params.limit(prompt.prompt_set)
        if context is not None and together(len(prompt.prompt_ids), limit) > context:
            raise ValueError(
                f"Prompt {prompt.prompt_id!r} has {len(prompt.prompt_ids)} tokens and may get "
                f"{limit} more, but the model's context is {context}. Shorten the prompt or lower "
                "max_new_tokens."
            )


def _batches(prompts: Sequence[Prompt], batch_size: int) -> Iterator[list[Prompt]]:
    """Yield prompts of one set and of similar length."""
    for name in sorted({p.prompt_set for p in prompts}):
        members = [p for p in prompts if p.prompt_set == name]
        for indices in by_length([len(p.prompt_ids) for p in members], batch_size):
            yield [members[i] for i in indices]


def _generate(model: Any, batch: list[Prompt], params: SamplingParams) -> list[list[int]]:
    """Return the completion ids of one batch, cut after the end-of-sequence token."""
    import torch

    prompt_ids = [p.prompt_ids for p in batch]
    width = max(map(len, prompt_ids))
    end_ids = set(_end_ids(model))
    pad = min(end_ids, default=0)
    input_ids = torch.full((len(prompt_ids), width), pad)
    attention_mask = torch.zeros_like(input_ids)
    left = not models.is_encoder_decoder(model)  # a causal model continues at the right edge
    for i, ids in enumerate(prompt_ids):
        span = slice(width - len(ids), width) if left else slice(0, len(ids))
        input_ids[i, span] = torch.tensor(ids)
        attention_mask[i, span] = 1
    draw: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if params.temperature > 0:
        draw |= {
            "do_sample": True,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": 0,
        }
    with torch.inference_mode():
        output = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            max_new_tokens=params.limit(batch[0].prompt_set),
            num_beams=1,
            repetition_penalty=1.0,
            pad_token_id=pad,
            **draw,
        )
    start = width if left else 1  # the decoder's own start token is no completion token
    completions = []
    for row in output[:, start:].tolist():
        ends = (i for i, token in enumerate(row) if token in end_ids)
        completions.append(row[: next(ends, len(row) - 1) + 1])
    return completions


def _completion(
    prompt: Prompt, sample: int, name: str, ids: list[int], model: Any, tokenizer: Any
) -> Completion:
    return Completion(
        prompt_id=prompt.prompt_id,
        sample=sample,
        model=name,
        input=prompt.input,
        prompt_ids=prompt.prompt_ids,
        completion_ids=ids,
        text=decode(tokenizer, ids),
        finished=ids[-1] in _end_ids(model),
    )


def _end_ids(model: Any) -> list[int]:
    end = model.generation_config.eos_token_id
    if end is None:
        end = model.config.eos_token_id
    return end if isinstance(end, list) else [] if end is None else [end]
