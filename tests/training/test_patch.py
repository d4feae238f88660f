"""Training a patch on features alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_models import greedy_rows, llama

from tnt.losses.heads import head_of
from tnt.losses.params import LossParams
from tnt.losses.table import LOSSES, token_losses
from tnt.patches.neurons import attach
from tnt.patches.site import site_of
from tnt.training import patch
from tnt.training.features import features
from tnt.training.params import LoraParams, PatchParams, TrainParams


@pytest.fixture(scope="module")
def learnt():
    masks = greedy_rows(12, flagged=range(0, 12, 2))
    rows = [(mask.prompt_ids, mask.completion_ids) for mask in masks]
    seen = features(llama(), rows, batch_size=4, autocast="none", title="run")
    return patch.positions(seen, masks)


def trained(learnt, folder, *, seed=0, **changes):
    settings = {"neurons": 6, "steps": 60, "batch_size": 4, **changes}
    loss = settings.pop("loss", "tnff")
    params = TrainParams(loss=loss, seed=seed, patch=PatchParams(**settings))
    model = llama()
    return patch.train(site_of(model), head_of(model), learnt, learnt, params, workdir=folder)


def mass(neurons, learnt):
    """Return the probability of the negative tokens, with a patch or without."""
    model = llama()
    site, head = site_of(model), model.get_output_embeddings()
    added = torch.zeros_like(learnt.negative.outputs)
    if neurons is not None:
        added = neurons.added(learnt.negative.inputs)
    with torch.no_grad():
        shares = head(site.hidden(learnt.negative, added)).softmax(-1)
    return float(sum(row[tokens].sum() for row, tokens in zip(shares, learnt.sets, strict=True)))


def test_negative_tokens_go_and_gates_at_kept_ones_stay_shut(learnt, tmp_path):
    neurons, logs = trained(learnt, tmp_path, steps=400)
    assert mass(neurons, learnt) < 0.2 * mass(None, learnt)
    opened = neurons.activations(learnt.kept.inputs).any(-1).float().mean()
    assert opened < 0.2
    assert [log.step for log in logs] == [*range(400)]
    assert logs[-1].negative_loss < 0.5 * logs[0].negative_loss


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "sft_clean"])
def test_every_loss_of_the_table_takes_probability_away(learnt, tmp_path, loss):
    neurons, _ = trained(learnt, tmp_path, loss=loss)
    assert mass(neurons, learnt) < mass(None, learnt)


def test_the_losses_are_those_of_the_table_with_sets(learnt, tmp_path):
    sets = [[*tokens, (tokens[0] + 7) % 64] for tokens in learnt.sets]
    two = replace(learnt, sets=sets)
    _, logs = trained(two, tmp_path, steps=1, batch_size=len(sets))
    model = llama()
    site, head = site_of(model), model.get_output_embeddings()
    with torch.no_grad():  # v begins at 0, so both models are the original
        logits = head(site.hidden(two.negative, torch.zeros_like(two.negative.outputs)))
    chosen = torch.zeros_like(logits, dtype=torch.bool)
    for row, tokens in zip(chosen, sets, strict=True):
        row[tokens] = True
    first = torch.tensor([tokens[0] for tokens in sets])
    expected = token_losses(LossParams(loss="tnff"), logits, logits, first, chosen).mean()
    assert logs[0].negative_loss == pytest.approx(float(expected), rel=1e-4)


def test_a_run_that_is_cut_off_ends_in_the_same_bytes(learnt, tmp_path, monkeypatch):
    whole, logs = trained(learnt, tmp_path / "whole")

    class Killed(Exception):
        pass

    real = patch._Run.step

    def step(run, number):
        if number == 40:
            raise Killed
        real(run, number)

    monkeypatch.setattr(patch._Run, "step", step)
    with pytest.raises(Killed):
        trained(learnt, tmp_path / "cut")
    monkeypatch.undo()
    assert (tmp_path / "cut" / patch.CHECKPOINT).is_file()
    resumed, logs_of_both = trained(learnt, tmp_path / "cut")
    assert logs_of_both == logs
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, getattr(resumed, name)), name


def test_a_seed_decides_and_another_gives_another_patch(learnt, tmp_path):
    first, again, other = (
        trained(learnt, tmp_path / str(i), seed=seed)[0] for i, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(first.gates, again.gates)
    assert not torch.equal(first.gates, other.gates)


def test_what_training_foresees_is_what_the_model_does(learnt, tmp_path):
    neurons, _ = trained(learnt, tmp_path)
    model = llama()
    attach(model, neurons)
    masks = greedy_rows(12, flagged=range(0, 12, 2))
    rows = [(mask.prompt_ids, mask.completion_ids) for mask in masks]
    seen = features(model, rows, batch_size=4, autocast="none", title="run")
    of_model = patch.positions(seen, masks).negative.stream
    added = neurons.added(learnt.negative.inputs)
    torch.testing.assert_close(of_model, learnt.negative.stream + added, rtol=1e-4, atol=1e-4)


def test_nothing_to_learn_is_said(learnt, tmp_path):
    nothing = replace(learnt, sets=[], negative=learnt.negative[:0])
    with pytest.raises(ValueError, match="nothing that a patch could learn"):
        trained(nothing, tmp_path)


@pytest.mark.parametrize(
    "others", [{"trainable": "mlp"}, {"update_scale": 0.5}, {"lora": LoraParams(rank=2)}]
)
def test_a_patch_beside_another_kind_of_update_is_refused(others):
    with pytest.raises(ValueError, match="patch is given beside"):
        TrainParams(patch=PatchParams(), **others)
