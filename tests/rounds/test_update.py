import fcntl
import json
import subprocess
import sys

import pytest

from tnt.core import artifacts
from tnt.core.hashes import sha256_of
from tnt.core.records import Completion, Flag
from tnt.project import checks
from tnt.prompts import Shares, split_of
from tnt.rounds import listed, programs, staleness, update, workspace
from tnt.rounds.recovery import NOTE
from tnt.rounds.update import GateFailed

SHARES = Shares(train=0.5, validation=0.15, test=0.35)


def updated(**given):
    """Run an update; return what it did and the lines it logged."""
    lines = []
    return update.update(log=lines.append, **given), lines


def rate_of_learning(project, rate):
    with project.params() as params:
        params["train"]["learning_rate"] = rate
    project.commit()


def test_rounds_are_added_until_the_corpus_is_clean(begun):
    begun.edit("params.yaml", "# The tests' project.", "# A comment of ours.")
    begun.commit()
    outcome, lines = updated(max_rounds=3, run="targeted-update/test")
    assert outcome.accepted == ["r1"]
    assert set(outcome.flag_rates) == {"r1", "r2"}
    assert outcome.flag_rates["r2"] <= 0.02 < outcome.flag_rates["r1"]
    assert outcome.stopped == f"{outcome.flag_rates['r2']:.1%} is flagged, no more than 2.0%."
    assert lines[-1] == f"Stopped: {outcome.stopped}"
    assert begun.git("tag") == "round/r1"
    assert begun.git("status", "--porcelain") == ""
    assert begun.read("params.yaml").startswith("# A comment of ours.")
    assert begun.git("log", "-1", "--format=%(trailers)").splitlines() == [
        "Round: r1",
        "Verdict: accepted",
        "Run: targeted-update/test",
    ]
    with begun.params() as params:
        assert params["rounds"]["r1"]["detectors"] == ["boilerplate", "hedges"]
        assert params["rounds"]["r1"]["prompts"].keys() == {"replies", "summaries"}
    assert begun.repro() == set()


def test_a_base_that_never_ran_is_made_first(begun):
    begun.git("rm", "--quiet", "dvc.lock", "data/metrics.json", "data/rounds.csv")
    for folder in ("models", "evaluations", "prepared", "resolved", "report"):
        subprocess.run(["rm", "-rf", begun.path / "data" / folder], check=True)
    (begun.path / "data/comparison.validation.json").unlink()
    begun.commit()
    outcome, _ = updated(target_flag_rate=1.0)
    assert outcome.accepted == []
    assert begun.git("log", "-1", "--format=%s") == "Bring the base up to date"
    assert begun.git("status", "--porcelain") == ""


def test_rounds_that_are_listed_come_first_and_one_at_a_time(accepted):
    assert accepted.git("tag").split() == ["round/r1", "round/r2"]
    first = accepted.git("show", "round/r1:params.yaml")
    assert "r1:                 # apologies" in first
    assert "r2:" not in first
    assert "r2:                 # hedging too" in accepted.read("params.yaml")
    subjects = accepted.git("log", "--format=%s", "--reverse").splitlines()
    assert subjects[-3:] == ["Accept round r1", "List r2 after r1", "Accept round r2"]
    assert accepted.repro() == set()


def test_a_clean_corpus_changes_nothing(accepted):
    def state():
        return {
            path: sha256_of(path)
            for path in sorted(accepted.path.rglob("*"))
            if path.is_file() and not {".git", ".dvc", "work"} & {*path.parts}
        }

    before, head = state(), accepted.git("rev-parse", "HEAD")
    outcome, _ = updated(target_flag_rate=1.0)
    assert outcome.accepted == []
    assert "r3" in outcome.flag_rates
    assert state() == before
    assert accepted.git("rev-parse", "HEAD") == head
    assert not NOTE.exists()


