"""The benchmarks' arithmetic, and that every variant takes a step, on two layers."""

from __future__ import annotations

import memory
import pytest
import random_models as tiny
import train_step

SHAPE = train_step.Shape(vocabulary=64, batch=2, prompt=8, completion=6, flagged=1)


def test_ratios_are_of_the_same_turn():
    figures = {"sft": [2.0, 4.0], "ours": [1.0, 3.0]}
    assert train_step.ratios(figures, "sft") == {"sft": [1.0, 1.0], "ours": [0.5, 0.75]}


@pytest.mark.parametrize("variant", [v for v in train_step.VARIANTS if v != "trl_gkd"])
def test_every_variant_lowers_its_loss(tmp_path, variant):
    rows = train_step.random_rows(SHAPE, 4)
    trainer = train_step.trainer_of(variant, tiny.llama(), rows, SHAPE.batch, tmp_path)
    trainer.args.max_steps, trainer.args.learning_rate = 20, 1e-2
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "grad_norm" in line]
    assert len(losses) == 20
    # The first steps ask little of an unchanged model; what they moved is then pulled at.
    assert sum(losses[-4:]) < sum(losses[2:6])


def test_a_card_is_reported_with_every_model_and_variant():
    lines = [*train_step.on_card("cpu", {"llama": tiny.llama, "t5": tiny.t5}, SHAPE)]
    named = [line.split()[:2] for line in lines[1:-1]]
    assert named == [[m, v] for m in ("llama", "t5") for v in ("sft", "ours", "ours_cached")]


def test_ours_holds_far_less_than_the_logits():
    tokens, vocabulary = 512, 65_536
    assert memory.measured("ours", vocabulary, tokens) < tokens * vocabulary * 4 / 2
