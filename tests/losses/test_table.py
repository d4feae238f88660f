"""The losses against the authors' numbers, an independent loop, and what the method promises."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch

from tnt.losses import t5patches
from tnt.losses.params import LossName, LossParams
from tnt.losses.t5patches import T5PATCHES_LOSSES
from tnt.losses.table import LOSSES, token_losses
from tnt.losses.targets import target_log_probs

ORACLE = json.loads((Path(__file__).parents[1] / "data/t5patches_losses.json").read_text())
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


def row_by_row(formula, loss, logits, original, token_ids, negative, **settings):
    """Return what a formula in plain Python gives for each row."""
    return [
        formula(
            loss,
            logits[n].tolist(),
            original[n].tolist(),
            int(token_ids[n]),
            negative[n].nonzero()[:, 0].tolist(),
            **settings,
        )
        for n in range(N)
    ]


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
        kept = {"tnff": forward, "tnrf": forward, "tnrr": reverse, "tnfr": reverse}
        return kept.get(loss, -math.log(p[token]))
    return (
        weight
        * {
            "tnff": forward,
            "tnfr": forward,
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
    expected = row_by_row(by_hand, loss, logits, original, token_ids, negative, **settings)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        found = token_losses(
            LossParams(loss=loss, negative_weight=2.5, target_floor=0.001, nl_cap=-2.0),
            logits.to(dtype),
            original.to(dtype),
            token_ids,
            negative if sets else flagged,
        )
        assert found.tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance / 100)


@pytest.mark.parametrize("alpha", ["1", "10"])
@pytest.mark.parametrize("loss", T5PATCHES_LOSSES)
def test_t5patches_reproduces_the_authors_numbers(loss, alpha):
    token_ids = torch.tensor(ORACLE["token_ids"]).flatten()
    weights = torch.tensor(ORACLE["weights"]).flatten()
    carries = weights != 0
    expected = torch.tensor(ORACLE["loss"][alpha][loss], dtype=torch.float64).flatten()[carries]
    expected_gradient = torch.tensor(ORACLE["gradient_of_sum_wrt_logits"]["1"][loss])
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        logits = torch.tensor(ORACLE["logits"], dtype=dtype).flatten(0, 1).requires_grad_()
        original = torch.tensor(ORACLE["original_logits"], dtype=dtype).flatten(0, 1)
        found = t5patches.token_losses(
            LossParams(loss=loss, negative_weight=float(alpha)),
            logits[carries],
            original[carries],
            token_ids[carries],
            weights[carries] == -1,
        )
        absolute = tolerance * float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=absolute)
        if alpha == "1":
            (gradient,) = torch.autograd.grad(found.sum(), logits)
            bound = 1e-7 if dtype == torch.float64 else 1e-5  # the file has 8 decimals
            torch.testing.assert_close(
                gradient.double(), expected_gradient.flatten(0, 1).double(), rtol=0, atol=bound
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["tnff", "tnrr", "tnrf", "tnfr"])
def test_an_unchanged_model_without_flags_has_exactly_zero_loss_and_gradient(loss, dtype):
    original = 5 * torch.randn(40, 997, dtype=dtype, generator=torch.Generator().manual_seed(3))
    logits = original.clone().requires_grad_()
    ids = torch.randint(997, (40,))
    losses = token_losses(
        LossParams(loss=loss), logits, original, ids, torch.zeros(40, dtype=torch.bool)
    )
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
    tnff = token_losses(LossParams(loss="tnff"), logits, original, token_ids, flagged)
    ul = token_losses(LossParams(loss="ul"), logits, original, token_ids, flagged)
    torch.testing.assert_close(tnff, ul + where_to)


def test_unlikelihood_is_right_for_tiny_and_for_nearly_certain_tokens():
    for log_odds in (-14.0, -1.0, 0.0, 7.0, 60.0):
        logits = torch.zeros(1, 49_152)
        logits[0, 5] = log_odds + math.log(49_151)
        exact = math.log1p(math.exp(log_odds)) if log_odds < 30 else log_odds
        logits.requires_grad_()
        loss = token_losses(
            LossParams(loss="ul"), logits, logits.detach(), torch.tensor([5]), torch.tensor([True])
        )
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.item() == pytest.approx(exact, rel=1e-4, abs=1e-6)
        assert gradient[0, 5].item() == pytest.approx(1 / (1 + math.exp(-log_odds)), rel=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_gaps_of_ten_thousand_and_absent_tokens_leave_value_and_gradient_finite(loss):
    original = torch.tensor([[1e4, 0.0, -1e4, 3.0], [1.0, 2.0, -torch.inf, 0.5]])
    logits = original.clone().requires_grad_()
    flagged = torch.tensor([True, False])
    losses = token_losses(LossParams(loss=loss), logits, original, torch.tensor([1, 0]), flagged)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_reverse_kl_to_an_impossible_token_raises():
    original = torch.tensor([[1.0, -torch.inf, 0.0]])
    with pytest.raises(ValueError, match="Row 0: reverse KL is infinite, token 1"):
        token_losses(
            LossParams(loss="tnrr"),
            torch.zeros(1, 3),
            original,
            torch.tensor([0]),
            torch.tensor([False]),
        )


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
        token_losses(
            LossParams(loss=settings.pop("loss"), **settings),
            logits,
            original,
            token_ids,
            token_ids < 0,
        )


def test_errors_name_the_callers_row():
    original = torch.zeros(4, 3)
    original[3] = torch.tensor([0.0, -torch.inf, -torch.inf])
    negative = torch.tensor([False, False, False, True])
    with pytest.raises(ValueError, match="Row 3: the original has no probability"):
        token_losses(
            LossParams(loss="tnff"),
            torch.zeros(4, 3),
            original,
            torch.zeros(4, dtype=int),
            negative,
        )


@pytest.mark.parametrize("loss", ["ul", "nl"])
def test_a_negative_token_that_is_impossible_already_has_no_gradient(loss):
    logits = torch.tensor([[-torch.inf, 1.0, 0.0]], requires_grad=True)
    flagged = torch.tensor([True])
    losses = token_losses(
        LossParams(loss=loss), logits, torch.zeros(1, 3), torch.tensor([0]), flagged
    )
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.tolist() == [0.0] if loss == "ul" else [-10.3]
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_raised_to_float32(loss, dtype):
    logits, original, token_ids = random_rows(torch.float32)
    logits = logits.to(dtype)
    flagged = torch.arange(N) % 2 == 0
    expected = token_losses(LossParams(loss=loss), logits.float(), original, token_ids, flagged)
    found = token_losses(LossParams(loss=loss), logits, original, token_ids, flagged)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_losses_without_a_target_need_none():
    original = torch.tensor([[0.0, -torch.inf]])
    losses = token_losses(
        LossParams(loss="ul"), torch.zeros(1, 2), original, torch.tensor([0]), torch.tensor([True])
    )
    assert losses.item() == pytest.approx(math.log(2))


def test_the_params_know_every_loss():
    assert set(get_args(LossName)) == set(LOSSES)


# -- gradients, extremes, and arguments that cannot be used


SETTINGS = {"weight": 2.5, "floor": 1e-3, "cap": -2.0}
AS_ARGUMENTS = {"negative_weight": 2.5, "target_floor": 1e-3, "nl_cap": -2.0}


def flags_of(token_ids, *, sets):
    """Every third row's token is flagged, [N]; or, with `sets`, another token too, [N, V]."""
    flagged = torch.arange(N) % 3 == 1
    negative = torch.zeros(N, V, dtype=torch.bool)
    negative[flagged, token_ids[flagged]] = True
    if sets:
        negative[flagged, (token_ids[flagged] + 4) % V] = True
    return (negative if sets else flagged), negative


