"""The report: whatever a model says is shown as text."""

from __future__ import annotations

import json
import re

import pytest

from tnt import examples, report
from tnt.records import Completion, Flag

HOSTILE = """<script>alert("x")</script> {{ 7*7 }} {% raw %} </td></table> '">&amp; 😀"""


def completion(text, ids=(1,)):
    return Completion("p/<b>", 0, "m", HOSTILE, [1], list(ids), text, True)


def flag(start, end, detector="d"):
    return Flag("p/<b>", 0, detector, "", start, end, "", 1.0)


def rate(flagged, total):
    return {"flagged": flagged, "total": total, "rate": flagged / total, "low": 0.1, "high": 0.9}


def page(pairs, name="r1"):
    found = {
        "detectors": {"d<i>": {"before": rate(5, 10), "after": rate(1, 10)}},
        "clean_unchanged": rate(3, 4),
        "similarity_clean": {"bleu": 98.5, "rouge_l": None},
        "divergence": {"forward": 0.0125, "negative_mass": None},
    }
    change = {"before": rate(5, 10), "after": rate(1, 10)}
    metrics = {
        "learned": {"d<i>": change},
        "sets": {"replies": found},
        "gate": {"passed": False, "reasons": "too <much>"},
    }
    return report.RoundPage(
        name=name,
        parent="base",
        detectors=["d<i>"],
        metrics=metrics,
        examples=pairs,
        looked_for=["d<i>", HOSTILE],
        learned_from={"replies": 4},
    )


def written(pages, folder, **changes):
    row = {
        "model": "r1",
        "prompt_set": "replies",
        "detector": "d<i>",
        "flagged": 1,
        "total": 10,
        "flag_rate": 0.1,
        "low": 0.02,
        "high": 0.4,
    }
    context = {"rows": [row], "probe": {}, "split": "test", "validated": [], **changes}
    report.write(pages, context, folder)
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_hostile_text_is_data_and_not_markup(tmp_path):
    """tests/test_browser_round.py shows it; this holds without a browser, too."""
    pairs = examples.pair(
        [completion(HOSTILE)], [completion(HOSTILE, [2])], [flag(0, 8, HOSTILE)], []
    )
    text = written([page(pairs)], tmp_path)["r1.html"]
    own = re.findall(r"</?script[^>]*>", text)
    assert own == [
        '<script type="application/json" id="data">',
        "</script>",
        "<script>",
        "</script>",
    ]
    embedded = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert not set("<>&'") & set(embedded)
    [row] = json.loads(embedded)["examples"]
    assert row["input"] == HOSTILE
    assert [piece[0] for piece in row["before"][:1]] + row["before"][1:] == [
        HOSTILE[:8],
        HOSTILE[8:],
    ]
    assert "&lt;script&gt;" in text  # in a detector's name
    assert "{{ 7*7 }}" in text


def test_index_escapes_and_links_every_round(tmp_path):
    pages = [page([]), page([], "r2")]
    files = written(pages, tmp_path, probe={"r1": rate(1, 4)})
    assert set(files) == {"index.html", "r1.html", "r1.csv", "r2.html", "r2.csv"}
    index = files["index.html"]
    assert 'href="r1.html"' in index
    assert 'href="r2.html"' in index
    assert "d&lt;i&gt;" in index
    assert "too &lt;much&gt;" in index
    assert "50.0% before" in index
    assert "25.0%" in index  # of the probe
    assert "<i>" not in index


def test_page_stands_alone(tmp_path):
    for text in written([page([])], tmp_path).values():
        assert "http:" not in text
        assert "https:" not in text
        assert "src=" not in text


def test_value_that_is_missing_is_an_error_and_no_empty_cell(tmp_path):
    with pytest.raises(Exception, match="'split' is undefined"):
        report.write([page([])], {"rows": [], "probe": {}}, tmp_path)
    assert not (tmp_path / "index.html").exists()
