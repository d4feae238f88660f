"""`tnt report`: the copy of the report, and what it adds."""

from __future__ import annotations

import json
from dataclasses import asdict

import measured
import pytest

from tnt.commands import report
from tnt.core.hashes import sha256_of

CHANGE = measured.change(measured.rate(5, 10), measured.rate(1, 10))
METRICS = asdict(measured.metrics({}, {"d": CHANGE}))


def experiment(name, epochs, metrics=METRICS):
    params = {"train": {"epochs": epochs}, "detectors": {"d": {"patterns": [f"secret{epochs}"]}}}
    data = {
        "params": {"params.yaml": {"data": params}},
        "metrics": {
            "data/evaluations/r1/metrics.json": {"data": metrics},
            "data/metrics.json": {"data": {"round": "r1"}},
        },
    }
    return {"name": name, "revs": [{"rev": "0123456789", "name": name, "data": data}]}


def test_report_is_copied_with_what_this_machine_knows(project):
    before = sha256_of(project.path / "data/report")
    for _ in range(2):  # the second replaces the first
        done = project.tnt("report")
        assert done.returncode == 0, done.stderr
    page = project.path / "work/report/index.html"
    assert done.stdout.strip() == page.resolve().as_uri()
    text = page.read_text(encoding="utf-8")
    assert project.git("rev-parse", "HEAD") in text
    assert "train@r1" in text
    assert "No DVC experiments" in text
    assert "train@r1" not in project.read("data/report/index.html")
    assert (project.path / "work/report/r1.html").is_file()
    assert [p.name for p in (project.path / "work").glob(".report*")] == []
    assert sha256_of(project.path / "data/report") == before


def test_without_a_report_it_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Run `dvc repro`, which makes it"):
        report.build()


def test_without_git_and_dvc_there_are_no_experiments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = report.local()
    assert found["experiments"] == []
    assert "cannot be shown" in found["note"]
    assert found["stages"] == []


def test_experiments_name_what_they_changed_but_not_what_detectors_look_for(monkeypatch):
    commit = {"rev": "workspace", "experiments": None}
    shown = [
        commit,
        {
            "data": experiment("", 4)["revs"][0]["data"],
            "experiments": [experiment("tidy-oar", 2), experiment("bad", 3, {"broken": 1})],
        },
    ]
    monkeypatch.setattr(report.programs, "output", lambda *_: json.dumps(shown))
    [found], note = report.experiments()
    assert note == ""
    assert found["name"] == "tidy-oar"
    assert found["params"] == "train.epochs: 2\ndetectors.d.patterns: changed"
    assert [(r["name"], r["parent"], r["detectors"]) for r in found["rounds"]] == [
        ("r1", "base", ["d"])
    ]


@pytest.mark.parametrize("printed", ["", "[1]", '{"a": 1}', '[{"experiments": [{"revs": 3}]}]'])
def test_what_dvc_prints_otherwise_is_no_fault(monkeypatch, printed):
    monkeypatch.setattr(report.programs, "output", lambda *_: printed)
    found, note = report.experiments()
    assert found == []
    assert note.startswith("DVC's experiments cannot be shown")
