"""The study of the real model: how cells are chosen, what they learn from, how bans work."""

from __future__ import annotations

import json
from pathlib import Path

import choose
import measure
import names
import pytest
import random_models
import serve
import torch
import train
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tnt.core import artifacts
from tnt.core.params import load_yaml
from tnt.core.records import Completion, Mask, Prompt
from tnt.detectors import running
from tnt.losses.table import LOSSES

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


def test_a_ban_holds_for_the_next_token_only():
    model = random_models.llama().eval()
    prompt, prefix = [5, 6, 7], (8, 9)
    row = Completion("replies/a", 0, "base", "x", prompt, [8, 9, 1], "x", finished=False)
    prefixes, banned = {"replies/a": prefix}, {("replies/a", prefix): set()}
    limit = serve.LIMIT - len(prefix)

    def greedy(start, ban=frozenset()):
        """Greedy decoding written out, a whole pass for every token."""
        ids = list(start)
        end = model.generation_config.eos_token_id
        while len(ids) < len(start) + limit and (len(ids) == len(start) or ids[-1] != end):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].clone()
            if len(ids) == len(start):
                logits[[*ban]] = -torch.inf
            ids.append(int(logits.argmax()))
        return ids[len(start) :]

    (free,) = serve.continued(model, [row], prefixes, banned)
    assert free == greedy([*prompt, *prefix])
    banned["replies/a", prefix] = {free[0]}
    (other,) = serve.continued(model, [row], prefixes, banned)
    assert other[0] != free[0]
    assert other == greedy([*prompt, *prefix], {free[0]})


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
