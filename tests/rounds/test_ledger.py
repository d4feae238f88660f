import json
import shutil
import subprocess

import pytest

from tnt import models
from tnt.core.hashes import sha256_of
from tnt.rounds import history, ledger, listed, recovery, sharing, staleness, update, verdicts
from tnt.rounds.recovery import NOTE

SILENT = {"log": lambda line: None}


def parent_of_the_next(project):
    """Begin an update, far enough to see the round it adds."""
    seen = []

    def look(target):
        with project.params() as params:
            name = next(reversed(params["rounds"]))
            seen.append((name, params["rounds"][name]["parent"]))
        raise ValueError("seen")

    with pytest.raises(ValueError, match="seen"):
        update.update(reproduce=look, **SILENT)
    return seen[0]


def test_a_tag_is_the_world_of_its_round(begun):
    for detector in ("boilerplate", "hedges"):
        assert len(update.update(detectors=[detector], **SILENT).accepted) == 1
    model = sha256_of(begun.path / "data/models/r1")
    begun.git("checkout", "--quiet", "round/r1")
    begun.dvc("checkout")
    assert begun.repro() == set()
    assert begun.git("status", "--porcelain") == ""
    assert sha256_of(begun.path / "data/models/r1") == model
    assert not (begun.path / "data/models/r2").exists()
    assert begun.json("data/metrics.json")["round"] == "r1"
    assert begun.tnt("check").returncode == 0


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_a_tag_is_rebuilt_from_an_empty_cache(accepted, name):
    accepted.git("checkout", "--quiet", f"round/{name}")
    for path in (".dvc/cache", "data/models", "data/rounds", "data/evaluations", "data/resolved"):
        shutil.rmtree(accepted.path / path)
    accepted.git("checkout", "--quiet", "--", "data")
    assert {"train@r1", f"train@{name}"} <= accepted.repro()
    assert accepted.git("status", "--porcelain") == ""


def test_the_log_tells_what_the_verdicts_say(accepted):
    entries = history.log()
    assert [(e.round, e.verdict, e.parent, e.tag, e.run) for e in entries] == [
        ("r1", "accepted", "base", "round/r1", "by hand"),
        ("r2", "accepted", "r1", "round/r2", "by hand"),
    ]
    assert verdicts.verdict("r1") == verdicts.verdict("r2") == "accepted"


def test_rolling_back_makes_an_earlier_round_the_parent(accepted):
    assert ledger.roll_back("r1") == ["r2"]
    assert accepted.git("status", "--porcelain") == ""
    assert accepted.git("tag").split() == ["round/r1", "round/r2"]
    assert accepted.repro() == set()
    assert not (accepted.path / "data/models/r2").exists()
    assert parent_of_the_next(accepted) == ("r3", "r1")
    assert history.log()[-1].verdict == "rolled back"

    assert ledger.roll_back("r2") == []  # and forward again
    assert accepted.git("status", "--porcelain") == ""
    assert accepted.repro() == set()
    assert (accepted.path / "data/models/r2/model.safetensors").is_file()
    assert parent_of_the_next(accepted) == ("r3", "r2")


def test_rolling_back_to_the_base_lists_no_round(accepted):
    assert ledger.roll_back("base") == ["r1", "r2"]
    assert accepted.git("status", "--porcelain") == ""
    assert parent_of_the_next(accepted) == ("r3", "base")


def test_what_cannot_be_rolled_back_to_is_refused(accepted):
    head = accepted.git("rev-parse", "HEAD")
    with pytest.raises(ValueError, match=r"The round 'r7' is not accepted: there is no tag"):
        ledger.roll_back("r7")
    with pytest.raises(ValueError, match=r"The round 'r2' is the last one already\."):
        ledger.roll_back("r2")
    accepted.write("notes.txt", "not committed\n")
    with pytest.raises(ValueError, match=r"notes.txt is changed but not committed"):
        ledger.roll_back("r1")
    assert accepted.git("rev-parse", "HEAD") == head


def test_rebasing_makes_a_round_the_base(accepted):
    weights = sha256_of(accepted.path / "data/models/r2/model.safetensors")
    assert ledger.rebase("r2") == ledger.REBASED / "r2"
    assert accepted.git("status", "--porcelain") == ""
    assert sha256_of(accepted.path / "data/models/base/model.safetensors") == weights
    assert not (accepted.path / "data/models/r1").exists()
    assert accepted.repro() == set()
    assert parent_of_the_next(accepted) == ("r3", "base")
    assert history.log()[-1].verdict == "rebased"
    models.load(accepted.path / "data/models/base")


