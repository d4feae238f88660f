"""Bad input: one line of ours that says what is wrong and what to do, and nothing is touched."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import tiny
from projects import ROOT, Project

from tnt import prompts
from tnt.core import artifacts, hashes
from tnt.core.hashes import sha256_of
from tnt.core.records import Mask, Prompt

FIRST = "data/prompts/replies/first.jsonl"
TNT = ("python", "-c", "from tnt.cli import run; run()")
RESOLVE = ("python", "-m", "tnt.stages.resolve", "data/resolved", "params.yaml")
PREPARE = (
    "python", "-m", "tnt.stages.prepare", "data/models/base", "data/new.parquet",
    "data/resolved/r1/prepare.yaml",
)  # fmt: skip
LONG = {"id": "long", "input": "Apple " * 12}
HUGE = {"id": "huge", "input": "Apple " * (50 * 2**20 // 6)}
BOMB = "a0: &a0 [9, 9, 9, 9, 9, 9, 9, 9, 9]\n" + "".join(
    f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
"""3,486,784,401 numbers in 400 characters."""


def append(line):
    """Append a line, the 41st, to the prompt file; break a hard link to the cache, if it is one."""
    return lambda project: project.write(FIRST, project.read(FIRST) + line + "\n")


def edit(old, new):
    return lambda project: project.edit("params.yaml", old, new)


def make_folder(project):
    project.write("data/models/r7/model.safetensors", "")


def encode(encoding):
    def change(project):
        text = project.read(FIRST)
        (project.path / FIRST).unlink()
        (project.path / FIRST).write_bytes(text.encode(encoding))

    return change


def make_folder_of(name):
    def change(project):
        (project.path / name).unlink()
        (project.path / name).mkdir()

    return change


def link_out(name):
    """Move a file or folder out of the project, and link to it from its place."""

    def change(project):
        outside = project.path.parent / "outside"
        shutil.move(project.path / name, outside)
        (project.path / name).symlink_to(outside)

    return change


def link_to_nothing(project):
    (project.path / FIRST).unlink()
    (project.path / FIRST).symlink_to("nothing.jsonl")


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
    "50 MB in a line": (
        append(json.dumps(HUGE)),
        [f"{FIRST}, line 41 has 52,428,825 characters. No prompt may have more than", "shorten it"],
    ),
    "no text, and long": (
        append(json.dumps({"id": "x", "input": [LONG["input"]] * 1000})),
        [f"{FIRST}, line 41: 'input' is ['Apple", "... It must be a text that is not empty."],
    ),
    "nested without end": (append("[" * 100_000), [f"{FIRST}, line 41 is not JSON", "recursion"]),
    "half a surrogate pair": (
        append('{"id": "x", "input": "Apple \\ud83d pie"}'),
        [f"{FIRST}, line 41 is not JSON", "surrogates not allowed"],
    ),
    "UTF-16": (encode("utf-16"), [f"{FIRST} is not UTF-8", "Convert it."]),
    "UTF-16 without a mark": (encode("utf-16-le"), [f"{FIRST}, line 1 is not JSON"]),
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
    "missing key": (
        edit("  divergence_prompts: 8\n", ""),
        ["params.yaml: the key 'evaluate.divergence_prompts' is missing"],
    ),
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
    "tabs": (
        edit("  epochs: 12", "\tepochs: 12"),
        ["params.yaml, line 33 is not valid YAML: found character that", "Correct the file."],
    ),
    "key twice": (
        edit("  epochs: 12", "  epochs: 12\n  epochs: 13"),
        ["params.yaml, line 34 is not valid YAML: found duplicate key", "Correct the file."],
    ),
    "bomb of aliases": (
        edit("  epochs: 12", f"  {BOMB}  epochs: 12"),
        ["params.yaml holds 4.41e+09 values when its aliases are written out", "without them."],
    ),
    "alias of itself": (
        edit("  epochs: 12", "  epochs: &a [*a]"),
        ["params.yaml is nested too deeply, or an alias in it contains itself. Correct the file."],
    ),
    "not UTF-8": (
        lambda project: (project.path / "params.yaml").write_bytes(b"train: \xff"),
        ["params.yaml is not valid YAML: 'utf-8' codec can't decode", "Correct the file."],
    ),
    "prompt file is a folder": (
        make_folder_of(FIRST),
        [f"params.yaml: rounds.r1.prompts names 'first.jsonl', but {FIRST} is no file."],
    ),
    "prompt file is a link": (
        link_out(FIRST),
        [f"rounds.r1.prompts names '{FIRST}', a link to", "outside the project", "Put a copy"],
    ),
    "prompt folder is a link": (
        link_out("data/prompts/replies"),
        [f"rounds.r1.prompts names '{FIRST}', a link to", "outside the project", "Put a copy"],
    ),
    "prompt file is a link to nothing": (link_to_nothing, ["a link to nothing. Mend it."]),
    "list is a link": (
        link_out("data/lists/boilerplate.txt"),
        ["params.yaml: detectors.boilerplate names 'data/lists/boilerplate.txt', a link to"],
    ),
    "labels are a link": (
        link_out("data/annotations/probe.jsonl"),
        ["params.yaml: report.probe names 'data/annotations/probe.jsonl', a link to"],
    ),
    "folder of no round": (
        make_folder,
        ["data/models/r7 belongs to no round in params.yaml", "`tnt rounds prune` deletes"],
    ),
}


def outputs(project: Project) -> str:
    return sha256_of(project.path / "data")


@pytest.mark.parametrize(("change", "parts"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_check_refuses_bad_prompts(project, refused, change, parts):
    change(project)
    before = outputs(project)
    line = refused("check")
    assert all(part in line for part in parts), line
    assert outputs(project) == before


@pytest.mark.parametrize(("change", "parts"), BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_check_and_resolve_refuse_bad_params(project, refused, change, parts):
    change(project)
    before = outputs(project)
    for command in ("check", "resolve"):
        line = refused(command)
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
    line = project.refusal(*TNT, "rounds", "add", *arguments)
    assert all(part in line for part in parts), line
    assert "partial" not in line
    assert project.read("params.yaml") == before


def test_an_edit_between_resolve_and_a_stage_is_noticed(project):
    append('{"id": "x", "input": "Apple"}')(project)
    assert project.refusal(*PREPARE).endswith("changed after it was resolved. Run `dvc repro`.")
    assert not (project.path / "data/new.parquet").exists()


def test_dvc_says_it_too_and_keeps_what_was_made(project):
    append('{"id": "x"')(project)
    before = sha256_of(project.path / "data/models"), sha256_of(project.path / "data/rounds")
    done = project.run("python", "-m", "dvc", "repro")
    assert done.returncode != 0
    assert f"resolve: {FIRST}, line 41 is not JSON" in done.stderr
    assert "Traceback" not in done.stderr
    project.dvc("checkout")  # dvc deletes the outputs of a stage that it runs
    after = sha256_of(project.path / "data/models"), sha256_of(project.path / "data/rounds")
    assert after == before


@contextlib.contextmanager
def unprivileged():
    """Be somebody whose permissions count, if root runs this."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_prompt_file_that_may_not_be_read_is_an_error():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "first.jsonl")
        path.write_text('{"id": "a", "input": "Apple"}\n')
        os.chmod(folder, 0o755)
        path.chmod(0)
        with unprivileged(), pytest.raises(OSError, match=r"Permission denied: .*first\.jsonl"):
            prompts.read_file(path)


