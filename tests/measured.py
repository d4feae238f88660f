"""Metrics of a round that are made up, for the tests of what reads them."""

from __future__ import annotations

from tnt.evaluation.metrics import Change, Rate, Similarity
from tnt.evaluation.round_metrics import (
    DetectorChange,
    Divergence,
    Gate,
    Qualities,
    Quality,
    RoundMetrics,
    SetMetrics,
)


def rate(flagged, total, low=0.1, high=0.9):
    return Rate(flagged, total, (low, high))


def share(value, total=100):
    """Return a rate of whole per cent."""
    return Rate(round(value * total), total, (value / 2, (1 + value) / 2))


def change(before, after, p_value=0.0123):
    difference = after.rate - before.rate if before.total else None
    moved = Change(difference, -1.0, 1.0, before.total, 4, 0, p_value)
    return DetectorChange(before, before, after, moved, rate(3, 4))


def of_set(detectors, same):
    quality = Quality(20.0, 0.5, 0.1, None)
    return SetMetrics(
        detectors=detectors,
        clean_unchanged=same,
        similarity=Similarity(0.5, 90.0, 0.8),
        similarity_clean=Similarity(0.75, 98.5, None),
        divergence=Divergence(0.0125, 0.0126, None, 100, 0),
        divergence_from_base=Divergence(0.02, 0.03, 0.25, 100, 10),
        quality=Qualities(quality, quality, quality),
    )


def metrics(sets, learned=None, reasons="", name="r1", parent="base"):
    return RoundMetrics(
        round=name,
        parent=parent,
        learned=learned or {},
        sets=sets,
        gate=Gate(passed=not reasons, reasons=reasons),
    )