def test_rebasing_helps_where_the_code_has_changed(accepted):
    accepted.write("tnt/losses/table.py", accepted.read("tnt/losses/table.py") + "\n# The same.\n")
    accepted.commit()
    with pytest.raises(ValueError, match="tnt rounds rebase"):
        staleness.refuse_outdated()
    ledger.rebase("r2")
    staleness.refuse_outdated()
    assert accepted.repro() == set()


def test_a_clone_pushes_and_pulls_all_of_it(accepted, tmp_path):
    subprocess.run(["git", "init", "--quiet", "--bare", tmp_path / "hub"], check=True)
    branch = accepted.git("branch", "--show-current")
    with pytest.raises(ValueError, match="No DVC remote is configured"):
        sharing.refuse_without_remote()
    accepted.dvc("remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    accepted.commit()
    sharing.refuse_without_remote()
    assert "no upstream" in [*sharing.push()][-1]
    accepted.git("remote", "add", "origin", str(tmp_path / "hub"))
    accepted.git("push", "--quiet", "--set-upstream", "origin", branch)
    assert [*sharing.push()][-1] == f"git push: {branch} and the tags of the rounds, to origin"
    accepted.git("clone", "--quiet", str(tmp_path / "hub"), str(tmp_path / "clone"))
    clone = type(accepted)(tmp_path / "clone", accepted.environment)
    assert clone.git("tag").split() == ["round/r1", "round/r2"]
    clone.dvc("pull")
    assert clone.repro() == set()


def test_pruning_the_cache_keeps_what_tags_hold(accepted):
    ledger.roll_back("r1")
    accepted.write("data/rounds/gone/note.txt", "left behind\n")
    before = {*accepted.path.glob(".dvc/cache/files/md5/*/*")}
    assert [str(path) for path in listed.prune(cache=True)] == ["data/rounds/gone"]
    assert {*accepted.path.glob(".dvc/cache/files/md5/*/*")} <= before
    accepted.git("checkout", "--quiet", "round/r2")
    accepted.dvc("checkout")
    assert accepted.repro() == set()


def cut_off(accepted, at):
    """Begin a third round and stop the run as a kill would, right before `at` is reproduced."""

    def reproduce(target):
        if target.startswith(at):
            raise KeyboardInterrupt
        from tnt.rounds import programs

        programs.reproduce(target, log=lambda line: None)

    with pytest.raises(KeyboardInterrupt):
        update.update(target_flag_rate=-1, reproduce=reproduce, **SILENT)
    assert NOTE.exists()


@pytest.mark.parametrize("at", ["detect", "evaluate"])
def test_what_a_run_left_behind_is_put_back(accepted, at):
    head, params = accepted.git("rev-parse", "HEAD"), accepted.read("params.yaml")
    cut_off(accepted, at)
    assert accepted.git("status", "--porcelain") != ""
    accepted.write("data/rounds/r3/half.parquet", "half-wr")
    accepted.git("add", "--force", "data/rounds/r3/half.parquet")
    recovery.recover(lambda line: None)
    assert accepted.git("status", "--porcelain") == ""
    assert accepted.git("rev-parse", "HEAD") == head
    assert accepted.read("params.yaml") == params
    assert not (accepted.path / "data/rounds/r3").exists()
    assert not NOTE.exists()
    assert accepted.repro() == set()


def test_a_commit_that_was_not_tagged_any_more_gets_its_tag(accepted):
    head = accepted.git("rev-parse", "HEAD")
    accepted.git("tag", "--delete", "round/r2")
    note = {"commit": accepted.git("rev-parse", "HEAD~1"), "round": "r2", "later": [], "run": "x"}
    accepted.write(str(NOTE), json.dumps(note))
    recovery.recover(lambda line: None)
    assert accepted.git("rev-parse", "round/r2") == head
    assert not NOTE.exists()


def test_rounds_that_were_set_aside_are_listed_again(project, monkeypatch):
    monkeypatch.chdir(project.path)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    entry = project.read("params.yaml").partition("  r2:")[2]
    monkeypatch.setattr(ledger, "complete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        update.update(max_rounds=1, **SILENT)
    monkeypatch.undo()
    monkeypatch.chdir(project.path)
    assert project.git("tag") == "round/r1"
    assert "  r2:" not in project.read("params.yaml")
    recovery.recover(lambda line: None)
    assert project.read("params.yaml").endswith("  r2:" + entry)
    assert project.git("log", "-1", "--format=%s") == "List r2 after r1"
    assert project.git("status", "--porcelain") == ""


def test_what_a_person_edited_since_is_not_undone(accepted):
    cut_off(accepted, "detect")
    with accepted.params() as params:
        params["mask"]["after_negative"] = "keep"
    edited = accepted.read("params.yaml")
    with pytest.raises(ValueError, match=r"params.yaml was edited after the run 'by hand' was cut"):
        recovery.recover(lambda line: None)
    assert accepted.read("params.yaml") == edited
    assert NOTE.exists()


def test_an_acceptance_that_was_killed_before_its_tag_is_finished(accepted):
    head = accepted.git("rev-parse", "HEAD")
    accepted.git("tag", "--delete", "round/r2")
    assert ledger.accept("r2") == "round/r2"
    assert accepted.git("rev-parse", "round/r2") == head


@pytest.fixture
def undecided(accepted):
    """Return the project as it is before r2 gets its verdict."""
    accepted.git("tag", "--delete", "round/r2")
    accepted.git("reset", "--quiet", "HEAD~1")
    return accepted


def test_no_setting_or_hook_of_a_users_is_in_the_way_of_a_verdict(undecided):
    for key, value in {
        "color.ui": "always",
        "column.ui": "always",
        "commit.gpgSign": "true",
        "core.editor": "sleep 600",
        "i18n.commitEncoding": "ISO-8859-1",
        "log.showSignature": "true",
        "tag.gpgSign": "true",
        "trailer.separators": "=",
    }.items():
        undecided.git("config", key, value)
    hook = undecided.path / ".git/hooks/commit-msg"
    hook.write_text('#!/bin/sh\nprintf "\\nChecked by a hook.\\n" >> "$1"\n', encoding="utf-8")
    hook.chmod(0o755)
    ledger.accept("r2", run="nächtlich")
    assert verdicts.verdict("r2") == "accepted"
    entry = history.log()[-1]
    assert (entry.round, entry.verdict, entry.run) == ("r2", "accepted", "nächtlich")
    assert entry.commit == undecided.git("rev-parse", "round/r2")
    said = undecided.git("log", "-1", "--format=%b", "--no-show-signature", "--encoding=UTF-8")
    assert "Checked by a hook." in said
    assert undecided.git("status", "--porcelain") == ""


def stage_a_file(project):
    project.write("secret.txt", "mine\n")
    project.git("add", "secret.txt")


def raise_a_bound(project):
    with project.params() as params:
        params["gate"]["min_drop"] = 0.01


def edit_metrics(project):
    project.write("data/evaluations/r2/metrics.json", "{}")


MEANWHILE = {
    "staged": (stage_a_file, r"^secret.txt is changed but not committed"),
    "edited": (raise_a_bound, r"^params.yaml was edited .* is in work/kept/params.yaml\. Take"),
    "changed": (edit_metrics, r"^There are stages to run: compare, evaluate@r2"),
}


@pytest.mark.parametrize(("change", "said"), MEANWHILE.values(), ids=MEANWHILE)
def test_a_verdict_takes_in_nothing_that_others_change(undecided, monkeypatch, change, said):
    head, params = undecided.git("rev-parse", "HEAD"), undecided.read("params.yaml")
    monkeypatch.setattr(ledger, "reproduce", lambda target, log: change(undecided))
    with pytest.raises(ValueError, match=said):
        ledger.accept("r2")
    assert undecided.git("rev-parse", "HEAD") == head
    assert undecided.git("tag") == "round/r1"
    assert undecided.read("params.yaml") == params


def test_what_was_staged_for_another_commit_stays_staged(undecided, monkeypatch):
    stage_a_file(undecided)
    monkeypatch.setattr(ledger, "refuse_other_changes", lambda more=(): None)  # it came just then
    ledger.accept("r2")
    assert undecided.git("status", "--porcelain") == "A  secret.txt"


def test_a_name_that_was_tagged_is_not_used_again(accepted):
    ledger.roll_back("r1")
    with pytest.raises(ValueError, match=r"'r2' was a round already, tagged round/r2\."):
        listed.add("r2", parent=None, detectors=["hedges"])


@pytest.mark.parametrize("change", [lambda: ledger.roll_back("r1"), lambda: ledger.rebase("r2")])
def test_a_commit_that_git_refuses_changes_nothing(accepted, change):
    hook = accepted.path / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\necho no >&2; exit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    params, lock = accepted.read("params.yaml"), accepted.read("dvc.lock")
    with pytest.raises(ValueError, match=r"no$"):
        change()
    assert (accepted.read("params.yaml"), accepted.read("dvc.lock")) == (params, lock)
    assert not (accepted.path / "data/bases/r2").exists()
    assert accepted.git("status", "--porcelain") == ""
    assert accepted.repro() == set()
    hook.unlink()
    change()
    assert accepted.git("status", "--porcelain") == ""
