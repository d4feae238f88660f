"""How far a model is from another: nothing from itself, and from others by plain sums."""

from __future__ import annotations

import copy

import pytest
import random_models as tiny
import torch

from tnt.evaluation.divergence import divergence
from tnt.losses.batches import collate
from tnt.losses.heads import completion_logits


def compared(original, updated, masks, batch_size=3):
    return divergence(original, updated, masks, batch_size=batch_size, title="")


def by_hand(original, updated, masks):
    """Sum over tokens and the vocabulary in double precision, one sequence at a time."""
    start = original.config.decoder_start_token_id if original.config.is_encoder_decoder else None
    forward, reverse, mass = [], [], []
    for mask in masks:
        batch = collate([mask], decoder_start_id=start)
        with torch.no_grad():
            o, p = (
                completion_logits(m, batch).double().log_softmax(-1) for m in (original, updated)
            )
        for n, token in enumerate(mask.completion_ids):
            if mask.kept_mask[n]:
                forward.append(float((o[n].exp() * (o[n] - p[n])).sum()))
                reverse.append(float((p[n].exp() * (p[n] - o[n])).sum()))
            if mask.negative_mask[n]:
                mass.append(float(p[n, token].exp()))
    return [sum(values) / len(values) for values in (forward, reverse, mass)]


@pytest.mark.parametrize("make", [tiny.llama, tiny.t5])
def test_a_model_against_itself_is_exactly_nothing(make):
    masks = tiny.rows(7, flagged=[2])
    for other in (make(), copy.deepcopy(make())):
        found = compared(make(), other, masks)
        assert (found.forward, found.reverse) == (0.0, 0.0)
        own = by_hand(make(), other, masks)[2]
        assert found.negative_mass == pytest.approx(own, rel=1e-4)
        assert 0 < own < 1


@pytest.mark.parametrize("make", [tiny.llama, tiny.t5])
@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_means_over_tokens_equal_plain_sums(make, batch_size):
    masks = tiny.rows(7, flagged=[2, 5])
    masks[1].kept_mask[0] = False
    original, updated = make(), make(seed=1)
    found = compared(original, updated, masks, batch_size)
    forward, reverse, mass = by_hand(original, updated, masks)
    assert found.forward == pytest.approx(forward, rel=1e-4)
    assert found.reverse == pytest.approx(reverse, rel=1e-4)
    assert found.negative_mass == pytest.approx(mass, rel=1e-4)
    assert found.negative_tokens == 2
    assert found.kept_tokens == sum(len(m.completion_ids) for m in masks) - 3


def test_no_tokens_of_a_kind_is_none():
    model = tiny.llama()
    found = compared(model, model, tiny.rows(2))
    assert (found.forward, found.negative_mass, found.negative_tokens) == (0.0, None, 0)
    found = compared(model, model, [tiny.row(0, [5], [6], [0])])
    assert (found.forward, found.reverse, found.kept_tokens) == (None, None, 0)
    assert found.negative_mass > 0
