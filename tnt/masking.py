"""Character spans -> token masks.

A token is negative when its characters overlap a flagged span by at least one character that is no
white space. Byte-level tokens that hold part of a character count as overlapping that character.
The generated ids are the truth: offsets come from decoding them, never from tokenising the text.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    after_negative: Literal["keep", "drop"] = "drop"
    """Whether tokens after the first negative one still count as kept: they follow a prefix that
    the updated model should never produce."""


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
    first_negative = negative.index(True) if any(negative) else len(negative)
    dropped = params.after_negative == "drop"
    kept = [not hit and not (dropped and i > first_negative) for i, hit in enumerate(flagged)]
    return Mask(
        prompt_id=completion.prompt_id,
        sample=completion.sample,
        prompt_ids=completion.prompt_ids,
        completion_ids=completion.completion_ids,
        negative_mask=negative,
        kept_mask=kept,
    )


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
        whole = len(fresh.rstrip(_REPLACEMENT))  # a trailing one is a character still incomplete
        spans.append((settled + shown, min(settled + len(fresh), len(text))))
        shown = whole
        if fresh and whole == len(fresh):
            context, read, settled, shown = read, i + 1, settled + whole, 0
    return spans


def _overlaps(span: tuple[int, int], flag: Flag, text: str) -> bool:
    return bool(text[max(span[0], flag.start) : min(span[1], flag.end)].strip())
