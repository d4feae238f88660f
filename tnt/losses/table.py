"""The losses: what each does at a negative token and at a kept token, per token, in nats.

`token_losses` is the plain, exact definition; anything faster is tested against it. At a negative
token, forward KL to the target equals KL(target || updated restricted to what is allowed) minus
log(1 - p(negative)): unlikelihood plus a term that says where the mass goes. That second term is
the point of the method (Zhang, Ranganath, Tafvizi 2024, arXiv 2406.13660).

Legend: N tokens, V vocabulary. q is the target, p the updated model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tnt.losses.params import LossParams
from tnt.losses.targets import log_softmax, target_log_probs, with_floor


@dataclass(frozen=True, slots=True)
class Rows:
    """What a term may look at: some tokens, all negative or all kept."""

    updated: Tensor
    """Log-probabilities of the updated model, [N, V]."""
    original_logits: Tensor | None
    """Of the frozen original, [N, V]; terms outside `ASKS_ORIGINAL` may be given None."""
    token_ids: Tensor
    """The generated tokens, [N] int64."""
    negative: Tensor | None
    """[N, V] bool, a True in every row; None at kept tokens."""
    numbers: Tensor
    """Which rows of the caller's these are, [N] int64: named in errors."""
    params: LossParams

    def target(self) -> Tensor:
        """Return the target's log-probabilities, [N, V]; at kept tokens those of the original."""
        assert self.original_logits is not None, "a term that is not in ASKS_ORIGINAL asks for it"
        return target_log_probs(self.original_logits, self.negative, self.numbers)

    def negatives(self) -> Tensor:
        """Return `negative`, of rows that have it."""
        assert self.negative is not None, "a term for negative tokens was given kept ones"
        return self.negative


Term = Callable[[Rows], Tensor]
"""Rows -> [N]."""


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """One loss of the table."""

    negative: Term
    kept: Term


def forward_kl(rows: Rows) -> Tensor:
    """KL(q || p) = sum of q log(q / p), with 0 log 0 = 0; `_KL` says in which form."""
    return _KL.apply(rows.target(), rows.updated)


def reverse_kl(rows: Rows) -> Tensor:
    """KL(p || q'), where q' has `target_floor` at negative entries.

    Raises:
        ValueError: p is positive where q' is 0.
    """
    target = rows.target()
    if rows.negative is not None:
        target = with_floor(target, rows.negative, rows.params.target_floor)
    losses: Tensor = _KL.apply(rows.updated, target)
    if torch.isposinf(losses).any():
        infinite = torch.isneginf(target) & (rows.updated.exp() > 0)
        row, token = infinite.nonzero()[0].tolist()
        raise ValueError(
            f"Row {int(rows.numbers[row])}: reverse KL is infinite, token {token} has probability "
            "0 in the target and more in the updated model. Use a forward KL loss, or an original "
            "without -inf logits."
        )
    return losses


def unlikelihood(rows: Rows) -> Tensor:
    """-log(1 - p(negative)): Welleck et al. 2020 (arXiv 1908.04319)."""
    unwanted = negative_log_prob(rows)
    allowed = _log_prob_of(rows.updated, ~rows.negatives())
    small = unwanted < -0.6931471805599453  # below 1/2, where the other form would cancel
    by_log1p = torch.log1p(-torch.where(small, unwanted, -1.0).exp())
    return -torch.where(small, by_log1p, torch.where(small, 0.0, allowed))


def negative_likelihood(rows: Rows) -> Tensor:
    """max(log p(negative), cap)."""
    return negative_log_prob(rows).clamp(min=rows.params.nl_cap)


def cross_entropy(rows: Rows) -> Tensor:
    """-log p(token)."""
    return -rows.updated.gather(-1, rows.token_ids[:, None])[:, 0]


def no_loss(rows: Rows) -> Tensor:
    """0: the completion is not trained on."""
    return rows.updated.new_zeros(len(rows.token_ids))


LOSSES: dict[str, TokenLoss] = {  # at negative tokens, at kept tokens
    "tnff": TokenLoss(forward_kl, forward_kl),
    "tnrr": TokenLoss(reverse_kl, reverse_kl),
    "tnrf": TokenLoss(reverse_kl, forward_kl),
    "tnfr": TokenLoss(forward_kl, reverse_kl),
    "tnfll": TokenLoss(forward_kl, cross_entropy),
    "tnrll": TokenLoss(reverse_kl, cross_entropy),
    "ul": TokenLoss(unlikelihood, cross_entropy),
    "nl": TokenLoss(negative_likelihood, cross_entropy),
    "sft_clean": TokenLoss(no_loss, cross_entropy),  # the trainer drops flagged completions whole
}
ASKS_ORIGINAL: frozenset[Term] = frozenset({forward_kl, reverse_kl})
"""Terms that compare with the original; for the others it need not be run."""


def asks_original(loss: str) -> bool:
    """Whether a loss of `LOSSES` compares with the original anywhere."""
    return not ASKS_ORIGINAL.isdisjoint({LOSSES[loss].negative, LOSSES[loss].kept})


