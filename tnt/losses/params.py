"""The params of a loss: which, and its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

LossName = Literal["tnff", "tnrr", "tnrf", "tnfr", "tnfll", "tnrll", "ul", "nl", "sft_clean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossParams:
    """A loss of the table and its numbers."""

    loss: LossName = "tnff"
    negative_weight: PositiveFloat = 1.0
    """Multiplies the loss at negative tokens; `alpha` in T5Patches."""
    target_floor: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """Mass of a reverse-KL target on a position's negative tokens."""
    nl_cap: Annotated[float, Field(lt=0)] = -10.3
    """`nl` only: log p is not pushed below this."""

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        if not 0 < self.negative_weight < math.inf:
            raise ValueError(
                f"negative_weight is {self.negative_weight}. It must be above 0 and finite."
            )
        if not 0 < self.target_floor < 1:
            raise ValueError(f"target_floor is {self.target_floor}. It must lie between 0 and 1.")
        if not self.nl_cap < 0:
            raise ValueError(f"nl_cap is {self.nl_cap}. It must be below 0.")
