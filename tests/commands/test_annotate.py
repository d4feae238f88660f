"""Completions go out for labelling, and people's work comes back."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import tiny
from ruamel.yaml import YAML

from tnt import models
from tnt.annotations import files, label_studio
from tnt.annotations.annotation import Annotation
from tnt.annotations.files import read_annotations
from tnt.commands import annotate
from tnt.core import artifacts, hashes
from tnt.core.records import Completion, Flag, Mask
from tnt.project import checks, resolved

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "docs" / "recipes" / "annotations.yaml"
TO = Path("data/annotations/people.jsonl")


def completion(prompt_id, text, prompt_input="in", sample=0):
    return Completion(prompt_id, sample, "base", prompt_input, [1], [2], text, True)


def flag(prompt_id, detector, label, start, end, text, sample=0):
    return Flag(prompt_id, sample, detector, label, start, end, text, 1.0)


COMPLETIONS = [
    completion("p/1", "I'm sorry, no."),
    completion("p/2", "Fine 😀 é\u2028yes.", "other"),
    completion("p/3", "I'm sorry, no.", sample=1),
]
FLAGS = [
    flag("p/1", "list", "apology", 0, 9, "I'm sorry"),
    flag("p/1", "other", "", 0, 9, "I'm sorry"),
    flag("p/2", "list", "x", 4, 5, " "),
    flag("p/2", "list", "x", 9, 13, "yes."),
    flag("p/3", "list", "apology", 0, 9, "I'm sorry", sample=1),
]


@pytest.fixture
def r1(tmp_path, monkeypatch):
    """Go to a project whose round r1 has generated and detected."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("rounds: {r1: {}}\n")
    folder = Path("data/rounds/r1")
    artifacts.write(COMPLETIONS, folder / "completions.parquet", Completion)
    artifacts.write(FLAGS, folder / "flags.parquet", Flag)
    return folder


def test_each_text_goes_out_once_with_its_flags(r1):
    done = annotate.export("r1")
    assert (done.texts, done.spans, done.path) == (2, 3, Path("work/annotate/r1.jsonl"))
    assert done.labels == ["annotation", "apology", "other", "x"]
    first, second = read_annotations(done.path)
    assert first.spans == ((0, 9, "apology"), (0, 9, "other"))
    assert (second.text, second.spans) == (COMPLETIONS[1].text, ((9, 13, "x"),))
    assert "é\u2028yes" in done.path.read_text(encoding="utf-8")


def test_without_flags_there_is_nothing_to_start_from(r1):
    (r1 / "flags.parquet").unlink()
    assert annotate.export("r1").spans == 0


def test_label_studio_gets_tasks_with_predictions(r1):
    done = annotate.export("r1", format="label-studio", to=Path("tasks.json"))
    first, second = json.loads(done.path.read_text(encoding="utf-8"))
    assert first["data"] == {
        "prompt_id": "p/1",
        "sample": 0,
        "input": "in",
        "text": COMPLETIONS[0].text,
    }
    (prediction,) = second["predictions"]
    (result,) = prediction["result"]
    assert result["value"] == {"start": 9, "end": 13, "text": "yes.", "labels": ["x"]}
    config = ET.fromstring(label_studio.labelling_config([*done.labels, '<"&']))
    labels = config.find("Labels")
    assert [label.get("value") for label in labels] == [*done.labels, '<"&']
    texts = {text.get("name"): text.get("value") for text in config.iter("Text")}
    assert result["from_name"] == labels.get("name")
    assert texts[result["to_name"]] == "$text"
    assert labels.get("toName") == result["to_name"]


def test_label_studio_round_trip_keeps_the_spans(r1):
    tasks = json.loads(annotate.export("r1", format="label-studio").path.read_text("utf-8"))
    for task in tasks:  # what submitting the predictions unchanged makes of them
        results = [r for p in task["predictions"] for r in p["result"]]
        task["annotations"] = [{"result": results, "was_cancelled": False}]
    Path("export.json").write_text(json.dumps(tasks))
    found = annotate.bring_in("r1", Path("export.json"), to=TO)
    assert found == read_annotations(annotate.export("r1", to=Path("lines.jsonl")).path)
    assert read_annotations(TO) == found


