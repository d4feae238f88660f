"""A model that answers otherwise when it is asked otherwise is refused, in one line."""

from __future__ import annotations

import pytest
import random_models as tiny
import torch
import transformers
from random_models import SMALL
from small_tokenizers import byte_level

from tnt import models, selftest

UNSTEADY = {
    "Rwkv": (
        "RwkvForCausalLM",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
        "answers a prompt otherwise in a batch than alone",
    ),
    "RecurrentGemma": (
        "RecurrentGemmaForCausalLM",
        {**SMALL, "num_hidden_layers": 3, "lru_width": 32, "head_dim": 8},
        "answers a prompt otherwise in a batch than alone",
    ),
    "Bert": (  # it sees what comes after a token
        "BertLMHeadModel",
        {**SMALL, "is_decoder": False},
        "generates otherwise than it reads",
    ),
    "SwitchTransformers": (  # transformers' own cache is too short for such a decoder
        "SwitchTransformersForConditionalGeneration",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
         "num_decoder_layers": 4, "decoder_start_token_id": 0, "pad_token_id": 0},
        r"cannot answer a few prompts \(list index out of range\)",
    ),
}  # fmt: skip


def made(kind, name, settings):
    """Return a random model that is no plain beginning of one."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    return model


@pytest.mark.parametrize("kind", UNSTEADY)
def test_a_model_that_depends_on_how_it_is_asked_is_refused_by_name(kind):
    name, settings, what = UNSTEADY[kind]
    with pytest.raises(ValueError, match=rf"^{name} {what}.* Take another model as `base`\.$"):
        selftest.refuse_unsteady(made(kind, name, settings))


@pytest.mark.parametrize("make", [tiny.llama, tiny.t5])
def test_a_steady_model_passes_and_its_answers_are_kept(make):
    rows = selftest.refuse_unsteady(make(), never={7, 8})
    assert [len(row.prompt_ids) for row in rows] == [2, 5, 8, 11]
    assert not {7, 8, tiny.EOS} & {token for row in rows for token in row.prompt_ids}
    assert all(row.completion_ids for row in rows)


def test_what_reads_otherwise_in_a_batch_is_refused():
    model = tiny.llama()
    forward = model.forward

    def mixed(input_ids, past_key_values=None, use_cache=None, **others):
        output = forward(
            input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache, **others
        )
        if use_cache is False:  # as training reads
            output.logits = output.logits + output.logits.mean(0, keepdim=True)
        return output

    model.forward = mixed
    with pytest.raises(ValueError, match=r"LlamaForCausalLM (generates|reads) .*otherwise"):
        selftest.refuse_unsteady(model)


def test_a_folder_that_is_not_the_model_is_refused(tmp_path):
    model = tiny.llama()
    models.save(model, byte_level(), tmp_path / "r1")
    rows = selftest.refuse_unsteady(model)
    selftest.refuse_other(tmp_path / "r1", selftest.logits_of(model, rows), rows)
    with torch.no_grad():
        model.model.norm.weight[3] += 0.1
    expected = selftest.logits_of(model, rows)
    with pytest.raises(ValueError, match=r"r1 is not the model that was to be saved there: a logi"):
        selftest.refuse_other(tmp_path / "r1", expected, rows)
