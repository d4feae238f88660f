"""The losses from hidden states and LM heads, without ever holding the logits of all tokens.

`table.py` says what a loss is, this module only how it is computed: rows go through the heads a
chunk at a time, and value and gradient of a chunk are formed together, in the forward pass. What
stays are the gradients by the hidden states and by the head. Chunks shrink as the vocabulary grows,
so that memory grows neither with it nor with the number of tokens.

Legend: N tokens, V vocabulary, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tnt.losses.heads import Head, raised
from tnt.losses.params import LossParams
from tnt.losses.table import ASKS_ORIGINAL, LOSSES, Rows, Term, refuse_misfits, refuse_unknown
from tnt.losses.targets import log_softmax

CHUNK = {"cpu": 2**22}
"""Device -> logits of one chunk, of each model: 16 MiB in float32."""
LARGE_CHUNK = 2**26
"""The same on devices that are not named: 256 MiB."""
BLOCK = {"cpu": 2**17}
"""Device -> logits whose losses are formed at once: what fits a core's second cache."""


@dataclass(frozen=True, slots=True)
class Fused:
    """What `fused_losses` returns."""

    total: Tensor
    """Sum of the losses over the normaliser, a scalar to call `backward` on."""
    losses: Tensor
    """Of each token, in nats, [N]; without a gradient, as are the log-probabilities."""
    log_probs: Tensor
    """Of the generated tokens under the updated model, [N]."""


def fused_losses(
    params: LossParams,
    hidden: Tensor,
    head: Head,
    original_hidden: Tensor | None,
    original_head: Head | None,
    token_ids: Tensor,
    negative: Tensor,
    *,
    excluded: Tensor | None = None,
    normaliser: float = 1.0,
) -> Fused:
    """Return what `table.token_losses` gives for the two heads' logits, and its sum to train on.

    The gradient reaches `hidden` and the head's weight and bias. It is linear in what comes from
    above `total` alone: give the divisor of a mean as `normaliser`, rather than divide afterwards.

    Args:
        params: The loss and its numbers.
        hidden: What enters the updated model's head, [N, d]; row n predicts token_ids[n].
        head: Of the updated model.
        original_hidden: What enters the original's head, [N, its d]; it and the head may be None
            for losses that do not ask for the original, see `table.asks_original`.
        original_head: Of the original.
        token_ids: Generated tokens, [N] int64.
        negative: [N] or [N, V] bool, as in `token_losses`.
        excluded: With [N] of them, the set of tokens that is negative in each row, [N, S] int64,
            one or several times; None is the generated token.
        normaliser: What `total` is divided by.

    Raises:
        ValueError: As in `token_losses`; or the heads differ in their vocabulary.
    """
    refuse_unknown(params.loss)
    vocabulary = len(head.weight)
    of_original = vocabulary if original_head is None else len(original_head.weight)
    refuse_misfits(len(hidden), vocabulary, of_original, token_ids, negative)
    job = _Job(
        params=params,
        head=head,
        original_head=original_head,
        token_ids=token_ids,
        negative=negative,
        excluded=token_ids[:, None] if excluded is None else excluded,
        normaliser=normaliser,
        gradient=torch.is_grad_enabled(),
    )
    return Fused(*_Fused.apply(hidden, head.weight, head.bias, original_hidden, job))


@dataclass(frozen=True, slots=True)
class _Job:
    """What `_Fused` works from, besides the tensors that may get a gradient."""

    params: LossParams
    head: Head
    original_head: Head | None
    token_ids: Tensor
    negative: Tensor
    excluded: Tensor
    normaliser: float
    gradient: bool

    def groups(self) -> Iterator[tuple[Term, float, Tensor]]:
        """Yield the term of negative and of kept tokens, its weight, and the rows' numbers."""
        flagged = self.negative if self.negative.ndim == 1 else self.negative.any(-1)
        terms = LOSSES[self.params.loss]
        yield terms.negative, self.params.negative_weight, flagged.nonzero()[:, 0]
        yield terms.kept, 1.0, (~flagged).nonzero()[:, 0]

    def sets(self, rows: Tensor) -> Tensor | None:
        """Return the negative tokens of some rows, [n, V]; None if they are kept rows."""
        chosen = self.negative[rows]
        if not chosen.any():
            return None
        if chosen.ndim == 2:
            return chosen
        shape = len(rows), len(self.head.weight)
        none = torch.zeros(shape, dtype=torch.bool, device=chosen.device)
        return none.scatter_(-1, self.excluded[rows], value=True)


