"""The original's hidden states on disk: used only if they are what they should be."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest
import random_models as tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tnt.losses.batches import collate
from tnt.losses.heads import completion_hidden
from tnt.training import order, originals, run
from tnt.training.params import LoraParams, TrainParams
from tnt.training.run import train

MODELS = {"causal": tiny.llama, "encoder_decoder": tiny.t5}
SETTINGS = {"autocast": "none"}


def params(**changes):
    settings = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "schedule": "constant"}
    settings["max_divergence"] = 100.0
    return TrainParams(**{**settings, **changes})


def masks_of(count=7, **changes):
    return tiny.rows(count, flagged=[1, 3], **changes)


def cached(folder, *, make=tiny.llama, masks=None, size=3, **changes):
    masks = masks or masks_of()
    batches = order.cut(range(len(masks)), size)
    return originals.cache(make(), masks, batches, folder, **{**SETTINGS, **changes})


def file_of(folder):
    [path] = folder.glob("original-*.safetensors")
    return path


@pytest.fixture
def passes(monkeypatch):
    """Return a list that grows with every pass over the completions."""
    counted = []
    run = originals._run
    monkeypatch.setattr(originals, "_run", lambda *a: counted.append(a) or run(*a))
    return counted


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_hidden_states_are_those_of_each_completion_alone_in_any_order(tmp_path, make):
    model, masks = make(), masks_of()
    found = cached(tmp_path, make=make, masks=masks)
    start = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None
    for chosen in ([4, 0, 6], [2], [], [*range(7)]):
        expected = [
            completion_hidden(model, collate([masks[n]], decoder_start_id=start)) for n in chosen
        ]
        tokens = sum(len(masks[n].completion_ids) for n in chosen)
        hidden = found.hidden(chosen)
        assert hidden.shape == (tokens, 32)
        assert not hidden.requires_grad
        if chosen:
            torch.testing.assert_close(hidden, torch.cat(expected).detach(), rtol=1e-4, atol=1e-5)


def test_no_completions_have_no_hidden_states(tmp_path):
    found = originals.cache(tiny.llama(), [], [], tmp_path, **SETTINGS)
    assert found.hidden([]).shape == (0, 32)
    again = originals.cache(tiny.llama(), [], [], tmp_path, **SETTINGS)
    assert again.hidden([]).shape == (0, 32)


def test_the_same_inputs_take_the_file_and_make_no_second_pass(tmp_path, passes):
    first = cached(tmp_path)
    before = file_of(tmp_path).read_bytes()
    second = cached(tmp_path)
    assert len(passes) == 1
    assert file_of(tmp_path).read_bytes() == before
    assert torch.equal(first.hidden(range(7)), second.hidden(range(7)))


def states_of(path):
    """What the file holds, as bytes; the order of its metadata is safetensors' own."""
    return load_file(path)["hidden"].numpy().tobytes()


def test_a_file_made_again_holds_the_same_to_the_last_bit(tmp_path):
    for name in ("a", "b"):
        cached(tmp_path / name)
    one, other = (file_of(tmp_path / name) for name in ("a", "b"))
    assert one.name == other.name
    assert states_of(one) == states_of(other)


def test_nothing_but_the_file_is_left(tmp_path):
    cached(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file_of(tmp_path).name]


