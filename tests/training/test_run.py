"""What the trainer promises, on two layers and a handful of steps."""

from __future__ import annotations

import copy
import math
import shutil
from dataclasses import replace

import pytest
import random_models as tiny
import torch
import transformers

from tnt.losses.batches import collate
from tnt.losses.heads import completion_logits
from tnt.losses.params import LossParams
from tnt.losses.table import LOSSES, token_losses
from tnt.training import run
from tnt.training.params import LoraParams, TrainParams
from tnt.training.run import train
from tnt.training.trainer import TargetedTrainer

# Adam blows the round-off of a gradient near 0 up to a whole step; with this it does not.
LIKE_SGD = {"adam_epsilon": 1.0, "learning_rate": 0.01}
MODELS = {"causal": tiny.llama, "encoder_decoder": tiny.t5}


def params(**changes):
    settings = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "schedule": "constant"}
    settings["max_divergence"] = 100.0
    return TrainParams(**{**settings, **changes})


def trained(masks, workdir, *, make=tiny.llama, autocast="none", **changes):
    """Return the model and the log, of a run in a folder of its own."""
    found = train(make(), masks, params(**changes), workdir=workdir / "run", autocast=autocast)
    return found.model, found.logs


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_same_weights(found, expected):
    found, expected = weights(found), weights(expected)
    assert found.keys() == expected.keys()
    assert [n for n in found if not torch.equal(found[n], expected[n])] == []


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("loss", ["tnff", "tnrr", "tnrf"])
def test_unchanged_model_without_flags_has_no_loss_and_no_gradient(tmp_path, loss, make):
    model, logs = trained(tiny.rows(8), tmp_path, make=make, loss=loss, cache_original=False)
    assert [log.loss for log in logs] == [0.0, 0.0]
    assert [log.gradient_norm for log in logs] == [0.0, 0.0]
    assert_same_weights(model, make())


@pytest.mark.parametrize("autocast", ["none", "bf16"])
def test_round_off_of_the_cache_is_far_below_one_flagged_token(tmp_path, autocast):
    def norm(flagged):
        masks = tiny.greedy_rows(8, flagged=flagged)
        settings = {"batch_size": 8, "micro_batch_size": 3, "autocast": autocast}
        return trained(masks, tmp_path / str(flagged), **settings)[1][0].gradient_norm

    assert norm([]) < 1e-3 * norm([5])


@pytest.mark.parametrize("cache_original", [True, False])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_target_is_that_of_the_untouched_original_at_every_step(tmp_path, make, cache_original):
    """The original's LM head was once the one being trained."""
    masks = tiny.rows(3, flagged=[0, 2])
    settings = {"make": make, "cache_original": cache_original, "learning_rate": 0.02}
    _, logs = trained(masks, tmp_path / "a", epochs=2, **settings)
    after_one_step, _ = trained(masks, tmp_path / "b", epochs=1, **settings)
    original = make()
    start = original.config.decoder_start_token_id if make is tiny.t5 else None
    batch = collate(masks, decoder_start_id=start)
    with torch.no_grad():
        pair = [completion_logits(model, batch) for model in (after_one_step, original)]
        expected = token_losses(
            LossParams(loss="tnff"), *pair, batch.token_ids, batch.negative
        ).mean()
    assert logs[1].loss == pytest.approx(float(expected), rel=1e-3)
    assert logs[1].loss != pytest.approx(logs[0].loss, rel=1e-2)


@pytest.mark.parametrize("cache_original", [True, False])
def test_original_runs_without_dropout_even_if_it_comes_in_training_mode(tmp_path, cache_original):
    masks = tiny.rows(4, flagged=[1])
    settings = {"cache_original": cache_original, "epochs": 2}
    found, _ = trained(masks, tmp_path / "a", make=lambda: tiny.t5().train(), **settings)
    expected, _ = trained(masks, tmp_path / "b", make=tiny.t5, **settings)
    assert_same_weights(found, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_cached_original_gives_the_loss_of_one_that_runs_each_time(tmp_path, loss):
    masks = tiny.rows(6, flagged=[1, 3])
    settings = {"loss": loss, "epochs": 2, "micro_batch_size": 2, **LIKE_SGD}
    (_, cached), (_, fresh) = (
        trained(masks, tmp_path / str(cache), cache_original=cache, **settings)
        for cache in (True, False)
    )
    assert [log.loss for log in cached] == pytest.approx([log.loss for log in fresh], rel=1e-3)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
@pytest.mark.parametrize("loss", ["tnff", "ul"])
def test_micro_batches_end_in_the_weights_of_one_batch(tmp_path, loss, micro_batch_size):
    masks = tiny.greedy_rows(9, flagged=[0, 4, 5])
    masks[5] = replace(masks[5], kept_mask=[False] * 8)  # tokens are spread unevenly
    settings = {"loss": loss, "epochs": 2, "batch_size": 5, **LIKE_SGD}
    whole, whole_logs = trained(masks, tmp_path / "a", **settings)
    parts, logs = trained(masks, tmp_path / "b", micro_batch_size=micro_batch_size, **settings)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], weight, rtol=0, atol=1e-6)
    assert [log.loss for log in logs] == pytest.approx([log.loss for log in whole_logs], rel=1e-3)


