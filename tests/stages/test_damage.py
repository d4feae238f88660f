"""Damage: artifacts, models and metrics that are cut short or not ours; full disks; kills.

A stage says what is wrong and what to do, in one line, and writes nothing. Or, where DVC can make
it again, the result is the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from pickled import Pickled
from ruamel.yaml import YAML

from tnt import base, models, sampling
from tnt.core import artifacts
from tnt.core.hashes import sha256_of
from tnt.core.params import dump_yaml
from tnt.core.records import Completion, Flag, Mask, Prompt
from tnt.detectors import running
from tnt.evaluation import measures
from tnt.stages import evaluate, prepare
from tnt.training import run

R1 = "data/rounds/r1"
RECORDS = {
    f"{R1}/prompts.parquet": Prompt,
    f"{R1}/completions.parquet": Completion,
    f"{R1}/flags.parquet": Flag,
    f"{R1}/masks.parquet": Mask,
    "data/prepared/test_prompts.parquet": Prompt,
    "data/evaluations/base/completions.parquet": Completion,
    "data/evaluations/r1/completions.parquet": Completion,
}
READ = [
    ("generate", f"{R1}/prompts.parquet"),
    ("detect", f"{R1}/completions.parquet"),
    ("mask", f"{R1}/completions.parquet"),
    ("mask", f"{R1}/flags.parquet"),
    ("train", f"{R1}/masks.parquet"),
    ("respond_base", "data/prepared/test_prompts.parquet"),
    ("respond", "data/prepared/test_prompts.parquet"),
    ("evaluate", "data/prepared/test_prompts.parquet"),
    ("evaluate", "data/evaluations/base/completions.parquet"),
    ("evaluate", "data/evaluations/r1/completions.parquet"),
    ("compare", "data/evaluations/r1/completions.parquet"),
    ("compare", f"{R1}/completions.parquet"),
]
"""Every Parquet file that a stage reads; two of the three that `evaluate` compares."""
ORDER = (
    "resolve", "base", "prepare@r1", "generate@r1", "detect@r1", "rollout@r1", "mask@r1",
    "train@r1",
    "evaluate@r1", "compare",
)  # fmt: skip
"""A stage of every module."""


def cut(path: Path, keep: int) -> None:
    """Replace a file, which may be a link to the cache, by its beginning."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:keep])


def change_rows(project, name, change):
    path = project.path / name
    artifacts.write(change(artifacts.read(path, RECORDS[name])), path, RECORDS[name])


# Artifacts


@pytest.mark.parametrize(("stage", "name"), READ)
def test_a_parquet_file_cut_short_stops_its_readers(project, refused, stage, name):
    before = sha256_of(project.path / "data/models"), sha256_of(project.path / "data/report")
    cut(project.path / name, -100)
    line = refused(stage)
    assert f"{name} is not a readable Parquet file" in line
    assert "Delete it and run `dvc repro`, which makes it again." in line
    after = sha256_of(project.path / "data/models"), sha256_of(project.path / "data/report")
    assert after == before


@pytest.mark.parametrize("record", [Prompt, Completion, Flag, Mask])
def test_a_changed_byte_is_an_error_and_never_other_rows(finished_llama, tmp_path, record):
    """Page check sums see it; the footer has none, but what is wrong there is rarely readable."""
    name = next(name for name, kind in RECORDS.items() if kind is record)
    rows = artifacts.read(finished_llama.path / name, record)
    path = tmp_path / "changed.parquet"
    content = (finished_llama.path / name).read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    refused = 0
    for place in range(4, footer, 3):
        changed = bytearray(content)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        with contextlib.suppress(ValueError):
            assert artifacts.read(path, record) == rows
            continue
        refused += 1
    assert refused > (footer - 4) / 3 * 0.7


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet", b"PAR1" * 100, b"PK\3\4" * 100])
def test_what_is_no_parquet_is_refused(tmp_path, content):
    path = tmp_path / "flags.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"flags\.parquet is not a readable Parquet .* Delete it"):
        artifacts.read(path, Flag)


@pytest.mark.parametrize("record", [Prompt, Completion, Flag, Mask])
def test_an_artifact_of_an_older_version_is_refused(finished_llama, tmp_path, record):
    name = next(name for name, kind in RECORDS.items() if kind is record)
    table = pq.read_table(finished_llama.path / name)
    path = tmp_path / "older.parquet"
    pq.write_table(table.drop_columns([table.column_names[-1]]), path)
    with pytest.raises(ValueError, match=rf"has columns .* not those of {record.__name__} .* Del"):
        artifacts.read(path, record)


