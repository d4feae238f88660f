"""The losses as the authors' code, T5Patches, computes them: smoothed and clipped.

Kept to reproduce their numbers; tests/data/t5patches_losses.json has notes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tnt.losses import table
from tnt.losses.params import LossParams
from tnt.losses.table import Rows, TokenLoss, cross_entropy, negative_log_prob

_SMOOTHING = 1e-6
_LARGEST_PROBABILITY = 1 - 1e-7


def _smoothed(log_probs: Tensor) -> Tensor:
    """1e-6 on every entry of the vocabulary: 3.1% of the mass at V = 32,128."""
    probs = log_probs.exp() + _SMOOTHING
    return (probs / probs.sum(-1, keepdim=True)).log()


def _soft_cross_entropy(rows: Rows) -> Tensor:
    q = rows.target().exp()
    return -torch.where(q > 0, q * rows.updated, 0.0).sum(-1)


def _smoothed_soft_cross_entropy(rows: Rows) -> Tensor:
    return -(_smoothed(rows.target()).exp() * rows.updated).sum(-1)


def _smoothed_cross_entropy(rows: Rows) -> Tensor:
    one_hot = torch.zeros_like(rows.updated).scatter(-1, rows.token_ids[:, None], 1.0)
    return -(_smoothed(one_hot.log()).exp() * rows.updated).sum(-1)


def _smoothed_reverse_kl(rows: Rows) -> Tensor:
    return (rows.updated.exp() * (rows.updated - _smoothed(rows.target()))).sum(-1)


def _clipped_unlikelihood(rows: Rows) -> Tensor:
    return -torch.log(1 - negative_log_prob(rows).exp().clamp(max=_LARGEST_PROBABILITY))


T5PATCHES_LOSSES = {
    "tnff": TokenLoss(_soft_cross_entropy, _soft_cross_entropy),
    "tnrr": TokenLoss(_smoothed_reverse_kl, _smoothed_reverse_kl),
    "tnrf": TokenLoss(_smoothed_reverse_kl, _smoothed_soft_cross_entropy),
    "tnfll": TokenLoss(_soft_cross_entropy, cross_entropy),
    "tnrll": TokenLoss(_smoothed_reverse_kl, _smoothed_cross_entropy),
    "ul": TokenLoss(_clipped_unlikelihood, cross_entropy),
    "nl": TokenLoss(negative_log_prob, cross_entropy),
}


def token_losses(params: LossParams, *tensors: Tensor) -> Tensor:
    """Return the loss of every token as `tnt.losses.table.token_losses` does, with their quirks."""
    losses = table.token_losses(params, *tensors, table=T5PATCHES_LOSSES)
    # Their cap comes after the weight, and has the wrong sign.
    return losses.clamp(max=-params.nl_cap) if params.loss == "nl" else losses
