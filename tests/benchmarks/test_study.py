"""The study of the real model: how cells are chosen, what they learn from, how bans work."""

from __future__ import annotations

import json
import math
import re
import string
from pathlib import Path

import choose
import heretic_search
import measure
import names
import pytest
import random_models
import rivals
import serve
import torch
import train
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from tnt.core import artifacts
from tnt.core.params import load_yaml
from tnt.core.records import Completion, Mask, Prompt
from tnt.detectors import running
from tnt.detectors.span import Span
from tnt.losses.table import LOSSES
from tnt.sampling import SamplingParams

STUDY = Path(train.__file__).parent
SINCE = {"tnfr"}
"""Losses that came after the study ran."""


def cell(loss, setting, flagged, alike, seed=0):
    replies = {
        "flagged_before": {"flagged": 40},
        "flagged": {"flagged": flagged},
        "similarity_clean": {"rouge_l": alike},
    }
    return {"loss": loss, "setting": setting, "seed": seed, "sets": {"replies": replies}}


@pytest.mark.parametrize(
    ("flagged", "alike", "expected"),
    [
        (20, 0.75, 0.6),  # half fixed: 2 * 0.5 * 0.75 / 1.25
        (0, 1.0, 1.0),
        (40, 1.0, 0.0),  # nothing fixed
        (50, 1.0, 0.0),  # worse than before
        (40, 0.0, 0.0),
    ],
)
def test_a_score_rewards_fixes_and_what_stays(flagged, alike, expected):
    assert choose.score(cell("tnff", "gentle", flagged, alike)) == pytest.approx(expected)


def write_cells(folder, *cells):
    folder.mkdir()
    for number, written in enumerate(cells):
        (folder / f"{number}.json").write_text(json.dumps(written))
    return folder


def test_the_best_two_settings_of_each_loss_go_on(tmp_path):
    screened = write_cells(
        tmp_path / "screened",
        cell("tnff", "gentle", 30, 1.0),
        cell("tnff", "fast", 10, 1.0),
        cell("tnff", "weighted", 20, 1.0),
        cell("ul", "gentle", 5, 1.0),
    )
    chosen = choose.two(choose.ranked(screened))
    assert [c["setting"] for c in chosen["tnff"].values()] == ["fast", "weighted"]
    assert [*chosen["ul"]] == ["first"]


def test_ranks_are_by_the_mean_of_cells_with_all_seeds(tmp_path):
    losses = ("tnff", "tnrr", "tnrf", "ul", "nl", "sft_clean")
    screened = write_cells(
        tmp_path / "screened",
        *(cell(loss, "gentle", 10 + n, 1.0) for n, loss in enumerate(losses)),
        cell("tnff", "fast", 0, 1.0),  # the best of the screening, but it has one seed only
    )
    seeds = write_cells(
        tmp_path / "seeds",
        *(cell(loss, "gentle", 10 + n, 1.0, seed=1) for n, loss in enumerate(losses[:2])),
        cell("tnrf", "gentle", 0, 1.0, seed=1),
        *(cell(loss, "gentle", 30, 1.0, seed=1) for loss in losses[3:]),
    )
    ranks = choose.three(choose.ranked(screened, seeds))
    assert [c["loss"] for c in ranks.values()] == ["tnrf", "tnff", "tnrr", "ul", "nl", "sft_clean"]
    assert ranks["first"]["seeds"] == 2


def test_a_cell_is_named_in_full_or_by_its_rank(tmp_path):
    file = tmp_path / "ranked.json"
    file.write_text(json.dumps({"first": {"loss": "ul", "setting": "fast"}}))
    assert train.cell_of("tnff", "gentle", "3", "x.json") == ("tnff", "gentle", 3, "x.json")
    assert train.cell_of(f"{file}:first", "0", "x.json") == ("ul", "fast", 0, "x.json")


@pytest.fixture
def learnt_from(tmp_path, monkeypatch):
    """A round of 6 replies and 4 summaries, every second one for validation."""
    prompts = [
        Prompt(f"{name}/{i}", name, "validation" if i % 2 else "train", "x", "x", [1])
        for name, count in (("replies", 6), ("summaries", 4))
        for i in range(count)
    ]
    masks = [Mask(p.prompt_id, 0, [1], [2], [False], [True]) for p in prompts]
    artifacts.write(prompts, tmp_path / "prompts.parquet", Prompt)
    monkeypatch.setattr(measure, "ROUND", tmp_path)
    monkeypatch.setitem(measure.PARAMS, "watched", 1)
    return masks


