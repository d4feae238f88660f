"""Character spans -> token masks.

A token is negative when its characters overlap a flagged span by at least one character that is no
white space. Which characters a token holds is worked out in `tnt.masks.alignment`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tnt.core.records import Completion, Flag, Key, Mask, Rollout, key_of
from tnt.masks.alignment import Pieces, check_text, token_spans
from tnt.masks.params import MaskParams


def mask_completion(
    completion: Completion,
    flags: Sequence[Flag],
    tokenizer: Any,
    params: MaskParams,
    pieces: Pieces | None = None,
    completing: int | None = None,
) -> Mask:
    """Return the token masks of one completion, given its flags.

    Args:
        completion: Its ids and their text.
        flags: Its own.
        tokenizer: The one whose ids they are.
        params: What is negative, and what is kept.
        pieces: The tokenizer's, where many completions share them.
        completing: Where the token stands that completes the first finding, if that is known.

    Raises:
        ValueError: A flag lies outside the completion's text, or the text is not what the ids
            decode to.
    """
    text, ids = completion.text, completion.completion_ids
    negative = [False] * len(ids)
    flagged = [False] * len(ids)
    if flags:
        spans = token_spans(tokenizer, ids, text, pieces)
    else:
        check_text(tokenizer, ids, text)
    if flags and completing is not None:
        places = range(len(ids))
        return _mask(
            completion, [i == completing for i in places], [i < completing for i in places]
        )
    for flag in flags:
        if not 0 <= flag.start < flag.end <= len(text):
            raise ValueError(
                f"Flag {flag.start}:{flag.end} lies outside completion {completion.prompt_id!r} "
                f"({len(text)} characters). Re-run detect on the same completions.parquet."
            )
        hit = [
            i
            for i, (start, end) in enumerate(spans)
            if start < flag.end
            and end > flag.start
            and text[max(start, flag.start) : min(end, flag.end)].strip()
        ]
        for i in hit:
            flagged[i] = True
        for i in hit[:1] if params.span_tokens == "first" else hit:
            negative[i] = True
    kept = [not hit for hit in flagged]
    if params.after_negative != "keep" and any(negative):
        first = negative.index(True)
        kept[first:] = [False] * len(kept[first:])
        if params.after_negative == "end":
            limit = _end_of_span(flags, spans[first], text)
            negative = [hit and spans[i][0] < limit for i, hit in enumerate(negative)]
    return _mask(completion, negative, kept)


def _mask(completion: Completion, negative: list[bool], kept: list[bool]) -> Mask:
    return Mask(
        prompt_id=completion.prompt_id,
        sample=completion.sample,
        prompt_ids=completion.prompt_ids,
        completion_ids=completion.completion_ids,
        negative_mask=negative,
        kept_mask=kept,
    )


def mask_rollout(rollout: Rollout) -> Mask:
    """Return the token masks of a rollout.

    A token is negative where the model itself would have said one of those that are excluded; where
    only others are, it carries no loss. All others are kept.
    """
    return Mask(
        prompt_id=rollout.prompt_id,
        sample=rollout.sample,
        prompt_ids=rollout.prompt_ids,
        completion_ids=rollout.completion_ids,
        negative_mask=[bool(banned) for banned in rollout.banned],
        kept_mask=[
            not banned and not likely
            for banned, likely in zip(rollout.banned, rollout.rivals, strict=True)
        ],
        source="rollout",
        excluded=[
            sorted({*banned, *likely}) if banned else []
            for banned, likely in zip(rollout.banned, rollout.rivals, strict=True)
        ],
    )


def _end_of_span(flags: Sequence[Flag], token: tuple[int, int], text: str) -> int:
    """Return where the flagged span of a token ends; flags with white space between are one."""
    start, end = token
    for flag in sorted(flags, key=lambda flag: flag.start):
        if flag.end > start and not text[end : flag.start].strip():
            end = max(end, flag.end)
    return end


def mask_all(
    completions: Iterable[Completion],
    flags: Iterable[Flag],
    tokenizer: Any,
    params: MaskParams,
    completing: Mapping[Key, int] | None = None,
) -> list[Mask]:
    """Return the token masks of all completions, each with its own flags.

    Args:
        completions: Their ids and texts.
        flags: All of theirs.
        tokenizer: The one whose ids they are.
        params: What is negative, and what is kept.
        completing: By key, where the token stands that completes the first finding.

    Raises:
        ValueError: A flag belongs to no completion, or lies outside its text, or a text is not
            what its ids decode to.
    """
    by_key: dict[Key, list[Flag]] = {}
    for flag in flags:
        by_key.setdefault(key_of(flag), []).append(flag)
    pieces, places = Pieces.of(tokenizer), completing or {}
    masks = [
        mask_completion(
            c, by_key.pop(key_of(c), []), tokenizer, params, pieces, places.get(key_of(c))
        )
        for c in completions
    ]
    if by_key:
        raise ValueError(
            f"A flag belongs to {next(iter(by_key))}, which is no completion. Re-run detect on the "
            "same completions.parquet."
        )
    return masks
