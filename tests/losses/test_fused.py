"""The losses from hidden states equal the plain ones, and the LM head is the model's own."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tnt.losses import fused
from tnt.losses.fused import fused_losses
from tnt.losses.heads import Head
from tnt.losses.params import LossParams
from tnt.losses.table import LOSSES, asks_original, token_losses

CASE = {
    "rows": 7,
    "vocabulary": 13,
    "width": 6,
    "original_width": 6,
    "dtype": torch.float64,
    "hidden_dtype": None,  # None: as `dtype`
    "bias": False,
    "scale": 1.0,
    "softcap": None,
    "sets": False,
    "flags": "some",
    "head_grad": True,
    "hidden_grad": True,
    "same_head": False,
    "normaliser": 1.0,
    "upstream": 1.0,
    "chunk": None,
    "block": None,
}
CASES = {
    "no rows": {"rows": 0},
    "one row": {"rows": 1},
    "one kept row": {"rows": 1, "flags": "none"},
    "97 tokens": {"vocabulary": 97, "rows": 11},
    "1031 tokens": {"vocabulary": 1031, "rows": 5, "dtype": torch.float32},
    "chunks of 2 rows": {"chunk": 26, "rows": 9},
    "chunks smaller than a row": {"chunk": 1},
    "blocks of 3 rows in chunks of 5": {"chunk": 65, "block": 39, "rows": 23},
    "blocks smaller than a row": {"block": 1},
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16 hidden states of a float32 head": {
        "dtype": torch.float32, "hidden_dtype": torch.bfloat16,
    },
    "float32 hidden states of a bfloat16 head": {
        "dtype": torch.bfloat16, "hidden_dtype": torch.float32,
    },
    "bias": {"bias": True},
    "bias in bfloat16": {"bias": True, "dtype": torch.bfloat16},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 2.0},
    "bias, scale and softcap in uneven chunks": {
        "bias": True, "scale": 3.0, "softcap": 5.0, "chunk": 30, "block": 20, "rows": 10,
    },
    "a wider original": {"original_width": 11},
    "sets": {"sets": True},
    "sets in uneven chunks": {"sets": True, "chunk": 40, "block": 15, "rows": 17},
    "all negative": {"flags": "all"},
    "none negative": {"flags": "none"},
    "none negative, sets": {"flags": "none", "sets": True},
    "one head": {"same_head": True},
    "frozen head": {"head_grad": False, "bias": True},
    "frozen hidden states": {"hidden_grad": False},
    "all frozen": {"hidden_grad": False, "head_grad": False},
    "normaliser": {"normaliser": 17.0},
    "upstream": {"upstream": -2.5, "bias": True, "normaliser": 3.0},
}  # fmt: skip
NUMBERS = {"negative_weight": 2.5, "target_floor": 1e-3, "nl_cap": -2.0}
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


class Given:
    """Inputs of one case."""

    def __init__(self, **changes):
        """Make them up."""
        case = {**CASE, **changes}
        generator = torch.Generator().manual_seed(1)
        n, v, dtype = case["rows"], case["vocabulary"], case["dtype"]

        def random(*shape, kind=dtype):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(kind)

        self.dtype, self.case = dtype, case
        self.hidden = random(n, case["width"], kind=case["hidden_dtype"] or dtype)
        self.hidden.requires_grad_(case["hidden_grad"])
        self.weight = random(v, case["width"]).requires_grad_(case["head_grad"])
        self.bias = random(v).requires_grad_(case["head_grad"]) if case["bias"] else None
        settings = {"scale": case["scale"], "softcap": case["softcap"]}
        self.head = Head(self.weight, self.bias, **settings)
        width = case["width"] if case["same_head"] else case["original_width"]
        self.original_hidden = random(n, width)
        bias = random(v) if case["bias"] else None
        self.original_head = (
            self.head if case["same_head"] else Head(random(v, width), bias, **settings)
        )
        self.token_ids = torch.randint(v, (n,), generator=generator)
        chosen = {"some": torch.arange(n) % 3 == 0, "all": torch.ones(n) > 0}
        flags = chosen.get(case["flags"], torch.zeros(n, dtype=torch.bool))
        self.negative = flags
        if case["sets"]:
            self.negative = torch.zeros(n, v, dtype=torch.bool)
            self.negative[flags, self.token_ids[flags]] = True
            self.negative[flags, (self.token_ids[flags] + 5) % v] = True

    def leaves(self):
        """Return what has a gradient, by name."""
        named = {"hidden": self.hidden, "weight": self.weight, "bias": self.bias}
        return {n: x for n, x in named.items() if x is not None and x.requires_grad}

    def logits(self, hidden, head):
        """The head, written out anew."""
        found = hidden.to(head.weight.dtype) @ head.weight.T
        found = found.float() if found.dtype == torch.bfloat16 else found
        found = found + head.bias if head.bias is not None else found
        found = found * head.scale
        return found if head.softcap is None else head.softcap * (found / head.softcap).tanh()

    def plain(self, loss):
        """Return total, losses and log-probabilities by `token_losses`."""
        original = self.logits(self.original_hidden, self.original_head).detach()
        logits = self.logits(self.hidden, self.head)
        losses = token_losses(
            LossParams(loss=loss, **NUMBERS),
            logits,
            original,
            self.token_ids,
            self.negative,
        )
        log_probs = logits.log_softmax(-1).gather(-1, self.token_ids[:, None])[:, 0]
        return losses.sum() / self.case["normaliser"], losses, log_probs

    def fused(self, loss, **changes):
        """Return what is tested."""
        original = (self.original_hidden, self.original_head)
        normaliser = changes.pop("normaliser", self.case["normaliser"])
        return fused_losses(
            LossParams(loss=loss, **{**NUMBERS, **changes}),
            self.hidden, self.head, *(original if asks_original(loss) else (None, None)),
            self.token_ids, self.negative, normaliser=normaliser,
        )  # fmt: skip


def assert_near(found, expected, dtype):
    """To a bound relative to the largest entry."""
    assert found.shape == expected.shape
    if expected.numel():
        largest = max(1e-30, float(expected.detach().double().abs().max()))
        bound = RELATIVE[dtype] * largest
        torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=bound)


def assert_fused_is_plain(given, loss, *, around=contextlib.nullcontext):
    total, losses, log_probs = given.plain(loss)
    with around():
        found = given.fused(loss)
    exact = torch.float64 if given.dtype == torch.float64 else torch.float32
    assert found.losses.dtype == found.log_probs.dtype == exact
    assert_near(found.losses, losses, exact)
    assert_near(found.log_probs, log_probs, exact)
    assert_near(found.total, total, exact)
    assert not found.losses.requires_grad
    assert not found.log_probs.requires_grad
    leaves = given.leaves()
    if not leaves:
        assert not found.total.requires_grad
        return
    upstream = given.case["upstream"]
    gradients = torch.autograd.grad(upstream * found.total, [*leaves.values()])
    if total.requires_grad:
        expected = torch.autograd.grad(upstream * total, [*leaves.values()], allow_unused=True)
    else:  # sft_clean without a kept row
        expected = [None] * len(leaves)
    for gradient, wanted, leaf in zip(gradients, expected, leaves.values(), strict=True):
        assert gradient.dtype == leaf.dtype
        wanted = torch.zeros_like(leaf) if wanted is None else wanted
        half = torch.bfloat16 in (leaf.dtype, given.dtype)
        assert_near(gradient, wanted, torch.bfloat16 if half else exact)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("loss", LOSSES)
def test_fused_losses_are_the_plain_ones_in_value_and_gradient(monkeypatch, loss, case):
    given = Given(**case)
    if given.case["chunk"]:
        monkeypatch.setitem(fused.CHUNK, "cpu", given.case["chunk"])
    if given.case["block"]:
        monkeypatch.setitem(fused.BLOCK, "cpu", given.case["block"])
    assert_fused_is_plain(given, loss)


PRECISIONS = (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("pair", [*PRECISIONS, (torch.float32, torch.float64)])
def test_an_original_in_another_precision_is_compared_with(pair):
    given, other = Given(dtype=pair[0]), Given(dtype=pair[1])
    given.original_head, given.original_hidden = other.original_head, other.original_hidden
    assert_fused_is_plain(given, "tnff")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_around_the_losses_changes_nothing(loss, dtype):
    given = Given(dtype=dtype, bias=True, softcap=4.0)

    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    assert_fused_is_plain(given, loss, around=autocast)
    expected = given.head.logits(given.hidden)
    with autocast():
        assert torch.equal(given.head.logits(given.hidden), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("loss", LOSSES)
def test_without_gradients_values_are_the_same_and_nothing_is_kept(loss, mode):
    given = Given(rows=9, bias=True)
    expected = given.fused(loss)
    with mode():
        found = given.fused(loss)
    assert torch.equal(found.losses, expected.losses)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert torch.equal(found.total, expected.total)
    assert not found.total.requires_grad


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("loss", ["tnff", "tnrr", "ul"])
def test_two_calls_with_one_head_add_up(loss, together):
    """As the generated and the corrected tokens of a batch do, and the passes of a step."""
    first, second = Given(rows=5, bias=True), Given(rows=5, bias=True, flags="none")
    second.head, second.weight, second.bias = first.head, first.weight, first.bias
    expected = 0
    for given in (first, second):
        expected = expected + torch.autograd.grad(given.plain(loss)[0], first.weight)[0]
    totals = [given.fused(loss).total for given in (first, second)]
    if together:
        (totals[0] + totals[1]).backward()
    else:
        for total in totals:
            total.backward()
    assert_near(first.weight.grad, expected, torch.float64)


def test_an_accumulated_gradient_is_not_what_a_later_call_writes_to():
    given = Given()
    given.fused("tnff").total.backward()
    kept = given.weight.grad
    before = kept.clone()
    torch.autograd.grad(given.fused("tnff").total * 3, given.weight)
    assert torch.equal(kept, before)


@pytest.mark.parametrize("upstream", [1.0, 3.0])
def test_a_second_backward_is_right_or_refused(upstream):
    given = Given(bias=True)
    total = given.fused("tnff").total * upstream
    (expected,) = torch.autograd.grad(given.plain("tnff")[0] * upstream, given.weight)
    total.backward(retain_graph=True)
    for count in (2, 3):
        try:
            total.backward(retain_graph=True)
        except RuntimeError:
            return
        assert_near(given.weight.grad, count * expected, torch.float64)


def test_a_gradient_through_a_weight_that_is_also_the_embedding_adds_up():
    given = Given(rows=6)
    ids = torch.arange(6)

    def total(fused_one):
        given.hidden = torch.nn.functional.embedding(ids, given.weight).tanh()
        return given.fused("tnff").total if fused_one else given.plain("tnff")[0]

    found, expected = (torch.autograd.grad(total(x), given.weight)[0] for x in (True, False))
    assert_near(found, expected, torch.float64)


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("loss", ["tnff", "tnrr", "tnrf"])
def test_an_unchanged_head_without_flags_has_exactly_zero_loss_and_gradient(
    monkeypatch, loss, dtype, rows
):
    monkeypatch.setitem(fused.CHUNK, "cpu", 997 * 16)
    monkeypatch.setitem(fused.BLOCK, "cpu", 997 * 5)
    given = Given(
        rows=rows, vocabulary=997, width=24, dtype=dtype, flags="none", same_head=True, bias=True
    )
    given.original_hidden = given.hidden.detach()
    found = given.fused(loss)
    gradients = torch.autograd.grad(found.total, [given.hidden, given.weight, given.bias])
    assert found.losses.abs().max() == 0
    assert [float(g.abs().max()) for g in gradients] == [0.0, 0.0, 0.0]


class Largest(TorchDispatchMode):
    """Records the most elements of any tensor that comes to be."""

    def __init__(self):
        """Begin with nothing."""
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        """Run an operation and look at what it gives."""
        result = function(*arguments, **(keywords or {}))
        for found in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(found, torch.Tensor):
                self.elements = max(self.elements, found.numel())
        return result


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("sets", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_logits_of_all_tokens_are_never_held(monkeypatch, loss, sets, gradient):
    """No tensor larger than a chunk, the head or the hidden states, forth and back."""
    monkeypatch.setitem(fused.CHUNK, "cpu", 1031 * 8)
    given = Given(rows=300, vocabulary=1031, dtype=torch.float32, sets=sets)
    with Largest() as seen, torch.set_grad_enabled(gradient):
        found = given.fused(loss)
        if gradient:
            found.total.backward()
    assert seen.elements <= 2 * max(1031 * 8, given.weight.numel(), given.hidden.numel())
    assert seen.elements < 300 * 1031 / 15


UNUSABLE = {
    "an unknown loss": ({"loss": "tnfff"}, "'tnfff' is unknown"),
    "a weight of 0": ({"negative_weight": 0.0}, "negative_weight is 0.0"),
    "a weight below 0": ({"negative_weight": -1.0}, "negative_weight is -1.0"),
    "a weight that is no number": ({"negative_weight": math.nan}, "negative_weight is nan"),
    "an infinite weight": ({"negative_weight": math.inf}, "negative_weight is inf"),
    "a floor of 1": ({"target_floor": 1.0}, "target_floor is 1.0"),
    "flags that are numbers": ({"negative": torch.zeros(7)}, "float32.*bool"),
    "flags of the wrong width": (
        {"negative": torch.ones(7, 12, dtype=torch.bool)}, "12.*13|13.*12",
    ),
    "flags of width 1": ({"negative": torch.ones(7, 1, dtype=torch.bool)}, "13"),
    "flags of other rows": ({"negative": torch.ones(6, dtype=torch.bool)}, "6"),
    "a token past the vocabulary": ({"token_ids": torch.full((7,), 13)}, "13"),
    "a token below the vocabulary": ({"token_ids": torch.full((7,), -1)}, "-1"),
    "another vocabulary": (
        {"original_head": Head(torch.zeros(14, 6, dtype=torch.float64))}, "13 tokens.*14",
    ),
}  # fmt: skip


@pytest.mark.parametrize("loss", ["tnff", "ul"])
@pytest.mark.parametrize(("changes", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_arguments_that_do_not_fit_are_named(loss, changes, message):
    given = Given(flags="all")
    arguments = {
        name: getattr(given, name)
        for name in ("hidden", "head", "original_hidden", "original_head", "token_ids", "negative")
    }
    numbers = {"loss": loss} | {n: v for n, v in changes.items() if n not in arguments}
    arguments |= {n: v for n, v in changes.items() if n in arguments}
    with pytest.raises(ValueError, match=message):
        fused_losses(LossParams(**numbers), **arguments)


@pytest.mark.parametrize("flags", ["all", "none"])
def test_errors_name_the_callers_row_across_chunks_and_blocks(monkeypatch, flags):
    monkeypatch.setitem(fused.CHUNK, "cpu", 13 * 4)
    monkeypatch.setitem(fused.BLOCK, "cpu", 13 * 2)
    given = Given(rows=11, bias=True, flags=flags)
    bias = given.original_head.bias
    bias.fill_(-torch.inf)
    bias[int(given.token_ids[7])] = 0.0
    elsewhere = given.token_ids != given.token_ids[7]
    if flags == "all":  # only rows that flag that token have no target
        row = int((~elsewhere).nonzero()[0])
        message = f"Row {row}: the original has no probability"
    else:
        message = "Row 0: reverse KL is infinite"
    with pytest.raises(ValueError, match=message):
        given.fused("tnff" if flags == "all" else "tnrr")