def test_masks_without_their_source_stop_the_training(project, refused):
    path = project.path / f"{R1}/masks.parquet"
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(table.drop_columns(["source"]), path)
    line = refused("train")
    assert "masks.parquet has columns ['prompt_id', 'sample', " in line
    assert "'source', 'excluded']). Delete it and run `dvc repro`" in line


def test_columns_of_another_type_are_named_with_their_types(finished_llama, tmp_path):
    table = pq.read_table(finished_llama.path / f"{R1}/flags.parquet")
    path = tmp_path / "flags.parquet"
    wider = table.schema.set(1, table.schema.field("sample").with_type(pa.int64()))
    pq.write_table(table.cast(wider), path)
    with pytest.raises(ValueError, match=r"sample: int64 not null.* not those of Flag .*int32"):
        artifacts.read(path, Flag)


@pytest.mark.parametrize(
    ("stage", "name"), [pair for pair in READ if pair[1] != f"{R1}/flags.parquet"]
)
def test_a_file_without_a_row_stops_its_readers(project, refused, stage, name):
    artifacts.write([], project.path / name, RECORDS[name])
    line = refused(stage)
    assert f"{name} holds no {RECORDS[name].__name__.lower()}. Delete it" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end": 999}, r"Flag \d+:999 lies outside completion"),
        ({"start": -3}, r"Flag -3:\d+ lies outside completion"),
        ({"start": 5, "end": 5}, r"Flag 5:5 lies outside completion"),
        ({"prompt_id": "replies/none"}, r"A flag belongs to \('replies/none', 0\), which is no"),
    ],
    ids=["beyond the end", "before the start", "empty", "of another text"],
)
def test_a_flag_that_fits_no_completion_stops_the_masking(project, refused, change, message):
    name = f"{R1}/flags.parquet"
    masks = sha256_of(project.path / f"{R1}/masks.parquet")
    change_rows(project, name, lambda rows: [replace(rows[0], **change), *rows[1:]])
    line = refused("mask")
    assert re.search(message, line), line
    assert "Re-run detect on the same completions.parquet." in line
    assert sha256_of(project.path / f"{R1}/masks.parquet") == masks


def test_completions_that_do_not_match_stop_the_comparison(project, refused):
    name = "data/evaluations/r1/completions.parquet"
    change_rows(project, name, lambda rows: rows[1:])
    line = refused("compare")
    assert "The completions of 'r1' and of 'base' differ in ('questions/" in line
    line = refused("evaluate")
    assert "1 completions stand on one side only" in line


def test_completions_of_prompts_that_are_gone_stop_the_evaluation(project, refused):
    change_rows(project, "data/prepared/test_prompts.parquet", lambda rows: rows[1:])
    line = refused("evaluate")
    assert "test_prompts.parquet lacks 'questions/" in line


def test_a_row_that_cannot_be_stored_names_its_column(tmp_path):
    path = tmp_path / "flags.parquet"
    flag = Flag("p/1", 0, "d", "half \ud83d", 0, 2, "ab", 1.0)
    for wrong, column in ((flag, "label"), (replace(flag, label=None), "label")):
        with pytest.raises(ValueError, match=rf"was not written: column '{column}' does not fit"):
            artifacts.write([wrong], path, Flag)
    assert list(tmp_path.iterdir()) == []


# Models


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("model.safetensors", 1000),
        ("model.safetensors", 0),
        ("config.json", 30),
        ("generation_config.json", 10),
        ("tokenizer.json", 100),
        ("tokenizer_config.json", 20),
    ],
)
def test_a_model_folder_with_a_file_cut_short_is_refused(project, refused, name, keep):
    cut(project.path / "data/models/base" / name, keep)
    line = refused("generate")
    assert re.match(r"generate: (The tokenizer of )?data/models/base cannot be loaded: ", line)
    assert line.endswith("Delete it and run `dvc repro`, which makes it again.")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_model_folder_that_lacks_a_file_is_refused(project, refused, name):
    (project.path / "data/models/base" / name).unlink()
    line = refused("generate")
    assert re.match(r"generate: (The tokenizer of )?data/models/base cannot be loaded: ", line)


@pytest.fixture
def offered(bases, tmp_path):
    """Return a local base model of somebody else's, to be changed."""
    shutil.copytree(bases["llama"], tmp_path / "offered")
    return tmp_path / "offered"


