"""How far the token ideal is followed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from tnt.core.params import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class RolloutParams:
    """How far the token ideal is followed."""

    max_bans: PositiveInt = 32
    """Tokens banned in one completion; where that is not enough, the rollout ends there."""
    rivals: NonNegativeInt = 6
    """Likeliest tokens that are looked at in every place, whether they would be flagged there;
    detectors see as many texts as there are tokens. 0 looks at none. For `train.patch`."""
    min_probability: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Of a token that is looked at."""
