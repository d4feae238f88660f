"""The params of measuring: what every model is measured on, and the bounds of the gate."""

from __future__ import annotations

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from tnt.core.params import STRICT, Share
from tnt.core.records import PromptFiles, Split


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class GateParams:
    """Bounds that a round's metrics must keep. They are rates on the evaluation prompts."""

    min_drop: Share
    """Share of its flag rate that each new detector must lose, on the sets learned from. Above 0,
    one of them must have had something to lose."""
    min_clean_unchanged: dict[str, Share]
    """Prompt set -> least share of originally clean completions that stay the same by token."""
    max_ancestor_rise: Share
    """How far the flag rate of an ancestor's detector, or of the round's own, may rise in any set
    of prompts, learned from or not."""


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class EvaluateParams:
    """What every model is measured on."""

    prompts: PromptFiles
    """Pinned too: extending it measures every model again."""
    split: Split = "test"
    """Search settings on `validation`; `test` is for the gate and the final numbers."""
    divergence_prompts: PositiveInt
    """Prompts of each set, chosen by hash, on which divergences are computed."""
    divergence_batch_size: PositiveInt = 8