class _Fused(torch.autograd.Function):
    """Losses and, in the same pass, gradients; see `fused_losses`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        original: Tensor | None,
        job: _Job,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Go through the heads chunk by chunk; keep the gradients that are wanted."""
        exact = raised(weight[:0]).dtype
        wanted = [job.gradient and needed for needed in ctx.needs_input_grad[:3]]
        by_hidden, by_weight, by_bias = (
            torch.zeros_like(x, dtype=exact) if want and x is not None else None
            for x, want in zip((hidden, weight, bias), wanted, strict=True)
        )
        losses = torch.zeros(len(hidden), dtype=exact, device=hidden.device)
        log_probs = torch.zeros_like(losses)
        size = max(1, CHUNK.get(hidden.device.type, LARGE_CHUNK) // len(weight))
        size = min(size, len(hidden))
        space = torch.empty(2, size, len(weight), dtype=exact, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for term, factor, group in job.groups():
                for rows in group.split(size):
                    if not len(rows):
                        continue
                    inputs = hidden[rows].to(weight.dtype)
                    logits = job.head.affine(inputs, space[0, : len(rows)])
                    originals = None
                    if term in ASKS_ORIGINAL:
                        assert original is not None
                        assert job.original_head is not None
                        originals = job.original_head.logits(original[rows], space[1, : len(rows)])
                    losses[rows], log_probs[rows] = _chunk(
                        term, factor, rows, logits, originals, job, any(wanted)
                    )
                    # From here on `logits` holds the gradient by the logits.
                    if by_hidden is not None:
                        by_hidden[rows] = raised(logits.to(weight.dtype) @ weight)
                    if by_weight is not None:
                        by_weight.addmm_(logits.T, inputs.to(exact))
                    if by_bias is not None:
                        by_bias += logits.sum(0)
        ctx.save_for_backward(by_hidden, by_weight, by_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(losses, log_probs)
        return losses.sum() / job.normaliser, losses, log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the forward pass; each is used once."""
        gradients = []
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True):
            if gradient is not None and upstream != 1:
                gradient.mul_(upstream)
            gradients.append(None if gradient is None else gradient.to(dtype))
        return *gradients, None, None


def _chunk(
    term: Term,
    factor: float,
    rows: Tensor,
    affine: Tensor,
    originals: Tensor | None,
    job: _Job,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return losses and log-probabilities of rows; write the gradient over their logits, `affine`.

    Autograd runs over a block of rows at a time, which stays in the processor's cache.
    """
    size = max(1, BLOCK.get(affine.device.type, affine.numel()) // affine.shape[1])
    losses, log_probs = [], []
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        block, logits = rows[part], affine[part]
        token_ids = job.token_ids[block]
        with torch.set_grad_enabled(gradient):
            leaf = logits.detach().requires_grad_(gradient)
            updated = log_softmax(job.head.finished(leaf))
            found = factor * term(
                Rows(
                    updated=updated,
                    original_logits=None if originals is None else originals[part],
                    token_ids=token_ids,
                    negative=job.sets(block),
                    numbers=block,
                    params=job.params,
                )
            )
            if gradient and found.requires_grad:
                (by_logits,) = torch.autograd.grad(found.sum() / job.normaliser, leaf)
                logits.copy_(by_logits)
            else:
                logits.zero_()
        losses.append(found.detach())
        log_probs.append(updated.detach().gather(-1, token_ids[:, None])[:, 0])
    return torch.cat(losses), torch.cat(log_probs)