def test_loss_is_the_mean_over_all_tokens_that_carry_one(tmp_path):
    masks = tiny.rows(3, flagged=[1])
    masks[2].kept_mask[0] = False
    _, (log,) = trained(masks, tmp_path, loss="tnfll", negative_weight=3.0, micro_batch_size=1)
    model = tiny.llama()
    negative, kept = [], []
    for mask in masks:
        batch = collate([mask])
        with torch.no_grad():
            log_probs = completion_logits(model, batch).log_softmax(-1)
        for row, token, flagged, carries in zip(
            log_probs.exp().tolist(),
            mask.completion_ids,
            mask.negative_mask,
            mask.kept_mask,
            strict=True,
        ):
            if flagged:  # KL of the renormalised rest to what the model says: -log(1 - p)
                negative.append((-math.log(1 - row[token]), row[token]))
            elif carries:
                kept.append(-math.log(row[token]))
    [(loss, mass)] = negative
    assert log.negative_loss == pytest.approx(loss, rel=1e-3)
    assert log.kept_loss == pytest.approx(sum(kept) / len(kept), rel=1e-4)
    assert log.loss == pytest.approx((3 * loss + sum(kept)) / (len(kept) + 1), rel=1e-4)
    assert log.negative_mass == pytest.approx(mass, rel=1e-3)