def fetch(offered, target):
    """Fetch a local base that is pinned, as `base` does."""
    params = base.BaseParams(source="local", name=str(offered), sha256=sha256_of(offered))
    base.fetch_base(params, target)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.pt"])
def test_a_pickle_is_refused_and_never_runs(offered, tmp_path, name):
    pickle.loads(pickle.dumps(Pickled(tmp_path / "proof")))
    assert (tmp_path / "proof").is_dir()  # it would run
    (offered / "model.safetensors").unlink()
    (offered / name).write_bytes(pickle.dumps(Pickled(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"base\.name .*offered' cannot be loaded: "):
        fetch(offered, tmp_path / "base")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "base").exists()


def test_a_pickle_as_an_adapter_is_refused_and_never_runs(offered, tmp_path):
    adapter = tmp_path / "r1"
    shutil.copytree(offered, adapter, ignore=shutil.ignore_patterns("model.safetensors"))
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": None}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Pickled(tmp_path / "ran")))
    link = {"parent": "offered", "sha256": sha256_of(offered)}
    (adapter / "parent.json").write_text(json.dumps(link))
    with pytest.raises(ValueError, match="r1 cannot be loaded: "):
        models.load(adapter)
    assert not (tmp_path / "ran").exists()


CODE = """
import os
os.mkdir({path!r})
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig):
    model_type = "theirs"
class Model(LlamaForCausalLM):
    config_class = Config
"""


def offer_code(offered, tmp_path, model_type):
    """Add code to a model folder, and name it in the config as the Hub's repositories do."""
    config = json.loads((offered / "config.json").read_text())
    config |= {
        "model_type": model_type,
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    }
    (offered / "config.json").write_text(json.dumps(config))
    (offered / "theirs.py").write_text(CODE.format(path=str(tmp_path / "ran")))


def test_a_model_that_needs_its_own_code_is_refused(offered, tmp_path):
    offer_code(offered, tmp_path, "theirs")
    with pytest.raises(ValueError, match="cannot be loaded: it needs code of its own, which is ne"):
        fetch(offered, tmp_path / "base")
    with pytest.raises(ValueError, match="cannot be loaded: it needs code of its own, which is ne"):
        models.load(offered)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "base").exists()


def test_code_beside_a_model_that_needs_none_is_left_behind(offered, tmp_path):
    offer_code(offered, tmp_path, "llama")
    fetch(offered, tmp_path / "base")
    models.load(tmp_path / "base")
    models.load(offered)
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "base").glob("*.py"))


def test_a_tokenizer_that_needs_its_own_code_is_refused(offered, tmp_path):
    offer_code(offered, tmp_path, "llama")
    config = json.loads((offered / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.T", None]}}
    (offered / "tokenizer_config.json").write_text(json.dumps(config))
    for load in (models.load_tokenizer, lambda path: fetch(path, tmp_path / "base")):
        with pytest.raises(ValueError, match="it needs code of its own, which is never run here"):
            load(offered)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("token", [300, -1], ids=["beyond the last", "negative"])
def test_a_tokenizer_with_tokens_that_the_model_lacks_is_refused(project, refused, token):
    name = f"{R1}/prompts.parquet"
    ids = [*tiny.tokenizer()("Apple").input_ids, token]
    change_rows(project, name, lambda rows: [replace(row, prompt_ids=ids) for row in rows])
    line = refused("generate")
    assert f"'replies/r000' has the token {token}, but the model knows 258 tokens" in line
    assert line.endswith("its tokenizer is another model's. Correct `base`.")


def test_a_tokenizer_that_spells_otherwise_is_refused(project, refused):
    """Of the same size, with two letters exchanged: the ids are no longer the texts."""
    name = "data/models/base/tokenizer.json"
    content = json.loads(project.read(name))
    words = content["model"]["vocab"]
    words["e"], words["o"] = words["o"], words["e"]
    project.write(name, json.dumps(content))
    line = refused("mask")
    assert "Re-run generate with this tokenizer." in line
    texts = [row.text for row in artifacts.read(project.path / READ[1][1], Completion)]
    assert not [text for text in texts if text in line]


# What is no Parquet


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("compare", "data/evaluations/r1/metrics.json"),
        ("compare", f"{R1}/flags.validation.json"),
    ],
)
@pytest.mark.parametrize("content", ['{"a', "{}", "[]", "[" * 100_000])
def test_json_that_is_damaged_is_named(project, refused, stage, name, content):
    project.write(name, content)
    line = refused(stage)
    assert re.search(rf"{name} is (not readable JSON|no object with the keys)", line)
    assert "Delete it and run `dvc repro`" in line


