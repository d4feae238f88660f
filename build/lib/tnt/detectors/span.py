"""What a detector returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Characters [start, end) of a completion's text that a detector flags."""

    start: int
    end: int
    label: str = ""
    """What was found, in the detector's own words."""
    score: float = 1.0
    """The detector's confidence, 0 to 1."""
