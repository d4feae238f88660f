"""Ban and continue, against doing the same one token at a time."""

from __future__ import annotations

import functools
import string
from dataclasses import replace

import pytest
import torch
from random_models import llama, t5
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tnt import models
from tnt.core.records import Completion, key_of
from tnt.detectors import running
from tnt.detectors.span import Span
from tnt.models import decode
from tnt.rollouts.params import RolloutParams
from tnt.rollouts.walk import as_is, completed, walk
from tnt.sampling import SamplingParams

LENGTH = 12
LETTERS = string.ascii_letters + string.digits + "+-"
GREEDY = SamplingParams(max_new_tokens=LENGTH, batch_size=3)


def letters():
    """Return a tokenizer with a letter for each of the models' 64 tokens."""
    tokenizer = Tokenizer(WordLevel({letter: i for i, letter in enumerate(LETTERS)}, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = letters()


def found(pattern):
    """Return a detector of a text."""

    def detect(text, prompt_input):
        start = text.find(pattern)
        return [Span(start, start + len(pattern))] if start >= 0 else []

    return detect


@functools.cache
def model_of(kind):
    return {"llama": llama, "t5": t5}[kind]()


def next_logits(model, prompt, ids):
    with torch.no_grad():
        if models.is_encoder_decoder(model):
            start = [models.decoder_start(model.config), *ids]
            given = {
                "input_ids": torch.tensor([prompt]),
                "decoder_input_ids": torch.tensor([start]),
            }
            return model(**given).logits[0, -1]
        return model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1]


def slowly(model, prompt, flagged=lambda text: False, begun=()):
    """Return the likeliest tokens one by one, never one with which a text is flagged."""
    ids = [*begun]
    while len(ids) < LENGTH and ids[-1:] != models.end_ids(model):
        logits = next_logits(model, prompt, ids)
        order = logits.argsort(descending=True).tolist()
        ids.append(next(t for t in order if not flagged(decode(TOKENIZER, [*ids, t]))))
    return ids


def completions(model, count=7):
    made = []
    for i in range(count):
        prompt = [3 + (5 * i + j) % 60 for j in range(2 + i % 3)]
        ids = slowly(model, prompt)
        text = decode(TOKENIZER, ids)
        made.append(Completion(f"p/{i}", 0, "base", "", prompt, ids, text, finished=False))
    return made


def common(said):
    """Return a pair of letters that occurs in some texts, in the middle."""
    return said[0].text[2:4]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_rollout_is_the_greedy_answer_without_what_is_flagged(kind):
    model = model_of(kind)
    said = completions(model)
    detectors = {"d": found(common(said))}
    flags = running.find_flags(detectors, said)
    assert flags
    walked = walk(model, TOKENIZER, said, detectors, RolloutParams(), GREEDY)
    hit = {key_of(flag) for flag in flags}
    for rollout, completion in zip(walked, said, strict=True):
        if key_of(completion) not in hit:
            assert rollout.completion_ids == completion.completion_ids
            assert not any(rollout.banned)
            continue
        expected = slowly(model, completion.prompt_ids, lambda text: common(said) in text)
        assert rollout.completion_ids == expected
        assert rollout.end == "clean"
        for place, banned in enumerate(rollout.banned):
            before = rollout.completion_ids[:place]
            likelier = next_logits(model, completion.prompt_ids, before).argsort(descending=True)
            first = likelier.tolist()[: len(banned)]
            assert sorted(first) == banned  # all that is likelier than what was taken


def test_a_rollout_ends_at_its_last_ban_that_is_left():
    model = model_of("llama")
    said = completions(model)
    every = {"d": lambda text, _: [Span(0, len(text))] if len(text) > 2 else []}
    flags = running.find_flags(every, said)
    params = RolloutParams(max_bans=4)
    hit = {key_of(flag) for flag in flags}
    walked = walk(model, TOKENIZER, said, every, params, GREEDY)
    assert len(hit) >= 3
    for rollout in (rollout for rollout in walked if key_of(rollout) in hit):
        assert rollout.end == "bound"
        assert sum(map(len, rollout.banned)) == 4
        assert rollout.completion_ids[-1] in rollout.banned[-1]


def test_what_people_flagged_is_taken_as_it_is():
    model = model_of("llama")
    said = completions(model)

    def people(text, prompt_input):
        return [Span(0, 2)] if text == said[0].text else []

    people.recalls = True
    walked = walk(model, TOKENIZER, said, {"people": people}, RolloutParams(), GREEDY)
    assert [rollout.end for rollout in walked] == ["as_is", *["clean"] * (len(said) - 1)]
    assert [replace(rollout, end="as_is") for rollout in walked] == as_is(said)


def test_at_a_temperature_nothing_flagged_is_drawn_and_the_seed_decides():
    model = model_of("llama")
    said = completions(model)
    detectors = {"d": found(common(said))}
    drawn = [
        walk(
            model, TOKENIZER, said, detectors, RolloutParams(),
            SamplingParams(max_new_tokens=LENGTH, batch_size=3, temperature=1.0, seed=seed),
        )
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]
    for rollout in drawn[0]:
        assert common(said) not in decode(TOKENIZER, rollout.completion_ids)


def test_the_completing_token_is_the_first_up_to_which_something_is_found():
    ids = [TOKENIZER.convert_tokens_to_ids(letter) for letter in "abcabd"]
    row = Completion("p/0", 0, "base", "", [3], ids, decode(TOKENIZER, ids), finished=True)
    for pattern, place in (("abd", 5), ("ab", 1), ("a", 0), ("cab", 4)):
        detectors = {"d": found(pattern)}
        flags = running.find_flags(detectors, [row])
        assert completed([row], flags, detectors, TOKENIZER) == {("p/0", 0): place}
    assert completed([row], [], {"d": found("x")}, TOKENIZER) == {}