RESUMED = {
    "plain": {},
    "uncached": {"cache_original": False},
    "lora": {"lora": LoraParams(rank=2)},
    "dropout": {"make": tiny.t5, "dropout": True},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_interrupted_run_continues_to_the_same_bytes(tmp_path, monkeypatch, settings):
    masks = tiny.rows(8, flagged=[2, 3, 7])
    settings = {**settings, "epochs": 3, "schedule": "linear", "learning_rate": 1e-2}
    expected, expected_logs = trained(masks, tmp_path / "whole", **settings)

    clip, steps = TargetedTrainer._clip_grad_norm, []

    def killed(trainer, model):
        steps.append(trainer.state.global_step)
        if steps == [0, 1, 2, 3, 4]:
            raise KeyboardInterrupt
        return clip(trainer, model)

    monkeypatch.setattr(TargetedTrainer, "_clip_grad_norm", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(masks, tmp_path / "killed", **settings)
    steps.clear()
    torch.manual_seed(99)  # another process has another random state
    found, logs = trained(masks, tmp_path / "killed", **settings)
    assert steps == [4, 5]
    assert logs == expected_logs
    assert_same_weights(found, expected)


def test_run_without_its_checkpoint_starts_anew(tmp_path):
    masks = tiny.rows(8, flagged=[2])
    expected, _ = trained(masks, tmp_path)
    assert list(tmp_path.iterdir())
    run.forget(tmp_path)
    assert not tmp_path.exists()
    found, _ = trained(masks, tmp_path)
    assert_same_weights(found, expected)
    shutil.rmtree(tmp_path)


def test_sft_clean_never_sees_flagged_completions(tmp_path):
    masks = tiny.rows(9, flagged=[1, 4, 6])
    clean = [mask for mask in masks if not any(mask.negative_mask)]
    settings = {"loss": "sft_clean", "epochs": 2, "batch_size": 4, "cache_original": False}
    found, logs = trained(masks, tmp_path / "a", **settings)
    expected, _ = trained(clean, tmp_path / "b", **settings)
    assert len(logs) == 2 * math.ceil(6 / 4)
    assert {log.negative_mass for log in logs} == {0.0}
    assert_same_weights(found, expected)


def test_nothing_to_learn_from_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"None of the 2 completions .* 'sft_clean'"):
        trained(tiny.rows(2, flagged=[0, 1]), tmp_path, loss="sft_clean")


def test_completion_without_a_loss_token_is_left_out(tmp_path):
    masks = tiny.rows(5, flagged=[0])
    silent = tiny.row(9, [5, 6], [7, 8])
    silent.kept_mask[:] = [False, False]
    found, _ = trained([*masks, silent], tmp_path / "a")
    expected, _ = trained(masks, tmp_path / "b")
    assert_same_weights(found, expected)


@pytest.mark.parametrize("loss", sorted({*LOSSES} - {"sft_clean"}))
def test_steps_lower_the_mass_of_negative_tokens(tmp_path, loss):
    masks = tiny.greedy_rows(4, flagged=range(4))
    _, logs = trained(masks, tmp_path, loss=loss, epochs=4)
    assert logs[-1].negative_mass < logs[0].negative_mass


def with_corrections(masks, *, of):
    """Return rows, and corrections of some of them under the same keys, of other lengths."""
    other = tiny.rows(len(masks), seed=1)
    corrected = [replace(other[i], prompt_ids=masks[i].prompt_ids, source="corrected") for i in of]
    return sorted([*masks, *corrected], key=lambda m: (m.prompt_id, m.sample, m.source))


def mean_log_prob(model, masks):
    """Log-probability of the completions' tokens, by a forward of each alone."""
    found = []
    for mask in masks:
        batch = collate([mask])
        with torch.no_grad():
            log_probs = completion_logits(model, batch).log_softmax(-1)
        found += log_probs.gather(-1, batch.token_ids[:, None])[:, 0].tolist()
    return sum(found) / len(found)


@pytest.mark.parametrize("cache_original", [True, False])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 2])
def test_corrections_count_as_cross_entropy_beside_the_loss(
    tmp_path, cache_original, micro_batch_size
):
    masks = with_corrections(tiny.rows(3, flagged=[1]), of=[1, 2])
    settings = {"batch_size": 5, "cache_original": cache_original, "negative_weight": 3.0}
    settings |= {"loss": "tnfll", "micro_batch_size": micro_batch_size}
    _, (log,) = trained(masks, tmp_path, **settings)
    model = tiny.llama()
    said = [m for m in masks if m.source == "generated"]
    corrected = [m for m in masks if m.source == "corrected"]
    _, (alone,) = trained(said, tmp_path / "alone", **settings)
    tokens, more = (sum(len(m.completion_ids) for m in rows) for rows in (said, corrected))
    expected = -mean_log_prob(model, corrected)
    assert log.corrected_loss == pytest.approx(expected, rel=1e-4)
    total = alone.loss * tokens + expected * more
    assert log.loss == pytest.approx(total / (tokens + more), rel=1e-4)
    for name in ("negative_loss", "kept_loss", "negative_mass"):
        assert getattr(log, name) == pytest.approx(getattr(alone, name), rel=1e-3)
    assert alone.corrected_loss == 0


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_corrections_alone_are_plain_fine_tuning(tmp_path, make):
    masks = tiny.rows(6)
    settings = {"make": make, "epochs": 2, "micro_batch_size": 3}
    expected, _ = trained(masks, tmp_path / "a", loss="sft_clean", **settings)
    corrected = [replace(mask, source="corrected") for mask in masks]
    found, logs = trained(corrected, tmp_path / "b", loss="tnff", **settings)
    assert_same_weights(found, expected)
    assert {(log.kept_loss, log.negative_loss) for log in logs} == {(0.0, 0.0)}


@pytest.mark.parametrize("loss", LOSSES)
def test_corrections_become_likelier_and_negative_tokens_go(tmp_path, loss):
    masks = with_corrections(tiny.greedy_rows(6, flagged=[0, 3, 4]), of=[0, 3, 4])
    corrected = [m for m in masks if m.source == "corrected"]
    flagged = [m for m in masks if any(m.negative_mask)]
    found, _ = trained(masks, tmp_path, loss=loss, epochs=6, learning_rate=3e-3)
    assert mean_log_prob(found, corrected) > mean_log_prob(tiny.llama(), corrected) + 0.5
    negative, firsts = ([cut(m, length) for m in flagged] for length in (2, 1))

    def of_second(model):  # the negative token is the second of each
        return 2 * mean_log_prob(model, negative) - mean_log_prob(model, firsts)

    if loss != "sft_clean":  # which never sees what is flagged
        assert of_second(found) < of_second(tiny.llama()) - 0.5


def cut(mask, length):
    """Return a mask's first tokens."""
    per_token = ("completion_ids", "negative_mask", "kept_mask")
    return replace(mask, **{name: getattr(mask, name)[:length] for name in per_token})


def test_sft_clean_learns_from_corrections_of_what_it_drops(tmp_path):
    masks = with_corrections(tiny.rows(5, flagged=[1, 3]), of=[1, 3])
    seen = [m for m in masks if not any(m.negative_mask)]
    settings = {"loss": "sft_clean", "epochs": 2}
    found, logs = trained(masks, tmp_path / "a", **settings)
    expected, expected_logs = trained(seen, tmp_path / "b", **settings)
    assert len(seen) == 5
    assert logs == expected_logs
    assert_same_weights(found, expected)


