"""Two models compared: the numbers are those of the pipeline, whichever two and wherever from."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
from dataclasses import replace

import pytest

from tnt.commands.diff import diff, table, to_json
from tnt.core import artifacts
from tnt.core.records import Completion
from tnt.evaluation.metrics import holm

CHANGE = ("difference", "p_value")
COMPLETIONS = "data/evaluations/{}/completions.parquet"
LEARNED = "replies + summaries"
PAIRS = [("base", "r1"), ("r1", "r2"), ("base", "r2"), ("r2", "r1")]
RATE = ("flagged", "total", "rate", "low", "high")


@pytest.fixture(scope="module")
def tagged(finished_llama, tmp_path_factory):
    """Return a project whose two rounds were accepted one after the other; for reading only."""
    project = finished_llama.copy(tmp_path_factory.mktemp("tagged") / "project")
    with project.params() as params:
        second = params["rounds"]["r2"]
    assert project.tnt("rounds", "remove", "r2").returncode == 0
    project.repro()
    for name in ("r1", "r2"):
        if name == "r2":
            with project.params() as params:
                params["rounds"][name] = second
            project.repro()
        done = project.tnt("rounds", "accept", name)
        assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def here(finished_llama, monkeypatch):
    """Return the finished project, and work in it."""
    monkeypatch.chdir(finished_llama.path)
    return finished_llama


@pytest.fixture
def without_r2(tagged, tmp_path, monkeypatch):
    """Return an own project of which r2 is accepted, but no longer there nor listed."""
    project = tagged.copy(tmp_path / "project")
    with project.params() as params:
        del params["rounds"]["r2"]
    for folder in ("models", "rounds", "evaluations"):
        shutil.rmtree(project.path / "data" / folder / "r2")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", project.environment["DVC_SITE_CACHE_DIR"])
    monkeypatch.chdir(project.path)
    return project


def rows(a, b):
    """Return the rows of `--json` by prompts and detector."""
    found = json.loads(to_json(diff(a, b)))["rows"]
    return {(row["prompts"], row["detector"]): row for row in found}


def rewrite(project, name, change):
    """Replace a model's completions."""
    path = project.path / COMPLETIONS.format(name)
    found = change(artifacts.read(path, Completion))
    path.unlink()  # a link to the cache
    artifacts.write(found, path, Completion)


def rest(a, b):
    return {one["prompts"]: one for one in json.loads(to_json(diff(a, b)))["rest"]}


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_the_rates_are_those_of_the_table_of_all_models(here, a, b):
    found = rows(a, b)
    for row in csv.DictReader(here.read("data/rounds.csv").splitlines()):
        for side, name in (("a", a), ("b", b)):
            if row["model"] == name:
                rate = found[row["prompt_set"], row["detector"]][side]
                columns = ("flagged", "total", "flag_rate", "low", "high")
                assert [rate[key] for key in RATE] == [float(row[key]) for key in columns]
    assert {prompts for prompts, _ in found} == {"questions", "replies", "summaries", LEARNED}


@pytest.mark.parametrize(("a", "b"), [("base", "r1"), ("r1", "r2")])
def test_a_round_and_its_parent_differ_as_evaluate_says(here, a, b):
    found, others = rows(a, b), rest(a, b)
    metrics = here.json(f"data/evaluations/{b}/metrics.json")
    said = {name: of_set["detectors"] for name, of_set in metrics["sets"].items()}
    for prompts, changes in {**said, LEARNED: metrics["learned"]}.items():
        for detector, change in changes.items():
            row = found[prompts, detector]
            assert (row["a"], row["b"]) == (change["before"], change["after"])
            assert [row[key] for key in CHANGE] == [change["change"][key] for key in CHANGE]
    for prompts, of_set in metrics["sets"].items():
        assert others[prompts]["clean_unchanged"] == of_set["clean_unchanged"]
        assert others[prompts]["divergence"] == of_set["divergence"]