def test_links_that_dvc_makes_are_followed(project):
    """Into its own cache, where `cache.type` says so: outputs, and a list it was given to keep."""
    project.dvc("config", "cache.type", "symlink")
    project.git("rm", "--quiet", "--cached", "data/lists/hedges.txt")
    project.dvc("add", "--quiet", "data/lists/hedges.txt")
    project.dvc("checkout", "--relink", "--force", "--quiet")
    for name in ("data/lists/hedges.txt", "data/rounds/r1/flags.parquet", "data/models/r1"):
        path = project.path / name
        linked = [path] if path.is_file() else [*path.glob("*.safetensors")]
        assert linked
        assert all(".dvc/cache" in str(file.resolve()) for file in linked)
    assert project.tnt("check").returncode == 0
    assert project.run(*project.command("detect", "r2")).returncode == 0
    assert project.repro() <= {"resolve"}  # which reads the folder of lists


IDS = ["a/b", "a b", "a\nb", "../../up", "/root", "a\x00b", "<b>", "\u202eab", "é" * 300]


def test_an_id_is_any_text_and_no_path(project):
    """Of prompts that are trained on: from the file to the masks, and nothing appears elsewhere."""
    shares = prompts.Shares(train=0.5, validation=0.15, test=0.35)
    learned = [text for text in tiny.inputs(60, 5) if prompts.split_of(text, shares) == "train"]
    rows = [{"id": id_, "input": text} for id_, text in zip(IDS, learned, strict=False)]
    project.write(FIRST, "".join(json.dumps(row) + "\n" for row in rows))
    around = set(project.path.parent.rglob("*")) - set(project.path.rglob("*"))
    assert project.tnt("check").returncode == 0
    assert project.run(*RESOLVE).returncode == 0
    for stage in ("prepare", "generate", "detect", "rollout", "mask"):
        done = project.run(*project.command(stage))
        assert done.returncode == 0, done.stderr
    masks = artifacts.read(project.path / "data/rounds/r1/masks.parquet", Mask)
    found = {mask.prompt_id for mask in masks if mask.prompt_id.startswith("replies/")}
    assert found == {f"replies/{id_}" for id_ in IDS}
    assert set(project.path.parent.rglob("*")) - set(project.path.rglob("*")) == around