@pytest.mark.parametrize("name", ["data/evaluations/r1/metrics.json", "data/metrics.json"])
def test_metrics_that_are_damaged_are_named_by_the_summary(project, name):
    project.write(name, '{"a')
    assert f"{name} is not readable JSON" in project.refusal(*SUMMARY)


SUMMARY = ("python", "-c", "from tnt.cli import run; run()", "summary")
PLAN = (*SUMMARY[:-1], "plan")


@pytest.mark.parametrize("content", ["{{{", 'schema: "2.0"\nstages: 3\n', ""])
def test_a_lock_that_is_damaged_is_said_by_the_plan(project, content):
    project.write("dvc.lock", content)
    line = project.refusal(*PLAN)
    assert "tnt: DVC cannot tell what is up to date: " in line
    assert "`git checkout dvc.lock` brings back the last commit's." in line


def test_a_log_of_runs_that_is_damaged_is_ignored(project):
    lines = ["[]", '{"stage": "x"}', '{"stage": "x", "cpu_s": "y"}', "7", '{"stage": "tra']
    project.write("work/runs.jsonl", "\n".join(lines))
    with (project.path / "work/runs.jsonl").open("ab") as log:
        log.write(b"\xff\xfe\n")
    assert project.run(*PLAN).stdout.startswith("Nothing to run")
    assert "gate passed" in project.run(*SUMMARY).stdout


# What DVC makes again


def locked(project):
    return YAML(typ="safe").load(project.read("dvc.lock"))


def spoil_outputs(project):
    cut(project.path / f"{R1}/masks.parquet", -20)
    (project.path / f"{R1}/flags.parquet").unlink()


def edit_lock(change):
    def edit(project):
        lock = locked(project)
        change(lock["stages"])
        project.write("dvc.lock", dump_yaml(lock))

    return edit


@pytest.mark.parametrize(
    "change",
    [
        spoil_outputs,
        edit_lock(lambda stages: stages.pop("detect@r1")),
        edit_lock(lambda stages: stages["detect@r1"].pop("outs")),
    ],
    ids=["outputs cut and deleted", "stage not in lock", "no outputs in lock"],
)
def test_what_was_lost_is_made_again_with_the_same_bytes(project, change):
    data, lock = sha256_of(project.path / "data"), locked(project)
    change(project)
    project.repro()
    assert sha256_of(project.path / "data") == data
    assert locked(project) == lock


def test_what_a_kill_left_half_written_is_neither_data_nor_a_change(project):
    left = project.path / f"{R1}/.flags.parquet.999999.partial"
    left.write_bytes(b"PAR1 half")
    lock = project.read("dvc.lock")
    assert project.repro() == set()
    assert project.read("dvc.lock") == lock
    assert project.git("status", "--porcelain") == ""
    assert project.run(*project.command("detect")).returncode == 0
    assert not left.exists()


def inside(path):
    """Return the processes that work in a folder: DVC, its shell, a stage, their forked doubles."""
    return [p for p in psutil.process_iter(["cwd", "cmdline"]) if p.info["cwd"] == str(path)]


def killed(project, stage, delay):
    """Run a stage by DVC, kill both some time after it began; return whether that was in time."""
    module = f"tnt.stages.{stage.partition('@')[0]}"
    command = ["python", "-m", "dvc", "repro", "--force", "--single-item", stage]
    output = project.path / "work/killed.txt"
    with (
        output.open("w", encoding="utf-8") as stream,
        subprocess.Popen(
            command, cwd=project.path, env=project.environment, stdout=stream, stderr=stream
        ) as dvc,
    ):
        while not any(module in (p.info["cmdline"] or []) for p in inside(project.path)):
            assert dvc.poll() is None, output.read_text()
            time.sleep(0.01)
        time.sleep(delay)
        while found := inside(project.path):
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    return dvc.returncode != 0 and "CPU s" not in output.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_stage_that_was_killed_is_made_again_with_the_same_bytes(project):
    """Every stage, each at a moment of its own; the last first, for it needs the others."""
    data, lock = sha256_of(project.path / "data"), project.read("dvc.lock")
    moments = random.Random(0)
    for stage in reversed(ORDER):
        delay = moments.uniform(0, 0.25)
        while not killed(project, stage, delay):
            delay /= 2
    for stage in ORDER:  # so that nothing can be taken from the cache
        for out in locked(project)["stages"][stage]["outs"]:
            cached = project.path / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]
            cached.unlink(missing_ok=True)
    shutil.rmtree(project.path / ".dvc/cache/runs")
    assert project.repro() == set(ORDER)
    assert project.read("dvc.lock") == lock
    assert sha256_of(project.path / "data") == data
    assert project.git("status", "--porcelain") == ""
    assert "up to date" in project.dvc("status")