def test_a_divergence_stands_only_where_it_was_measured(here):
    sets = here.json("data/evaluations/r2/metrics.json")["sets"]
    from_base = {name: one["divergence"] for name, one in rest("base", "r2").items()}
    assert from_base == {n: s["divergence_from_base"] for n, s in sets.items()} | {LEARNED: None}
    assert {one["divergence"] for one in rest("r2", "r1").values()} == {None}


def test_the_other_way_round_the_sign_is_the_other(here):
    there, back = rows("r1", "r2"), rows("r2", "r1")
    assert any(row["difference"] for row in there.values())
    for key, row in there.items():
        assert back[key]["difference"] == -row["difference"]
        assert back[key]["p_value"] == row["p_value"]


def test_the_interval_holds_the_difference(here):
    for row in rows("base", "r2").values():
        assert row["low"] <= row["difference"] <= row["high"]


def test_the_rates_are_those_of_dvc_metrics_diff(tagged, monkeypatch):
    monkeypatch.chdir(tagged.path)
    revisions = ("round/r1", "round/r2")
    target = ("--targets", "data/metrics.json")
    said = json.loads(tagged.dvc("metrics", "diff", "--all", "--json", *revisions, *target))
    said = said["data/metrics.json"]
    found = rows("r1", "r2")
    for prompts, detector in itertools.product(
        ("replies", "summaries", "questions"), ("boilerplate", "hedges")
    ):
        row, change = found[prompts, detector], said[f"flag_rate.{prompts}.{detector}"]
        assert (row["a"]["rate"], row["b"]["rate"]) == (change["old"], change["new"])
        assert row["difference"] == pytest.approx(change.get("diff", 0.0), abs=1e-6)


def test_a_round_that_is_gone_is_read_from_its_tag(without_r2, tagged, monkeypatch):
    found = diff("r1", "r2")
    assert found.sources == {"r1": "workspace", "r2": "round/r2"}
    assert found.detectors_changed == {"round/r2": []}
    assert not (without_r2.path / "data/evaluations/r2").exists()
    assert "r2 was read from the tag round/r2" in table(found)
    monkeypatch.chdir(tagged.path)
    listed = diff("r1", "r2")
    assert listed.sources["r2"] == "workspace"
    assert (found.rows, found.rest) == (listed.rows, listed.rest)


def test_detectors_are_the_current_ones_and_those_that_changed_are_named(without_r2):
    without_r2.write("data/lists/hedges.txt", "never said\n")
    with without_r2.params() as params:
        params["detectors"]["agreement"] = {"kind": "repetition"}
    found = diff("r1", "r2")
    assert found.detectors_changed == {"round/r2": ["hedges", "agreement"]}
    assert "since the tag, these have changed: hedges, agreement." in table(found)
    assert {row.b.flagged for row in found.rows if row.detector == "hedges"} == {0}


def test_a_round_of_another_base_has_no_divergence_from_this_one(without_r2):
    assert all(one.divergence for one in diff("base", "r2").rest if one.prompts != LEARNED)
    with without_r2.params() as params:
        params["base"]["name"] = "data/bases/r2"
    found = diff("base", "r2")
    assert {one.divergence for one in found.rest} == {None}
    assert "base is not the one that round/r2 builds on." in table(found)
    assert diff("r1", "r2").other_base == []