def test_what_comes_back_is_canonical(r1):
    rows = [
        {"prompt_id": "p/2", "sample": 0, "input": "other", "text": COMPLETIONS[1].text},
        {"prompt_id": "p/1", "sample": 0, "input": "in", "text": COMPLETIONS[0].text},
    ]
    rows[0]["spans"] = [{"end": 13, "start": 9}, {"start": 0, "end": 4}]
    rows[1]["corrected"] = "No."
    for name, order in (("a", [0, 1, 0]), ("b", [1, 0])):
        lines = [json.dumps(rows[i], sort_keys=name == "b") + "\n" for i in order]
        Path("file.jsonl").write_text("\r\n".join(lines))
        annotate.bring_in("r1", Path("file.jsonl"), to=TO.with_name(f"{name}.jsonl"))
    text = TO.with_name("a.jsonl").read_text(encoding="utf-8")
    assert text == TO.with_name("b.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["prompt_id"] for line in text.split("\n")[:-1]] == ["p/1", "p/2"]
    assert text.split("\n")[1].endswith(
        '"text": "Fine 😀 é\u2028yes.", "spans": [{"start": 0, "end": 4, "label": "annotation"}, '
        '{"start": 9, "end": 13, "label": "annotation"}]}'
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_id": "p/9"}, "'p/9', sample 0, which is no completion of the round"),
        ({"sample": 5}, "'p/1', sample 5, which is no completion"),
        ({"text": "I'm sorry."}, "whose text has 14 characters there and 10 in the file, .* 9 on"),
        ({"input": "a"}, "whose input has 2 characters there and 1 in the file, .* character 0 on"),
    ],
)
def test_what_the_round_did_not_say_is_refused(r1, changes, message):
    row = {"prompt_id": "p/1", "sample": 0, "input": "in", "text": COMPLETIONS[0].text}
    rows = [{**row, "spans": []}, {**row, **changes, "spans": []}]
    rows.append({**row, "prompt_id": "p/7", "input": "b", "spans": []})
    Path("file.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        ValueError, match=f"2 of the 3 annotations in file.jsonl .*{message}.*Not"
    ) as e:
        annotate.bring_in("r1", Path("file.jsonl"), to=TO)
    assert "sorry" not in str(e.value)
    assert not TO.exists()


def test_files_are_not_overwritten_unless_asked(r1):
    path = annotate.export("r1").path
    with pytest.raises(ValueError, match=r"r1\.jsonl exists already. .*--force"):
        annotate.export("r1")
    annotate.export("r1", force=True)
    annotate.bring_in("r1", path, to=TO)
    with pytest.raises(ValueError, match=r"people\.jsonl exists already"):
        annotate.bring_in("r1", path, to=TO)
    annotate.bring_in("r1", path, to=TO, force=True)


@pytest.mark.parametrize(
    "to", ["people.jsonl", "data/annotations/../x.jsonl", "data/annotations/x"]
)
def test_annotations_go_where_detectors_read(r1, to):
    path = annotate.export("r1").path
    with pytest.raises(
        ValueError, match=r"cannot go to .*Name a file like data/annotations/people"
    ):
        annotate.bring_in("r1", path, to=Path(to))


def test_unknown_rounds_and_formats_are_errors(r1):
    with pytest.raises(ValueError, match=r"There is no round 'r2'\. Valid: r1"):
        annotate.export("r2")
    with pytest.raises(ValueError, match=r"'labelstudio' is unknown\. Did you mean 'label-studio'"):
        annotate.export("r1", format="labelstudio")
    shutil.rmtree(r1)
    with pytest.raises(ValueError, match=r"completions\.parquet does not exist. Run `dvc repro`"):
        annotate.export("r1")


def test_entry_for_params_is_what_the_detector_takes():
    entry = YAML(typ="safe").load(annotate.params_entry(TO, corrective=True))
    config = {"kind": "annotations", "file": str(TO), "corrective": True}
    assert entry == {"detectors": {"people": config}}
    assert "corrective" not in annotate.params_entry(TO, corrective=False)


