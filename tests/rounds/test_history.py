"""The audit trail: what git alone tells of the rounds, also where files are missing or damaged."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from ruamel.yaml import YAML

from tnt.commands import log
from tnt.rounds import history

METRICS = "data/evaluations/{}/metrics.json"


@pytest.fixture
def repository(finished_llama, tmp_path, monkeypatch):
    """Return a git repository with what git keeps of a finished project, and nothing else."""
    path = tmp_path / "repository"
    finished_llama.git("clone", "--quiet", str(finished_llama.path), str(path))
    monkeypatch.chdir(path)
    return type(finished_llama)(path, finished_llama.environment)


@pytest.fixture
def settle(repository):
    """Return a function that commits a verdict and returns the commit."""

    def commit(name, verdict, *, tagged=False, **trailers):
        said = {"Round": name, "Verdict": verdict, **trailers}
        lines = "\n".join(f"{key}: {value}" for key, value in said.items())
        repository.git("add", "--all")
        message = ("--message", f"{verdict} {name}", "--message", lines)
        repository.git("commit", "--quiet", "--allow-empty", *message)
        if tagged:
            repository.git("tag", f"round/{name}")
        return repository.git("rev-parse", "HEAD")

    return commit


def only():
    entries = history.log()
    assert len(entries) == 1
    return entries[0]


def test_an_entry_holds_what_the_files_of_its_commit_hold(repository, settle):
    commit = settle("r2", "accepted", tagged=True, Run="targeted-update/brave-otter")
    lock = repository.read("dvc.lock")
    outs = YAML(typ="safe").load(lock)["stages"]["train@r2"]["outs"]
    learned = repository.json(METRICS.format("r2"))["learned"]
    assert only() == history.Entry(
        when=repository.git("log", "-1", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", "--format=%cd"),
        round="r2",
        verdict="accepted",
        reason=None,
        run="targeted-update/brave-otter",
        tag="round/r2",
        parent="r1",
        detectors=["boilerplate", "hedges"],
        flag_rates={d: [learned[d][s]["rate"] for s in ("before", "after")] for d in learned},
        gate="passed",
        commit=commit,
        model=next(out["md5"] for out in outs if out["path"] == "data/models/r2"),
        lock=hashlib.sha256(lock.encode()).hexdigest(),
    )


def test_only_the_rounds_own_detectors_are_shown(repository, settle):
    repository.edit("params.yaml", "detectors: [boilerplate, hedges]", "detectors: [hedges]")
    settle("r2", "accepted")
    assert only().detectors == [*only().flag_rates] == ["hedges"]


def test_verdicts_come_in_order_and_a_rejected_one_has_its_reason_and_no_tag(settle):
    settle("r1", "accepted", tagged=True)
    settle("r2", "rejected", Reason="hedges went from 30% to 29%.")
    settle("r1", "rolled back")
    found = [(e.round, e.verdict, e.tag, e.reason) for e in history.log()]
    assert found == [
        ("r1", "accepted", "round/r1", None),
        ("r2", "rejected", None, "hedges went from 30% to 29%."),
        ("r1", "rolled back", None, None),
    ]


@pytest.mark.parametrize("annotated", [False, True], ids=["light", "annotated"])
def test_a_tag_without_trailers_is_an_accepted_round(repository, annotated):
    repository.git("tag", *(["--message", "It is good"] if annotated else []), "round/r1")
    found = only()
    assert (found.round, found.verdict, found.tag) == ("r1", "accepted", "round/r1")
    assert (found.parent, found.gate, found.run) == ("base", "passed", None)


def test_a_tag_that_head_does_not_reach_is_listed(repository, settle):
    settle("r1", "accepted", tagged=True)
    repository.git("reset", "--quiet", "--hard", "HEAD~")
    assert only().tag == "round/r1"


def test_other_commits_and_tags_are_no_verdicts(repository):
    repository.git("tag", "v1.0")
    repository.git("commit", "--quiet", "--allow-empty", "--message", "Talk\n\nRound: r1\nFor: fun")
    assert history.log() == []
    assert "No round" in log.table([])


def test_a_repository_without_a_commit_has_no_verdicts(tmp_path, monkeypatch, finished_llama):
    monkeypatch.chdir(tmp_path)
    type(finished_llama)(tmp_path, finished_llama.environment).git("init", "--quiet")
    assert history.log() == []


@pytest.mark.parametrize("damage", ["gone", "nonsense", "a folder", "another shape", "no text"])
def test_damaged_files_leave_their_columns_empty(repository, settle, damage):
    for name in ("params.yaml", "dvc.lock", METRICS.format("r1")):
        path = repository.path / name
        path.unlink()
        match damage:
            case "nonsense":
                path.write_text("rounds: {r1: [\n  r1: }\nstages:\n  train@r1: [")
            case "a folder":
                path.mkdir()
                (path / "file").write_text("r1")
            case "another shape":
                path.write_text(json.dumps({"rounds": {"r1": 1}, "stages": {"train@r1": [1]}}))
            case "no text":
                path.write_bytes(b"\xff\xfe\x00r1")
    settle("r1", "accepted", tagged=True)
    found = only()
    assert (found.round, found.tag) == ("r1", "round/r1")
    assert (found.parent, found.detectors, found.flag_rates) == (None, [], {})
    assert (found.gate, found.model) == (None, None)
    assert (found.lock is None) == (damage in ("gone", "a folder"))
    assert "r1" in log.table([found])


def test_metrics_alone_still_tell_the_parent_and_the_rates(repository, settle):
    (repository.path / "params.yaml").unlink()
    settle("r2", "accepted")
    assert only().parent == "r1"
    assert set(only().flag_rates) == {"boilerplate", "hedges"}


@pytest.mark.parametrize(
    "text",
    [
        "rounds: {r1: {parent: base, detectors: [hedges]}}\n",
        "rounds:\n  'r1':\n    parent: base\n    detectors: [hedges]\n",
        "names: {r0: &x [hedges]}\nrounds:\n  r1:\n    parent: base\n    detectors: *x\n",
        "r1:\n  r1: {parent: no, detectors: []}\nrounds:\n    r0:\n      r1: {parent: no}\n"
        "# r1\n\n    r1:  # here\n\n# said\n      parent: base\n      detectors:\n      - hedges\n"
        "    r2: {parent: no, detectors: []}\nlast:\n    r1: {parent: no, detectors: []}",
    ],
    ids=["flow", "quoted", "alias", "comments and other r1"],
)
def test_params_are_read_however_they_are_written(repository, settle, text):
    assert YAML(typ="safe").load(text)["rounds"]["r1"] == {
        "parent": "base",
        "detectors": ["hedges"],
    }
    repository.write("params.yaml", text)
    settle("r1", "accepted")
    assert (only().parent, only().detectors) == ("base", ["hedges"])


def test_a_name_that_leads_elsewhere_reads_nothing(settle):
    settle("../../../../x", "accepted")
    assert only().gate is None


def test_reading_changes_nothing_in_the_repository(repository, settle):
    settle("r1", "accepted", tagged=True)
    shutil.rmtree(repository.path / "data")
    before = repository.git("status", "--porcelain")
    assert only().gate == "passed"
    assert repository.git("status", "--porcelain") == before


def test_a_project_in_a_subfolder_of_the_repository_is_found(repository, monkeypatch):
    names = [name for name in repository.git("ls-files").splitlines() if name != "sub"]
    (repository.path / "sub").mkdir()
    for name in sorted({name.partition("/")[0] for name in names}):
        repository.git("mv", name, f"sub/{name}")
    repository.git("commit", "--quiet", "--message", "Move")
    repository.git("tag", "round/r1")
    monkeypatch.chdir(repository.path / "sub")
    assert only().gate == "passed"


def test_a_shallow_clone_is_known_to_be_cut(repository, settle, tmp_path, monkeypatch):
    settle("r1", "accepted", tagged=True)
    settle("r2", "accepted", tagged=True)
    assert not history.is_cut()
    source = f"file://{repository.path}"
    repository.git("clone", "--quiet", "--depth", "1", source, str(tmp_path / "cut"))
    monkeypatch.chdir(tmp_path / "cut")
    assert history.is_cut()
    assert only().round == "r2"


def test_without_git_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match=r"not a git repository.*Run this in") as refused:
        history.log()
    assert len(str(refused.value).splitlines()) == 1


def test_the_table_fits_and_lines_up(settle):
    settle("r1", "accepted", tagged=True, Run="targeted-update/brave-otter")
    reason = "clean_unchanged on replies is 12.0%, below the bound of 50.0%; " * 3
    settle("r2", "rejected", Reason=reason.strip(), Run="by hand")
    head, *lines = log.table(history.log()).splitlines()
    assert len(lines) == 2
    assert max(map(len, (head, *lines))) <= log.WIDTH
    assert lines[1].endswith("...")
    for title, cells in {"verdict": ("accepted", "rejected"), "tag": ("yes", "none")}.items():
        start = head.index(title)
        for line, cell in zip(lines, cells, strict=True):
            assert line[start:].startswith(f"{cell} ")


def test_the_json_holds_what_the_table_cuts(settle):
    settle("r1", "rejected", Reason="too much of it " * 20, Run="targeted-update/brave-otter")
    entries = history.log()
    loaded = json.loads(log.to_json(entries))
    assert loaded[0]["reason"] == ("too much of it " * 20).strip()
    assert loaded[0]["commit"] == entries[0].commit
    assert loaded[0]["run"] == "targeted-update/brave-otter"
