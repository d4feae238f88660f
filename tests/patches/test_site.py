"""Where a patch goes, in every family; what it does there is what `Site.hidden` says."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny
from random_models import SMALL, rows
from transformers import MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM

from tnt import models
from tnt.losses.batches import collate
from tnt.patches.neurons import Neurons, attach
from tnt.patches.site import refuse_unlike, site_of
from tnt.patches.written import written
from tnt.training.features import features
from tnt.training.patch import constant

ROWS = [(m.prompt_ids, m.completion_ids) for m in rows(12)]


def given(model):
    """Return a batch of the rows as the model takes it."""
    batch = collate(rows(12), decoder_start_id=models.decoder_start(model.config))
    named = ("input_ids", "attention_mask", "decoder_input_ids")
    return {name: t for name, t in batch.tensors().items() if name in named}, batch


def logits(model):
    inputs, batch = given(model)
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits[batch.rows]


def seen(model):
    return features(model, ROWS, batch_size=4, autocast="none", title="run")


def neurons_for(model, found, share):
    """Return random neurons, each of which fires at a share of the inputs.

    A gate without a bias that never fires is one of zeros.
    """
    generator = torch.Generator().manual_seed(1)
    site, width = site_of(model), found.inputs.shape[1]
    gates, values = torch.randn(2, 5, width, generator=generator)
    values *= found.outputs.std()
    if site.biased:
        reached = found.inputs @ gates.T
        limits = reached.quantile(1 - share, 0) if share else reached.amax(0) + 1
        return Neurons(gates, values, biases=-limits)
    factor = constant(found.inputs) if site.layout.gated else None
    return Neurons(gates if share else 0 * gates, values, factor=factor)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_change_of_the_last_mlp_does_is_foreseen(name):
    model = tiny(name)
    refuse_unlike(model, site_of(model), given(model)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_shut_gates_leave_the_logits_as_they_are_to_the_last_bit(name):
    model = tiny(name)
    before = logits(model)
    attach(model, neurons_for(model, seen(model), 0))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_positions_where_a_gate_is_open_change(name):
    model = tiny(name)
    before, found = logits(model), seen(model)
    patch = neurons_for(model, found, 0.1).only([0])
    fired = (patch.reached(found.inputs) > 0).any(-1)
    assert 0 < fired.sum() < len(fired)
    attach(model, patch)
    after = logits(model)
    assert torch.equal(after[~fired], before[~fired])
    assert (after[fired] != before[fired]).any(-1).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_features_and_a_patch_give_the_logits_without_running_the_model(name):
    model = tiny(name)
    found = seen(model)
    patch = neurons_for(model, found, 0.4)
    site, head = site_of(model), model.get_output_embeddings()
    with torch.no_grad():
        foreseen = head(site.hidden(found, patch.added(found.inputs)))
    if softcap := getattr(model.config, "final_logit_softcapping", None):
        foreseen = softcap * (foreseen / softcap).tanh()
    attach(model, patch)
    torch.testing.assert_close(foreseen, logits(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_patch_in_the_weights_answers_as_one_beside_them(name):
    model = tiny(name)
    found = seen(model)
    attach(model, neurons_for(model, found, 0.4))
    attach(model, neurons_for(model, found, 0.6))
    plain = written(model)
    beside, as_it_was = logits(model), logits(tiny(name))
    torch.testing.assert_close(logits(plain), beside, rtol=0, atol=1e-3 * float(beside.std()))
    assert float((beside - as_it_was).abs().max()) > 0.3 * float(beside.std())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_patch_in_the_weights_is_loaded_by_transformers_alone(name, tmp_path):
    model = tiny(name)
    attach(model, neurons_for(model, seen(model), 0.4))
    plain = written(model)
    plain.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(plain))


def test_a_mixture_of_experts_is_refused_by_name():
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1))
    with pytest.raises(ValueError, match=r"MixtralForCausalLM has no single last MLP .*lora"):
        site_of(model)


def test_what_comes_after_the_last_mlp_must_be_known():
    """OPT-350m normalises after its layers instead of before."""
    settings = {**FAMILIES["opt"][1], "do_layer_norm_before": False}
    model = OPTForCausalLM(OPTConfig(**settings)).eval()
    with pytest.raises(ValueError, match=r"OPTForCausalLM .*train\.lora"):
        seen(model)


def test_a_patch_of_another_width_is_refused():
    patch = neurons_for(tiny("llama"), seen(tiny("llama")), 0.4)
    wide = type(tiny("llama"))(tiny("llama").config.__class__(**{**SMALL, "hidden_size": 64}))
    with pytest.raises(ValueError, match="The patch has the width 32, the model 64"):
        attach(wide, patch)