def test_what_a_killed_process_left_half_written_is_never_read(tmp_path, passes, monkeypatch):
    def killed(tensors, path, metadata):
        path.write_bytes(b"\x08")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(originals, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            cached(tmp_path)
    assert not [*tmp_path.glob("original-*.safetensors")]
    cached(tmp_path)
    assert len(passes) == 2
    expected = tmp_path / "expected"
    cached(expected)
    assert states_of(file_of(tmp_path)) == states_of(file_of(expected))


def other_completion():
    masks = masks_of()
    return [*masks[:-1], replace(masks[-1], completion_ids=[5, *masks[-1].completion_ids[1:]])]


def other_prompt():
    masks = masks_of()
    return [replace(masks[0], prompt_ids=[*masks[0].prompt_ids, 9]), *masks[1:]]


def moved_token():
    """The same tokens one after the other, divided otherwise into prompt and completion."""
    [first, *others] = masks_of()
    prompt, completion = first.prompt_ids, first.completion_ids
    moved = replace(
        first,
        prompt_ids=prompt[:-1],
        completion_ids=prompt[-1:] + completion,
        negative_mask=[False, *first.negative_mask],
        kept_mask=[True, *first.kept_mask],
    )
    return [moved, *others]


def one_weight_more():
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-6
    return model


OTHERS = {
    "another seed": {"make": lambda: tiny.llama(seed=1)},
    "a weight moved a little": {"make": one_weight_more},
    "another setting": {"make": lambda: tiny.llama(rms_norm_eps=1e-3)},
    "another architecture": {"make": tiny.t5},
    "another completion": {"masks": other_completion()},
    "another prompt": {"masks": other_prompt()},
    "another order": {"masks": masks_of()[::-1]},
    "one completion less": {"masks": masks_of()[:-1]},
    "a token that moves from prompt to completion": {"masks": moved_token()},
    "another precision": {"autocast": "bf16"},
    "other batches": {"size": 2},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_anything_else_is_another_file_and_the_old_one_goes(tmp_path, passes, changes):
    cached(tmp_path)
    before = file_of(tmp_path)
    found = cached(tmp_path, **changes)
    assert len(passes) == 2
    assert file_of(tmp_path) != before
    expected = cached(tmp_path / "alone", **changes)
    count = len(changes.get("masks", masks_of()))
    assert torch.equal(found.hidden(range(count)), expected.hidden(range(count)))


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_a_file_of_anything_else_under_this_ones_name_is_refused(tmp_path, changes):
    cached(tmp_path / "right")
    cached(tmp_path / "wrong", **changes)
    path = file_of(tmp_path / "right")
    path.write_bytes(file_of(tmp_path / "wrong").read_bytes())
    assert_refused(tmp_path / "right", path)


def rewritten(path, tensors=None, **metadata):
    with safe_open(path, framework="pt") as file:
        kept = {**(file.metadata() or {}), **metadata}
    tensors = tensors or load_file(path)
    save_file(tensors, path, {name: text for name, text in kept.items() if text is not None})


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def data_start(path):
    return 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]


def reshaped(path):
    """The same bytes under another shape: the data's hash does not see it."""
    hidden = load_file(path)["hidden"]
    rewritten(path, {"hidden": hidden.view(-1, hidden.shape[1] // 2).contiguous()})


def retyped(path):
    hidden = load_file(path)["hidden"]
    rewritten(path, {"hidden": hidden.view(torch.int32)})


def less_header(path):
    data = path.read_bytes()
    header = json.loads(data[8 : data_start(path)])
    del header["__metadata__"]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[data_start(path) :])


DAMAGES = {
    "another layer": lambda path: rewritten(path, layer="the logits"),
    "no layer": lambda path: rewritten(path, layer=None),
    "another fingerprint": lambda path: rewritten(path, fingerprint="0" * 64),
    "no fingerprint": lambda path: rewritten(path, fingerprint=None),
    "no hash": lambda path: rewritten(path, sha256=None),
    "no metadata": less_header,
    "another name": lambda path: rewritten(path, {"logits": load_file(path)["hidden"]}),
    "another shape": reshaped,
    "another type": retyped,
    "cut off by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut off in the middle": lambda path: path.write_bytes(path.read_bytes()[:700]),
    "cut off in the header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "the first bit of the data": lambda path: flip(path, data_start(path)),
    "a bit in the middle": lambda path: flip(path, data_start(path) + 1001),
    "the last bit": lambda path: flip(path, -1),
    "a bit of the header's length": lambda path: flip(path, 0),
    "an empty file": lambda path: path.write_bytes(b""),
    "a text file": lambda path: path.write_text("These are not hidden states.\n" * 9),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def assert_refused(folder, path, **changes):
    """One clear line that names the file and the remedy; following it works."""
    with pytest.raises(ValueError, match="original-") as error:
        cached(folder, **changes)
    message = str(error.value)
    assert str(path) in message
    assert f"Delete {path}" in message
    assert "\n" not in message
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    cached(folder, **changes)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path, damage):
    cached(tmp_path)
    path = file_of(tmp_path)
    damage(path)
    assert_refused(tmp_path, path)


@pytest.mark.parametrize("damage", ["another layer", "a bit in the middle", "an empty file"])
def test_training_refuses_a_damaged_file_and_goes_on_without_it(tmp_path, damage):
    def run():
        return train(tiny.llama(), masks_of(), params(), workdir=tmp_path / "run")

    expected = run()
    path = file_of(tmp_path)
    before = states_of(path)
    DAMAGES[damage](path)
    for left in (tmp_path / "run").iterdir():  # the run is over; another begins
        left.rename(tmp_path / f"old-{left.name}")
    with pytest.raises(ValueError, match=f"Delete .*{path.name}"):
        run()
    path.unlink()
    found = run()
    assert states_of(path) == before
    assert found.logs == expected.logs


# -- through training


def trained(folder, *, make=tiny.llama, name="run", masks=None, **changes):
    return train(make(), masks or masks_of(), params(**changes), workdir=folder / name)


SAME_ORIGINAL = {
    "another negative_weight": {"negative_weight": 4.0},
    "tnrr": {"loss": "tnrr"},
    "tnfll": {"loss": "tnfll"},
    "ul, which does not ask for it": {"loss": "ul"},
    "another learning rate": {"learning_rate": 0.1, "max_gradient_norm": 3.0},
    "more epochs": {"epochs": 2},
    "another seed": {"seed": 5},
    "an adapter": {"lora": LoraParams(rank=2)},
    "fewer weights": {"trainable": "mlp"},
    "dropout": {"dropout": True},
    "another cap": {"nl_cap": -5.0, "target_floor": 1e-3},
}


@pytest.mark.parametrize("changes", SAME_ORIGINAL.values(), ids=SAME_ORIGINAL)
def test_another_experiment_on_the_same_completions_makes_no_second_pass(
    tmp_path, passes, monkeypatch, changes
):
    monkeypatch.setattr(run, "WATCHED", 2)  # of 7: losses ask about other completions or none
    trained(tmp_path)
    before = file_of(tmp_path).read_bytes()
    trained(tmp_path, name="other", **changes)
    trained(tmp_path, name="back")
    assert len(passes) == 1
    assert file_of(tmp_path).read_bytes() == before


def test_other_masks_of_the_same_completions_make_no_second_pass(tmp_path, passes):
    """Another detector, or `after_negative`: the completions are what they were."""
    trained(tmp_path)
    masks = [replace(m, negative_mask=[False] * len(m.negative_mask)) for m in masks_of()]
    masks = [replace(m, kept_mask=[True] * len(m.kept_mask)) for m in masks]
    trained(tmp_path, name="other", masks=masks)
    assert len(passes) == 1


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("loss", ["tnff", "tnrr", "tnrf", "tnfll", "tnrll"])
def test_cached_and_uncached_have_the_same_losses(tmp_path, make, loss):
    (one,), (other,) = (
        trained(
            tmp_path / str(cache), make=make, loss=loss, cache_original=cache,
            batch_size=7, micro_batch_size=2,
        ).logs
        for cache in (True, False)
    )  # fmt: skip
    for name in ("loss", "negative_loss", "kept_loss", "gradient_norm"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4, abs=1e-5)


def test_without_a_cache_no_file_is_written(tmp_path, passes):
    trained(tmp_path, cache_original=False)
    assert not [*tmp_path.glob("original-*")]
    assert passes == []


def test_cache_original_is_a_parameter_alone():
    """And not a loss, a stage or an argument of `train`."""
    assert params().cache_original
    assert not params(cache_original=False).cache_original
    with pytest.raises(TypeError):
        train(tiny.llama(), masks_of(), params(), workdir=None, cache_original=True)


def greedy(make):
    """What the model itself says to the prompts of `rows`, 4 to 11 tokens."""
    model, found = make(), []
    for i, mask in enumerate(tiny.rows(8)):
        output = model.generate(
            input_ids=torch.tensor([mask.prompt_ids]), do_sample=False,
            attention_mask=torch.ones(1, len(mask.prompt_ids), dtype=torch.long),
            max_new_tokens=4 + i, min_new_tokens=4 + i,
        )  # fmt: skip
        start = 1 if model.config.is_encoder_decoder else len(mask.prompt_ids)
        found.append(output[0, start:].tolist())
    return found


@pytest.mark.parametrize("autocast", ["none", "bf16"])
@pytest.mark.parametrize("cache_original", [True, False])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_an_unchanged_model_without_flags_has_no_gradient_at_all(
    tmp_path, make, cache_original, autocast
):
    """Whatever is padded to what."""
    said = greedy(make)

    def norm(flagged):
        masks = [tiny.row(i, m.prompt_ids, ids, [1] if i in flagged else [])
                 for i, (m, ids) in enumerate(zip(tiny.rows(8), said, strict=True))]  # fmt: skip
        settings = params(batch_size=8, micro_batch_size=3, cache_original=cache_original)
        workdir = tmp_path / str(flagged) / "run"
        found = train(make(), masks, settings, workdir=workdir, autocast=autocast)
        return found.logs[0].gradient_norm

    assert norm([]) == 0
    assert norm([5]) > 1e-3


def test_corrections_are_not_asked_about(tmp_path, passes):
    masks = [replace(m, source="corrected") for m in tiny.rows(4)]
    found = trained(tmp_path, masks=masks)
    assert [batches for _, _, batches, _ in passes] == [[]]
    assert found.logs[0].corrected_loss > 0


def test_two_runs_that_begin_at_once_do_not_take_each_others_files(tmp_path, monkeypatch):
    """Another experiment on other completions shares the folder; both finish."""
    save = originals.save_file

    def meanwhile(tensors, path, metadata):
        save(tensors, path, metadata)
        monkeypatch.setattr(originals, "save_file", save)
        cached(tmp_path, masks=masks_of(seed=3))

    monkeypatch.setattr(originals, "save_file", meanwhile)
    found = cached(tmp_path)
    expected = cached(tmp_path / "alone")
    assert torch.equal(found.hidden(range(7)), expected.hidden(range(7)))