@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_gradient_is_the_slope_of_the_formula_written_out(loss, sets):
    """Central differences in float64: their own error is about 1e-9."""
    logits, original, token_ids = random_rows(seed=5)
    given, negative = flags_of(token_ids, sets=sets)
    step, expected = 1e-5, torch.zeros(N, V, dtype=torch.float64)
    for n in range(N):
        unwanted = negative[n].nonzero()[:, 0].tolist()
        for v in range(V):
            ends = []
            for sign in (1, -1):
                moved = logits[n].tolist()
                moved[v] += sign * step
                token = int(token_ids[n])
                ends.append(by_hand(loss, moved, original[n].tolist(), token, unwanted, **SETTINGS))
            expected[n, v] = (ends[0] - ends[1]) / (2 * step)
    upstream = torch.linspace(0.5, 2.0, N, dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-5)):
        leaf = logits.to(dtype).requires_grad_()
        arguments = (leaf, original.to(dtype), token_ids, given)
        losses = token_losses(
            LossParams(loss=loss, **AS_ARGUMENTS),
            *arguments,
        )
        (found,) = torch.autograd.grad((losses * upstream.to(dtype)).sum(), leaf)
        wanted = expected * upstream[:, None]
        bound = tolerance * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=bound)


def in_logs(loss, logits, original, token, unwanted, *, floor=1e-6, cap=-10.3):
    """One token's loss from log-probabilities, in Python's floats: no gap is too large for it."""

    def sum_up(values):
        top = max(values, default=-math.inf)
        if top == -math.inf:
            return top
        return top + math.log(math.fsum(math.exp(x - top) for x in values))

    def less(a, b):
        return -math.inf if a == -math.inf else a - b

    def divergence(a, b):
        return math.fsum(
            math.exp(x) * (x - y) if y > -math.inf else math.inf
            for x, y in zip(a, b, strict=True)
            if math.exp(x) > 1e-37  # less is nothing in float32
        )

    entries = range(len(logits))
    p = [less(x, sum_up(logits)) for x in logits]
    q = [-math.inf if v in unwanted else original[v] for v in entries]
    q = [less(x, sum_up(q)) for x in q]
    floored = [
        math.log(floor / len(unwanted)) if v in unwanted else less(q[v], -math.log1p(-floor))
        for v in entries
    ]
    floored = floored if unwanted else q
    reverse = loss in (("tnrr", "tnrf", "tnrll") if unwanted else ("tnrr", "tnfr"))
    if reverse:
        return divergence(p, floored)
    if loss in ("tnff", "tnrf") or (loss in ("tnfr", "tnfll") and unwanted):
        return divergence(q, p)
    if not unwanted:
        return -p[token]
    if loss == "ul":
        return -sum_up([p[v] for v in entries if v not in unwanted])
    if loss == "nl":
        return max(sum_up([p[v] for v in unwanted]), cap)
    return 0.0


