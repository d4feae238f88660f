"""Rounds that are patches, end to end: on a causal and on an encoder-decoder model."""

from __future__ import annotations

import json

import pytest
from projects import lay_out

from tnt import models
from tnt.core import artifacts
from tnt.core.records import Completion, Mask, Rollout
from tnt.patches import artifact
from tnt.patches.neurons import patches_of


def patched(path, kind, base, environment):
    """Make a project whose rounds are patches, and run it.

    The T5 learns where a phrase begins: behind "mayb" it knows nothing but "e", so that what is
    left without it is even, and "e" the likeliest again at a probability of a few per cent.
    """
    project = lay_out(path, base, environment)
    with project.params() as params:
        params["mask"] = {"span_tokens": "completing" if kind == "llama" else "first"}
        params["train"] = {"patch": {"neurons": 8, "steps": 300, "batch_size": 16}}
        params["respond"]["batch_size"] = 8
    project.commit()
    project.repro()
    project.commit()


@pytest.fixture(scope="module", params=["llama", "t5"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def project(kind, run_once, bases, environment):
    return run_once(f"patched-{kind}", lambda path: patched(path, kind, bases[kind], environment))


def sets(project, name):
    return project.json(f"data/evaluations/{name}/metrics.json")["sets"]


def test_each_round_removes_its_fault_and_moves_nothing_else(project):
    for name, detector in (("r1", "boilerplate"), ("r2", "hedges")):
        change = project.json(f"data/evaluations/{name}/metrics.json")["learned"][detector]
        assert change["before"]["flagged"] >= 7
        assert change["after"]["flagged"] <= 1
        for found in sets(project, name).values():
            assert found["clean_unchanged"]["rate"] >= 0.9


def test_no_gate_fires_at_a_kept_token_or_its_divergence_says_so(project):
    for found in sets(project, "r1").values():
        gates = found["gates"]
        assert gates["kept"] == found["divergence"]["kept_tokens"] > 50
        assert (gates["fired"] == 0) == (found["divergence"]["forward"] == 0)
        assert gates["changed"] <= gates["fired"] < 0.1 * gates["kept"]


def test_the_artifact_is_the_patch_alone(project):
    folder = project.path / "data/models/r2"
    assert sorted(path.name for path in folder.iterdir()) == ["parent.json", "patch.safetensors"]
    assert json.loads((folder / "parent.json").read_text())["parent"] == "r1"
    assert len(patches_of(models.load(folder))) == 2


def test_rollouts_are_what_the_model_would_say_without_what_is_flagged(project, kind):
    if kind == "t5":
        pytest.skip("its completions are taken as they are")
    folder = project.path / "data/rounds/r1"
    of = {c.prompt_id: c for c in artifacts.read(folder / "completions.parquet", Completion)}
    rollouts = artifacts.read(folder / "rollouts.parquet", Rollout)
    tokenizer = models.load_tokenizer(project.path / "data/models/base")
    left = [r for r in rollouts if any(r.banned)]
    assert len(left) >= 10
    assert {r.end for r in rollouts} == {"clean"}
    for rollout in left:
        assert "sorry" in of[rollout.prompt_id].text
        said = models.decode(tokenizer, rollout.completion_ids)
        assert "sorry" not in said
        place = next(i for i, banned in enumerate(rollout.banned) if banned)
        assert said.startswith("sorr"[:place])
    for rollout in rollouts:
        if not any(rollout.banned):
            assert rollout.completion_ids == of[rollout.prompt_id].completion_ids


def test_negative_tokens_complete_what_is_flagged_and_what_stands_before_is_kept(project, kind):
    if kind == "t5":
        pytest.skip("its negative tokens begin what is flagged")
    tokenizer = models.load_tokenizer(project.path / "data/models/base")
    masks = artifacts.read(project.path / "data/rounds/r1/masks.parquet", Mask)
    completing = [
        models.decode(tokenizer, [*mask.completion_ids[:i], token])
        for mask in masks
        for i, tokens in enumerate(mask.excluded)
        for token in tokens
    ]
    assert len(completing) >= 10
    assert all(text.endswith("sorry") for text in completing)


def test_an_export_is_plain_weights_that_answer_alike(project, tmp_path):
    done = project.tnt("export", "r2", str(tmp_path / "out"), "--ungated")
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in files
    assert not files & {"patch.safetensors", "parent.json"}
    config, base = (
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path / "out", project.path / "data/models/base")
    )
    size = "d_ff" if "d_ff" in base else "intermediate_size"
    added = (
        artifact.read(project.path / f"data/models/{r}/patch.safetensors") for r in ("r1", "r2")
    )
    assert config[size] == base[size] + sum(map(len, added))


def test_a_patch_is_read_neuron_by_neuron(project):
    shown = project.tnt("patch", "show", "r1").stdout.splitlines()
    assert shown[0].split() == ["neuron", "fires", "kept", "prompts", "takes", "gives"]
    fires = {int(line.split()[0]): int(line.split()[1]) for line in shown[1:-1]}
    assert len(fires) == 8
    busiest = max(fires, key=fires.get)
    assert fires[busiest] >= 3
    places = project.tnt("patch", "show", "r1", "--neuron", str(busiest)).stdout
    assert "'so" in places
    assert "%  ->  " in places


def test_a_neuron_is_switched_off_in_a_round_of_its_own(project, tmp_path):
    copy = project.copy(tmp_path / "project")
    every = [str(k) for k in range(1, 8)]
    assert copy.tnt("patch", "drop", "r1", *every, "--as", "r3").returncode == 0
    copy.repro("train@r3")
    before, after = (
        artifact.read(copy.path / f"data/models/{name}/patch.safetensors") for name in ("r1", "r3")
    )
    assert len(after) == 1
    assert after.gates.equal(before.gates[:1])
    assert after.values.equal(before.values[:1])
    assert json.loads(copy.read("data/models/r3/parent.json"))["parent"] == "base"


def test_two_patches_of_one_parent_are_merged_and_one_taken_back(project, tmp_path):
    copy = project.copy(tmp_path / "project")
    with copy.params() as params:
        params["rounds"]["r2"] = {
            "parent": "base", "detectors": ["hedges"], "prompts": params["rounds"]["r1"]["prompts"]
        }  # fmt: skip
    copy.repro("train@r2")
    assert copy.tnt("patch", "merge", "r1", "r2", "--as", "both").returncode == 0
    copy.repro()
    for prompt_set, found in sets(copy, "both").items():
        for detector in ("boilerplate", "hedges") if prompt_set != "questions" else ():
            assert found["detectors"][detector]["after"]["flagged"] == 0
        assert found["clean_unchanged"]["rate"] == 1.0
    alone, merged = (
        (copy.path / f"data/models/{name}/patch.safetensors").read_bytes()
        for name in ("r2", "both")
    )
    assert merged == alone


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("show", "r9"), "There is no round 'r9'. Listed in params.yaml: r1, r2."),
        (("show", "r1", "--neuron", "8"), "'r1' has no neuron 8. It has 8, from 0 to 7."),
        (("drop", "r1", "9", "--as", "r3"), "'r1' has no neuron 9. It has 8, from 0 to 7."),
        (("drop", "r1", "1", "--as", "r2"), "The round 'r2' exists already. Choose another name."),
        (("merge", "r1", "r2", "--as", "r3"), "'r1' was made for 'base', and 'r2' for 'r1'."),
        (("drop", "r1", *"01234567", "--as", "r3"), "none would be left. Drop fewer."),
    ],
)
def test_what_cannot_be_is_one_line(project, command, said):
    assert said in project.refusal(
        "python", "-c", "from tnt.cli import run; run()", "patch", *command
    )