def test_trainable_that_matches_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"'layers_7' matches no parameter; .* Correct"):
        trained(tiny.rows(2), tmp_path, trainable="layers_7")


def test_trainable_that_is_no_regular_expression_is_refused():
    with pytest.raises(ValueError, match="trainable is no regular expression"):
        params(trainable="layers.(1")


def test_trainable_leaves_all_other_parameters_alone(tmp_path):
    found, _ = trained(tiny.rows(4, flagged=[0]), tmp_path, trainable=r"layers\.1\.mlp")
    before, after = weights(tiny.llama()), weights(found)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "layers.1.mlp" in name}


def test_lora_trains_the_adapter_only(tmp_path):
    found, _ = trained(
        tiny.rows(4, flagged=[0]),
        tmp_path,
        lora=LoraParams(rank=2),
        epochs=2,
        learning_rate=1e-2,
    )
    before = weights(tiny.llama())
    for name, weight in weights(found).items():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(weight, before[plain])
    assert any("lora_B" in name and w.abs().max() > 0 for name, w in weights(found).items())
    merged = weights(found.merge_and_unload())
    assert {n for n in before if not torch.equal(before[n], merged[n])} <= {
        n for n in before if "_proj" in n
    }


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_where_no_loss_is_carried_changes_nothing(tmp_path, poison):
    """On the prompt, on padding, and at tokens that are neither negative nor kept."""
    masks = [tiny.row(0, [5, 6, 7], [8, 9, 10, 11, 12], [1]), tiny.row(1, [5, 6, 7], [8, 9])]
    masks[0].kept_mask[2:4] = [False, False]
    nowhere = torch.tensor([[1, 1, 0, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1, 1, 1]]).bool()

    def poisoned():
        model = tiny.llama()
        model.lm_head.register_forward_pre_hook(
            lambda module, inputs: inputs[0].masked_fill(nowhere[: len(inputs[0]), :, None], poison)
        )
        return model

    settings = {"cache_original": False, "epochs": 2, "seed": 2}  # which keeps the rows in order
    found, logs = trained(masks, tmp_path / "a", make=poisoned, **settings)
    expected, expected_logs = trained(masks, tmp_path / "b", **settings)
    assert logs == expected_logs
    assert_same_weights(found, expected)


def spoiled(monkeypatch, *, at_step, what="_clip_grad_norm"):
    """Let the gradient be NaN at a step."""
    clip = getattr(TargetedTrainer, what)

    def spoil(trainer, model):
        if trainer.state.global_step == at_step:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.nan)
        return clip(trainer, model)

    monkeypatch.setattr(TargetedTrainer, what, spoil)


def test_gradient_that_is_not_finite_at_once_is_an_error(tmp_path, monkeypatch):
    spoiled(monkeypatch, at_step=0)
    with pytest.raises(ValueError, match=r"after step 0: the gradient norm is nan\. No earlier"):
        trained(tiny.rows(2), tmp_path)


def test_gradient_that_is_not_finite_later_leaves_the_best_state(tmp_path, monkeypatch):
    masks = tiny.rows(4, flagged=[0, 2])
    settings = params(epochs=6, learning_rate=1e-2)
    with monkeypatch.context() as patched:
        spoiled(patched, at_step=3)
        found = train(tiny.llama(), masks, settings, workdir=tmp_path / "a/run")
    assert "stopped after step 3: the gradient norm is nan. Kept the state" in found.stopped
    losses = [log.validation_loss for log in found.logs]
    assert len(losses) == 3
    best = losses.index(min(losses))
    assert f"the state after step {best + 1}," in found.stopped
    shorter = replace(settings, epochs=best + 1)
    expected = train(tiny.llama(), masks, shorter, workdir=tmp_path / "b/run")
    assert_same_weights(found.model, expected.model)
    assert expected.stopped is None


