"""Which tokens of a flagged span are negative, and what follows it."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from tnt.core.params import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class MaskParams:
    """Which tokens of a completion are negative, and which are kept."""

    span_tokens: Literal["completing", "first", "all"] = "completing"
    """Which tokens of a flagged span are negative. `completing`: the one with which it first is
    one, in the rollout that goes on without it; what stands before is kept, since other sentences
    begin so too. `first`, `all`: in the completion as it is; with `first` the span's other tokens
    carry no loss. What people flagged always has `all`, for want of a detector to ask."""
    after_negative: Literal["keep", "drop", "end"] = "end"
    """What becomes of the tokens after the first negative one, which follow a prefix that the
    updated model should never produce: `keep` treats them as all others, `drop` keeps none of them
    but still trains on negative ones, `end` lets none after the first flagged span carry a loss.
    A rollout has no such tokens, nor has what `completing` makes of a completion."""
