"""Which rows form a step, and the order of the steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tnt.training.params import TrainParams

NOTHING = -1
"""Number of a row that fills up a step."""


def steps_of(learnt: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return the rows of each step of an epoch.

    The rows of a step are the same in every epoch and for every seed; only the order of the steps
    changes. So the original is run on the same batches as the updated model, and experiments share
    its cached hidden states.
    """
    shuffled = torch.randperm(len(learnt), generator=torch.Generator().manual_seed(0)).tolist()
    return [sorted(learnt[i] for i in part) for part in cut(shuffled, batch_size)]


def cut(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    """Return the numbers in parts of `size`; the last may be shorter."""
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def order_of(steps: Sequence[list[int]], params: TrainParams, *, filled_to: int) -> list[int]:
    """Return the rows of all steps of all epochs, each epoch shuffled anew, steps filled up."""
    order: list[int] = []
    for epoch in range(params.epochs):
        generator = torch.Generator().manual_seed(params.seed * 1_000_003 + epoch)
        for i in torch.randperm(len(steps), generator=generator).tolist():
            order += steps[i] + [NOTHING] * (filled_to - len(steps[i]))
    return order
