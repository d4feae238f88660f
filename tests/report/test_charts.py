"""The report's pictures: the same bytes each time, text as text, the numbers in words too."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict
from xml.etree import ElementTree

import measured
import pytest
from measured import share

from tnt.report import charts

HOSTILE = """<script>alert("x")</script> & '{{ 7*7 }}'"""
SVG = "{http://www.w3.org/2000/svg}"


def round_(name, parent, detectors, total=10):
    change = measured.change(share(0.76), share(0.13))
    found = measured.of_set(dict.fromkeys(detectors, change), share(0.61 if total else 0.0, total))
    return {
        "name": name,
        "parent": parent,
        "detectors": detectors,
        "metrics": measured.metrics({"replies": found}),
    }


ROUNDS = [round_("r1", "base", ["a"]), round_("r2", "r1", ["a", "b"])]
ROWS = [
    {"model": model, "detector": name, "flag_rate": 0.5, "low": 0.4, "high": 0.6}
    for model in ("base", "r1")
    for name in ("a", HOSTILE)
]
CURVES = [
    {"step": n, "negative_loss": 1.0 - n / 10, "negative_mass": 0.5, "kept_loss": 0.0}
    for n in range(5)
]
DRAW = """
import hashlib, json, sys
from tnt.evaluation import round_metrics
from tnt.report import charts
rounds, rows, curves = json.load(sys.stdin)
rounds = [{**one, "metrics": round_metrics.made(one["metrics"])} for one in rounds]
points = charts.points(rounds, "replies")
for scheme in charts.SCHEMES:
    for svg in (
        charts.tradeoff(points, scheme),
        charts.flag_rates(rows, ["base", "r1"], scheme),
        charts.training(curves, 0, scheme),
    ):
        print(hashlib.sha256(svg.encode()).hexdigest())
"""


def texts(svg):
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")
    ]


def test_two_processes_draw_the_same_bytes():
    given = json.dumps([ROUNDS, ROWS, CURVES], default=asdict)
    command = [sys.executable, "-c", DRAW]
    drawn = [
        subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert len({*drawn[0].split()}) == 6
    svg = charts.training(CURVES, 0, "light")
    assert hashlib.sha256(svg.encode()).hexdigest() == drawn[0].split()[2]


def test_a_round_goes_from_where_its_parent_stood_for_its_new_detectors():
    found = [(p.label, p.kind, p.detector) for p in charts.points(ROUNDS, "replies")]
    assert found == [
        ("base", "start", "a"), ("r1", "round", "a"), ("r1", "start", "b"), ("r2", "round", "b"),
    ]  # fmt: skip
    starts = [p for p in charts.points(ROUNDS, "replies") if p.kind == "start"]
    assert all(p.same.rate == 1 for p in starts)
    assert charts.points(ROUNDS, "others") == []
    assert charts.points([round_("r1", "base", ["a"], total=0)], "replies") == []


def test_experiments_are_points_of_their_own():
    found = charts.experiment_points([{"name": "tidy-oar", "rounds": ROUNDS}], "replies")
    assert [(p.label, p.kind) for p in found] == [("tidy-oar", "experiment")]
    svg = charts.tradeoff(charts.points(ROUNDS, "replies") + found, "light")
    assert "tidy-oar" in " ".join(texts(svg))


@pytest.mark.parametrize("scheme", charts.SCHEMES)
def test_names_are_text_and_nothing_is_fetched(scheme):
    svg = charts.flag_rates(ROWS, ["base", "r1"], scheme)
    root = ElementTree.fromstring(svg)
    assert {element.tag for element in root.iter()} <= {
        SVG + name for name in ("svg", "g", "path", "line", "text", "rect", "defs", "clipPath")
    }
    assert any(text.startswith("<script>") for text in texts(svg))
    assert "{{" not in "".join(texts(svg)) or "49" not in texts(svg)
    assert "href" not in svg
    assert "url(" not in svg.replace("url(#", "")


def test_words_say_what_the_picture_shows():
    assert charts.describe_tradeoff(charts.points(ROUNDS[:1], "replies")) == (
        "From base: 76% flagged by a, all unchanged by definition. r1: 13% flagged by a (95% "
        "interval 6% to 56%), 60% of the clean answers unchanged (95% interval 30% to 80%)."
    )
    assert charts.describe_flag_rates(ROWS[::2]) == "a: base 50%, r1 50%."
    assert charts.describe_training(CURVES) == (
        "Loss at tokens to unlearn: 1 at the first step, 0.6 at the last. Probability left on "
        "them: 50% at the first step, 50% at the last. Loss at tokens to keep: 0 at the first "
        "step, 0 at the last."
    )


def test_a_step_without_flagged_tokens_is_no_zero():
    rows = [*CURVES, {"step": 5, "negative_loss": 0.0, "negative_mass": 0.0, "kept_loss": 0.1}]
    found = charts.curves(rows)
    assert len(found["negative_loss"]) == len(found["negative_mass"]) == 5
    assert len(found["kept_loss"]) == 6
    assert charts.curves([]) == {}
