"""Prompts -> completions.

Prompts are sorted by length and batched with a fixed size, because padding and batch shape change
the last bits of the logits and so, now and then, a greedy token. The batch size is therefore part
of the result.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass as params_dataclass

from tnt import models
from tnt.core.hashes import choose
from tnt.core.params import STRICT
from tnt.core.records import Completion, Prompt
from tnt.models import by_length, decode


@params_dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How completions are drawn. Greedy unless a temperature is given."""

    max_new_tokens: PositiveInt | dict[str, PositiveInt]
    """The longest completion, in tokens: one number, or one for each prompt set."""
    batch_size: PositiveInt = 32
    """Prompts of one pass; another number may give other completions."""
    max_prompts: PositiveInt | dict[str, PositiveInt] | None = None
    """Prompts used of each split of each prompt set, chosen by hash: one number, or one for each
    set that is not to be used whole; None is all."""
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
        if not isinstance(self.max_prompts, dict):
            return choose(prompts, self.max_prompts)
        most = self.max_prompts
        sets = dict.fromkeys(p.prompt_set for p in prompts)
        of_sets = {name: [p for p in prompts if p.prompt_set == name] for name in sets}
        return [p for name, of_set in of_sets.items() for p in choose(of_set, most.get(name))]

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
    limit = params.limit(batch[0].prompt_set)
    return continued(model, [Start(p.prompt_ids, [], limit) for p in batch], params)


Allows = Callable[[list[int], int], bool]
"""(the tokens added so far, a token) -> whether it may come next."""


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be continued."""

    prompt_ids: list[int]
    prefix: list[int]
    """The completion so far."""
    limit: int
    """The most tokens that may be added."""
    banned: frozenset[int] = frozenset()
    """Tokens that must not come next; later they may."""
    allows: Allows | None = None
    """Asked about every token before it is taken."""


def continued(model: Any, starts: Sequence[Start], params: SamplingParams) -> list[list[int]]:
    """Return what a model adds to some starts, each cut after the end-of-sequence token.

    Args:
        model: A causal or encoder-decoder model in evaluation mode.
        starts: One batch; for an encoder-decoder model their prefixes are equally long.
        params: How to draw.
    """
    return [ids for ids, _ in scored(model, starts, params, logits=False)]


def scored(
    model: Any, starts: Sequence[Start], params: SamplingParams, *, logits: bool = True
) -> list[tuple[list[int], Any]]:
    """Return what `continued` returns, and the logits that each of these tokens was drawn from.

    Of the checkpoint's own generation config nothing counts but its special tokens: what else it
    holds would shape what is drawn, and the target, which is the model's distribution, would not
    know. `switched_off` names it.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    causal = not models.is_encoder_decoder(model)
    given = [[*s.prompt_ids, *s.prefix] if causal else s.prompt_ids for s in starts]
    width = max(map(len, given))
    shared, cache = models.shared_beginning(model, given)
    end_ids = set(models.end_ids(model))
    pad = min(end_ids, default=0)
    input_ids = torch.full((len(given), width), pad)
    attention_mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(given):  # a causal model continues at the right edge
        input_ids[i, :shared] = torch.tensor(ids[:shared])
        attention_mask[i, :shared] = 1
        rest = ids[shared:]
        span = slice(width - len(rest), width) if causal else slice(0, len(rest))
        input_ids[i, span] = torch.tensor(rest)
        attention_mask[i, span] = 1
    fed: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
    begun = width
    if not causal:
        begun = 1 + len(starts[0].prefix)  # the decoder's own start token is no completion token
        if starts[0].prefix:
            first = models.decoder_start(model.config)
            prefixes = torch.tensor([[first, *start.prefix] for start in starts])
            fed["decoder_input_ids"] = prefixes.to(model.device)
    if any(start.banned or start.allows for start in starts):
        fed["logits_processor"] = LogitsProcessorList([_Allowed(begun, starts, end_ids, params)])
    drawn: dict[str, Any] = {"do_sample": False}
    if params.temperature > 0:
        drawn = {
            "do_sample": True,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": 0,
        }
    ways = GenerationConfig(
        max_new_tokens=max(start.limit for start in starts),
        pad_token_id=pad,
        eos_token_id=sorted(end_ids) or None,
        decoder_start_token_id=models.decoder_start(model.config),
        return_dict_in_generate=True,
        output_logits=logits,
        **drawn,
    )
    own, model.generation_config = model.generation_config, ways  # generate would merge the two
    try:
        with torch.inference_mode():
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=ways,
                **fed,
            )
    finally:
        model.generation_config = own
    completions = []
    for i, start in enumerate(starts):
        row = output.sequences[i, begun:].tolist()
        ends = (place for place, token in enumerate(row) if token in end_ids)
        ids = row[: min(next(ends, len(row) - 1) + 1, start.limit)]
        seen = torch.stack([step[i] for step in output.logits[: len(ids)]]) if logits else None
        completions.append((ids, seen))
    return completions


COUNTS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""What counts of a checkpoint's generation config."""
SHAPES_NOTHING = ("transformers_version", "use_cache")


def switched_off(model: Any) -> list[str]:
    """Return what a checkpoint's generation config asks for and does not get, like `min_p: 0.5`."""
    asked = model.generation_config.to_diff_dict()
    return [
        f"{name}: {value}"
        for name, value in sorted(asked.items())
        if value not in (None, False)
        and name not in (*COUNTS, *SHAPES_NOTHING)
        and not name.startswith("_")
    ]


@dataclass(frozen=True, slots=True)
class _Allowed:
    """A logits processor: leaves what each row may go on with."""

    begun: int
    """The length of what is continued."""
    starts: Sequence[Start]
    end_ids: set[int]
    params: SamplingParams

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the scores, -inf at what must not come next.

        At a temperature, only what was drawn is left.
        """
        import torch

        scores = scores.clone()
        for start, added, row in zip(
            self.starts, input_ids[:, self.begun :].tolist(), scores, strict=True
        ):
            if not added:
                row[[*start.banned]] = -math.inf
            if start.allows is None or self.end_ids & {*added} or len(added) >= start.limit:
                continue
            while row.isfinite().any():
                token = self._drawn(row)
                if start.allows(added, token):
                    if self.params.temperature:
                        row[torch.arange(len(row), device=row.device) != token] = -math.inf
                    break
                row[token] = -math.inf
        return scores

    def _drawn(self, row: Any) -> int:
        """Return a token as generation draws it."""
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        if not self.params.temperature:
            return int(row.argmax())
        warped = TemperatureLogitsWarper(self.params.temperature)(None, row[None].float())
        if self.params.top_p < 1:
            warped = TopPLogitsWarper(self.params.top_p)(None, warped)
        return int(warped.softmax(-1).multinomial(1))


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
        finished=ids[-1] in models.end_ids(model),
    )