def test_a_tag_whose_data_is_nowhere_is_refused(without_r2):
    shutil.rmtree(without_r2.path / ".dvc/cache")
    with pytest.raises(ValueError, match=r"of the tag round/r2 cannot be read .*`dvc fetch") as no:
        diff("base", "r2")
    assert len(str(no.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["base", "r2"])
def test_completions_that_are_not_here_are_refused(project, monkeypatch, name):
    monkeypatch.chdir(project.path)
    (project.path / COMPLETIONS.format(name)).unlink()
    with pytest.raises(ValueError, match=rf"{name}/completions.parquet does not exist\. `dvc pull"):
        diff("r1", name)


def test_an_unknown_round_is_refused_with_those_there_are(here):
    with pytest.raises(ValueError, match=r"no round 'r12'\. Did you mean 'r[12]'"):
        diff("base", "r12")


def test_models_that_were_asked_other_prompts_are_refused(project, monkeypatch):
    monkeypatch.chdir(project.path)
    rewrite(project, "r2", lambda rows: rows[1:])
    with pytest.raises(ValueError, match=r"'r1' and 'r2' answered different .* 1 completions"):
        diff("r1", "r2")


def test_a_model_does_not_differ_from_itself(here):
    found = diff("r2", "r2")
    for row in found.rows:
        assert row.a == row.b
        half = 1.959963984540054 * math.sqrt(2) / (row.a.total + 2)  # Bonett and Price's of none
        assert (row.difference, row.low, row.high) == (0, pytest.approx(-half), pytest.approx(half))
        assert (row.p_value, row.p_adjusted, row.more_than_chance) == (1, 1, False)
    for one in found.rest:
        assert one.clean_unchanged.rate == 1
        assert one.divergence is None


def test_more_than_chance_is_what_the_adjusted_p_says(project, monkeypatch):
    monkeypatch.chdir(project.path)
    rewrite(project, "base", lambda rows: [replace(c, text="sorry, no.") for c in rows])
    rewrite(project, "r1", lambda rows: [replace(c, text="fine, yes.") for c in rows])
    found = rows("base", "r1")
    for (_, detector), row in found.items():
        fixed = row["a"]["total"] if detector == "boilerplate" else 0
        assert row["p_value"] == pytest.approx(min(1.0, 2 * 0.5**fixed), rel=1e-5)
        assert row["p_adjusted"] >= row["p_value"]
        assert row["more_than_chance"] == (row["p_adjusted"] < 0.05) == (detector == "boilerplate")
    whole = diff("base", "r1").rows
    assert [row.p_adjusted for row in whole] == holm([row.p_value for row in whole])


def test_a_low_p_among_many_may_be_chance(here):
    found = rows("base", "r1")[LEARNED, "boilerplate"]
    assert found["p_value"] < 0.05 < found["p_adjusted"]
    assert not found["more_than_chance"]


def test_every_completion_twice_makes_nobody_surer(project, monkeypatch):
    monkeypatch.chdir(project.path)
    once = rows("base", "r2")
    for name in ("base", "r2"):
        rewrite(project, name, lambda rows: [*rows, *(replace(c, sample=1) for c in rows)])
    twice = rows("base", "r2")
    for key, row in once.items():
        kept = ("difference", "low", "high")
        assert [twice[key][name] for name in kept] == [row[name] for name in kept]
        assert twice[key]["p_value"] == row["p_value"]
        assert twice[key]["b"]["flagged"] == 2 * row["b"]["flagged"]


def test_holm_by_hand():
    # 0.01 * 3; 0.02 * 2; 0.9 * 1
    assert holm([0.9, 0.01, 0.02]) == pytest.approx([0.9, 0.03, 0.04])
    # 0.01 * 3 = 0.03, then 0.011 * 2 = 0.022 is no less than 0.03, nor anything more than 1.
    assert holm([0.01, 0.011, 1.0]) == pytest.approx([0.03, 0.03, 1.0])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_table_says_what_it_shows(here):
    found = diff("r1", "r2")
    lines = table(found).splitlines()
    row = next(r for r in found.rows if (r.prompts, r.detector) == (LEARNED, "hedges"))
    line = next(line for line in lines if line.startswith(f"{LEARNED}  hedges"))
    assert f"  {row.a.rate:.1%} (" in line
    assert f"  {row.difference * 100:+.1f} (" in line
    assert line.endswith("yes" if row.more_than_chance else "no")
    assert f"adjusted for the {len(found.rows)} rows by Holm's method" in table(found)
    assert "Clean in r1: not flagged by boilerplate, hedges." in table(found)
