"""Which tokens of a flagged span are negative, and what follows it."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from tnt.core.params import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class MaskParams:
    """Which tokens of a completion are negative, and which are kept."""

    span_tokens: Literal["all", "first"] = "all"
    """Which tokens of a flagged span are negative; with `first` its other tokens carry no loss."""
    after_negative: Literal["keep", "drop", "end"] = "end"
    """What becomes of the tokens after the first negative one, which follow a prefix that the
    updated model should never produce: `keep` treats them as all others, `drop` keeps none of them
    but still trains on negative ones, `end` lets none after the first flagged span carry a loss."""
