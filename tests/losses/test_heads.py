"""Logits of the heads are the models' own, at exactly the rows that predict the completion."""

from __future__ import annotations

import pytest
import random_models as tiny
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tnt.losses.batches import collate
from tnt.losses.fused import fused_losses
from tnt.losses.heads import Head, completion_hidden, completion_logits, head_of
from tnt.losses.params import LossParams
from tnt.losses.table import token_losses
from tnt.training import run
from tnt.training.params import LoraParams, TrainParams

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


def gpt2():
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def t5_untied():
    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, tie_word_embeddings=False,
        scale_decoder_outputs=False,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def bart():
    config = BartConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.3,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    model.final_logits_bias.copy_(torch.linspace(-3, 3, 64)[None])
    return model


def phi():
    model = PhiForCausalLM(PhiConfig(**tiny.SMALL))
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def lora():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
    model = get_peft_model(tiny.llama(), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


ARCHITECTURES = {
    "llama": tiny.llama,
    "llama untied": lambda: tiny.llama(tie_word_embeddings=False),
    "gpt2": gpt2,
    "t5": tiny.t5,
    "t5 untied": t5_untied,
    "bart": bart,
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**tiny.SMALL, head_dim=8, final_logit_softcapping=2.0)
    ),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**tiny.SMALL, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**tiny.SMALL, logits_scaling=4.0)),
    "phi": phi,
    "lora": lora,
}


def made(name):
    torch.manual_seed(0)
    return ARCHITECTURES[name]().eval()


def batch_of(model, count=5):
    start = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None
    return collate(tiny.rows(count), decoder_start_id=start)


def own_logits(model, batch):
    """What the model itself says, [N, V]."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.decoder_input_ids is not None:
        inputs["decoder_input_ids"] = batch.decoder_input_ids
    return model(**inputs, use_cache=False).logits[batch.rows]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_the_head_are_the_models_own(name):
    model = made(name)
    batch = batch_of(model)
    with torch.no_grad():
        expected = own_logits(model, batch)
        found = completion_logits(model, batch)
        again = own_logits(model, batch)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, expected)  # the head is the model's own again
    assert "forward" not in vars(model.get_output_embeddings())
    run._refuse_other_head(model, tiny.rows(1)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "t5", "bart", "phi"])
def test_a_head_in_another_precision_is_known_too(name, dtype):
    model = made(name).to(dtype)
    batch = batch_of(model)
    with torch.no_grad():
        expected = own_logits(model, batch)
        found = completion_logits(model, batch)
    bound = 1e-10 if dtype == torch.float64 else 5e-2
    torch.testing.assert_close(found.double(), expected.double(), rtol=bound, atol=bound)
    if dtype == torch.float64:
        run._refuse_other_head(model, tiny.rows(1)[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_gradient_of_every_weight_is_that_of_the_plain_losses(name):
    model = made(name).double()
    batch = batch_of(model)
    flagged = torch.arange(len(batch.token_ids)) % 4 == 1
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(64, generator=generator, dtype=torch.float64)
    head = head_of(model).frozen()
    moved = Head(head.weight + 0.1 * shift[:, None], head.bias, head.scale, head.softcap)
    hidden = completion_hidden(model, batch).detach()
    original = moved.logits(hidden).detach()

    def gradients(total):
        model.zero_grad()
        total.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    losses = token_losses(
        LossParams(loss="tnff"), own_logits(model, batch), original, batch.token_ids, flagged
    )
    expected = gradients(losses.sum())
    found = gradients(
        fused_losses(
            LossParams(loss="tnff"), completion_hidden(model, batch), head_of(model), hidden, moved,
            batch.token_ids, flagged,
        ).total
    )  # fmt: skip
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for weight, gradient in expected.items():
        torch.testing.assert_close(found[weight], gradient, rtol=0, atol=1e-7 * largest)


def test_an_error_in_the_model_leaves_its_head_as_it_was():
    model = tiny.llama()
    batch = batch_of(model)
    batch.input_ids[0, 0] = 1000
    with pytest.raises(IndexError):
        completion_hidden(model, batch)
    assert "forward" not in vars(model.lm_head)


def test_a_frozen_head_stays_as_it_was_whatever_is_trained():
    model = phi()
    head = head_of(model).frozen()
    before = head.weight.clone(), head.bias.clone()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    assert torch.equal(head.weight, before[0])
    assert torch.equal(head.bias, before[1])
    assert not head.weight.requires_grad


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_an_adapter_on_the_lm_head_is_refused_by_name_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(run.originals, "cache", lambda *_, **__: pytest.fail("it ran"))
    params = TrainParams(
        epochs=1, batch_size=2, learning_rate=1e-3,
        lora=LoraParams(rank=2, target_modules=".*(lm_head|q_proj)"),
    )  # fmt: skip
    model = tiny.llama(tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"LM head .*adapter.*target_modules") as error:
        run.train(model, tiny.rows(2, flagged=[0]), params, workdir=tmp_path / "run")
    one_sentence(error)


class Doubled(torch.nn.Linear):
    """An LM head that does more than a linear layer does."""

    def forward(self, hidden):
        """Return twice the logits."""
        return 2 * super().forward(hidden)


def changed_after(model):
    forward = type(model).forward

    def changed(self, *arguments, **keywords):
        output = forward(self, *arguments, **keywords)
        output.logits = output.logits * 1.5
        return output

    model.__class__ = type("Odd", (type(model),), {"forward": changed})
    return model


@pytest.mark.parametrize("make", [tiny.llama, tiny.t5])
def test_logits_that_are_changed_in_an_unknown_way_are_refused_by_name(tmp_path, make):
    params = TrainParams(epochs=1, batch_size=2, learning_rate=1e-3)
    model = changed_after(make())
    with pytest.raises(ValueError, match=r"Odd changes its logits .*head_of") as error:
        run.train(model, tiny.rows(2, flagged=[0]), params, workdir=tmp_path / "run")
    one_sentence(error)


def test_small_logits_that_are_changed_in_an_unknown_way_are_refused_too():
    """Random small weights hide a factor from an absolute bound."""
    model = tiny.llama(initializer_range=0.003, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="Odd changes its logits"):
        run._refuse_other_head(changed_after(model), tiny.rows(1)[0])


def test_a_head_that_is_a_linear_layer_with_a_forward_of_its_own_is_refused():
    model = tiny.llama()
    head = Doubled(32, 64, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    with pytest.raises(ValueError, match="head"):
        run._refuse_other_head(model, tiny.rows(1)[0])
