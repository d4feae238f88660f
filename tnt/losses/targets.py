"""The minimal-update target: the distribution closest to the original without flagged tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def log_softmax(logits: Tensor) -> Tensor:
    """Return log-probabilities, [N, V], to float32's precision whatever the vocabulary.

    PyTorch's own adds up a row in the order of its entries on a CPU: 49,151 equal ones beside a
    likely one put log 1/2 off by 1.4e-4. A pairwise sum is off by 5e-7.
    """
    found: Tensor = _LogSoftmax.apply(logits)
    return found


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        shifted = logits - logits.amax(-1, keepdim=True)
        found = shifted.sub_(shifted.exp().sum(-1, keepdim=True).log_())
        ctx.save_for_backward(found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (found,) = ctx.saved_tensors
        return upstream - found.exp() * upstream.sum(-1, keepdim=True)


def target_log_probs(
    original_logits: Tensor, negative: Tensor | None, row_numbers: Tensor | None = None
) -> Tensor:
    """Return the distribution closest to the original that never emits a negative token.

    [0.4, 0.3, 0.2, 0.1] with token 1 flagged becomes [4/7, 0, 2/7, 1/7]; rows without a flag are
    unchanged. Equation 2 of Zhang et al. 2024 (arXiv 2406.13660). The token is removed in log
    space, before the normalisation, so that an original which is certain of it leaves no 0/0.

    Args:
        original_logits: Of the frozen original in evaluation mode, [N, V].
        negative: True at the flagged entries, [N, V] bool; None is none.
        row_numbers: What to call the rows in an error, [N]; None is 0 to N - 1.

    Returns:
        Log-probabilities, [N, V], exactly -inf at flagged entries.

    Raises:
        ValueError: The original has no mass outside the flagged tokens of a row.
    """
    remaining = original_logits
    if negative is not None:
        remaining = original_logits.masked_fill(negative, -torch.inf)
    target = log_softmax(remaining)
    empty = target[:, 0].isnan()  # a row without finite mass is NaN throughout
    if empty.any():
        row = int(empty.nonzero()[0])
        name = row if row_numbers is None else int(row_numbers[row])
        flagged = 0 if negative is None else int(negative[row].sum())
        raise ValueError(
            f"Row {name}: the original has no probability outside the {flagged} negative tokens, "
            "so there is no target. Flag fewer tokens there."
        )
    return target


def with_floor(target: Tensor, negative: Tensor, floor: float) -> Tensor:
    """Return the target with a total mass of `floor` spread evenly over the negative entries.

    Reverse KL is infinite where the target is 0; the floor stands at negative entries only, and
    the others shrink by (1 - floor). Rows without a flag are unchanged.

    Args:
        target: Log-probabilities, [N, V], -inf at negative entries.
        negative: [N, V] bool.
        floor: Mass given to all negative entries of a row together, in (0, 1).
    """
    count = negative.sum(-1, keepdim=True)
    share = torch.log(torch.full_like(target[:, :1], floor) / count.clamp(min=1))
    shrunk = target + torch.log1p(target.new_tensor(-floor))
    return torch.where(negative, share, torch.where(count > 0, shrunk, target))