EXTREMES = {
    "gaps of ten thousand in both": (1e4, 1e4),
    "gaps of ten thousand in the updated": (1e4, 1.0),
    "gaps of ten thousand in the original": (1.0, 1e4),
    "nearly even": (1e-3, 1e-3),
    "gaps of eighty": (80.0, 80.0),
}


@pytest.mark.parametrize("impossible", ["nowhere", "in both", "in the original"])
@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("scales", EXTREMES.values(), ids=EXTREMES)
@pytest.mark.parametrize("loss", LOSSES)
def test_float32_is_exact_at_any_scale_and_with_impossible_tokens(loss, scales, sets, impossible):
    logits, original, token_ids = random_rows(torch.float32, seed=8)
    logits, original = logits * scales[0], original * scales[1]
    given, negative = flags_of(token_ids, sets=sets)
    never = (torch.arange(N), (token_ids + 2) % V)  # flagged in no row
    if impossible != "nowhere":
        original[never] = -torch.inf
    if impossible == "in both":
        logits[never] = -torch.inf
    expected = row_by_row(in_logs, loss, logits, original, token_ids, negative)
    leaf = logits.requires_grad_()
    if math.inf in expected:
        with pytest.raises(ValueError, match="reverse KL is infinite"):
            token_losses(LossParams(loss=loss), leaf, original, token_ids, given)
        return
    found = token_losses(LossParams(loss=loss), leaf, original, token_ids, given)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert gradient.isfinite().all()
    assert float(gradient.sum(-1).abs().max()) <= 1e-4 * max(1.0, float(gradient.abs().max()))


