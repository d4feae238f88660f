"""Models: what is saved is what is loaded, and an adapter finds the parent it was trained on."""

from __future__ import annotations

import copy
import json
import re
import shutil

import pytest
import random_models as tiny
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tnt import models
from tnt.base import BaseParams, fetch_base
from tnt.core.hashes import sha256_of
from tnt.models import RuntimeParams

IDS = torch.tensor([[5, 6, 7]])


@pytest.fixture(scope="module")
def tokenizer():
    plain = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="w2", pad_token="w0")


def logits(model):
    shifted = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, **shifted).logits


def adapted(model, seed):
    """Wrap a model in an adapter that says something."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return wrapped.eval()


@pytest.fixture
def base(tmp_path, tokenizer):
    models.save(tiny.llama(), tokenizer, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def chain(base, tokenizer):
    """Base, an adapter on it, an adapter on that; returns the logits of each."""
    found = {"base": logits(models.load(base))}
    for seed, (parent, name) in enumerate([("base", "r1"), ("r1", "r2")]):
        folder = base.parent
        wrapped = adapted(models.load(folder / parent), seed)
        found[name] = logits(wrapped)
        link = {"parent": parent, "sha256": sha256_of(folder / parent)}
        models.save_adapter(wrapped, tokenizer, folder / name, **link)
    return found


@pytest.mark.parametrize("make", [tiny.llama, tiny.t5])
def test_saved_model_is_the_one_loaded(tmp_path, tokenizer, make):
    models.save(make(), tokenizer, tmp_path / "a")
    loaded = models.load(tmp_path / "a")
    assert torch.equal(logits(loaded), logits(make()))
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for old, new in ((tmp_path / "a", tmp_path / "b"), (tmp_path / "b", tmp_path / "c")):
        models.save(models.load(old), models.load_tokenizer(old), new)
    assert sha256_of(tmp_path / "b") == sha256_of(tmp_path / "c")
    assert models.load_tokenizer(tmp_path / "b")("w7 w9").input_ids == [7, 9]


def test_a_model_loaded_offline_is_saved_as_the_same_bytes(base, tmp_path):
    for name, offline in (("online", False), ("offline", True)):
        loaded = AutoTokenizer.from_pretrained(str(base))
        assert "local_files_only" in loaded.init_kwargs  # true where HF_HUB_OFFLINE is set
        loaded.init_kwargs["local_files_only"] = offline
        models.save(models.load(base), loaded, tmp_path / name)
    assert sha256_of(tmp_path / "online") == sha256_of(tmp_path / "offline")


def test_saving_leaves_nothing_of_what_was_there(base, tokenizer):
    (base / "parent.json").write_text("{}")
    models.save(tiny.llama(), tokenizer, base)
    assert not (base / "parent.json").exists()


def test_adapters_are_loaded_on_their_parents(base, chain):
    for name, expected in chain.items():
        found = logits(models.load(base.parent / name))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(chain["r2"], chain["r1"], atol=1e-2)
    assert not torch.allclose(chain["r1"], chain["base"], atol=1e-2)


@pytest.mark.usefixtures("chain")
def test_adapter_folder_names_its_parent_and_no_path_of_this_machine(base):
    link = json.loads((base.parent / "r2" / "parent.json").read_text())
    assert link == {"parent": "r1", "sha256": sha256_of(base.parent / "r1")}
    for file in (base.parent / "r2").glob("*.json"):
        assert str(base.parent) not in file.read_text()
    moved = base.parent / "elsewhere"
    moved.mkdir()
    for name in ("base", "r1", "r2"):
        (base.parent / name).rename(moved / name)
    models.load(moved / "r2")


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("changed", ["base", "r1"])
def test_parent_that_changed_is_refused(base, changed):
    config = base.parent / changed / "generation_config.json"
    config.write_text("{}")
    with pytest.raises(ValueError, match=rf"is an adapter for .*{changed} with hash"):
        models.load(base.parent / "r2")


def test_parent_that_is_gone_is_an_error(base, chain):
    shutil.rmtree(base)
    with pytest.raises(ValueError, match="base does not exist"):
        models.load(base.parent / "r1")


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("name", ["base", "r2"])
def test_copied_parent_is_the_same_bytes(base, name):
    models.copy_parent(base.parent / name, base.parent / "r3")
    assert sha256_of(base.parent / "r3") == sha256_of(base.parent / name)
    assert torch.equal(
        logits(models.load(base.parent / "r3")), logits(models.load(base.parent / name))
    )


def test_missing_folder_is_an_error(tmp_path):
    for load in (models.load, models.load_tokenizer):
        with pytest.raises(ValueError, match="none is not a model folder"):
            load(tmp_path / "none")


def test_local_base_is_fetched_if_its_hash_is_the_pinned_one(base, tmp_path):
    params = {"source": "local", "name": str(base)}
    pinned = BaseParams(**params, sha256=sha256_of(base))
    fetch_base(pinned, tmp_path / "copy")
    assert torch.equal(logits(models.load(tmp_path / "copy")), logits(tiny.llama()))
    wrong = BaseParams(**params, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"base\.sha256 is .*, but base has .*check --pin"):
        fetch_base(wrong, tmp_path / "copy")


@pytest.mark.parametrize("source", ["local", "package"])
def test_base_that_is_no_hub_id_needs_a_hash(source):
    with pytest.raises(ValueError, match=r"sha256 of 'llm-x==1' is missing; `tnt check --pin`"):
        BaseParams(source=source, name="llm-x==1", file="x.gguf")


def fetched(base, target):
    """Return what is said of a base that is fetched from a folder."""
    pinned = BaseParams(source="local", name=str(base), sha256=sha256_of(base))
    return fetch_base(pinned, target)


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(base, change):
    save_file(change(load_file(base / "model.safetensors")), base / "model.safetensors", PLAIN)


PLAIN = {"format": "pt"}
FOREIGN = {
    "a prefix": (
        lambda weights: {f"_orig_mod.{name}": weight for name, weight in weights.items()},
        "21 are not in the checkpoint and would be random",
    ),
    "one missing": (
        lambda weights: {n: w for n, w in weights.items() if "layers.1.mlp.up_proj" not in n},
        "1 are not in the checkpoint and would be random, 'model.layers.1.mlp.up_proj.weight'",
    ),
    "one more": (
        lambda weights: {**weights, "model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
        "1 of the checkpoint have no place in it, 'model.layers.0.self_attn.q_proj.bias'",
    ),
    "another shape": (
        lambda weights: {**weights, "model.norm.weight": torch.ones(16)},
        "1 have other shapes in the checkpoint and would be random, 'model.norm.weight'",
    ),
}


@pytest.mark.parametrize(("change", "what"), FOREIGN.values(), ids=FOREIGN)
def test_weights_that_are_not_the_checkpoint_s_are_refused(base, tmp_path, change, what):
    change_weights(base, change)
    with pytest.raises(ValueError, match=re.escape(what)) as error:
        fetched(base, tmp_path / "copy")
    assert "its weights are not those of a LlamaForCausalLM: " in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("kind", ["Model", "ForSequenceClassification"])
def test_a_model_without_a_language_model_s_head_is_refused(base, tmp_path, tokenizer, kind):
    config = transformers.LlamaConfig(**tiny.SMALL)
    models.save(getattr(transformers, f"Llama{kind}")(config), tokenizer, base)
    with pytest.raises(ValueError, match=r"'lm_head\.weight' for one\. Take a whole"):
        fetched(base, tmp_path / "copy")


def test_a_head_that_is_tied_is_not_missing(base, tmp_path, tokenizer):
    config = transformers.LlamaConfig(**tiny.SMALL, tie_word_embeddings=True)
    models.save(transformers.LlamaModel(config), tokenizer, base)
    assert fetched(base, tmp_path / "copy") == []


def test_a_base_that_answers_otherwise_in_a_batch_is_not_saved(base, tmp_path, monkeypatch):
    forward = transformers.LlamaForCausalLM.forward

    def without_mask(self, **given):
        return forward(self, **{**given, "attention_mask": None, "position_ids": None})

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", without_mask)
    with pytest.raises(ValueError, match="LlamaForCausalLM answers a prompt otherwise in a batch"):
        fetched(base, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_what_a_generation_config_asks_for_is_said_to_be_off(base, tmp_path):
    change_json(base / "generation_config.json", no_repeat_ngram_size=3, temperature=0.6)
    [note] = fetched(base, tmp_path / "copy")
    assert "asks for no_repeat_ngram_size: 3, temperature: 0.6. None of that counts here" in note
    kept = json.loads((tmp_path / "copy" / "generation_config.json").read_text())
    assert kept["no_repeat_ngram_size"] == 3  # what others serve it with is theirs


def test_completions_end_where_tokenizer_and_chat_template_end_a_text(base, tmp_path, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = "w9"
    other.add_special_tokens({"additional_special_tokens": ["w11"]})
    other.chat_template = "{% for m in messages %}{{ m['content'] }} w11 w0{% endfor %}"
    models.save(tiny.llama(), other, base)
    [note] = fetched(base, tmp_path / "copy")
    assert "a completion ends at 'w2', 'w9', 'w11'" in note
    assert models.end_ids(models.load(tmp_path / "copy")) == [2, 9, 11]


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("end", ["</s>", ["</s>"]])
def test_an_end_token_that_is_given_as_text_is_one_line(base, tmp_path, file, end):
    change_json(base / file, eos_token_id=end)
    if file == "config.json":
        (base / "generation_config.json").unlink()
    with pytest.raises(ValueError, match="eos_token_id") as error:
        fetched(base, tmp_path / "copy")
    assert "</s>" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Mixtral", {"num_local_experts": 4}),
        ("Qwen2Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    ],
)
def test_a_mixture_that_returns_its_router_answers_prompts_of_uneven_length(
    base, tmp_path, tokenizer, kind, more
):
    config = getattr(transformers, f"{kind}Config")(**tiny.SMALL, **more, output_router_logits=True)
    models.save(getattr(transformers, f"{kind}ForCausalLM")(config), tokenizer, base)
    assert fetched(base, tmp_path / "copy") == []


@pytest.mark.parametrize("name", ["return_dict", "output_hidden_states", "output_attentions"])
def test_what_a_config_asks_to_be_returned_does_not_count(base, tmp_path, name):
    change_json(base / "config.json", **{name: name != "return_dict"})
    assert fetched(base, tmp_path / "copy") == []


def test_half_precision_base_becomes_float32(base, tmp_path, tokenizer):
    models.save(tiny.llama().bfloat16(), tokenizer, base)
    pinned = BaseParams(source="local", name=str(base), sha256=sha256_of(base))
    fetch_base(pinned, tmp_path / "copy")
    expected = dict(tiny.llama().bfloat16().named_parameters())
    for name, weight in models.load(tmp_path / "copy").named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name].float())


def test_folder_with_pickled_weights_only_is_refused(base, tmp_path):
    (base / "model.safetensors").unlink()
    torch.save(tiny.llama().state_dict(), base / "pytorch_model.bin")
    pinned = BaseParams(source="local", name=str(base), sha256=sha256_of(base))
    with pytest.raises(ValueError, match=r"base\.name .* cannot be loaded: .*safetensors"):
        fetch_base(pinned, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_local_base_that_is_missing_is_an_error(tmp_path):
    params = BaseParams(source="local", name=str(tmp_path / "none"), sha256="0" * 64)
    with pytest.raises(ValueError, match="none does not exist"):
        fetch_base(params, tmp_path / "copy")


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "a" * 39, "A" * 40, "a" * 40 + "\n"])
def test_hub_base_needs_a_commit(revision):
    with pytest.raises(ValueError, match=r"revision .* is no 40-digit commit of 'some/model'"):
        BaseParams(source="hub", name="some/model", revision=revision)


@pytest.mark.parametrize(
    ("name", "file"), [("llm-x", "x.gguf"), ("llm-x>=1", "x.gguf"), ("llm-x==1", None)]
)
def test_package_base_needs_a_pinned_requirement_and_a_file(name, file):
    with pytest.raises(ValueError, match="needs a pinned requirement"):
        BaseParams(source="package", name=name, file=file, sha256="0" * 64)


def test_context_is_that_of_the_config():
    assert models.context_length(tiny.llama().config) == 64
    assert models.context_length(tiny.t5().config) is None
    assert models.context_length(transformers.XLNetConfig()) is None
    text = {**tiny.SMALL, "max_position_embeddings": 48}
    assert models.context_length(transformers.Gemma3Config(text_config=text)) == 48
    assert models.is_encoder_decoder(tiny.t5())
    assert not models.is_encoder_decoder(tiny.llama())


def test_only_an_encoder_decoder_model_has_a_token_to_start_from():
    assert models.decoder_start(tiny.t5().config) == 0
    assert models.decoder_start(tiny.llama().config) is None


def test_device_is_what_there_is(monkeypatch):
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.use(RuntimeParams(threads="auto", device="auto")) == "cpu"
    with pytest.raises(ValueError, match="finds no GPU"):
        models.use(RuntimeParams(threads="auto", device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert models.use(RuntimeParams(threads="auto", device="auto")) == "cuda"
    assert models.use(RuntimeParams(threads="auto", device="cpu")) == "cpu"
