"""Padded batches select exactly the logits that predict the completion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import random_models as tiny
import torch

from tnt.batching import by_length, collate, completion_logits

MODELS = {"causal": tiny.llama, "encoder_decoder": tiny.t5}


def start_id(model):
    config = model.config
    return config.decoder_start_token_id if config.is_encoder_decoder else None


def logits_of_one(model, mask):
    """One sequence without padding, by plain slices."""
    prompt, completion = torch.tensor([mask.prompt_ids]), torch.tensor([mask.completion_ids])
    if model.config.is_encoder_decoder:
        start = torch.tensor([[model.config.decoder_start_token_id]])
        shifted = torch.cat([start, completion[:, :-1]], dim=1)
        return model(input_ids=prompt, decoder_input_ids=shifted).logits[0]
    sequence = torch.cat([prompt, completion], dim=1)
    return model(input_ids=sequence).logits[0, prompt.shape[1] - 1 : -1]


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_causal_batch_by_hand():
    masks = [tiny.row(0, [5, 6, 7], [8, 9], [1]), tiny.row(1, [5], [3, 4, 2])]
    batch = collate(masks)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [5, 3, 4, 2, 0]]
    assert batch.attention_mask.tolist() == [[1] * 5, [1] * 4 + [0]]
    assert batch.decoder_input_ids is None
    assert batch.rows.long().tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert batch.token_ids.tolist() == [8, 9, 3, 4, 2]
    assert batch.negative.tolist() == [False, True, False, False, False]
    assert batch.kept.tolist() == [True, False, True, True, True]


def test_encoder_decoder_batch_by_hand():
    masks = [tiny.row(0, [5, 6, 7], [8, 9], [1]), tiny.row(1, [5], [3, 4, 2])]
    batch = collate(masks, decoder_start_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.decoder_input_ids.tolist() == [[0, 8, 0], [0, 3, 4]]
    assert batch.rows.long().tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.token_ids.tolist() == [8, 9, 3, 4, 2]


def test_each_row_predicts_its_token_as_in_a_forward_of_that_sequence_alone(model):
    masks = tiny.rows(7)
    batch = collate(masks, decoder_start_id=start_id(model))
    with torch.no_grad():
        found = completion_logits(model, batch)
        expected = torch.cat([logits_of_one(model, mask) for mask in masks])
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert batch.token_ids.tolist() == [t for m in masks for t in m.completion_ids]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing(model):
    short, long = (
        tiny.row(0, [5, 6], [7, 8]),
        tiny.row(1, range(3, 23), range(20, 50)),
    )
    with torch.no_grad():
        alone = completion_logits(model, collate([short], decoder_start_id=start_id(model)))
        padded = completion_logits(model, collate([short, long], decoder_start_id=start_id(model)))
    torch.testing.assert_close(padded[:2], alone, rtol=1e-4, atol=1e-4)


def test_what_stands_on_padding_changes_nothing(model):
    batch = collate(tiny.rows(4), decoder_start_id=start_id(model))
    with torch.no_grad():
        expected = completion_logits(model, batch)
        batch.input_ids[batch.attention_mask == 0] = 33
        if batch.decoder_input_ids is not None:
            batch.decoder_input_ids[~batch.rows] = 33
        assert torch.equal(completion_logits(model, batch), expected)


def test_token_that_is_neither_negative_nor_kept_stays_so():
    mask = tiny.row(0, [5], [6, 7, 8], [1])
    mask.kept_mask[2] = False
    batch = collate([mask])
    assert batch.negative.tolist() == [False, True, False]
    assert batch.kept.tolist() == [True, False, False]


def test_tokens_of_corrections_are_told_apart():
    said, corrected = tiny.row(0, [5], [6, 7], [1]), tiny.row(0, [5], [8, 9, 2])
    batch = collate([said, replace(corrected, source="corrected"), said])
    assert batch.token_ids.tolist() == [6, 7, 8, 9, 2, 6, 7]
    assert batch.corrected.tolist() == [False] * 2 + [True] * 3 + [False] * 2
    assert batch.kept.tolist() == [True, False, True, True, True, True, False]


def test_moved_batch_is_the_same():
    batch = collate(tiny.rows(2))
    moved = batch.to("cpu")
    assert moved.decoder_input_ids is None
    assert torch.equal(moved.rows, batch.rows)


def test_by_length_is_longest_first_and_ties_keep_their_order():
    assert list(by_length([1, 3, 2, 3, 1], 2)) == [[1, 3], [2, 0], [4]]
    assert list(by_length([], 2)) == []
