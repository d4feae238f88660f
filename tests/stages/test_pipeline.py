"""Whole pipelines on tiny models: what a round achieves, and what a change makes DVC run again."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from projects import prompt_lines
from ruamel.yaml import YAML

from tnt import models
from tnt.core.hashes import sha256_of
from tnt.core.params import load_section
from tnt.project import pins
from tnt.stages.evaluate import EvaluateStageParams, evaluate

ROUND_STAGES = ("prepare", "generate", "detect", "rollout", "mask", "train", "respond", "evaluate")
SIDES = ("before", "after")
PLUGIN = """
from dataclasses import dataclass

from tnt.detectors.span import Span


@dataclass
class Params:
    word: str


def build(params):
    def detect(text, prompt_input):
        start = text.find(params.word)
        return [Span(start, start + len(params.word))] if start >= 0 else []

    return detect


build.params = Params
"""


def of_round(name, *stages):
    return {f"{stage}@{name}" for stage in stages or ROUND_STAGES}


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_two_rounds_end_to_end(kind, request):
    project = request.getfixturevalue(f"finished_{kind}")
    for name, detector in (("r1", "boilerplate"), ("r2", "hedges")):
        metrics = project.json(f"data/evaluations/{name}/metrics.json")
        sets = {s: found["detectors"][detector] for s, found in metrics["sets"].items()}
        before, after = (sum(s[side]["flagged"] for s in sets.values()) for side in SIDES)
        assert before >= 5
        assert after <= before / 2
        learned = metrics["learned"][detector]
        assert learned["after"]["rate"] <= learned["before"]["rate"] / 2
        for side in SIDES:  # no round learns from questions
            for count in ("flagged", "total"):
                of_sets = [sets[name][side][count] for name in ("replies", "summaries")]
                assert learned[side][count] == sum(of_sets)
        assert set(metrics["sets"]) == set(tiny.TEMPLATES)
        assert len(numbers(metrics)) > 100
        assert all(math.isfinite(number) for number in numbers(metrics))
        assert metrics["gate"] == {"passed": True, "reasons": ""}
        assert '"kind":"fixed"' in project.read(f"data/report/{name}.html")
    assert metrics["learned"]["boilerplate"]["after"]["rate"] <= 0.1  # r1's fix outlives r2
    assert "r2.html" in project.read("data/report/index.html")
    assert project.json("data/metrics.json")["round"] == "r2"


def test_the_rounds_table_has_every_model_set_and_detector(finished_llama):
    rows = list(csv.DictReader(finished_llama.read("data/rounds.csv").splitlines()))
    found = {(row["model"], row["prompt_set"], row["detector"]) for row in rows}
    assert found == {
        (model, prompt_set, detector)
        for model in ("base", "r1", "r2")
        for prompt_set in tiny.TEMPLATES
        for detector in ("boilerplate", "hedges")
    }


def test_the_projects_own_copy_of_the_code_runs(project):
    project.edit("tnt/cli.py", '"""Set up what all commands share."""', "print('the copy')")
    assert project.tnt("check").stdout.startswith("the copy")


def test_running_again_runs_nothing(project):
    lock = project.read("dvc.lock")
    assert project.repro() == set()
    assert project.read("dvc.lock") == lock
    assert project.git("status", "--porcelain") == ""
    assert project.tnt("plan").stdout.startswith("Nothing to run")


@pytest.mark.parametrize("removed", [False, True], ids=["whole", "after a round was removed"])
def test_a_clone_pulls_and_runs_nothing(project, tmp_path, removed):
    project.dvc("remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    if removed:
        assert project.tnt("rounds", "remove", "r2").returncode == 0
        assert project.repro() == {"resolve", "compare"}
    project.commit()
    project.dvc("push")
    project.git("clone", "--quiet", str(project.path), str(tmp_path / "clone"))
    clone = type(project)(tmp_path / "clone", project.environment)
    clone.dvc("pull")
    assert clone.repro() == set()
    assert clone.git("status", "--porcelain") == ""


def test_a_round_made_again_has_the_same_bytes(project):
    lock = project.read("dvc.lock")
    for folder in ("data/models/r1", "data/rounds/r1", "data/evaluations/r1", ".dvc/cache"):
        shutil.rmtree(project.path / folder)
    assert project.repro() >= of_round("r1")
    assert project.read("dvc.lock") == lock


def test_a_new_round_runs_alone(project):
    project.write("data/prompts/replies/second.jsonl", prompt_lines("n", 7))
    project.write("data/lists/agreement.txt", "yes\n")
    with project.params() as params:
        params["detectors"]["agreement"] = {"kind": "phrases", "list": "data/lists/agreement.txt"}
        params["rounds"]["r3"] = {
            "parent": "r1",
            "detectors": ["agreement"],
            "prompts": {"replies": ["first.jsonl", "second.jsonl"]},
            "train": {"epochs": 2},
        }
    assert project.repro() == {"resolve", "compare", *of_round("r3")}


def test_a_file_that_nothing_names_runs_no_model(project):
    project.write("data/prompts/replies/second.jsonl", prompt_lines("n", 7))
    assert project.repro() == {"resolve"}


def test_a_rounds_detectors_rerun_it_from_detect(project):
    project.edit("params.yaml", "detectors: [boilerplate]\n", "detectors: [boilerplate, hedges]\n")
    expected = of_round("r1") | of_round("r2") | {"resolve", "compare"}
    expected -= {"prepare@r1", "generate@r1", "prepare@r2"}
    ran = project.repro()
    assert {"detect@r1", "mask@r1", "train@r1"} <= ran <= expected


def test_an_override_reruns_its_round_alone(project):
    with project.params() as params:
        params["rounds"]["r2"]["train"] = {"epochs": 3}
    later = of_round("r2", "train", "respond", "evaluate")
    assert project.repro() == {"resolve", "compare", *later}


def test_a_comment_in_the_loss_trains_again_and_generates_nothing(project):
    project.write("tnt/losses/table.py", project.read("tnt/losses/table.py") + "\n# The same.\n")
    ran = project.repro()
    trained = of_round("r1", "train", "evaluate") | of_round("r2", "train", "evaluate")
    assert ran == {"resolve", *trained}


def test_an_edit_of_code_is_to_run_the_stages_that_pin_the_file(project):
    """A file of each room of `tnt/`: of those that stages run, one that the fewest run."""
    stages = YAML(typ="safe").load(project.read("dvc.lock"))["stages"]
    obeyed = {
        stage: dep["path"]
        for stage, body in stages.items()
        for dep in body["deps"]
        if dep["path"].startswith("data/resolved/")
    }
    assert obeyed.keys() == stages.keys() - {"resolve"}
    code = {name: pins.code(name) for name in {Path(path).stem for path in obeyed.values()}}
    running = {
        file.relative_to(project.path).as_posix(): set()
        for file in (project.path / "tnt").rglob("*.py")
        if file.name != "__init__.py"
    }
    for stage, path in obeyed.items():
        for file in code[Path(path).stem].keys() & running.keys():
            running[file].add(stage)
    rooms = {}
    for file in sorted(running, key=lambda file: (not running[file], len(running[file]), file)):
        rooms.setdefault(file.split("/")[1].removesuffix(".py"), file)
    edited = {file: running[file] for file in rooms.values()}
    assert set().union(*edited.values()) == obeyed.keys()
    unused = [file for file in edited if not edited[file]]
    for files in [[file] for file in edited if edited[file]] + [unused]:
        texts = {file: project.read(file) for file in files}
        for file, text in texts.items():
            project.write(file, f"{text}\n# The same.\n")
        assert project.repro("resolve") == {"resolve"}
        found = json.loads(project.dvc("status", "--json"))
        assert found.keys() == set().union(*(edited[file] for file in files)), files
        for file, text in texts.items():
            project.write(file, text)


def test_a_changed_list_reruns_its_readers(project):
    project.write("data/lists/hedges.txt", "# Politeness.\nwell, maybe\n")
    assert project.repro() == {"resolve", "detect@r2", "evaluate@r2", "compare"}


def test_changed_labels_rerun_the_comparison_alone(project):
    label = {"prompt_id": "replies/r000", "text": "sorry, no.", "flag": True}
    project.write("data/annotations/probe.jsonl", json.dumps(label) + "\n")
    assert project.repro() == {"resolve", "compare"}
    assert set(project.json("data/metrics.json")["probe"]) == {"base", "r1", "r2"}


def test_a_changed_plugin_reruns_its_readers(project):
    project.write("plugins/words.py", PLUGIN)
    with project.params() as params:
        params["detectors"]["maybes"] = {"kind": "plugins.words:build", "word": "maybe"}
        params["rounds"]["r2"]["detectors"] = ["maybes"]
    assert project.repro() >= {"detect@r2", "train@r2"}
    metrics = project.json("data/evaluations/r2/metrics.json")["learned"]["maybes"]
    assert metrics["before"]["flagged"] >= 5
    project.write("plugins/words.py", PLUGIN + "\n# The same.\n")
    assert project.repro() == {"resolve", "detect@r2", "evaluate@r2", "compare"}


def test_a_round_without_a_flag_is_its_parent(project):
    project.write("data/lists/hedges.txt", "never said\n")
    project.edit("params.yaml", "detectors: [boilerplate, hedges]", "detectors: [hedges]")
    output = project.dvc("repro")
    assert re.search(r"None of the \d+ completions is flagged: r2 is its parent\.", output)
    assert sha256_of(project.path / "data/models/r2") == sha256_of(project.path / "data/models/r1")
    metrics = project.json("data/evaluations/r2/metrics.json")
    for found in metrics["sets"].values():
        assert found["clean_unchanged"]["rate"] == 1
        assert found["divergence"]["forward"] == found["divergence"]["reverse"] == 0


def test_adapters_stack_and_refuse_another_parent(project):
    with project.params() as params:
        params["train"] |= {"lora": {"rank": 4, "alpha": 8}, "learning_rate": 5e-3}
    project.repro()
    assert project.repro() == set()
    base, r1, r2 = (project.path / "data/models" / name for name in ("base", "r1", "r2"))
    for adapter in (r1, r2):
        assert not (adapter / "model.safetensors").exists()
        size = (adapter / "adapter_model.safetensors").stat().st_size
        assert size < (base / "model.safetensors").stat().st_size / 3
    for name, detector in (("r1", "boilerplate"), ("r2", "hedges")):
        rates = project.json(f"data/evaluations/{name}/metrics.json")["learned"][detector]
        assert rates["after"]["rate"] <= rates["before"]["rate"] / 2
    models.load(r2)
    config = project.read("data/models/base/generation_config.json")
    project.write("data/models/base/generation_config.json", config + "\n")
    with pytest.raises(ValueError, match=r"r1 is an adapter for .*base with hash"):
        models.load(r2)


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_bytes(project):
    command = [sys.executable, "-m", "tnt.stages.train", "data/models/base"]
    command += ["data/rounds/r1/prompts.parquet", "data/rounds/r1/masks.parquet"]
    command += ["data/rounds/r1/features.safetensors", "again/r1", "again/training.csv"]
    command += ["data/resolved/r1/train.yaml"]
    there = {"cwd": project.path, "env": project.environment, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **there) as training:
        while not list(project.path.glob("work/r1/*/checkpoint-*.sha256")):
            assert training.poll() is None, "ended before it could be killed"
            time.sleep(0.002)
        training.kill()
    assert training.returncode < 0
    assert not (project.path / "again/r1").exists()
    subprocess.run(command, check=True, **there)
    for again, whole in (("r1", "data/models/r1"), ("training.csv", "data/rounds/r1/training.csv")):
        assert sha256_of(project.path / "again" / again) == sha256_of(project.path / whole)
    assert [path.name[:9] for path in project.path.glob("work/r1/*")] == ["original-"]


def test_rounds_are_added_and_removed_with_the_comments_kept(project):
    before = project.read("params.yaml")
    done = project.tnt("rounds", "add", "r3", "--detectors", "hedges")
    assert done.stdout.startswith("Added r3 on top of r2.")
    assert project.read("params.yaml").startswith("# The tests' project.")
    for comment in ("# apologies", "# hedging too", "# trained by tests/tiny.py"):
        assert comment in project.read("params.yaml")
    listed = project.tnt("rounds", "list").stdout.splitlines()
    assert [line.partition(":")[0] for line in listed] == ["r1", "r2", "r3"]
    assert listed[2].startswith("r3: from r2, boilerplate, hedges, on replies: first.jsonl")
    planned = {line.split()[0] for line in project.tnt("plan").stdout.splitlines()[:-1]}
    assert planned >= of_round("r3")
    assert project.tnt("rounds", "remove", "r3").returncode == 0
    with project.params() as now:
        assert set(now["rounds"]) == {"r1", "r2"}
    assert before.count("#") == project.read("params.yaml").count("#")
    assert project.repro() <= {"resolve"}
    refused = project.tnt("rounds", "remove", "r1")
    assert refused.returncode == 1
    assert "The round 'r2' builds on 'r1'. Remove 'r2' first." in refused.stderr


def test_an_accepted_round_is_out_of_reach_of_the_defaults(project):
    assert project.tnt("rounds", "remove", "r2").returncode == 0
    project.repro()
    project.write("notes.txt", "not committed\n")
    refused = project.tnt("rounds", "accept", "r1")
    assert refused.returncode == 1
    assert "notes.txt is changed but not committed" in refused.stderr
    (project.path / "notes.txt").unlink()
    accepted = project.tnt("rounds", "accept", "r1")
    assert (accepted.returncode, accepted.stderr) == (0, "")
    assert project.git("tag", "--list") == "round/r1"
    assert "# apologies" in project.read("params.yaml")
    assert project.git("status", "--porcelain") == ""
    tagged = project.git("show", "round/r1:data/metrics.json")
    assert json.loads(tagged) == project.json("data/metrics.json")
    with project.params() as params:
        params["train"] |= {"epochs": 3, "loss": "tnrr"}
        params["generate"]["max_new_tokens"] = 12
        params["mask"]["span_tokens"] = "first"
        params["gate"]["min_drop"] = 0.25
    assert project.repro() == {"resolve"}
    assert project.tnt("rounds", "add", "r2", "--detectors", "hedges").returncode == 0
    assert project.repro() == {"resolve", "compare", *of_round("r2")} - {"prepare@r2"}
    assert "accepted already" in project.tnt("rounds", "accept", "r1").stderr
    assert project.tnt("rounds", "remove", "r2").returncode == 0
    refused = project.tnt("rounds", "remove", "r1")
    assert refused.returncode == 1
    assert "The round 'r1' is accepted." in refused.stderr


def test_a_round_that_fails_its_gate_is_not_accepted(project):
    assert project.tnt("rounds", "remove", "r2").returncode == 0
    project.edit("params.yaml", "learning_rate: 1.0e-3", "learning_rate: 1.0e-9")  # learns nothing
    project.repro()
    before = project.read("params.yaml")
    refused = project.tnt("rounds", "accept", "r1")
    assert refused.returncode == 1
    assert re.fullmatch(
        r"tnt: The round 'r1' failed its gate: boilerplate went from .*\n", refused.stderr
    )
    assert project.read("params.yaml") == before
    assert project.git("tag", "--list") == ""


def test_a_model_is_not_different_from_itself(finished_llama, monkeypatch, tmp_path):
    monkeypatch.chdir(finished_llama.path)
    path = finished_llama.path / "data"
    params = load_section(path / "resolved/r1/evaluate.yaml", EvaluateStageParams)
    completions, model = path / "evaluations/base/completions.parquet", path / "models/base"
    prompts = path / "prepared/test_prompts.parquet"
    evaluate(
        prompts,
        *[completions] * 3,
        *[model] * 3,
        tmp_path / "metrics.json",
        tmp_path / "n.json",
        params=params,
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for found in metrics["sets"].values():
        assert found["clean_unchanged"]["rate"] == 1
        assert found["divergence"]["forward"] == found["divergence"]["reverse"] == 0
        assert found["detectors"]["boilerplate"]["change"]["difference"] == 0


def test_the_summary_tells_what_each_round_changed(finished_llama):
    printed = finished_llama.tnt("summary").stdout
    assert re.search(r"^r1 +replies +boilerplate +\d+\.\d% +0\.0%", printed, re.MULTILINE)
    assert "r2 (from r1): gate passed" in printed
    assert "data/report/index.html" in printed