def token_losses(
    params: LossParams,
    logits: Tensor,
    original_logits: Tensor,
    token_ids: Tensor,
    negative: Tensor,
    *,
    table: Mapping[str, TokenLoss] = LOSSES,
) -> Tensor:
    """Return the loss of every token, before any reduction.

    For tnff, logits that say [0.4, 0.3, 0.2, 0.1] of both models and token 1 flagged:
    KL([4/7, 0, 2/7, 1/7] || [0.4, 0.3, 0.2, 0.1]) = -log 0.7 = 0.357.

    Args:
        params: A loss of `table`, and its numbers.
        logits: Of the updated model, [N, V]; row n predicts token_ids[n].
        original_logits: Of the frozen original in evaluation mode, [N, V].
        token_ids: Generated tokens, [N] int64.
        negative: [N] bool, where the generated token was flagged; or [N, V] bool, sets of flagged
            tokens: a row with any True is a negative row. Every other row is a kept token.
        table: `tnt.losses.t5patches` has another, for the authors' numbers.

    Returns:
        Nats per token, [N], in the precision of `logits`; half precision is raised to float32.

    Raises:
        ValueError: The loss is unknown, tensors do not fit, or a target does not exist.
    """
    refuse_unknown(params.loss, table)
    terms = table[params.loss]
    refuse_misfits(len(logits), logits.shape[-1], original_logits.shape[-1], token_ids, negative)
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    original_logits = original_logits.to(logits.dtype)
    if negative.ndim == 1:
        negative = torch.zeros_like(logits, dtype=torch.bool).scatter(
            -1, token_ids[:, None], negative[:, None]
        )
    flagged = negative.any(-1)
    losses = logits.new_zeros(len(token_ids))
    # Rows are selected, never multiplied by a mask: NaN * 0 is NaN, and so is its gradient.
    for term, chosen, sets, weight in (
        (terms.negative, flagged, negative, params.negative_weight),
        (terms.kept, ~flagged, None, 1.0),
    ):
        if chosen.any():
            rows = Rows(
                updated=log_softmax(logits[chosen]),
                original_logits=original_logits[chosen],
                token_ids=token_ids[chosen],
                negative=None if sets is None else sets[chosen],
                numbers=chosen.nonzero()[:, 0],
                params=params,
            )
            losses = losses.index_put((chosen,), weight * term(rows))
    return losses


class _KL(torch.autograd.Function):
    """KL(first || second) of each row, with the gradient written out: [N, V] twice -> [N].

    An entry is a (log a - log b) - a + b, for a and b the two probabilities. What is added to the
    usual form sums up to nothing; with it no entry is negative, and where a and b are the same
    numbers value and gradients are 0 exactly. By log a the entry's derivative is a (log a - log b),
    by log b it is b - a. Autograd would take four times as long over the steps in between.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        """Return the values; keep the gradients that are wanted."""
        a = first.exp()
        difference = (first - second).masked_fill_(a == 0, 0.0)  # 0 log 0 = 0
        excess = second.exp().sub_(a)
        values = torch.linalg.vecdot(a, difference) + excess.sum(-1)
        wanted_first, wanted_second = ctx.needs_input_grad
        ctx.save_for_backward(
            a.mul_(difference) if wanted_first else None, excess if wanted_second else None
        )
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the kept gradients, each row times what comes from above."""
        return tuple(None if g is None else g * upstream[:, None] for g in ctx.saved_tensors)


def refuse_unknown(loss: str, table: Mapping[str, TokenLoss] = LOSSES) -> None:
    """Raise if the table has no such loss."""
    if loss not in table:
        raise ValueError(f"The loss {loss!r} is unknown. Choose one of: {', '.join(table)}.")


def refuse_misfits(
    rows: int,
    vocabulary: int,
    original_vocabulary: int,
    token_ids: Tensor,
    negative: Tensor,
) -> None:
    """Raise if tokens or flags do not belong to logits of so many rows and tokens."""
    if original_vocabulary != vocabulary:
        raise ValueError(
            f"The updated model knows {vocabulary} tokens, the original {original_vocabulary}. "
            "They must share one tokenizer."
        )
    if negative.dtype != torch.bool:
        raise ValueError(f"negative is {negative.dtype}. Give a bool tensor, True where flagged.")
    if negative.shape not in ((rows,), (rows, vocabulary)):
        raise ValueError(
            f"negative has the shape {[*negative.shape]}. Give [{rows}], or [{rows}, {vocabulary}]."
        )
    if token_ids.shape != (rows,):
        raise ValueError(f"token_ids has the shape {[*token_ids.shape]}. Give [{rows}].")
    outside = token_ids[(token_ids < 0) | (token_ids >= vocabulary)]
    if len(outside):
        raise ValueError(
            f"Token {int(outside[0])} is outside the vocabulary of {vocabulary} tokens. Use the "
            "tokenizer that the model was trained with."
        )


def negative_log_prob(rows: Rows) -> Tensor:
    """Log p of all negative tokens of a row together, [N]."""
    return _log_prob_of(rows.updated, rows.negatives())


def _log_prob_of(log_probs: Tensor, chosen: Tensor) -> Tensor:
    """Return log of the chosen entries' summed probability, [N]; -inf, gradient 0, if it is 0."""
    entries = log_probs.masked_fill(~chosen, -torch.inf)
    absent = torch.isneginf(entries).all(-1)
    return torch.where(absent, -torch.inf, entries.masked_fill(absent[:, None], 0.0).logsumexp(-1))
