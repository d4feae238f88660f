"""The report: whatever a model says is shown as text."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict, replace

import pytest
from measured import rate
from reports import HOSTILE, data, page

from tnt.core.records import Completion, Flag
from tnt.evaluation.metrics import Rate
from tnt.report import examples, site


def completion(text, ids=(1,)):
    return Completion("p/<b>", 0, "m", HOSTILE, [1], list(ids), text, True)


def flag(start, end, detector="d"):
    return Flag("p/<b>", 0, detector, "", start, end, "", 1.0)


def written(pages, folder, **changes):
    site.write(pages, data(pages, **changes), folder)
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_hostile_text_is_data_and_not_markup(tmp_path):
    """tests/report/test_browser_round.py shows it; this holds without a browser, too."""
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
    files = written(pages, tmp_path, probe={"r1": {**asdict(rate(1, 4)), "own": 3}})
    assert {name for name in files if name.endswith(".html")} == {
        "index.html", "r1.html", "r2.html",
    }  # fmt: skip
    assert {"r1.csv", "r2.csv"} < {*files}
    index = files["index.html"]
    assert 'href="r1.html"' in index
    assert 'href="r2.html"' in index
    assert "r1: d&lt;i&gt; in replies fell from 50% to 10% (95% interval 10% to 90%)" in index
    assert "<b>Gate failed:</b> too &lt;much&gt;." in index
    assert "25.0%" in index  # of the probe
    assert "&lt;test&gt;" in index
    assert f'title="{"ab" * 32}">abababababab<' in index
    assert "<i>" not in index
    for name in files:
        if name.startswith("pictures/"):
            assert name in index


def test_params_that_differ_stand_apart(tmp_path):
    index = written([page([]), page([], "r2")], tmp_path)["index.html"]
    assert index.index("What differs between rounds") < index.index("train.epochs")
    assert index.index("train.epochs") < index.index("All other params") < index.index("train.seed")


def test_tables_are_csv_beside_the_pages(tmp_path):
    files = written([page([])], tmp_path)
    assert files["flag_rates.csv"].splitlines()[1] == (
        "r1,base,replies,d<i>,1,10,0.1,0.02,0.4,-0.4,10,4,0,0.0123"
    )
    assert files["similarity.csv"].splitlines()[1].startswith("r1,base,replies,4,0.75,0.1,0.9,0.5,")


def test_index_is_made_again_from_its_data(tmp_path):
    """As `tnt report` does: the same bytes, without running compare."""
    files = written([page([])], tmp_path)
    (tmp_path / "index.html").unlink()
    site.write_index(json.loads(files[site.DATA]), tmp_path)
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == files["index.html"]


def test_page_stands_alone(tmp_path):
    for name, text in written([page([])], tmp_path).items():
        if name.endswith(".html"):
            assert "http:" not in text
            assert "https:" not in text
            assert all(path.startswith("pictures/") for path in re.findall(r'src="([^"]*)', text))


def test_value_that_is_missing_is_an_error_and_no_empty_cell(tmp_path):
    given = data([page([])])
    del given["probe"]
    with pytest.raises(Exception, match="'probe'"):
        site.write([page([])], given, tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_the_mass_left_on_flagged_tokens_is_no_share_of_the_parents(tmp_path):
    """A model against itself keeps what it gave them: 0.978 in a real round, and not 1."""
    files = written([page([])], tmp_path)
    assert "A model that\ndid not change keeps its own, which is below 100%" in files["index.html"]
    assert "the parent itself is below 1 wherever it was not certain" in files["r1.html"]


def test_nothing_to_measure_is_none_and_never_0(tmp_path):
    """Every answer was flagged before: the picture that needs a clean one says that it is not."""
    one = page([])
    [(name, found)] = one.metrics.sets.items()
    sets = {name: replace(found, clean_unchanged=Rate(0, 0))}
    one = replace(one, metrics=replace(one.metrics, sets=sets))
    files = written([one], tmp_path, probe={"r1": {**asdict(Rate(0, 0)), "own": 0}})
    assert "<strong>none</strong> <small>0 of 0</small>" in files["r1.html"]
    assert ">0.0%" not in files["r1.html"]
    index = files["index.html"]
    assert "no answer was clean before that could stay as it was: r1 in replies." in index
    assert "This picture needs a round" not in index
    assert '<td class="number">0 of 0</td>\n<td class="number">none</td>' in index
    row = next(csv.DictReader(files["similarity.csv"].splitlines()))
    assert (row["clean"], row["clean_unchanged"]) == ("0", "")
