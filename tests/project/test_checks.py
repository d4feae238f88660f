"""The whole of params.yaml, on a copy of the repository's: what is refused, what touches what."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
from transformers import LlamaConfig

from tnt.commands import check
from tnt.core.errors import Faults
from tnt.core.hashes import sha256_of
from tnt.core.params import dump_yaml, load_yaml
from tnt.project import checks, layout, resolved

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(tmp_path, monkeypatch):
    """Return what params.yaml holds; the current folder has a copy of the data that it names."""
    for folder in (layout.PROMPTS, layout.LISTS, layout.ANNOTATIONS):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    return load_yaml(ROOT / layout.PARAMS)


def loaded(params):
    layout.PARAMS.write_text(dump_yaml(params), encoding="utf-8")
    return checks.load()


def files(params):
    """Return what `resolve` would write."""
    found = resolved.resolved(loaded(params))
    return {key: dump_yaml(values) for key, values in found.items()}


def add_prompt_set(params, name):
    """Define a prompt set, with its own entries wherever sets have one."""
    shutil.copytree(layout.PROMPTS / "replies", layout.PROMPTS / name)
    params["prompt_sets"][name] = params["prompt_sets"]["replies"]
    for section in ("generate", "respond"):
        params[section]["max_new_tokens"][name] = 32
    params["gate"]["min_clean_unchanged"][name] = 0.9


def test_a_new_prompt_set_changes_nothing_of_the_rounds_there_are(params):
    before = files(params)
    add_prompt_set(params, "stories")
    assert files(params) == before
    params["rounds"]["r9"] = {
        "parent": "base",
        "detectors": ["boilerplate"],
        "prompts": {"stories": ["first.jsonl"]},
    }
    after = files(params)
    changed = {key for key in after if after[key] != before.get(key)}
    assert {key for key in changed if key[0] != "r9"} == {("base", "compare")}  # it lists rounds
    generate = resolved.resolved(loaded(params))["r9", "generate"]
    assert generate["sampling"]["max_new_tokens"] == {"stories": 32}


def test_a_project_without_rounds_is_valid(params):
    params["rounds"] = {}
    assert {name for name, _ in files(params)} == {"base"}


def bound_of_a_set_that_is_not(params):
    params["gate"]["min_clean_unchanged"]["replis"] = 0.5


def bound_of_a_round_for_a_set_that_is_not(params):
    params["rounds"]["r1"]["gate"] = {"min_clean_unchanged": {"replis": 0.5}}


def no_share_to_learn_from(params):
    params["prompt_sets"]["replies"]["shares"] = {"train": 0, "validation": 0.5, "test": 0.5}


def no_length_of_an_evaluated_set(params):
    params["respond"]["max_new_tokens"].pop("replies")


def no_length_of_a_set_learned_from(params):
    params["generate"]["max_new_tokens"].pop("replies")


def base_without_a_hash(params):
    params["base"].pop("sha256")


def probe_outside_the_annotations(params):
    params["report"]["probe"] = "data/annotations/../lists/boilerplate.txt"


def prompt_set_with_a_slash(params):
    params["prompt_sets"]["a/b"] = params["prompt_sets"]["replies"]


def not_a_number(params):
    params["train"]["learning_rate"] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bound_of_a_set_that_is_not, r"'replis', which is no prompt set\. Did you mean 'replies'"),
        (
            bound_of_a_round_for_a_set_that_is_not,
            r"rounds\.r1: gate\.min_clean_unchanged names 'replis'.* Did you mean 'replies'\?",
        ),
        (no_share_to_learn_from, r"learns from 'replies', .*replies\.shares\.train is 0\. Raise"),
        (no_length_of_an_evaluated_set, r"no entry for the prompt set 'replies'.* Add one\."),
        (no_length_of_a_set_learned_from, r"no entry for the prompt set 'replies'.* Add one\."),
        (base_without_a_hash, r"sha256 of 'llm-.*' is missing; `tnt check --pin` writes it"),
        (probe_outside_the_annotations, r"report\.probe is .* Name a file under data/annotations"),
        (prompt_set_with_a_slash, r"a prompt set cannot be called 'a/b'"),
        (not_a_number, r"train\.learning_rate is nan: "),
    ],
)
def test_what_cannot_work_is_refused(params, change, message):
    loaded(params)
    change(params)
    with pytest.raises(ValueError, match=message):
        loaded(params)


def test_all_that_is_wrong_is_told_at_once(params):
    params["runtime"]["treads"] = 3
    params["train"]["patch"]["file"] = 7
    params["gate"].pop("min_drop")
    params["expekt"] = params.pop("expect")
    params["generate"]["max_new_tokens"] = {"replies": 0, "summaries": 64}
    params["rounds"]["r2"]["train"] = {"epoch": 1, "patch": {"neurons": 0}}
    params["rounds"]["2"] = params["rounds"]["r1"]
    params["detectors"]["boilerplate"]["list"] = "data/lists/none.txt"
    params["detectors"]["helpdesk"]["kind"] = "phrase"
    with pytest.raises(Faults) as caught:
        loaded(params)
    told = "\n".join(caught.value.lines)
    for part in (
        "params.yaml: a round cannot be called '2'.",
        "params.yaml: unknown key 'runtime.treads'. Did you mean 'threads'?",
        "params.yaml: train.patch.file is 7: input should be a valid string.",
        "params.yaml: the key 'gate.min_drop' is missing.",
        "params.yaml: unknown section 'expekt'. Did you mean 'expect'?",
        "params.yaml: generate.max_new_tokens.replies is 0: input should be greater than 0.",
        "params.yaml: rounds.r2.train: unknown key 'epoch'. Did you mean 'epochs'?",
        "params.yaml: rounds.r2.train: patch.neurons is 0: input should be greater than 0.",
        "detectors.boilerplate reads 'data/lists/none.txt', which does not exist.",
        "detectors.helpdesk.kind is 'phrase', which is no detector.",
    ):
        assert told.count(part) == 1, told
    assert len(caught.value.lines) == 10


def test_all_names_of_what_is_not_there_are_told_at_once(params):
    params["rounds"]["r1"]["parent"] = "r2"
    params["rounds"]["r1"]["detectors"] = ["boilerplat", "helpdesk"]
    params["rounds"]["r2"]["prompts"] = {"replies": ["first.jsonl", "none.jsonl"], "storys": []}
    params["evaluate"]["prompts"]["replies"] = ["none.jsonl"]
    params["respond"]["max_new_tokens"].pop("questions")
    params["report"] = {"probe": "labels.jsonl", "redact": ["pii"]}
    with pytest.raises(Faults) as caught:
        loaded(params)
    assert [line.partition("params.yaml: ")[2].split()[0] for line in caught.value.lines] == [
        "rounds.r1.parent",
        "rounds.r1.detectors",
        "rounds.r2.prompts",
        "respond.max_new_tokens",
        "rounds.r2.prompts",  # the file, which evaluate.prompts names too
        "report.redact",
        "report.probe",
    ]


def test_only_keys_that_are_valid_there_are_named(params):
    params["gate"]["epochs"] = 3
    keys = "max_ancestor_rise, min_clean_unchanged, min_drop"
    with pytest.raises(ValueError, match=rf"unknown key 'gate\.epochs'\. Valid: {keys}\.$"):
        loaded(params)


def test_a_value_of_none_of_its_types_is_one_fault(params):
    params["generate"]["max_new_tokens"] = "many"
    said = r"^params\.yaml: generate\.max_new_tokens is 'many': .* integer or (?!.*constrained)"
    with pytest.raises(Faults, match=said) as caught:
        loaded(params)
    assert len(caught.value.lines) == 1


def test_sections_that_can_have_defaults_need_not_be_written(params):
    for section in ("runtime", "train", "expect", "report"):
        del params[section]
    for section in ("generate", "respond"):
        del params[section]["batch_size"]
    del params["detectors"]["repetition"]
    assert loaded(params).expect.max_negative_share == 0.5


@pytest.mark.parametrize("template", [tiny.CHAT_TEMPLATE, None])
def test_a_base_in_a_folder_is_looked_at_before_anything_runs(params, template):
    shutil.copy(ROOT / layout.PIPELINE, layout.PIPELINE)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained("model")
    LlamaConfig(max_position_embeddings=10**6).save_pretrained("model")
    params["base"] = {"source": "local", "name": "model", "sha256": sha256_of(Path("model"))}
    layout.PARAMS.write_text(dump_yaml(params), encoding="utf-8")
    if template:
        assert check.check().startswith("params.yaml is valid: 2 rounds, ")
        return
    with pytest.raises(Faults) as caught:
        check.check()
    assert [line.split()[0] for line in caught.value.lines] == ["prompt_sets.replies.chat"]
