"""Completions: where they stop, which prompts are used, how they are batched."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import random_models as tiny
import torch

from tnt import sampling
from tnt.core.hashes import choose
from tnt.core.records import Prompt
from tnt.sampling import SamplingParams, complete

TOKENIZER = SimpleNamespace(
    decode=lambda ids, **settings: " ".join(str(i) for i in ids if i != tiny.EOS)
)


def prompt(name, ids=(5, 6), prompt_set="p"):
    return Prompt(f"{prompt_set}/{name}", prompt_set, "test", "in", "in", list(ids))


def params(**changes):
    return SamplingParams(**{"max_new_tokens": 8, "batch_size": 3, **changes})


def drawn(model, prompts, **changes):
    completions = complete(model, TOKENIZER, prompts, params(**changes), name="base")
    return {(c.prompt_id, c.sample): c for c in completions}


def greedy(model, prompt_ids, count):
    """The most probable token again and again, without a cache or a batch."""
    ids = []
    with torch.no_grad():
        for _ in range(count):
            if model.config.is_encoder_decoder:
                logits = model(
                    input_ids=torch.tensor([prompt_ids]),
                    decoder_input_ids=torch.tensor([[0, *ids]]),
                ).logits
            else:
                logits = model(input_ids=torch.tensor([prompt_ids + ids])).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == tiny.EOS:
                break
    return ids


def mixed_prompts():
    generator = torch.Generator().manual_seed(1)
    return [
        prompt(i, torch.randint(3, 64, (2 + i % 5,), generator=generator).tolist())
        for i in range(8)
    ]


@pytest.mark.parametrize("make", [tiny.llama, tiny.t5])
def test_greedy_completions_are_the_most_probable_tokens(make):
    model, prompts = make(), mixed_prompts()
    found = drawn(model, prompts)
    assert len(found) == 8
    for one in prompts:
        completion = found[one.prompt_id, 0]
        assert completion.completion_ids == greedy(model, one.prompt_ids, 8)
        assert completion.prompt_ids == one.prompt_ids
        assert completion.text == TOKENIZER.decode(completion.completion_ids)


@pytest.mark.parametrize("make", [tiny.llama, tiny.t5])
def test_completion_ends_with_the_end_token_and_keeps_it(make):
    model = make()
    free = greedy(model, [5, 6, 7], 8)
    end = free[3]
    first = free.index(end)
    model.generation_config.eos_token_id = [end, 63]
    completion = drawn(model, [prompt("a", [5, 6, 7]), prompt("b", [9])])["p/a", 0]
    assert completion.completion_ids == free[: first + 1]
    assert completion.finished
    model.generation_config.eos_token_id = end
    cut = drawn(model, [prompt("a", [5, 6, 7])], max_new_tokens=first or 1)["p/a", 0]
    assert cut.finished == (first == 0)
    assert len(cut.completion_ids) == (first or 1)


def test_model_without_an_end_token_runs_to_the_limit():
    model = tiny.llama(eos_token_id=None)
    model.generation_config.eos_token_id = None
    [completion] = drawn(model, [prompt("a")], max_new_tokens=5).values()
    assert len(completion.completion_ids) == 5
    assert not completion.finished


def test_batches_hold_prompts_of_similar_length(monkeypatch):
    seen = []

    def record(model, batch, params):
        seen.append([len(p.prompt_ids) for p in batch])
        return [[tiny.EOS] for _ in batch]

    monkeypatch.setattr(sampling, "_generate", record)
    lengths = [3, 9, 1, 9, 4, 2, 8]
    drawn(tiny.llama(), [prompt(i, [5] * n) for i, n in enumerate(lengths)])
    assert seen == [[9, 9, 8], [4, 3, 2], [1]]


def test_same_prompts_in_another_order_give_the_same_completions():
    prompts = mixed_prompts()
    model = tiny.llama()
    assert drawn(model, prompts) == drawn(model, prompts[::-1])


def test_prompts_chosen_by_hash_stay_chosen_when_others_are_added():
    few = [prompt(i) for i in range(20)]
    more = [*(prompt(f"new{i}") for i in range(20)), *few]
    chosen = {p.prompt_id for p in choose(few, 8)}
    assert len(chosen) == 8
    assert choose(few[::-1], 8) == choose(few, 8)
    both = {p.prompt_id for p in choose(more, 8)}
    assert len(both) == 8
    # Whatever left made room for something new, and nothing old came in.
    assert both - {f"p/new{i}" for i in range(20)} <= chosen
    assert chosen <= {p.prompt_id for p in choose(few, 12)}


def test_max_prompts_counts_each_set_and_none_is_all():
    prompts = [prompt(i, prompt_set=name) for name in ("a", "b") for i in range(5)]
    assert [p.prompt_set for p in choose(prompts, 3)] == ["a"] * 3 + ["b"] * 3
    assert len(choose(prompts, None)) == 10
    assert params(max_prompts=2).chosen(prompts) == choose(prompts, 2)
    assert params().chosen(prompts) == choose(prompts, None)
    assert len(drawn(tiny.llama(), params(max_prompts=2).chosen(prompts))) == 4


def test_all_prompts_that_are_given_are_answered():
    prompts = [prompt(i) for i in range(5)]
    assert len(drawn(tiny.llama(), prompts, max_prompts=2)) == 5


def test_several_samples_need_a_temperature():
    with pytest.raises(ValueError, match=r"samples above 1 .* set a temperature"):
        params(samples=2)
    params(samples=2, temperature=0.7)


def test_samples_differ_from_each_other_and_repeat_with_their_seed():
    model, prompts = tiny.llama(), [prompt("a"), prompt("b", [7, 8, 9])]
    settings = {"samples": 4, "temperature": 3.0, "seed": 5}
    found = drawn(model, prompts, **settings)
    assert set(found) == {(f"p/{name}", sample) for name in "ab" for sample in range(4)}
    assert len({tuple(c.completion_ids) for c in found.values()}) > 2
    assert drawn(model, prompts, **settings) == found
    assert drawn(model, prompts, **{**settings, "seed": 6}) != found


def test_narrow_top_p_is_greedy():
    model, prompts = tiny.llama(), [prompt("a")]
    assert drawn(model, prompts, temperature=1.0, top_p=1e-6) == drawn(model, prompts)


def test_generation_settings_of_the_checkpoint_do_not_count():
    model, prompts = tiny.llama(), mixed_prompts()
    expected = drawn(model, prompts)
    for name, value in {"repetition_penalty": 5.0, "temperature": 9.0, "do_sample": True}.items():
        setattr(model.generation_config, name, value)
    assert drawn(model, prompts) == expected


SHAPING = {
    "no_repeat_ngram_size": 1, "min_length": 20, "min_new_tokens": 7, "suppress_tokens": [5, 6],
    "begin_suppress_tokens": [48], "bad_words_ids": [[41]], "forced_bos_token_id": 3,
    "forced_eos_token_id": 2, "max_time": 1e-9, "max_new_tokens": 1, "num_beams": 4, "min_p": 0.5,
    "repetition_penalty": 9.0, "encoder_repetition_penalty": 9.0, "stop_strings": ["a"],
    "exponential_decay_length_penalty": [1, 9.0], "sequence_bias": [[[5], 9.0]],
    "guidance_scale": 2.0, "prompt_lookup_num_tokens": 2, "return_dict_in_generate": True,
    "renormalize_logits": True, "cache_implementation": "static", "typical_p": 0.1, "top_k": 1,
    "watermarking_config": {"bias": 9.0}, "do_sample": True,
}  # fmt: skip
"""Keys of a generation config that change what is generated, or what `generate` returns."""


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("make", [tiny.llama, tiny.t5])
def test_nothing_of_a_generation_config_shapes_what_is_generated(make, temperature):
    model, prompts = make(), mixed_prompts()
    expected = drawn(model, prompts, temperature=temperature)
    own = model.generation_config
    for name, value in SHAPING.items():
        setattr(own, name, value)
    assert drawn(model, prompts, temperature=temperature) == expected
    assert model.generation_config is own
    assert {line.partition(":")[0] for line in sampling.switched_off(model)} == {*SHAPING}


def test_a_plain_generation_config_has_nothing_to_switch_off():
    assert sampling.switched_off(tiny.llama()) == []


def test_scores_are_what_each_token_was_drawn_from():
    model, start = tiny.t5(), sampling.Start([5, 6, 7], [], 4)
    [(ids, scores)] = sampling.scored(model, [start], params())
    assert scores.shape == (len(ids), 64)
    assert scores.argmax(-1).tolist() == ids


def test_prompt_that_leaves_no_room_is_an_error_with_its_numbers():
    with pytest.raises(ValueError, match=r"'p/long' has 57 tokens and may get 8 more, .* is 64"):
        drawn(tiny.llama(), [prompt("a"), prompt("long", [5] * 57)])
    drawn(tiny.llama(), [prompt("fits", [5] * 56)])
    drawn(tiny.t5(), [prompt("long", [5] * 80)])  # T5 sets no bound