def repeat_inputs(project, prompt_set):
    """Give a prompt set the inputs of `replies`, in capitals and with more space."""
    rows = [json.loads(line) for line in project.read(FIRST).splitlines()]
    again = [{"id": f"again{i}", "input": f" {r['input'].upper()}  "} for i, r in enumerate(rows)]
    path = f"data/prompts/{prompt_set}/first.jsonl"
    project.write(path, "".join(json.dumps(row) + "\n" for row in again))


def test_an_input_in_two_prompt_sets_is_in_one_split(project):
    repeat_inputs(project, "summaries")
    assert project.tnt("check").returncode == 0
    assert project.run(*RESOLVE).returncode == 0
    inputs = {}
    for stage in ("prepare", "prepare_test"):
        assert project.run(*project.command(stage)).returncode == 0
        rows = artifacts.read(project.path / project.command(stage)[4], Prompt)
        inputs[stage] = {hashes.normalised(row.input) for row in rows}
        assert len(rows) > len(inputs[stage])  # some occur in both sets
    assert not inputs["prepare"] & inputs["prepare_test"]


def test_an_input_learned_from_in_one_set_and_measured_in_another_is_refused(project, refused):
    repeat_inputs(project, "questions")  # whose shares are others
    line = refused("check")
    assert re.search(r"'replies/r\d+' and 'questions/again\d+' have the same input", line)
    assert "r1 would learn from the first and be measured by the second" in line
    assert "Give both prompt sets the same shares" in line


def test_labels_that_cannot_be_read_are_refused_before_anything_runs(project, refused):
    project.write("data/annotations/probe.jsonl", '{"prompt_id": "a", "text": "SECRET"\n')
    line = refused("check")
    assert "data/annotations/probe.jsonl, line 1 is no label (JSONDecodeError" in line
    assert "SECRET" not in line


def test_a_full_disk_leaves_params_as_they_were(project):
    before = project.read("params.yaml")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        "from tnt.cli import run; run()"
    )
    line = project.refusal("python", "-c", code, "rounds", "add", "r3", "--detectors", "hedges")
    assert "File too large" in line
    assert "Check free space and permissions" in line
    assert project.read("params.yaml") == before


def test_debug_shows_the_traceback(project):
    edit("parent: r1\n", "parent: r9\n")(project)
    done = project.tnt("--debug", "check")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_the_table_of_what_goes_wrong_names_tests_that_exist():
    """docs/robustness.md: three columns, the last `tests/<file>.py::<test>` or that with an id."""
    lines = (ROOT / "docs/robustness.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if "::" in line]
    assert len(rows) >= 45
    assert all(len(row) == 3 for row in rows)
    for _, _, test in rows:
        file, name, id_ = re.fullmatch(r"`(tests/[\w/]+\.py)::(\w+)(?:\[(.+)\])?`", test).groups()
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert name in functions, test
        assert id_ is None or id_ in texts, test
    assert len({row[0] for row in rows}) == len(rows), "a row twice"
