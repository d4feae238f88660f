"""metrics.json: read and written again it is the same file, and anything else is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import measured
import pytest

from tnt.evaluation import round_metrics
from tnt.evaluation.metrics import Rate

EVALUATIONS = Path(__file__).parents[2] / "data/evaluations"
SETS = {"replies": measured.of_set({"d": measured.change(measured.rate(2, 3), measured.rate(1, 3))},
                                   measured.rate(1, 3))}  # fmt: skip
METRICS = measured.metrics(SETS, {"d": SETS["replies"].detectors["d"]}, "d fell too little")


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_a_file_that_is_read_and_written_has_the_same_bytes(name, tmp_path):
    path = EVALUATIONS / name / "metrics.json"
    round_metrics.write(round_metrics.read(path), tmp_path / "metrics.json")
    assert (tmp_path / "metrics.json").read_bytes() == path.read_bytes()


def test_what_is_read_is_what_was_rounded(tmp_path):
    """2/3 is written as 0.666667, and read as that rather than as 2 of 3 once more."""
    round_metrics.write(METRICS, tmp_path / "metrics.json")
    found = round_metrics.read(tmp_path / "metrics.json")
    assert found == round_metrics.rounded(METRICS) != METRICS
    before = found.sets["replies"].detectors["d"].before
    assert before == Rate.stored(flagged=2, total=3, rate=0.666667, low=0.1, high=0.9)


DAMAGED = {
    "a missing number": ("sets/replies/clean_unchanged/low", None, "is None, not float"),
    "a rate of nothing": (
        "learned/d/after/rate",
        None,
        "learned/d/after: rate is None, but 1 of 3 is a share",
    ),
    "a text for a number": ("learned/d/after/total", "3", "is '3', not int"),
    "a number for a verdict": ("gate/passed", 1, "is 1, not bool"),
    "keys of another version": ("sets/replies/divergence", {"kl": 0.1}, "not Divergence"),
    "a change that is none": ("learned/d/change", {}, "is {}, not Change"),
    "a list of prompt sets": ("sets", [], "is [], not dict"),
    "more flagged than there are": ("learned/d/after/flagged", 4, "4 of 3 is no share"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_does_not_fit_is_named(case, tmp_path):
    where, value, said = DAMAGED[case]
    path = tmp_path / "metrics.json"
    round_metrics.write(METRICS, path)
    content = json.loads(path.read_text(encoding="utf-8"))
    *parents, last = where.split("/")
    below = content
    for key in parents:
        below = below[key]
    below[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        round_metrics.read(path)
    line = str(error.value)
    assert line.startswith(f"{path}: {where if 'share' not in said else ''}")
    assert line.endswith("Delete it and run `dvc repro`, which makes it again.")
