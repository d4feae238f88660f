"""How far two models' next-token distributions are apart, on completions of the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from tnt import models
from tnt.core.records import Mask
from tnt.evaluation.round_metrics import Divergence
from tnt.losses.batches import collate
from tnt.losses.heads import completion_logits
from tnt.losses.params import LossParams
from tnt.losses.table import token_losses
from tnt.models import by_length

FORWARD, REVERSE = LossParams(loss="tnff"), LossParams(loss="tnrr")
"""At kept tokens: KL(original || updated), and the other way round."""


def divergence(
    original: Any, updated: Any, masks: Sequence[Mask], *, batch_size: int, title: str
) -> Divergence:
    """Compare two models, teacher-forced on the original's completions.

    A model compared with itself gives exactly 0. Runs in float32.
    """
    start_id = models.decoder_start(original.config)
    sums = {"forward": 0.0, "reverse": 0.0, "mass": 0.0}
    kept = negatives = 0
    lengths = [len(m.prompt_ids) + len(m.completion_ids) for m in masks]
    with torch.inference_mode(), tqdm(total=len(masks), desc=title, unit="reply") as bar:
        for indices in by_length(lengths, batch_size):
            batch = collate([masks[i] for i in indices], decoder_start_id=start_id)
            batch = batch.to(original.device)
            before = completion_logits(original, batch)
            after = completion_logits(updated, batch)
            ids, none = batch.token_ids[batch.kept], torch.zeros_like(batch.token_ids[batch.kept])
            pair = after[batch.kept], before[batch.kept], ids, none.bool()
            sums["forward"] += float(token_losses(FORWARD, *pair).sum())
            sums["reverse"] += float(token_losses(REVERSE, *pair).sum())
            flagged = after[batch.negative].log_softmax(-1)
            picked = flagged.gather(-1, batch.token_ids[batch.negative][:, None])
            sums["mass"] += float(picked.exp().sum())
            kept += int(batch.kept.sum())
            negatives += int(batch.negative.sum())
            bar.update(len(indices))
    return Divergence(
        forward=sums["forward"] / kept if kept else None,
        reverse=sums["reverse"] / kept if kept else None,
        negative_mass=sums["mass"] / negatives if negatives else None,
        kept_tokens=kept,
        negative_tokens=negatives,
    )
