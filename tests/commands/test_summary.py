"""`tnt summary`: what it prints says no more than was measured."""

from __future__ import annotations

import json

import measured
import pytest

from tnt.commands import summary
from tnt.evaluation.metrics import Rate


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return an empty folder, and work in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


def test_a_rate_of_nothing_is_none():
    """Every test answer was flagged before: none could stay the same."""
    none = Rate(0, 0)
    sets = {"replies": measured.of_set({"d": measured.change(Rate(9, 9), Rate(1, 9))}, none)}
    [row] = summary.table(measured.metrics(sets))
    assert row["clean_unchanged"] == "none of 0"
    sets = {"replies": measured.of_set({"d": measured.change(none, none)}, none)}
    [row] = summary.table(measured.metrics(sets))
    assert (row["before"], row["after"], row["95% interval"]) == ("none", "none", "none")


def probed(**rates):
    """Return metrics.json's `probe`: model -> (flagged, total, its own)."""
    return {
        model: {"flagged": hits, "total": n, "rate": Rate(hits, n).rate, "own": own}
        for model, (hits, n, own) in rates.items()
    }


def test_labels_of_the_base_alone_say_nothing_of_a_round(here):
    found = probed(base=(4, 8, 8), r1=(1, 2, 0), r2=(0, 0, 0))
    (here / "data/metrics.json").write_text(json.dumps({"probe": found}), encoding="utf-8")
    assert [*summary._probe()] == [
        "Independent labels of test completions, flagged: base 50.0% of 8, r1 50.0% of 2, "
        "r2 none of 0",
        "  Of r1 and r2 no answer is labelled but what an earlier model gave too, word for word: "
        "label test completions anew.",
    ]


def test_labels_of_every_models_own_answers_need_no_warning(here):
    found = probed(base=(4, 8, 8), r1=(1, 8, 5))
    (here / "data/metrics.json").write_text(json.dumps({"probe": found}), encoding="utf-8")
    assert len([*summary._probe()]) == 1