@pytest.mark.parametrize("certainty", [1e-7, 3e-8, 1e-9])
@pytest.mark.parametrize("loss", sorted({*LOSSES} - {"sft_clean"}))
def test_a_flagged_token_within_1e_7_of_certain_has_the_exact_loss_and_slope(loss, certainty):
    """The slope by the flagged logit is that of a shifted pair of `in_logs`."""
    size = 31
    top = math.log((1 - certainty) / certainty * (size - 1))
    logits = torch.zeros(1, size)
    logits[0, 3] = top
    original = torch.linspace(-1, 1, size)[None]
    original[0, 3] = top
    token, row, leaf = torch.tensor([3]), original[0].tolist(), logits.clone().requires_grad_()
    losses = token_losses(LossParams(loss=loss), leaf, original, token, torch.tensor([True]))
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    values = [
        in_logs(loss, [top_ if v == 3 else 0.0 for v in range(size)], row, 3, [3])
        for top_ in (float(logits[0, 3]) + 1e-3, float(logits[0, 3]), float(logits[0, 3]) - 1e-3)
    ]
    assert losses.item() == pytest.approx(values[1], rel=1e-4, abs=1e-6)
    slope = (values[0] - values[2]) / 2e-3
    # The slope is what is left of numbers as large as the loss, to float32's 1e-7 of them.
    bound = 5e-7 * max(1.0, abs(values[1]))
    assert gradient[0, 3].item() == pytest.approx(slope, rel=1e-3, abs=bound)


@pytest.mark.parametrize("loss", ["tnff", "tnrf", "tnfll"])
def test_forward_kl_to_what_the_updated_model_cannot_say_is_infinite_and_not_nan(loss):
    logits = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    flagged = torch.tensor([loss == "tnfll"])
    losses = token_losses(
        LossParams(loss=loss), logits, torch.zeros(1, 3), torch.tensor([0]), flagged
    )
    assert losses.tolist() == [math.inf]


@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_rows_do_not_touch_each_other(loss, sets):
    """All together, each alone, in another order: the same."""
    logits, original, token_ids = random_rows(seed=4)
    given, _ = flags_of(token_ids, sets=sets)
    together = token_losses(LossParams(loss=loss), logits, original, token_ids, given)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    shuffled = token_losses(
        LossParams(loss=loss), *(x[order] for x in (logits, original, token_ids, given))
    )
    torch.testing.assert_close(shuffled, together[order], rtol=1e-12, atol=1e-12)
    for n in range(N):
        alone = token_losses(
            LossParams(loss=loss), *(x[n : n + 1] for x in (logits, original, token_ids, given))
        )
        torch.testing.assert_close(alone, together[n : n + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_rows_have_no_losses(loss):
    nothing = torch.zeros(0, V, requires_grad=True)
    ids, flags = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool)
    assert token_losses(LossParams(loss=loss), nothing, nothing.detach(), ids, flags).shape == (0,)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_negative_weight_that_is_not_positive_and_finite_is_named(weight):
    logits, original, token_ids = random_rows()
    with pytest.raises(ValueError, match=f"negative_weight is {weight}"):
        token_losses(
            LossParams(loss="tnff", negative_weight=weight),
            logits,
            original,
            token_ids,
            token_ids < 0,
        )


UNUSABLE = {
    "flags that are numbers": ({"negative": torch.zeros(N)}, "bool"),
    "flags of the wrong width": (
        {"negative": torch.ones(N, V - 1, dtype=torch.bool)}, f"{V - 1}.*{V}|{V}.*{V - 1}",
    ),
    "flags of width 1": ({"negative": torch.ones(N, 1, dtype=torch.bool)}, f"{V}"),
    "flags of other rows": ({"negative": torch.ones(N - 1, dtype=torch.bool)}, f"{N - 1}"),
    "a token past the vocabulary": ({"token_ids": torch.full((N,), V)}, f"{V}"),
    "a token below the vocabulary": ({"token_ids": torch.full((N,), -1)}, "-1"),
    "another vocabulary": ({"original_logits": torch.zeros(N, V + 1)}, f"{V + 1}"),
}  # fmt: skip


@pytest.mark.parametrize("loss", ["tnff", "ul"])
@pytest.mark.parametrize(("changes", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_arguments_that_do_not_fit_are_named(loss, changes, message):
    logits, original, token_ids = random_rows()
    negative = torch.ones(N, dtype=torch.bool)
    given = {"original_logits": original, "token_ids": token_ids, "negative": negative, **changes}
    with pytest.raises(ValueError, match=message):
        token_losses(LossParams(loss=loss), logits, **given)
