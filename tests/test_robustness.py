"""Bad input: one line of ours that says what is wrong and what to do, and nothing is touched."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import Project

from tnt.artifacts import sha256_of

FIRST = "data/prompts/replies/first.jsonl"
TNT = ("python", "-c", "from tnt.cli import run; run()")
CHECK = (*TNT, "check")
RESOLVE = ("python", "-m", "tnt.stages.resolve", "data/resolved", "params.yaml")
PREPARE = (
    "python", "-m", "tnt.stages.prepare", "data/models/base", "data/new.parquet",
    "data/resolved/r1/prepare.yaml",
)  # fmt: skip
LONG = {"id": "long", "input": "Apple " * 12}


def append(line):
    """Append a line, the 41st, to the prompt file; break a hard link to the cache, if it is one."""
    return lambda project: project.write(FIRST, project.read(FIRST) + line + "\n")


def edit(old, new):
    return lambda project: project.edit("params.yaml", old, new)


def make_folder(project):
    (project.path / "data/models/r7").mkdir()


def forget_chat_template(project):
    (project.path / "data/models/base/chat_template.jinja").unlink()


def unlist_boilerplate(project):
    (project.path / "data/lists/boilerplate.txt").unlink()


BAD_PROMPTS = {
    "broken JSON": (
        append('{"id": "x", "input": "Apple'),
        [f"{FIRST}, line 41 is not JSON", "Correct the line."],
    ),
    "no object": (append('"Apple"'), [f"{FIRST}, line 41 is", "not a JSON object"]),
    "no id": (append('{"input": "Apple"}'), [f"{FIRST}, line 41: 'id' is None. It must be a text"]),
    "id twice": (
        append('{"id": "r003", "input": "Apple"}'),
        [f"{FIRST}, line 41: the id 'r003' occurs twice. Rename one."],
    ),
    "unknown key": (
        append('{"id": "x", "inptu": "Apple"}'),
        [f"{FIRST}, line 41: unknown key 'inptu'. Did you mean 'input'?"],
    ),
    "empty file": (
        lambda project: project.write(FIRST, ""),
        [f"{FIRST} holds no prompt. Add one JSON object a line"],
    ),
    "too long": (
        append(json.dumps(LONG)),
        ["'replies/long' has 74 tokens and may get 14 more", "context is 64. Shorten the prompt"],
    ),
    "no chat template": (
        forget_chat_template,
        ["prompt_sets.replies.chat is true, but the model has no chat template. Set it to false"],
    ),
}
BAD_PARAMS = {
    "not YAML": (edit("rounds:\n", "rounds: [\n"), ["params.yaml, line", "is not valid YAML"]),
    "unknown section": (
        edit("respond:", "responds:"),
        ["params.yaml: unknown section 'responds'. Did you mean 'respond'?"],
    ),
    "unknown key": (
        edit("learning_rate:", "learningrate:"),
        ["params.yaml: unknown key 'train.learningrate'. Did you mean 'learning_rate'?"],
    ),
    "unknown key of a round": (
        edit("parent: r1\n", "parent: r1\n    train: {epoch: 3}\n"),
        ["params.yaml: rounds.r2.train: unknown key 'epoch'. Did you mean 'epochs'?"],
    ),
    "wrong type": (
        edit("batch_size: 8", "batch_size: eight"),
        ["params.yaml: train.batch_size is 'eight'", "Correct the value."],
    ),
    "missing key": (edit("  epochs: 12\n", ""), ["params.yaml: the key 'train.epochs' is missing"]),
    "shares": (
        edit("{train: 0, validation: 0.3, test: 0.7}", "{train: 0.5, validation: 0.3, test: 0.7}"),
        ["params.yaml: prompt_sets.questions.shares", "add up to 1.5; make it 1"],
    ),
    "unknown parent": (
        edit("parent: r1\n", "parent: r9\n"),
        ["params.yaml: rounds.r2.parent is 'r9', which is no round. Valid: base, r1."],
    ),
    "number as a round": (
        edit("  r2: ", "  2: "),
        ["params.yaml: the round 2 is a number", "Call it 'r2'."],
    ),
    "cycle": (
        edit("parent: base\n", "parent: r2\n"),
        ["params.yaml: rounds.r1.parent is 'r2'", "makes a cycle. Name an earlier round."],
    ),
    "unknown detector": (
        edit("[boilerplate, hedges]", "[boilerplate, hegdes]"),
        ["params.yaml: rounds.r2.detectors names 'hegdes'", "Did you mean 'hedges'?"],
    ),
    "unknown kind": (
        edit("hedges: {kind: phrases", "hedges: {kind: phrase"),
        ["detectors.hedges.kind is 'phrase', which is no detector. Did you mean 'phrases'?"],
    ),
    "missing list": (
        unlist_boilerplate,
        ["detectors.boilerplate reads 'data/lists/boilerplate.txt', which does not exist."],
    ),
    "missing prompt file": (
        edit("first.jsonl], questions", "frist.jsonl], questions"),
        ["params.yaml: evaluate.prompts names 'frist.jsonl', but data/prompts/summaries/frist"],
    ),
    "folder of no round": (
        make_folder,
        ["data/models/r7 belongs to no round in params.yaml", "`tnt rounds prune` deletes"],
    ),
}


def refusal(project: Project, command: tuple[str, ...]) -> str:
    """Run what must fail with one line; return that line."""
    done = project.run(*command)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def outputs(project: Project) -> str:
    return sha256_of(project.path / "data")


@pytest.mark.parametrize(("change", "parts"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_check_refuses_bad_prompts(project, change, parts):
    change(project)
    before = outputs(project)
    line = refusal(project, CHECK)
    assert all(part in line for part in parts), line
    assert outputs(project) == before


@pytest.mark.parametrize(("change", "parts"), BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_check_and_resolve_refuse_bad_params(project, change, parts):
    change(project)
    before = outputs(project)
    for command in (CHECK, RESOLVE):
        line = refusal(project, command)
        assert all(part in line for part in parts), line
    assert outputs(project) == before


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("r2", "--detectors", "hedges"), ["The round 'r2' exists already."]),
        (("3", "--detectors", "hedges"), ["a round cannot be called '3'", "like 'r1'"]),
        (("r3", "--detectors", "hegdes"), ["'hegdes'", "Did you mean 'hedges'?"]),
        (("r3", "--detectors", "hedges", "--parent", "r9"), ["'r9', which is no round"]),
    ],
)
def test_add_refuses_and_leaves_params_alone(project, arguments, parts):
    before = project.read("params.yaml")
    line = refusal(project, (*TNT, "rounds", "add", *arguments))
    assert all(part in line for part in parts), line
    assert "partial" not in line
    assert project.read("params.yaml") == before


def test_an_edit_between_resolve_and_a_stage_is_noticed(project):
    append('{"id": "x", "input": "Apple"}')(project)
    assert refusal(project, PREPARE).endswith("changed after it was resolved. Run `dvc repro`.")
    assert not (project.path / "data/new.parquet").exists()


def test_dvc_says_it_too_and_keeps_what_was_made(project):
    append('{"id": "x"')(project)
    before = sha256_of(project.path / "data/models"), sha256_of(project.path / "data/rounds")
    done = project.run("python", "-m", "dvc", "repro")
    assert done.returncode != 0
    assert f"prepare: {FIRST}, line 41 is not JSON" in done.stderr
    assert "Traceback" not in done.stderr
    project.dvc("checkout")  # dvc deletes the outputs of a stage that it runs
    after = sha256_of(project.path / "data/models"), sha256_of(project.path / "data/rounds")
    assert after == before


STAGES_THAT_WRITE = {
    "base": ("data/new/model", "data/resolved/base/base.yaml"),
    "generate": (
        "data/models/base", "data/rounds/r1/prompts.parquet", "data/new/completions.parquet",
        "data/resolved/r1/generate.yaml",
    ),
    "train": (
        "data/models/base", "data/rounds/r1/masks.parquet", "data/new/model",
        "data/new/training.csv", "data/resolved/r1/train.yaml",
    ),
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES_THAT_WRITE)
def test_a_full_disk_is_said_in_one_line(project, stage):
    """The size of a file is limited to 1 KiB, which fails as a full disk does."""
    command = [sys.executable, "-m", f"tnt.stages.{stage}", *STAGES_THAT_WRITE[stage]]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *command],
        cwd=project.path,
        env={**project.environment, "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{stage}: "), done.stderr
    assert "Check free space and permissions" in last
    assert not [file for file in project.path.glob("data/new/*.*") if file.is_file()]


def test_debug_shows_the_traceback(project):
    edit("parent: r1\n", "parent: r9\n")(project)
    done = project.tnt("--debug", "check")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