def test_a_rejected_round_is_kept_and_never_built_upon(begun):
    rate_of_learning(begun, 1e-9)
    with pytest.raises(GateFailed, match=r"The round 'r1' failed its gate: boilerplate went from"):
        updated(run="targeted-update/test")
    assert begun.git("tag") == ""
    assert begun.git("status", "--porcelain") == ""
    trailers = begun.git("log", "-1", "--format=%(trailers)")
    assert "Verdict: rejected" in trailers
    assert "Reason: boilerplate went from" in trailers
    assert (begun.path / "data/models/r1/model.safetensors").is_file()

    head = begun.git("rev-parse", "HEAD")
    outcome, lines = updated()
    assert outcome.stopped.startswith("another round would be what r1 was, and that was rejected")
    assert not [line for line in lines if "train@" in line]
    assert begun.git("rev-parse", "HEAD") == head

    rate_of_learning(begun, 1e-3)
    outcome, _ = updated()
    assert outcome.accepted == ["r2"]
    with begun.params() as params:
        assert params["rounds"]["r2"]["parent"] == "base"
    assert begun.git("tag") == "round/r2"


def test_a_round_on_a_rejected_one_is_not_begun(begun):
    rate_of_learning(begun, 1e-9)
    with pytest.raises(GateFailed):
        updated()
    assert begun.tnt("rounds", "add", "r2", "--detectors", "hedges").returncode == 0
    begun.commit()
    with pytest.raises(ValueError, match=r"'r2' builds on 'r1', which was rejected: boilerplate"):
        updated()


def test_a_rejected_round_that_was_edited_is_tried_again(begun):
    rate_of_learning(begun, 1e-9)
    with pytest.raises(GateFailed):
        updated()
    with begun.params() as params:
        params["rounds"]["r1"]["train"]["learning_rate"] = 1e-3
    begun.commit()
    outcome, _ = updated()
    assert outcome.accepted == ["r1"]


def test_a_round_that_gains_nothing_stops_the_run(begun):
    with begun.params() as params:
        params["gate"]["min_drop"] = 0.0
        params["train"]["learning_rate"] = 1e-9
    begun.commit()
    outcome, _ = updated(max_rounds=3)
    assert outcome.accepted == []
    assert outcome.stopped.startswith("r1 gained nothing: flagged test completions boilerplate")
    assert "Reason: nothing gained" in begun.git("log", "-1", "--format=%(trailers)")
    assert begun.git("tag") == ""


