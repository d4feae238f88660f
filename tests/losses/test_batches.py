"""Padded batches select exactly the positions that predict the completion."""

from __future__ import annotations

from dataclasses import replace

import random_models as tiny
import torch

from tnt.losses.batches import collate
from tnt.models import by_length


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