def test_nothing_is_learnt_from_validation_prompts(learnt_from):
    watched, learnt = train.split(learnt_from, {"replies": None, "summaries": 1}, 0)
    assert [row.prompt_id for row in watched] == ["summaries/1"]
    names = [row.prompt_id for row in learnt]
    assert {*names[:3]} == {"replies/0", "replies/2", "replies/4"}
    assert len(names) == 4
    assert names[3] in ("summaries/0", "summaries/2")


def test_a_seed_chooses_the_prompts(learnt_from):
    size = {"replies": 1, "summaries": 0}
    found = {train.split(learnt_from, size, seed)[1][0].prompt_id for seed in range(9)}
    assert found == {"replies/0", "replies/2", "replies/4"}


LETTERS = string.ascii_letters + string.digits + "+-"
"""A token each, as many as random models know."""


@pytest.fixture
def lettered(monkeypatch):
    """A random model that is asked for eight letters, and a detector of a few."""

    def some_letters(text, _):
        return [Span(*found.span()) for found in re.finditer("[P-T]", text)]

    tokenizer = Tokenizer(WordLevel({letter: i for i, letter in enumerate(LETTERS)}, "a"))
    tokenizer.pre_tokenizer, tokenizer.decoder = Split("", "isolated"), decoders.Fuse()
    monkeypatch.setattr(measure, "DRAW", SamplingParams(max_new_tokens=8, batch_size=4))
    monkeypatch.setattr(measure, "boilerplate", lambda: {"some_letters": some_letters})
    return random_models.llama(), PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_ban_and_continue_leaves_nothing_flagged_and_what_was_clean(lettered):
    model, tokenizer = lettered
    asked = [Prompt(f"replies/{i}", "replies", "test", "x", "x", [3 + i, 9]) for i in range(9)]
    before = measure.answers(model, tokenizer, asked)
    flagged = measure.flagged(before)
    assert 0 < len(flagged) < len(asked)
    after, generated = serve.ban(model, tokenizer, asked)
    assert not measure.flagged(after)
    again = 0
    for old, new in zip(before, after, strict=True):
        if (old.prompt_id, 0) not in flagged:
            assert new == old
            continue
        start = next(i for i, letter in enumerate(old.text) if letter in "PQRST")
        assert new.completion_ids[:start] == old.completion_ids[:start]
        again += len(new.completion_ids) - start
    assert generated == sum(len(c.completion_ids) for c in before) + again


def test_an_ablated_model_writes_nothing_in_a_direction():
    model, ids = random_models.llama(), torch.tensor([[5, 6, 7, 8]])
    direction = torch.nn.functional.normalize(torch.arange(32.0) - 9, dim=0)
    head = model.get_output_embeddings().weight.detach().clone()

    def written():
        with torch.no_grad():
            states = model.model(ids, output_hidden_states=True).hidden_states
        return torch.stack(states[:-1]) @ direction  # the last is normed

    assert written().abs().max() > 0.1
    rivals.ablate(model, direction)
    assert written().abs().max() < 1e-5
    assert torch.equal(model.get_output_embeddings().weight, head)


def test_directions_are_between_means_at_prompts_and_at_flagged_tokens():
    model = random_models.llama()
    flagged = random_models.row(0, [5, 6], [7, 8, 9], negative=[1])
    clean = random_models.row(1, [6, 5], [9, 7])
    found = rivals.means(model, [flagged, clean])
    with torch.no_grad():
        of_flagged, of_clean = (
            torch.stack(
                model.model(
                    torch.tensor([row.prompt_ids + row.completion_ids]), output_hidden_states=True
                ).hidden_states
            )[:, 0]
            for row in (flagged, clean)
        )
    kept = torch.stack([of_flagged[:, 1], of_flagged[:, 3], of_clean[:, 1], of_clean[:, 2]])
    for kind, expected in {
        "prompt_wrong": of_flagged[:, 1],
        "prompt_clean": of_clean[:, 1],
        "flagged_wrong": of_flagged[:, 2],  # position 2 predicts token 1 of the completion
        "flagged_clean": kept.mean(0),
    }.items():
        torch.testing.assert_close(found[kind], expected)