def test_new_prompt_files_are_what_the_next_round_learns_from(accepted):
    rows = [{"id": f"n{i}", "input": f"Apple of day {i}"} for i in range(9)]
    assert any(split_of(row["input"], SHARES) == "train" for row in rows)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    accepted.write("data/prompts/replies/later.jsonl", text)
    accepted.commit()
    listed = []

    def look(target):
        with accepted.params() as params:
            listed.append(dict(params["rounds"]["r3"]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        updated(reproduce=look)
    assert listed[0]["prompts"] == {"replies": ["later.jsonl"], "summaries": ["first.jsonl"]}
    assert listed[0]["parent"] == "r2"
    assert listed[0]["detectors"] == ["boilerplate", "hedges"]


def test_a_changed_file_stops_the_run_and_is_named(accepted):
    accepted.write("notes.txt", "not committed\n")
    with pytest.raises(ValueError, match=r"^notes.txt is changed but not committed\."):
        updated()


def test_an_accepted_round_that_is_out_of_date_stops_the_run(accepted):
    accepted.write("tnt/losses/table.py", accepted.read("tnt/losses/table.py") + "\n# The same.\n")
    accepted.commit()
    with pytest.raises(
        ValueError, match=r"'r1' is out of date: its stage train .*\(tnt/losses/table\.py\)"
    ) as error:
        updated()
    assert "tnt rounds rebase r1" in str(error.value)


def test_data_that_is_gone_is_to_be_brought_back(accepted):
    subprocess.run(["rm", "-rf", "data/models/r1"], check=True)
    with pytest.raises(ValueError, match="`dvc pull` or `dvc checkout` brings it back"):
        updated()


def test_a_stage_that_fails_leaves_the_project_as_it_was(begun):
    with begun.params() as params:
        params["expect"]["max_negative_share"] = 0.01
    begun.commit()
    head = begun.git("rev-parse", "HEAD")
    with pytest.raises(ValueError, match=r"failed to reproduce 'mask@r1': .*max_negative_share"):
        updated()
    assert begun.git("status", "--porcelain") == ""
    assert begun.git("rev-parse", "HEAD") == head
    assert not NOTE.exists()
    assert not (begun.path / "data/rounds/r1").exists()


def test_a_stage_that_fails_by_hand_leaves_no_data_to_commit(begun):
    listed.add("r1", parent=None, detectors=["boilerplate"])
    with begun.params() as params:
        params["expect"]["max_negative_share"] = 0.01
    begun.commit()
    assert "failed to reproduce 'mask@r1'" in begun.run("python", "-m", "dvc", "repro").stderr
    assert (begun.path / "data/rounds/r1/flags.parquet").is_file()
    assert begun.git("status", "--porcelain", "-uall") == "M dvc.lock"
    begun.git("add", "--all")
    begun.dvc("status")


def test_data_that_git_does_not_ignore_is_never_to_be_committed(accepted):
    accepted.edit(".gitignore", "/data/models/*\n", "")
    accepted.git("commit", "--quiet", "--message", "Change", ".gitignore")
    with pytest.raises(ValueError, match=r"DVC keeps.* Write `/data/models/base` into .gitignore"):
        updated()
    with pytest.raises(ValueError, match=r"is data that DVC keeps"):
        workspace.refuse_other_changes()


def test_two_at_once_do_not_run_dvc(accepted):
    programs.LOCK.parent.mkdir(exist_ok=True)
    holding = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
    holding += "f.write('the update nightly/heron (process 7)'); f.flush(); print(); input()"
    command = [sys.executable, "-c", holding, str(programs.LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        message = r"^the update nightly/heron \(process 7\) holds .*tnt.lock\. Wait"
        with pytest.raises(ValueError, match=message):
            updated()
        with pytest.raises(ValueError, match=message):
            staleness.outdated()
        holder.communicate(b"\n")
    assert staleness.outdated() == {}
    with programs.LOCK.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any more


def test_a_dvc_that_was_started_by_hand_is_named(begun):
    with subprocess.Popen(["sleep", "60"]) as by_hand:
        writer = {"pid": by_hand.pid, "cmd": "dvc repro base"}
        busy = {"write": {str(begun.path / "data/models/base"): writer}}
        begun.write(".dvc/tmp/rwlock", json.dumps(busy))
        message = rf"^DVC is busy: process {by_hand.pid}, `dvc repro base`\. Wait for it to end"
        with pytest.raises(ValueError, match=message):
            programs.output("dvc", "repro", "--force", "base")
        by_hand.kill()


def test_a_list_that_an_accepted_round_was_made_with_is_not_changed_unseen(accepted):
    accepted.write("data/lists/hedges.txt", "# Politeness.\nwell, maybe\n")
    accepted.commit()
    message = r"'r2' is out of date: its stage detect obeys other params or files .*\(inputs\)"
    with pytest.raises(ValueError, match=message):
        updated()


def test_an_entry_that_is_not_the_tagged_one_is_refused(accepted):
    with accepted.params() as params:
        params["rounds"]["r2"]["train"]["epochs"] = 13
    accepted.commit()
    with pytest.raises(ValueError, match=r"its entry in params.yaml is not that of .*round/r2"):
        updated()


def test_a_rejected_round_that_is_out_of_date_is_taken_out(begun):
    rate_of_learning(begun, 1e-9)
    with pytest.raises(GateFailed):
        updated()
    begun.write("tnt/training/run.py", begun.read("tnt/training/run.py") + "\n# The same.\n")
    begun.commit()
    rate_of_learning(begun, 1e-3)
    outcome, lines = updated()
    assert "Took out r1, rejected and out of date; git and the cache keep it." in lines
    assert outcome.accepted == ["r2"]
    assert not [line for line in lines if "train@r1" in line]
    assert begun.git("status", "--porcelain") == ""


def test_what_a_person_writes_into_params_during_a_run_is_kept(accepted):
    def write(target):
        if target.startswith("evaluate"):
            with accepted.params() as params:
                params["gate"]["min_drop"] = 0.25
        programs.reproduce(target, log=lambda line: None)

    lines = []
    with pytest.raises(ValueError, match=r"params.yaml was edited during the run, and r3 would"):
        update.update(target_flag_rate=-1, reproduce=write, log=lines.append)
    assert lines[-1] == (
        "params.yaml was edited during the run: what you wrote is in work/params.r3.yaml."
    )
    assert "min_drop: 0.25" in accepted.read("work/params.r3.yaml")
    assert accepted.git("status", "--porcelain") == ""


def test_a_fault_is_not_hidden_by_a_set_without_it(accepted):
    found = update.flag_rate("r1")
    flags = artifacts.read(accepted.path / "data/rounds/r1/flags.parquet", Flag)
    completions = artifacts.read(accepted.path / "data/rounds/r1/completions.parquet", Completion)
    flagged = {flag.prompt_id for flag in flags}
    shares = {}
    for prompt_set in ("replies", "summaries"):
        of_set = [c for c in completions if c.prompt_set == prompt_set]
        shares[prompt_set] = sum(c.prompt_id in flagged for c in of_set) / len(of_set)
    assert found == max(shares.values())
    assert shares["replies"] != shares["summaries"]


def test_a_file_without_a_prompt_to_train_on_is_not_new(accepted):
    rows = map(json.loads, accepted.read("data/prompts/replies/first.jsonl").splitlines())
    tested = next(row for row in rows if split_of(row["input"], SHARES) == "test")
    accepted.write("data/prompts/replies/later.jsonl", json.dumps({**tested, "id": "new"}) + "\n")
    loaded = checks.load()
    assert update._prompts(loaded, "r2")["replies"] == ["first.jsonl"]


def test_another_base_is_refused_where_rounds_build_on_this_one(accepted, bases):
    accepted.edit("params.yaml", str(bases["llama"]), str(bases["t5"]))
    accepted.commit()
    with pytest.raises(ValueError, match=r"'r1' is out of date: `base` in params.yaml is another"):
        updated()


def test_no_branch_is_no_place_for_a_commit(accepted):
    accepted.git("checkout", "--quiet", "--detach")
    with pytest.raises(ValueError, match="No branch is checked out"):
        updated()


def test_a_project_inside_another_repository_is_refused(accepted, tmp_path, monkeypatch):
    inner = accepted.copy(tmp_path / "inner")
    subprocess.run(["rm", "-rf", inner.path / ".git"], check=True)
    subprocess.run(["mv", inner.path, accepted.path / "inner"], check=True)
    monkeypatch.chdir(accepted.path / "inner")
    with pytest.raises(ValueError, match=r"The project lies in the folder inner/ of its git rep"):
        updated()


def test_a_base_that_fails_leaves_no_note(begun):
    with begun.params() as params:
        params["respond"]["max_new_tokens"] = 13
    begun.commit()

    def fail(target):
        raise ValueError("no disk")

    with pytest.raises(ValueError, match="no disk"):
        updated(reproduce=fail)
    assert not NOTE.exists()
    assert begun.git("status", "--porcelain") == ""


def test_a_check_does_not_wait_for_a_run(accepted):
    with programs.LOCK.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        checked = accepted.tnt("check")
    assert checked.returncode == 0
    assert "Whether the accepted rounds are up to date was not checked" in checked.stdout
