"""Character spans -> token masks.

A token is negative when its characters overlap a flagged span by at least one character that is no
white space. Byte-level tokens that hold part of a character count as overlapping that character.
The generated ids are the truth: offsets come from decoding them, never from tokenising the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from tnt.params import STRICT
from tnt.records import Completion, Flag, Mask

_REPLACEMENT = "\ufffd"


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class MaskParams:
    """Which tokens of a completion are negative, and which are kept."""

    span_tokens: Literal["all", "first"] = "all"
    """Which tokens of a flagged span are negative; with `first` its other tokens carry no loss."""
    after_negative: Literal["keep", "drop", "end"] = "end"
    """What becomes of the tokens after the first negative one, which follow a prefix that the
    updated model should never produce: `keep` treats them as all others, `drop` keeps none of them
    but still trains on negative ones, `end` lets none after the first flagged span carry a loss."""


def mask_completion(
    completion: Completion, flags: Sequence[Flag], tokenizer: Any, params: MaskParams
) -> Mask:
    """Return the token masks of one completion, given its flags.

    Raises:
        ValueError: A flag lies outside the completion's text.
    """
    text = completion.text
    spans = token_spans(tokenizer, completion.completion_ids, text)
    negative = [False] * len(spans)
    flagged = [False] * len(spans)
    for flag in flags:
        if not 0 <= flag.start < flag.end <= len(text):
            raise ValueError(
                f"Flag {flag.start}:{flag.end} lies outside completion {completion.prompt_id!r} "
                f"({len(text)} characters). Re-run detect on the same completions.parquet."
            )
        hit = [i for i, span in enumerate(spans) if _overlaps(span, flag, text)]
        for i in hit:
            flagged[i] = True
        for i in hit[:1] if params.span_tokens == "first" else hit:
            negative[i] = True
    kept = [not hit for hit in flagged]
    if params.after_negative != "keep" and any(negative):
        first = negative.index(True)
        kept[first:] = [False] * len(kept[first:])
        if params.after_negative == "end":
            end = next((i for i in range(first, len(flagged)) if not flagged[i]), len(flagged))
            negative[end:] = [False] * len(negative[end:])
    return Mask(
        prompt_id=completion.prompt_id,
        sample=completion.sample,
        prompt_ids=completion.prompt_ids,
        completion_ids=completion.completion_ids,
        negative_mask=negative,
        kept_mask=kept,
    )


def mask_all(
    completions: Iterable[Completion], flags: Iterable[Flag], tokenizer: Any, params: MaskParams
) -> list[Mask]:
    """Return the token masks of all completions, each with its own flags.

    Raises:
        ValueError: A flag belongs to no completion.
    """
    by_key: dict[tuple[str, int], list[Flag]] = {}
    for flag in flags:
        by_key.setdefault((flag.prompt_id, flag.sample), []).append(flag)
    masks = [
        mask_completion(c, by_key.pop((c.prompt_id, c.sample), []), tokenizer, params)
        for c in completions
    ]
    if by_key:
        raise ValueError(
            f"A flag belongs to {next(iter(by_key))}, which is no completion. Re-run detect on the "
            "same completions.parquet."
        )
    return masks


def token_spans(tokenizer: Any, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """Return the characters [start, end) of `text` that each token holds a part of.

    Every token is decoded behind the settled token before it, so that word pieces, leading spaces
    and split characters come out as they did in `text`. Special tokens hold no character.

    Raises:
        ValueError: `text` is not what the ids decode to.
    """

    def decode(start: int, end: int) -> str:
        return tokenizer.decode(
            ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    if (decoded := decode(0, len(ids))) != text:
        raise ValueError(
            f"Token ids decode to {decoded[:60]!r}, but the completion's text is {text[:60]!r}. "
            "Re-run generate with this tokenizer."
        )
    spans: list[tuple[int, int]] = []
    context, read = 0, 0  # ids[context:read] is the text before ids[read:], whose text is open
    settled = 0  # characters of `text` before ids[read]
    shown = 0  # characters that ids[read:i] hold in full
    for i in range(len(ids)):
        fresh = decode(context, i + 1)[len(decode(context, read)) :]
        whole = len(fresh.rstrip(_REPLACEMENT))  # trailing ones are one character still incomplete
        spans.append((settled + shown, settled + min(len(fresh), whole + 1)))
        shown = whole
        if fresh and whole == len(fresh):
            context, read, settled, shown = read, i + 1, settled + whole, 0
    if spans:  # what never became complete
        spans[-1] = (spans[-1][0], len(text))
    return spans


def _overlaps(span: tuple[int, int], flag: Flag, text: str) -> bool:
    return bool(text[max(span[0], flag.start) : min(span[1], flag.end)].strip())
