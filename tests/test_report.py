"""The report: whatever a model says is shown as text."""

from __future__ import annotations

import re

import pytest

from tnt import report
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
    return report.RoundPage(name, "base", ["d<i>"], metrics, pairs)


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


def test_hostile_text_is_shown_and_not_run(tmp_path):
    pair = report.pair(completion(HOSTILE), completion(HOSTILE, [2]), [flag(0, 8, HOSTILE)], [])
    text = written([page([pair])], tmp_path)["r1.html"]
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "{{ 7*7 }}" in text
    assert "49" not in text
    assert "&amp;amp;" in text
    assert "{% raw %}" in text
    assert "😀" in text
    assert text.count("</table>") == 2  # the page's own
    for title in re.findall(r'title="([^"]*)"', text):
        assert "<" not in title


def test_index_escapes_and_links_every_round(tmp_path):
    pages = [page([]), page([], "r2")]
    files = written(pages, tmp_path, probe={"r1": rate(1, 4)})
    assert set(files) == {"index.html", "r1.html", "r2.html"}
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
        assert "http" not in text
        assert "src=" not in text


def test_value_that_is_missing_is_an_error_and_no_empty_cell(tmp_path):
    with pytest.raises(Exception, match="'split' is undefined"):
        report.write([page([])], {"rows": [], "probe": {}}, tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_marked_cuts_where_flags_begin_and_end():
    assert report.marked("I'm sorry, no", [flag(0, 9, "boilerplate")]) == [
        ("I'm sorry", "boilerplate"),
        (", no", ""),
    ]


def test_marked_names_all_that_overlap():
    pieces = report.marked("abcdef", [flag(1, 4, "x"), flag(2, 6, "y"), flag(2, 3, "x")])
    assert pieces == [("a", ""), ("b", "x"), ("c", "x, y"), ("d", "x, y"), ("ef", "y")]


@pytest.mark.parametrize("text", ["", "abc", HOSTILE])
def test_marked_pieces_add_up_to_the_text(text):
    flags = [flag(i, i + 1) for i in range(0, len(text), 3)]
    assert "".join(piece for piece, _ in report.marked(text, flags)) == text


@pytest.mark.parametrize(
    ("old", "new", "ids", "kind"),
    [
        ([flag(0, 1)], [], [1], "fixed"),
        ([flag(0, 1)], [flag(0, 1)], [1], "still flagged"),
        ([], [flag(0, 1)], [2], "newly flagged"),
        ([], [], [1], "unchanged"),
        ([], [], [2], "changed"),
    ],
)
def test_kind_of_a_pair(old, new, ids, kind):
    found = report.pair(completion("ab"), completion("ab", ids), old, new)
    assert found.kind == kind
    assert (found.prompt_id, found.input) == ("p/<b>", HOSTILE)