@pytest.mark.parametrize("lora", [None, LoraParams(rank=2, alpha=8)])
def test_model_that_moves_too_far_is_stopped_and_goes_back(tmp_path, lora):
    """The bound lies between the second and the third state of the same run without one."""
    masks = tiny.rows(12, flagged=[0, 2, 5])
    held_out = frozenset({"p/9", "p/10", "p/11"})
    settings = {"lora": lora, "epochs": 5, "batch_size": 9, "learning_rate": 0.02}

    def run(name, **changes):
        given = params(**{**settings, **changes})
        return train(tiny.llama(), masks, given, workdir=tmp_path / name / "run", held_out=held_out)

    free = run("free")
    moved = [log.validation_divergence for log in free.logs]
    assert len(moved) == 5
    assert moved[1] < moved[2]
    found = run("bound", max_divergence=(moved[1] + moved[2]) / 2)
    assert f"diverge by {moved[2]:.3g} nats each" in found.stopped
    assert [log.validation_divergence for log in found.logs] == moved[:3]
    best = min((0, 1), key=lambda i: free.logs[i].validation_loss)
    assert f"Kept the state after step {best + 1}" in found.stopped
    expected = run("short", epochs=best + 1)
    assert_same_weights(found.model, expected.model)


def test_held_out_completions_are_watched_and_not_learnt(tmp_path):
    masks = tiny.rows(8, flagged=[0, 2, 6])
    held_out = frozenset({"p/6", "p/7"})
    settings = params(cache_original=False)
    found = train(tiny.llama(), masks, settings, workdir=tmp_path / "a", held_out=held_out)
    expected = train(tiny.llama(), masks[:6], settings, workdir=tmp_path / "b")
    assert_same_weights(found.model, expected.model)
    batch = collate(masks[6:])
    with torch.no_grad():
        pair = [completion_logits(model, batch) for model in (found.model, tiny.llama())]
        losses = token_losses(LossParams(loss="tnff"), *pair, batch.token_ids, batch.negative)
    last = found.logs[-1]
    assert last.validation_loss == pytest.approx(float(losses.mean()), rel=1e-4)
    assert last.validation_divergence == pytest.approx(float(losses[batch.kept].mean()), rel=1e-4)


def test_same_seed_same_bytes_and_another_seed_another_order(tmp_path):
    masks = tiny.rows(8, flagged=[1, 2])
    first, logs = trained(masks, tmp_path / "a", seed=3, batch_size=1)
    again, _ = trained(masks, tmp_path / "b", seed=3, batch_size=1)
    assert_same_weights(again, first)
    _, others = trained(masks, tmp_path / "c", seed=4, batch_size=1)
    assert [log.loss for log in others] != [log.loss for log in logs]


def test_head_is_the_models_own_again_afterwards(tmp_path):
    model, _ = trained(tiny.rows(2), tmp_path)
    assert "forward" not in vars(model.lm_head)
    assert not model.training
    copy.deepcopy(model)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("linear", 0, [1, 3 / 4, 2 / 4, 1 / 4]),
        ("constant", 2, [0, 1 / 2, 1, 1]),
        ("linear", 1, [0, 1, 2 / 3, 1 / 3]),
    ],
)
def test_learning_rate_by_hand(tmp_path, schedule, warmup, expected):
    _, logs = trained(
        tiny.rows(4, flagged=[0]),
        tmp_path,
        batch_size=1,
        schedule=schedule,
        warmup_steps=warmup,
        learning_rate=1e-4,
    )
    assert [log.learning_rate for log in logs] == pytest.approx([1e-4 * rate for rate in expected])
    assert [log.epoch for log in logs] == [0.25, 0.5, 0.75, 1.0]


def test_fingerprints_differ_with_any_part():
    names = {run.fingerprint(*parts) for parts in (("a", "b"), ("a", "c"), ("b", "a"), ("a",))}
    assert len(names) == 4
    assert run.fingerprint("a", "b") == run.fingerprint("a", "b")


@pytest.mark.parametrize("lora", [None, LoraParams(rank=2, alpha=4)])
def test_update_scale_applies_that_share_of_the_update(tmp_path, lora):
    masks = tiny.rows(4, flagged=[0, 2])
    settings = {"lora": lora, "learning_rate": 0.02, "epochs": 3}

    def merged(scale):
        model, _ = trained(masks, tmp_path / str(scale), update_scale=scale, **settings)
        return weights(model.merge_and_unload() if lora else model)

    whole, half, start = merged(1.0), merged(0.5), weights(tiny.llama())
    for name, weight in start.items():
        torch.testing.assert_close(half[name] - weight, (whole[name] - weight) / 2)
    assert any(not torch.equal(whole[name], weight) for name, weight in start.items())


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, "Incompatible mod"),
        ("Phimoe", {**tiny.SMALL, "num_local_experts": 4}, "has no attribute 'dtype'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(tmp_path, kind, settings, said):
    config = getattr(transformers, f"{kind}Config")(**{**settings, "vocab_size": 64})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with pytest.raises(ValueError, match=rf"does not fit {kind}.*{said}.*target_modules, like"):
        train(model, tiny.rows(2, flagged=[0]), params(lora=LoraParams(rank=2)), workdir=tmp_path)
