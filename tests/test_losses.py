"""The losses against the authors' numbers, an independent loop, and what the method promises."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch

from tnt.losses import LOSSES, T5PATCHES_LOSSES, token_losses
from tnt.targets import target_log_probs
from tnt.training import LossName

ORACLE = json.loads((Path(__file__).parent / "data/t5patches_losses.json").read_text())
N, V = 9, 13


def random_rows(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(N, V, generator=generator, dtype=dtype)
    original = 3 * torch.randn(N, V, generator=generator, dtype=dtype)
    token_ids = torch.randint(V, (N,), generator=generator)
    return logits, original, token_ids


def softmax(row):
    top = max(row)
    exps = [math.exp(x - top) for x in row]
    return [x / sum(exps) for x in exps]


def by_hand(loss, logits, original, token, unwanted, *, weight, floor, cap):
    """One token's loss in plain Python, from METHOD's formulas."""
    p, o = softmax(logits), softmax(original)
    allowed = sum(o[v] for v in range(V) if v not in unwanted)
    q = [0.0 if v in unwanted else o[v] / allowed for v in range(V)] if unwanted else o
    floored = [
        floor / len(unwanted) if v in unwanted else (1 - floor) * q[v] if unwanted else q[v]
        for v in range(V)
    ]
    forward = sum(q[v] * math.log(q[v] / p[v]) for v in range(V) if q[v] > 0)
    reverse = sum(p[v] * math.log(p[v] / floored[v]) for v in range(V))
    p_unwanted = sum(p[v] for v in unwanted)
    if not unwanted:
        kept = {"tnff": forward, "tnrf": forward, "tnrr": reverse}
        return kept.get(loss, -math.log(p[token]))
    return (
        weight
        * {
            "tnff": forward,
            "tnfll": forward,
            "tnrr": reverse,
            "tnrf": reverse,
            "tnrll": reverse,
            "ul": -math.log(1 - p_unwanted),
            "nl": max(math.log(p_unwanted), cap),
            "sft_clean": 0.0,
        }[loss]
    )


@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_equals_the_formula_written_out(loss, sets):
    logits, original, token_ids = random_rows()
    flagged = torch.arange(N) % 3 == 1
    negative = torch.zeros(N, V, dtype=torch.bool)
    negative[flagged, token_ids[flagged]] = True
    if sets:
        negative[flagged, (token_ids[flagged] + 4) % V] = True
    settings = {"weight": 2.5, "floor": 1e-3, "cap": -2.0}
    expected = [
        by_hand(
            loss,
            logits[n].tolist(),
            original[n].tolist(),
            int(token_ids[n]),
            negative[n].nonzero()[:, 0].tolist(),
            **settings,
        )
        for n in range(N)
    ]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        found = token_losses(
            loss,
            logits.to(dtype),
            original.to(dtype),
            token_ids,
            negative if sets else flagged,
            negative_weight=2.5,
            target_floor=1e-3,
            nl_cap=-2.0,
        )
        assert found.tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance / 100)


@pytest.mark.parametrize("alpha", ["1", "10"])
@pytest.mark.parametrize("loss", T5PATCHES_LOSSES)
def test_compat_reproduces_the_authors_numbers(loss, alpha):
    token_ids = torch.tensor(ORACLE["token_ids"]).flatten()
    weights = torch.tensor(ORACLE["weights"]).flatten()
    carries = weights != 0
    expected = torch.tensor(ORACLE["loss"][alpha][loss], dtype=torch.float64).flatten()[carries]
    expected_gradient = torch.tensor(ORACLE["gradient_of_sum_wrt_logits"]["1"][loss])
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        logits = torch.tensor(ORACLE["logits"], dtype=dtype).flatten(0, 1).requires_grad_()
        original = torch.tensor(ORACLE["original_logits"], dtype=dtype).flatten(0, 1)
        found = token_losses(
            loss,
            logits[carries],
            original[carries],
            token_ids[carries],
            weights[carries] == -1,
            negative_weight=float(alpha),
            compat="t5patches",
        )
        absolute = tolerance * float(expected.abs().max())
        if loss == "ul" and dtype == torch.float32:
            absolute = 1e-4 * float(alpha)  # the file's own note on the authors' clipped form
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=absolute)
        if alpha == "1":
            (gradient,) = torch.autograd.grad(found.sum(), logits)
            bound = 1e-7 if dtype == torch.float64 else 1e-4 if loss == "ul" else 1e-5
            torch.testing.assert_close(
                gradient.double(), expected_gradient.flatten(0, 1).double(), rtol=0, atol=bound
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["tnff", "tnrr", "tnrf"])
def test_an_unchanged_model_without_flags_has_exactly_zero_loss_and_gradient(loss, dtype):
    original = 5 * torch.randn(40, 997, dtype=dtype, generator=torch.Generator().manual_seed(3))
    logits = original.clone().requires_grad_()
    ids = torch.randint(997, (40,))
    losses = token_losses(loss, logits, original, ids, torch.zeros(40, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.abs().max() == 0
    assert gradient.abs().max() == 0


def test_the_target_keeps_the_ratios_of_what_is_allowed():
    original = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    negative = torch.tensor([[False, True, False, False]])
    target = target_log_probs(original, negative).exp()
    torch.testing.assert_close(target, torch.tensor([[4 / 7, 0, 2 / 7, 1 / 7]]))


def test_an_original_certain_of_the_flagged_token_still_has_a_target():
    original = torch.tensor([[2e4, 1.0, 0.0]])
    target = target_log_probs(original, torch.tensor([[True, False, False]]))
    e = math.e
    torch.testing.assert_close(target.exp(), torch.tensor([[0.0, e / (1 + e), 1 / (1 + e)]]))


def test_an_original_without_mass_elsewhere_is_named():
    original = torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])
    negative = torch.tensor([[False, False], [True, False]])
    with pytest.raises(ValueError, match="Row 1"):
        target_log_probs(original, negative)


def test_forward_kl_is_unlikelihood_plus_where_the_mass_goes():
    logits, original, token_ids = random_rows(seed=2)
    flagged = torch.ones(N, dtype=torch.bool)
    negative = torch.zeros(N, V, dtype=torch.bool).scatter(1, token_ids[:, None], True)
    allowed = logits.masked_fill(negative, -torch.inf).log_softmax(-1)
    q = target_log_probs(original, negative)
    where_to = torch.where(negative, 0.0, q.exp() * (q - allowed).nan_to_num()).sum(-1)
    tnff = token_losses("tnff", logits, original, token_ids, flagged)
    ul = token_losses("ul", logits, original, token_ids, flagged)
    torch.testing.assert_close(tnff, ul + where_to)


def test_unlikelihood_is_right_for_tiny_and_for_nearly_certain_tokens():
    for log_odds in (-14.0, -1.0, 0.0, 7.0, 60.0):
        logits = torch.zeros(1, 49_152)
        logits[0, 5] = log_odds + math.log(49_151)
        exact = math.log1p(math.exp(log_odds)) if log_odds < 30 else log_odds
        logits.requires_grad_()
        loss = token_losses("ul", logits, logits.detach(), torch.tensor([5]), torch.tensor([True]))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.item() == pytest.approx(exact, rel=1e-4, abs=1e-6)
        assert gradient[0, 5].item() == pytest.approx(1 / (1 + math.exp(-log_odds)), rel=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_gaps_of_ten_thousand_and_absent_tokens_leave_value_and_gradient_finite(loss):
    original = torch.tensor([[1e4, 0.0, -1e4, 3.0], [1.0, 2.0, -torch.inf, 0.5]])
    logits = original.clone().requires_grad_()
    flagged = torch.tensor([True, False])
    losses = token_losses(loss, logits, original, torch.tensor([1, 0]), flagged)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_reverse_kl_to_an_impossible_token_raises():
    original = torch.tensor([[1.0, -torch.inf, 0.0]])
    with pytest.raises(ValueError, match="Row 0: reverse KL is infinite, token 1"):
        token_losses("tnrr", torch.zeros(1, 3), original, torch.tensor([0]), torch.tensor([False]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "tnfff"}, "'tnfff' is unknown"),
        ({"negative_weight": 0.0}, "negative_weight is 0.0"),
        ({"target_floor": 1.0}, "target_floor is 1.0"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    logits, original, token_ids = random_rows()
    settings = {"loss": "tnff", **changes}
    with pytest.raises(ValueError, match=message):
        token_losses(settings.pop("loss"), logits, original, token_ids, token_ids < 0, **settings)


def test_errors_name_the_callers_row():
    original = torch.zeros(4, 3)
    original[3] = torch.tensor([0.0, -torch.inf, -torch.inf])
    negative = torch.tensor([False, False, False, True])
    with pytest.raises(ValueError, match="Row 3: the original has no probability"):
        token_losses("tnff", torch.zeros(4, 3), original, torch.zeros(4, dtype=int), negative)


@pytest.mark.parametrize("loss", ["ul", "nl"])
def test_a_negative_token_that_is_impossible_already_has_no_gradient(loss):
    logits = torch.tensor([[-torch.inf, 1.0, 0.0]], requires_grad=True)
    flagged = torch.tensor([True])
    losses = token_losses(loss, logits, torch.zeros(1, 3), torch.tensor([0]), flagged)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.tolist() == [0.0] if loss == "ul" else [-10.3]
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_raised_to_float32(loss, dtype):
    logits, original, token_ids = random_rows(torch.float32)
    logits = logits.to(dtype)
    flagged = torch.arange(N) % 2 == 0
    expected = token_losses(loss, logits.float(), original, token_ids, flagged)
    found = token_losses(loss, logits, original, token_ids, flagged)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_losses_without_a_target_need_none():
    original = torch.tensor([[0.0, -torch.inf]])
    losses = token_losses(
        "ul", torch.zeros(1, 2), original, torch.tensor([0]), torch.tensor([True])
    )
    assert losses.item() == pytest.approx(math.log(2))


def test_the_params_know_every_loss():
    assert set(get_args(LossName)) == set(LOSSES)