def test_recipe_and_its_example_hold(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = checks.load(RECIPE)
    file = found.detectors["people"]["file"]
    assert resolved.resolved(found)["r1", "mask"]["corrections"] == {
        file: hashes.sha256_of(Path(file))
    }
    annotations = read_annotations(Path(file))
    assert Path(file).read_text(encoding="utf-8") == files.json_lines(annotations)
    assert any(a.corrected for a in annotations)
    assert any(a.spans for a in annotations)
    assert any(not a.flagged() for a in annotations)


def test_examples_in_the_docs_are_read(tmp_path):
    text = (ROOT / "docs" / "detectors.md").read_text(encoding="utf-8")
    section = re.search(r"^## annotations\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]
    found = []
    for number, example in enumerate(re.findall(r"```json\n(.*?)```", section, re.DOTALL)):
        path = tmp_path / f"{number}.json"
        path.write_text(example, encoding="utf-8")
        found += [[a.text[s:e] for s, e, _ in a.flagged()] for a in read_annotations(path)]
    sentence = ["The carers held her hand."]
    assert found == [sentence, ["I'm sorry, as a chatbot"], sentence]
    assert label_studio.labelling_config(["annotation", "parroting"]) in section


def test_rounds_without_corrective_detectors_pin_no_corrections(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    text = RECIPE.read_text(encoding="utf-8").replace("corrective: true", "corrective: false")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    found = resolved.resolved(checks.load(tmp_path / "params.yaml"))
    assert found["r1", "mask"]["corrections"] == {}
    assert found["r1", "detect"]["inputs"]


def test_a_round_learns_from_corrections(project):
    """Out, corrected by hand, back in, and trained on: the model says what it should have said."""
    done = project.tnt("annotate", "export", "r1")
    assert done.returncode == 0, done.stderr
    path = project.path / "work/annotate/r1.jsonl"
    exported = read_annotations(path)
    usual, wanted = tiny.ANSWERS["ABCDEFGH"], tiny.ANSWERS["IJKLMNOPQ"]
    lines = [
        Annotation(a.prompt_id, a.sample, a.input, a.text, corrected=wanted)
        for a in exported
        if a.text == usual
    ]
    assert len(lines) >= 5
    path.write_text(files.json_lines(lines), encoding="utf-8")
    done = project.tnt("annotate", "import", "r1", str(path), "--to", str(TO))
    assert done.returncode == 0, done.stderr
    assert f"{len(lines)} with a correction" in done.stdout
    with project.params() as params:
        for name, corrective in (("people", True), ("spans", False)):
            config = {"kind": "annotations", "file": str(TO), "corrective": corrective}
            params["detectors"][name] = config
            settings = {"negative_weight": 0.25, "epochs": 20}  # 4 parts correction to 1 of target
            round_ = {**params["rounds"]["r1"], "detectors": [name], "train": settings}
            params["rounds"]["r3" if corrective else "r4"] = round_
    project.repro()
    masks = {
        name: artifacts.read(project.path / f"data/rounds/{name}/masks.parquet", Mask)
        for name in ("r1", "r3", "r4")
    }
    tokenizer = models.load_tokenizer(project.path / "data/models/base")
    corrected = [m for m in masks["r3"] if m.source == "corrected"]
    assert [m for m in masks["r3"] if m.source == "generated"] == masks["r4"]
    assert {m.prompt_id for m in corrected} == {a.prompt_id for a in lines}
    assert {tokenizer.decode(m.completion_ids) for m in corrected} == {f"{wanted}<eos>"}
    for mask in masks["r4"]:  # a token a byte, and `after_negative: end`
        if mask.prompt_id in {a.prompt_id for a in lines}:
            flagged = [i for i, negative in enumerate(mask.negative_mask) if negative]
            assert flagged == [*range(len("sorry"))]

    def said(name):
        path = project.path / f"data/evaluations/{name}/completions.parquet"
        return {c.prompt_id: c.text for c in artifacts.read(path, Completion)}

    unseen = [prompt_id for prompt_id, text in said("base").items() if text == usual]
    assert len(unseen) >= 5
    r3, r4 = ([said(name)[prompt_id] for prompt_id in unseen] for name in ("r3", "r4"))
    assert r3.count(wanted) >= len(unseen) / 2  # what people wrote
    assert r4.count(wanted) == r4.count(usual) == 0  # what the model would have said otherwise