TETHERS = {"margin": 2, "grace": 0.5, "target_tether": 0.05, "tether": 0.4}


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0, 0, 0, 0], math.log(1 + math.e**2)),  # softplus(2), at its full weight
        ([0, 1, 0, 0], 0.5 * math.log(1 + math.e) + 0.05 * 0.5**2 / 2),  # half won, 0.5 too far
        ([0, 2, 0, 0], 0.05 * 1.5**2 / 2),  # won: the tether alone
        ([3, 2, 0, 0], 0.05 * 1.5**2 / 2 + 0.4 * 9 / 2),  # another logit moved by 3
    ],
)
def test_a_preference_is_trained_up_to_its_margin_and_tethered(logits, expected):
    preference = rivals.Preference(torch.tensor([1]), 2, torch.zeros(4))
    found = rivals.of_one(torch.tensor(logits).float(), preference, TETHERS)
    assert float(found) == pytest.approx(expected)


def test_what_is_likely_and_not_negative_is_preferred():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert rivals.likely(logits, [0], 0.25).tolist() == [1, 2]
    assert rivals.likely(logits, [0, 1, 2], 0.25).tolist() == []


def test_the_loss_looks_at_the_tokens_that_predict_what_is_flagged():
    model = random_models.llama()
    rows = [random_models.row(i, [5, 6, 7 + i], [8, 9, 10], negative=[i]) for i in range(2)]
    with torch.no_grad():
        logits = [model(torch.tensor([r.prompt_ids + r.completion_ids])).logits[0] for r in rows]
    originals = [logits[0][2], logits[1][3]]
    pairs = [
        (row, [(i, rivals.Preference(torch.tensor([3]), row.completion_ids[i], original))])
        for i, (row, original) in enumerate(zip(rows, originals, strict=True))
    ]
    of_each = [
        rivals.of_one(original, found[0][1], TETHERS)
        for original, (_, found) in zip(originals, pairs, strict=True)
    ]
    found = rivals.preference_loss(model, pairs, TETHERS)
    torch.testing.assert_close(found, torch.stack(of_each).mean())


def test_the_trials_that_heretic_offers_are_read_from_its_menu():
    printed = """Optimization finished!

[1] [Trial  12] Refusals:  3/33, KL divergence: 0.4100
[2] [Trial   4] Refusals:  9/33, KL divergence: 0.0812
[3] Run additional trials
"""
    trials = heretic_search.found(printed)
    assert [trial["trial"] for trial in trials] == ["12", "4"]
    assert heretic_search.gentle(trials)["number"] == "2"
    assert heretic_search.gentle(trials[:1])["number"] == "1"  # none moved so little
    with pytest.raises(ValueError, match=r"^Heretic offers no trial\. It ended with: Loading"):
        heretic_search.found("Loading")


def test_every_setting_of_every_rival_is_screened():
    stages = load_yaml(STUDY / "dvc.yaml")["stages"]
    for method in rivals.METHODS:
        assert {*stages[f"screen_{method}"]["foreach"]} == {*rivals.RIVALS[method]}


def test_every_loss_is_screened_and_seeded():
    stages, studied = load_yaml(STUDY / "dvc.yaml")["stages"], {*LOSSES} - SINCE
    assert {*stages["screen"]["matrix"]["loss"], "sft_clean"} == studied
    assert {*stages["seeds"]["matrix"]["loss"]} == studied
    assert 3 * len(studied) <= 40


