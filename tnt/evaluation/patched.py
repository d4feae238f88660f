"""What a patch does, token by token, worked out from the original's features alone.

Nothing reads the last MLP but the LM head. So behind every prefix of the original's completions one
pass of the original tells whether a neuron fires there; where none does, nothing at all changes,
and where one does, the new distribution follows from what is at hand.

Legend: N tokens, V vocabulary, K neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tnt.core.records import Mask
from tnt.evaluation.round_metrics import Divergence, Gates
from tnt.losses.heads import head_of
from tnt.losses.params import LossParams
from tnt.losses.table import token_losses
from tnt.models import decode
from tnt.patches.neurons import Neurons
from tnt.patches.site import Features, site_of
from tnt.training.patch import flat

ROWS = 128
"""Tokens whose distributions are looked at together."""
SHOWN = 10
"""Prefixes that are shown of each neuron."""
LIKELIEST = 5
"""Tokens that are shown of a distribution, and of what a neuron takes and gives."""
PREFIX = 80
"""Characters of a prefix that are shown."""
FORWARD, REVERSE = LossParams(loss="tnff"), LossParams(loss="tnrr")

Likely = list[tuple[str, float]]
"""Tokens with their probabilities."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A place where a neuron fires."""

    prompt_id: str
    text: str
    """The end of what was said so far."""
    said: str
    """The token that the original said there."""
    opening: float
    """How far the neuron is open: z."""
    negative: bool
    """Whether the token is one of those that should go."""
    before: Likely
    after: Likely
    """With all neurons of the patch."""


@dataclass(frozen=True, slots=True)
class Neuron:
    """What one neuron of a patch does to the original's completions."""

    number: int
    fires: int
    """Tokens at which it fires."""
    kept: int
    """Those of them that should stay as they are."""
    prompts: int
    """Prompts in whose completions it fires."""
    takes: Likely
    """Tokens that lose most where it fires, on average, with what they lose."""
    gives: Likely
    strongest: list[Prefix]
    """Where it is open furthest."""


def measure(
    model: Any, features: Features, masks: Sequence[Mask], patches: Sequence[Neurons]
) -> tuple[Divergence, Gates]:
    """Return how far patches move the original, and where they act.

    Args:
        model: The original, of which only the final norm and the LM head run.
        features: Of all tokens of some completions of the original, one after the other.
        masks: Of the same completions.
        patches: What is put beside the original, in order.
    """
    negative, kept = (flat(masks, name) for name in ("negative_mask", "kept_mask"))
    said = torch.tensor([token for mask in masks for token in mask.completion_ids])
    fired = torch.zeros_like(kept)
    for patch in patches:
        fired |= patch.activations(features.inputs).any(-1)
    sums = {"forward": 0.0, "reverse": 0.0, "mass": 0.0}
    changed = 0
    looked = ((kept & fired) | negative).nonzero()[:, 0]
    for rows, before, after in _distributions(model, features, patches, looked):
        ids, is_kept = said[rows].to(before.device), kept[rows].to(before.device)
        pair = after[is_kept], before[is_kept], ids[is_kept], torch.zeros_like(ids[is_kept]).bool()
        sums["forward"] += float(token_losses(FORWARD, *pair).sum())
        sums["reverse"] += float(token_losses(REVERSE, *pair).sum())
        changed += int((after.argmax(-1) != before.argmax(-1))[is_kept].sum())
        picked = after.softmax(-1).gather(-1, ids[:, None])[:, 0]
        sums["mass"] += float(picked[negative[rows].to(before.device)].sum())
    tokens, negatives = int(kept.sum()), int(negative.sum())
    return (
        Divergence(
            forward=sums["forward"] / tokens if tokens else None,
            reverse=sums["reverse"] / tokens if tokens else None,
            negative_mass=sums["mass"] / negatives if negatives else None,
            kept_tokens=tokens,
            negative_tokens=negatives,
        ),
        Gates(kept=tokens, fired=int((kept & fired).sum()), changed=changed),
    )


def neurons(
    model: Any, tokenizer: Any, features: Features, masks: Sequence[Mask], patch: Neurons
) -> list[Neuron]:
    """Return what each neuron of a patch does, as `measure` is given it."""
    negative, kept = (flat(masks, name) for name in ("negative_mask", "kept_mask"))
    places = [(mask, i) for mask in masks for i in range(len(mask.completion_ids))]
    reached = patch.reached(features.inputs)
    fired = (reached > 0).any(-1).nonzero()[:, 0]
    by_token = torch.zeros(len(patch), len(model.get_output_embeddings().weight))
    strongest = [_strongest(reached[:, k]) for k in range(len(patch))]
    wanted = {row for rows in strongest for row in rows}
    shown: dict[int, tuple[Likely, Likely]] = {}
    for rows, before, after in _distributions(model, features, [patch], fired):
        old, new = before.softmax(-1).cpu(), after.softmax(-1).cpu()
        open_ = (reached[rows] > 0).to(old.dtype)
        by_token += open_.T @ (new - old)
        for i, row in enumerate(rows.tolist()):
            if row in wanted:
                shown[row] = _likely(tokenizer, old[i]), _likely(tokenizer, new[i])
    found = []
    for k, top in enumerate(strongest):
        open_ = reached[:, k] > 0
        fires = int(open_.sum())
        mean = by_token[k] / max(1, fires)
        of = [places[row] for row in top]
        found.append(
            Neuron(
                number=k,
                fires=fires,
                kept=int((open_ & kept).sum()),
                prompts=len({places[row][0].prompt_id for row in open_.nonzero()[:, 0].tolist()}),
                takes=_likely(tokenizer, -mean),
                gives=_likely(tokenizer, mean),
                strongest=[
                    Prefix(
                        prompt_id=mask.prompt_id,
                        text=decode(tokenizer, mask.completion_ids[:i])[-PREFIX:],
                        said=decode(tokenizer, [mask.completion_ids[i]], skip_special=False),
                        opening=float(reached[row, k]),
                        negative=bool(negative[row]),
                        before=shown[row][0],
                        after=shown[row][1],
                    )
                    for row, (mask, i) in zip(top, of, strict=True)
                ],
            )
        )
    return found


def _strongest(reached: Tensor) -> list[int]:
    order = reached.argsort(descending=True, stable=True)[:SHOWN]
    return [row for row in order.tolist() if reached[row] > 0]


def _likely(tokenizer: Any, shares: Tensor) -> Likely:
    """Return the tokens with the largest numbers, those above 0."""
    largest = shares.topk(LIKELIEST)
    return [
        (decode(tokenizer, [token], skip_special=False), share)
        for share, token in zip(largest.values.tolist(), largest.indices.tolist(), strict=True)
        if share > 0
    ]


def _distributions(
    model: Any, features: Features, patches: Sequence[Neurons], rows: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield rows' numbers, and their logits without and with the patches, some at a time."""
    site, head = site_of(model), head_of(model)
    beside = [patch.to(head.weight) for patch in patches]
    with torch.inference_mode():
        for some in rows.split(ROWS):
            given = features[some].to(head.weight)
            added = torch.zeros_like(given.outputs)
            for patch in beside:
                added = added + patch.added(given.inputs)
            before = head.logits(site.hidden(given, torch.zeros_like(added)))
            yield some, before, head.logits(site.hidden(given, added))
