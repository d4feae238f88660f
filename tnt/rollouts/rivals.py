"""Rivals: what else is likely along a rollout, and would be flagged.

A model that no longer says the likeliest token says the second; where that is flagged too it must
go with the first. And where it only comes second, a position is no clear case of what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from tqdm import tqdm

from tnt.core.records import Completion, Rollout
from tnt.detectors import Detect, running
from tnt.losses.heads import head_of
from tnt.models import decode
from tnt.patches.site import Features, site_of
from tnt.rollouts.params import RolloutParams


def with_rivals(
    rollouts: Sequence[Rollout],
    features: Features,
    model: Any,
    tokenizer: Any,
    completions: Sequence[Completion],
    detectors: Mapping[str, Detect],
    params: RolloutParams,
) -> list[Rollout]:
    """Return rollouts with what else is likely and would be flagged, at each of their tokens.

    Only prompt sets are looked at in which a token was banned.

    Args:
        rollouts: Without rivals.
        features: Of all their tokens, one rollout after the other.
        model: The original.
        tokenizer: Its own.
        completions: Where the rollouts began, in the same order.
        detectors: By name.
        params: How many tokens are looked at.
    """
    judging = running.judging(detectors)
    of = list(zip(rollouts, completions, strict=True))
    concerned = {c.prompt_set for r, c in of if any(r.banned)}
    ends = [*accumulate(len(r.completion_ids) for r in rollouts)]
    found = []
    with tqdm(total=len(rollouts), desc="look at rivals", unit="reply") as bar:
        for (rollout, completion), start, end in zip(of, [0, *ends], ends, strict=False):
            bar.update()
            if rollout.end == "as_is" or completion.prompt_set not in concerned:
                found.append(rollout)
                continue
            likely = _likely(model, features[start:end], params)
            texts = [
                (place, token, replace(completion, text=decode(tokenizer, [*before, token])))
                for place, tokens in enumerate(likely)
                for before in [rollout.completion_ids[:place]]
                for token in tokens
                if token not in {rollout.completion_ids[place], *rollout.banned[place]}
            ]
            numbered = [replace(text, sample=number) for number, (*_, text) in enumerate(texts)]
            rivals: list[set[int]] = [set() for _ in rollout.completion_ids]
            for flag in running.find_flags(judging, numbered):
                place, token, _ = texts[flag.sample]
                rivals[place].add(token)
            found.append(replace(rollout, rivals=[sorted(tokens) for tokens in rivals]))
    return found


def _likely(model: Any, features: Features, params: RolloutParams) -> list[list[int]]:
    """Return the likeliest tokens at some positions."""
    site, head = site_of(model), head_of(model)
    with torch.inference_mode():
        given = features.to(head.weight)
        logits = head.logits(site.hidden(given, torch.zeros_like(given.outputs)))
        shares, tokens = logits.softmax(-1).topk(params.rivals)
    return [
        [token for token, share in zip(*row, strict=True) if share >= params.min_probability]
        for row in zip(tokens.tolist(), shares.tolist(), strict=True)
    ]