@pytest.fixture
def summaries():
    """Three prompts' summaries, sample 0 and two more: some name somebody whom nobody named."""
    invented = {("summaries/1", 0), ("summaries/0", 2), ("summaries/2", 1)}
    prompts = [
        Prompt(f"summaries/{i}", "summaries", split, "Ann sold it.", "x", [1])
        for i, split in enumerate(["train", "train", "validation"])
    ]
    texts = (" So it was sold by Ann.", " So it was sold by Ann to Peter Olsen.")
    tokenizer = words(*texts)
    said = []
    for prompt in prompts:
        for sample in range(3):
            text = texts[(prompt.prompt_id, sample) in invented]
            key = (prompt.prompt_id, sample, "base", prompt.input, [1])
            said.append(Completion(*key, tokenizer(text).input_ids, text, finished=False))
    return tokenizer, prompts, said, running.find_flags(names.unsupported(), said)


def words(*texts):
    """Return a tokenizer that has a token for each word, with the space before it."""
    splits = pre_tokenizers.Split(Regex(r" ?\w+|\W"), "isolated")
    pieces = {piece for text in texts for piece, _ in splits.pre_tokenize_str(text)}
    vocabulary = {piece: number for number, piece in enumerate(["<end>", *sorted(pieces)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = splits, decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


LEARN = {"span_tokens": "first", "after_negative": "end", "prompts": None, "flagged_only": False}


def keys(rows):
    return [(row.prompt_id, row.sample) for row in rows]


def test_greedy_summaries_are_learnt_from_before_samples(summaries):
    tokenizer, prompts, said, flags = summaries
    rows = names.masked(said, flags, tokenizer, LEARN, prompts[:2])
    learnt = names.chosen(rows, {**LEARN, "completions": 4}, seed=0)
    assert sorted(keys(learnt)[:2]) == [("summaries/0", 0), ("summaries/1", 0)]
    assert sorted(keys(learnt)[2:]) == [("summaries/0", 1), ("summaries/1", 1)]
    (flagged,) = (row for row in learnt if any(row.negative_mask))
    assert keys([flagged]) == [("summaries/1", 0)]
    assert negative(tokenizer, flagged) == [" Peter"]
    with pytest.raises(ValueError, match=r"^6 completions are annotated, 7 are asked for\. Raise"):
        names.chosen(rows, {**LEARN, "completions": 7}, seed=0)


def test_few_prompts_and_flagged_summaries_alone_can_be_learnt_from(summaries):
    tokenizer, prompts, said, flags = summaries
    rows = names.masked(said, flags, tokenizer, LEARN, prompts[:2])
    only = names.chosen(rows, {**LEARN, "completions": 2, "flagged_only": True}, seed=0)
    assert keys(only) == [("summaries/1", 0), ("summaries/0", 2)]
    few = {**LEARN, "completions": 3, "prompts": 1}
    found = [names.chosen(rows, few, seed) for seed in range(9)]
    assert all(len({row.prompt_id for row in learnt}) == 1 for learnt in found)
    assert len({learnt[0].prompt_id for learnt in found}) == 2


def negative(tokenizer, row):
    marked = zip(row.completion_ids, row.negative_mask, strict=True)
    return [tokenizer.decode([token]) for token, hit in marked if hit]


def test_names_begin_where_they_are_invented_and_where_they_are_given(summaries):
    tokenizer, _, said, flags = summaries
    invented, given = names.beginnings(said, flags, tokenizer)
    assert names.negatives(invented) == 3
    assert names.negatives(given) == 18
    assert negative(tokenizer, invented[3]) == [" Peter"]
    assert negative(tokenizer, given[3]) == [" So", " Ann"]
    (inner,) = names.within_sentences(given[3:4], tokenizer)
    assert negative(tokenizer, inner) == [" Ann"]


def test_a_direction_that_separates_is_found():
    torch.manual_seed(0)
    labels = torch.arange(200) % 4 == 0
    states = torch.randn(200, 8)
    states[labels, 3] += 8
    rows = names.Labelled(states, labels, torch.arange(200) // 2)
    direction = names.fitted(rows, 0.01)
    assert direction.abs().argmax() == 3
    assert names.auc(direction, rows) == 1.0
    assert names.auc(-direction, rows) == 0.0
    assert names.auc(torch.zeros(8), rows) == 0.5
    assert rows.of_first(3).labels.tolist() == labels[:6].tolist()


def test_every_cell_of_the_names_is_run():
    stages = load_yaml(STUDY / "names/dvc.yaml")["stages"]
    assert {*stages["cell"]["matrix"]["cell"]} == {*names.NAMES["cells"]}