# Full disks

LIMITED = """
import importlib, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
from tnt.core.command import command
name = sys.argv.pop(1)
command(getattr(importlib.import_module("tnt.stages." + name), name))
"""
"""A stage that may write no file beyond 64 bytes, which fails as a full disk does."""


@pytest.mark.parametrize("stage", [stage.partition("@")[0] for stage in ORDER])
def test_a_full_disk_is_said_in_one_line(project, stage):
    data = project.path / "data"
    files = {path: sha256_of(path) for path in data.rglob("*") if path.is_file()}
    _, _, _, *arguments = project.command(stage)
    done = project.run("python", "-c", LIMITED, stage, *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{stage}: "), done.stderr
    assert "Check free space and permissions. `dvc checkout --force` restores earlier" in last
    assert not list(data.rglob("*.partial"))
    owned = {"base": "models/base", "train": "models/r1", "resolve": "resolved"}
    owned |= {"compare": "report"}  # folders that are written anew; DVC has deleted them by then
    folder = data / owned[stage] if stage in owned else None
    for path, sha256 in files.items():
        if folder is None or folder not in path.parents:
            assert sha256_of(path) == sha256


def test_what_a_full_disk_spoilt_is_restored(project):
    before = sha256_of(project.path / "data")
    _, _, _, *arguments = project.command("base")
    assert project.run("python", "-c", LIMITED, "base", *arguments).returncode == 1
    assert sha256_of(project.path / "data") != before
    project.dvc("checkout", "--force")
    assert sha256_of(project.path / "data") == before


# Validation


def wrong_split(monkeypatch, project):
    monkeypatch.setattr(prepare, "_split", lambda prompt, params: "test")


def empty_completion(monkeypatch, project):
    complete = sampling.complete

    def empty(*arguments, **named):
        first, *others = complete(*arguments, **named)
        return [replace(first, completion_ids=[tiny.END], text=""), *others]

    monkeypatch.setattr(sampling, "complete", empty)
    project.edit("data/resolved/r1/generate.yaml", "max_empty: 0.2", "max_empty: 0.0")


PLUGIN = """
from dataclasses import dataclass

from tnt.detectors.span import Span


@dataclass
class Params:
    pass


def build(params):
    def detect(text, prompt_input):
        {body}

    return detect


build.params = Params
"""


def resolve_plugin(project, body):
    """Have r1 trained on a detector of the project's own."""
    project.write("plugins/own.py", PLUGIN.format(body=body))
    with project.params() as params:
        params["detectors"]["own"] = {"kind": "plugins.own:build"}
        params["rounds"]["r1"]["detectors"] = ["own"]
    return project.run(*project.command("resolve"))


def other_detector(monkeypatch, project):
    find = running.find_flags

    def misnamed(*arguments, **named):
        found = find(*arguments, **named)
        return [*(replace(flag, detector="other") for flag in found[:1]), *found[1:]]

    monkeypatch.setattr(running, "find_flags", misnamed)


def nothing_may_be_negative(monkeypatch, project):
    project.edit("data/resolved/r1/mask.yaml", "- 0.9", "- 0.0")


def weight_of_nothing(monkeypatch, project):
    train = run.train

    def diverged(*arguments, **named):
        trained = train(*arguments, **named)
        next(trained.model.parameters()).data[0, 0] = float("nan")
        return trained

    monkeypatch.setattr(run, "train", diverged)


def share_above_one(monkeypatch, project):
    quality = measures.quality
    monkeypatch.setattr(
        evaluate, "quality", lambda *given: replace(quality(*given), finished_share=1.5)
    )


def learned_what_measures(monkeypatch, project):
    measured = artifacts.read(
        project.path / "data/evaluations/base/completions.parquet", Completion
    )[0]
    name = f"{R1}/completions.parquet"
    change_rows(project, name, lambda rows: [replace(rows[0], input=measured.input), *rows[1:]])


FAILING = {
    "prepare": (
        wrong_split,
        f"{R1}/prompts.parquet",
        ["'prompts' fails expect_column_values_to_be_in_set on 'split_of_its_text' in ", "r000"],
        "Only train prompts belong here",
    ),
    "generate": (
        empty_completion,
        f"{R1}/completions.parquet",
        ["'completions' fails expect_column_values_to_be_in_set on 'empty' in 1 of ", "replies/r"],
        "or raise expect.max_empty.",
    ),
    "detect": (
        other_detector,
        f"{R1}/flags.parquet",
        ["'flags' fails expect_column_values_to_be_in_set on 'detector' in 1 of ", "/0/other/"],
        "Delete the file and run `dvc repro`.",
    ),
    "mask": (
        nothing_may_be_negative,
        f"{R1}/masks.parquet",
        ["'masks' fails expect_column_sum_to_be_between on 'negative', which is "],
        "correct the detectors, or expect.min_negative_share and expect.max_negative_share.",
    ),
    "train": (
        weight_of_nothing,
        "data/models/r1",
        ["'model' fails expect_column_values_to_be_in_set on 'finite' in 1 of ", "embed_tokens"],
        "Lower train.learning_rate or train.negative_weight.",
    ),
    "evaluate": (
        share_above_one,
        "data/evaluations/r1/metrics.json",
        ["'metrics' fails expect_column_values_to_be_in_set on 'in_range'", "/finished_share"],
        "please report it with the file.",
    ),
    "compare": (
        learned_what_measures,
        "data/rounds.csv",
        ["'comparison' fails expect_column_values_to_be_in_set", "r1/questions/boilerplate"],
        "A round must not learn from what measures it",
    ),
}


@pytest.mark.parametrize("stage", FAILING)
def test_what_is_not_valid_is_not_written(project, refused, stage, monkeypatch):
    change, name, parts, remedy = FAILING[stage]
    change(monkeypatch, project)
    texts = {row.text for row in artifacts.read(project.path / READ[1][1], Completion)}
    artifact = project.path / name
    if artifact.is_dir():
        shutil.rmtree(artifact)
    else:
        artifact.unlink()
    line = refused(stage)
    assert line.startswith(f"{stage}: {name} was not written: the suite ")
    assert all(part in line for part in parts), line
    assert remedy in line
    assert not artifact.exists()
    assert not [text for text in texts if text in line]


# Detectors of the project's own


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            'raise RuntimeError("out of luck")',
            "detect: Detector 'own' failed on completion 'replies/r000', sample 0: RuntimeError: ",
        ),
        (
            "return [Span(0, len(text) + 1)]",
            r"detect: Detector 'own' returned the span 0:\d+ for completion 'replies/r000', ",
        ),
    ],
    ids=["raises", "beyond the end"],
)
def test_a_detector_that_fails_is_named_with_the_completion(project, body, message):
    assert resolve_plugin(project, body).returncode == 0
    flags = sha256_of(project.path / f"{R1}/flags.parquet")
    line = project.refusal(*project.command("detect"))
    assert re.match(message, line), line
    assert "Correct the detector" in line
    assert sha256_of(project.path / f"{R1}/flags.parquet") == flags


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"def lookup(:\n", "invalid syntax"),
        (b"words = '\xff'\n", "can't decode byte 0xff"),
        (b"words = '\0'\n", "null bytes"),
    ],
    ids=["syntax", "not UTF-8", "NUL"],
)
def test_code_that_cannot_be_read_is_found_inside_a_function_too(project, content, message):
    (project.path / "plugins/other.py").write_bytes(content)
    done = resolve_plugin(project, "from plugins import other\n        return []")
    assert done.returncode == 1
    assert re.search(rf"other\.py is no Python that can be read \(.*{message}", done.stderr)
    assert done.stderr.count("\n") == 1


def test_a_detector_with_a_syntax_error_is_named(project):
    done = resolve_plugin(project, "return [")
    assert done.returncode == 1
    assert re.fullmatch(
        r"resolve: detectors\.own\.kind 'plugins\.own:build' cannot be imported: SyntaxError: "
        r".* \(own\.py, line \d+\)\. It must read .*\n",
        done.stderr,
    )


def test_a_plugin_that_is_a_link_out_of_the_project_is_refused(project):
    assert resolve_plugin(project, "return []").returncode == 0
    outside = project.path.parent / "outside.py"
    shutil.move(project.path / "plugins/own.py", outside)
    (project.path / "plugins/own.py").symlink_to(outside)
    line = project.refusal(*project.command("resolve"))
    assert re.search(r"plugins/own\.py is a link to .*outside\.py, outside the project", line)
