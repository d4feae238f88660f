"""What `compare` hands to the report, with names that must be shown as text."""

from __future__ import annotations

from dataclasses import asdict

import measured
from measured import rate

from tnt.report import site

HOSTILE = """<script>alert("x")</script> {{ 7*7 }} {% raw %} </td></table> '">&amp; 😀"""


def page(pairs, name="r1"):
    detectors = {"d<i>": measured.change(rate(5, 10), rate(1, 10))}
    metrics = measured.metrics(
        {"replies": measured.of_set(detectors, rate(3, 4))}, detectors, "too <much>"
    )
    return site.RoundPage(
        name=name,
        parent="base",
        detectors=["d<i>"],
        metrics=metrics,
        examples=pairs,
        looked_for=["d<i>", HOSTILE],
        learned_from={"replies": 4},
    )


PAIRED = {"difference": -0.4, "inputs": 10, "fixed": 4, "broken": 0, "p_value": 0.0123}
STEP = {"step": 0.0, "negative_loss": 1.0, "negative_mass": 0.5, "kept_loss": 0.0}


def data(pages, **changes):
    """Return what `compare` hands on."""
    row = {
        "model": "r1",
        "prompt_set": "replies",
        "detector": "d<i>",
        "flagged": 1,
        "total": 10,
        "flag_rate": 0.1,
        "low": 0.02,
        "high": 0.4,
        "change": PAIRED,
    }
    rounds = [
        {
            "name": p.name,
            "parent": p.parent,
            "detectors": p.detectors,
            "learned": ["replies"],
            "metrics": asdict(p.metrics),
            "training": [STEP],
        }
        for p in pages
    ]
    return {
        "rounds": rounds,
        "rows": [row],
        "probe": {},
        "split": "test",
        "validated": [],
        "params": {
            p.name: {"train.epochs": str(n), "train.seed": "0"} for n, p in enumerate(pages)
        },
        "base": {"compare.split": "<test>"},
        "hashes": [{"path": "rounds/r1/masks.parquet", "sha256": "ab" * 32}],
        **changes,
    }
