"""Exports load without anything of ours, say what they are, and are whole or not there at all."""

from __future__ import annotations

import dataclasses
import itertools
import re

import fsspec
import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM, AutoTokenizer

from tnt import models
from tnt.base import BaseParams
from tnt.commands import export, publish
from tnt.core import artifacts
from tnt.core.hashes import sha256_of
from tnt.core.records import Completion
from tnt.evaluation.round_metrics import Gate
from tnt.project import checks, layout
from tnt.rounds import listed

HOSTILE = "a|b\nc `d` <b>e</b> *f* [g](h) \\| # i"
NUMBERS = itertools.count()


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def parsed(card):
    return MarkdownIt("gfm-like", {"linkify": False}).parse(card.partition("\n---\n")[2])


def shown(token):
    """Return the text of a token as it is read; markup in it is lost."""
    return "".join(child.content or "\n" for child in token.children)


def rows(card):
    """Return the cells of all tables of a card, as they are read."""
    found = []
    for token in parsed(card):
        if token.type == "tr_open":
            found.append([])
        elif token.type == "inline" and token.level > 3:
            found[-1].append(shown(token))
    return found


def following(card, kind):
    """Return the texts of all headings or paragraphs, as they are read."""
    return [shown(b) for a, b in itertools.pairwise(parsed(card)) if a.type == f"{kind}_open"]


@pytest.fixture(scope="module")
def exported(finished_llama, tmp_path_factory):
    """Return an export of r2, which is not accepted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished_llama.path)
        return export.export("r2", tmp_path_factory.mktemp("export") / "r2", ungated=True)


@pytest.fixture
def here(project, monkeypatch):
    """Return a finished project of the test's own, which is the working directory."""
    monkeypatch.chdir(project.path)
    return project


@pytest.fixture
def there(finished_llama, monkeypatch):
    """Return a finished project for reading only, which is the working directory."""
    monkeypatch.chdir(finished_llama.path)
    return finished_llama


def test_a_full_round_is_exported_bytewise(finished_llama, exported):
    model = finished_llama.path / "data/models/r2"
    assert names(exported) == names(model) | {"README.md"}
    for file in names(model):
        assert sha256_of(exported / file) == sha256_of(model / file)
    assert (exported / "model.safetensors").stat().st_mode & 0o200  # unlike in DVC's cache


def test_an_encoder_decoder_is_exported_as_what_it_is(finished_t5, tmp_path, monkeypatch):
    monkeypatch.chdir(finished_t5.path)
    folder = export.export("r1", tmp_path / "r1", ungated=True)
    assert "AutoModelForSeq2SeqLM.from_pretrained(folder)" in (folder / "README.md").read_text()
    weights = "model.safetensors"
    assert sha256_of(folder / weights) == sha256_of(finished_t5.path / "data/models/r1" / weights)


def test_adapters_are_exported_merged(here, tmp_path):
    with here.params() as params:
        params["train"] |= {"lora": {"rank": 4, "alpha": 8}, "learning_rate": 5e-3}
    here.repro("evaluate")
    folder = export.export("r2", tmp_path / "r2", ungated=True)
    base, r2 = here.path / "data/models/base", here.path / "data/models/r2"
    assert names(folder) == names(base) | {"README.md"}
    for file in names(base) - {"model.safetensors"}:
        assert sha256_of(folder / file) == sha256_of(base / file)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Apple pie: sorry, no.", return_tensors="pt").input_ids
    with torch.no_grad():
        found, expected, original = (
            model(input_ids=ids).logits
            for model in (
                AutoModelForCausalLM.from_pretrained(folder),
                models.load(r2),
                models.load(base),
            )
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found - original).abs().max() > 1
    card = (folder / "README.md").read_text()
    assert [link for link, *_ in rows(card) if link in ("r2", "r1", "base")] == ["r2", "r1", "base"]
    assert ["model.safetensors", sha256_of(folder / "model.safetensors")] in rows(card)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("other", ["weights", "tokenizer"])
def test_an_export_that_answers_otherwise_is_not_made(tmp_path, monkeypatch, other):
    load, load_tokenizer = models.load, models.load_tokenizer
    if other == "weights":
        monkeypatch.setattr(models, "load", lambda path: load(layout.model("base")))
    else:
        monkeypatch.setattr(
            models, "load_tokenizer", lambda path: lambda text: load_tokenizer(path)(text.lower())
        )
    with pytest.raises(ValueError, match=r"data/models/r1 does not answer as it does: on '\w+/"):
        export.export("r1", tmp_path / "r1", ungated=True)
    assert not list(tmp_path.iterdir())


def test_the_card_has_the_numbers_of_the_metrics(finished_llama, exported):
    metrics = finished_llama.json("data/evaluations/r2/metrics.json")
    expected = []
    for prompt_set, found in metrics["sets"].items():
        same, moved = found["clean_unchanged"], found["divergence"]
        for detector, change in found["detectors"].items():
            rates = [
                f"{100 * r['rate']:.1f}% ({100 * r['low']:.1f}% to {100 * r['high']:.1f}%)"
                for r in (change["before"], change["after"])
            ]
            unchanged = f"{100 * same['rate']:.1f}% of {same['total']}"
            divergence = f"{moved['forward']:.3g} / {moved['reverse']:.3g}"
            expected.append([prompt_set, detector, *rates, unchanged, divergence])
    card = (exported / "README.md").read_text()
    assert len(expected) == 6
    assert [row for row in rows(card) if len(row) == 6][1:] == expected
    assert "Gate: passed." in card


def test_the_card_says_where_the_model_comes_from(finished_llama, exported):
    card = (exported / "README.md").read_text()
    for link in ("r2", "r1", "base"):
        assert [link, sha256_of(finished_llama.path / "data/models" / link)] in rows(card)
    pinned = re.search(r"sha256: (\w+)", finished_llama.read("params.yaml"))[1]
    assert f"a local folder, llama, sha256 {pinned}" in card
    assert str(finished_llama.path.parent.parent) not in card
    assert finished_llama.git("rev-parse", "HEAD") in card
    assert sha256_of(finished_llama.path / "dvc.lock") in card
    for setting in ("learning_rate: 0.001", "after_negative: end", "min_drop: 0.5", "hedges.txt"):
        assert setting in card


def test_the_card_has_no_generated_text(finished_llama, exported):
    card = (exported / "README.md").read_text()
    for model in ("base", "r1", "r2"):
        path = finished_llama.path / f"data/evaluations/{model}/completions.parquet"
        for completion in artifacts.read(path, Completion):
            assert len(completion.text) < 6 or completion.text not in card


def test_the_head_of_the_card_names_a_base_on_the_hub_alone(there, exported, tmp_path, monkeypatch):
    local = {"library_name": "transformers", "tags": ["targeted-negative-training"]}
    assert ModelCard.load(exported / "README.md").data.to_dict() == local
    base = BaseParams(source="hub", name="someone/model", revision="0" * 40)
    loaded = dataclasses.replace(checks.load(), base=base)
    monkeypatch.setattr(checks, "load", lambda: loaded)
    folder = export.export("r1", tmp_path / "r1", ungated=True)
    hub = {"base_model": "someone/model", "base_model_relation": "finetune"}
    assert ModelCard.load(folder / "README.md").data.to_dict() == local | hub
    assert f"someone/model on the Hugging Face Hub, revision {'0' * 40}" in (
        folder / "README.md"
    ).read_text().replace("\\", "")


def test_no_name_breaks_the_card(here, exported, tmp_path, monkeypatch):
    metrics = listed.read_metrics("r2")
    of_set = metrics.sets["replies"]
    renamed = dataclasses.replace(of_set, detectors={HOSTILE: of_set.detectors["hedges"]})
    metrics = dataclasses.replace(
        metrics,
        sets={**metrics.sets, "replies": renamed},
        gate=Gate(passed=False, reasons=f"{HOSTILE} rose"),
    )
    monkeypatch.setattr(listed, "read_metrics", lambda name: metrics)
    here.edit(
        "data/resolved/r2/prepare.yaml",
        "template: '{input}, in short'",
        'template: "{input}\\n```\\n# Mine\\n<h1>Mine</h1>\\n---\\n"',
    )
    folder = export.export("r2", tmp_path / "r2", ungated=True)
    card, plain = ((f / "README.md").read_text() for f in (folder, exported))
    (row,) = [row for row in rows(card) if row[0] == "replies"]
    written = " ".join(HOSTILE.split())
    assert (row[1], len(row)) == (written, 6)
    assert following(card, "heading") == following(plain, "heading")
    gate = next(text for text in following(card, "paragraph") if text.startswith("Gate:"))
    assert gate.splitlines()[0] == f"Gate: rejected, {written} rose."


def test_the_card_names_the_tag_and_what_was_not_committed(here):
    here.git("tag", "round/r1")
    out = here.path / "out"

    def card(**options):
        return (export.export("r1", out, **options) / "README.md").read_text()

    first = card()
    assert f"Git commit: {here.git('rev-parse', 'HEAD')} (tagged round/r1)\n" in first
    assert "Accepted: yes, as git tag round/r1." in first
    assert card(force=True) == first
    here.write("notes.txt", "not committed\n")
    assert "(tagged round/r1), **with changes that were not committed**\n" in card(force=True)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("name", "place", "said"),
    [
        ("r9", "new", r"There is no round 'r9'\. Listed in params\.yaml: r1, r2\."),
        ("r1", "new", r"'r1' is not accepted\. `tnt rounds accept r1`, or .*: --ungated\."),
        ("r1", "full", r"full is not empty\. Name another, or replace it: --force\."),
        ("r1", "full/file", r"full/file is a file\. Name a folder\."),
        ("r1", "none/new", r"none does not exist\. Create it"),
    ],
)
def test_a_refusal_writes_nothing(tmp_path, name, place, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=said):
        export.export(name, tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("place", ["data/models/mine", "plugins/../data/mine"])
def test_nothing_is_exported_into_the_data(place):
    with pytest.raises(ValueError, match=r"lies in .*/data, which is DVC's"):
        export.export("r1", layout.Path(place), ungated=True)


@pytest.mark.usefixtures("there")
def test_force_replaces_an_earlier_export_alone(exported, tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(f"---\ntags:\n- mine\n---\nlike\n- {export.TAG}\n")
    with pytest.raises(ValueError, match=r"something else than an earlier export"):
        export.export("r1", tmp_path, ungated=True, force=True)
    with pytest.raises(ValueError, match=r"something else than an earlier export"):
        export.export("r1", layout.Path(), ungated=True, force=True)
    assert names(tmp_path) == {"README.md"}


def test_a_round_that_is_not_evaluated_is_refused(here, tmp_path):
    (here.path / "data/evaluations/r1/metrics.json").unlink()
    with pytest.raises(ValueError, match=r"'r1' is not evaluated\. Run `dvc repro`\."):
        export.export("r1", tmp_path / "r1", ungated=True)


def test_a_round_that_failed_its_gate_is_refused(here, tmp_path):
    here.git("tag", "round/r1")
    here.edit("data/evaluations/r1/metrics.json", '"passed": true', '"passed": false')
    here.edit("data/evaluations/r1/metrics.json", '"reasons": ""', '"reasons": "it rose"')
    with pytest.raises(ValueError, match=r"'r1' failed its gate: it rose\. Train it again, or"):
        export.export("r1", tmp_path / "r1")


def test_a_round_that_changed_after_it_was_accepted_is_refused(here, tmp_path):
    lock = here.read("dvc.lock")
    here.write("dvc.lock", re.sub(r"(path: data/models/r1\n.*\n +md5: )\w+", r"\1abc", lock))
    here.commit()
    here.git("tag", "round/r1")
    here.write("dvc.lock", lock)
    with pytest.raises(ValueError, match=r"'r1' is not the one accepted as round/r1\. `git check"):
        export.export("r1", tmp_path / "r1")
    card = (export.export("r1", tmp_path / "r1", ungated=True) / "README.md").read_text()
    assert "Not for use: this round is not the one accepted as round/r1." in card


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("data/models/r1/generation_config.json", "train"),
        ("data/evaluations/r1/metrics.json", "evaluate"),
    ],
)
def test_what_is_not_as_dvc_left_it_is_refused(here, tmp_path, file, stage):
    here.write(file, here.read(file) + "\n")
    with pytest.raises(ValueError, match=rf"{stage}@r1 is not up to date: data/.* is modified\."):
        export.export("r1", tmp_path / "r1", ungated=True)
    assert not (tmp_path / "r1").exists()


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("earlier", [False, True], ids=["new", "earlier export"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, earlier):
    folder = tmp_path / "r1"
    if earlier:
        folder.mkdir()
        (folder / "README.md").write_text(f"---\ntags:\n- {export.TAG}\n---\nearlier\n")
        (folder / "config.json").write_text("earlier")

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(artifacts, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        export.export("r1", folder, ungated=True, force=True)
    assert names(tmp_path) == ({"r1/README.md", "r1/config.json"} if earlier else set())


@pytest.fixture
def small(tmp_path):
    """Return a folder that looks like an export."""
    folder = tmp_path / "export"
    for file in ("README.md", "config.json", "model.safetensors", "templates/a.jinja"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    return folder


@pytest.fixture(params=["memory", "local"])
def shelf(request, tmp_path):
    """Return a file system and a destination on it that does not exist yet."""
    if request.param == "memory":
        return fsspec.filesystem("memory"), f"memory://shelf/{next(NUMBERS)}"
    return fsspec.filesystem("file"), str(tmp_path / "shelf" / "r1")


def contents(fs, place):
    root = fs._strip_protocol(place)
    return {p.removeprefix(f"{root}/"): fs.cat_file(p).decode() for p in fs.find(root)}


def test_an_upload_has_all_files(small, shelf):
    fs, place = shelf
    published = publish.upload(small, place)
    assert contents(fs, place) == {file: file for file in names(small)}
    assert contents(fs, published) == contents(fs, place)


def test_a_model_uploaded_twice_is_copied_once(small, shelf, monkeypatch):
    fs, place = shelf
    publish.upload(small, place)
    copied = []
    put = type(fs).put_file
    monkeypatch.setattr(
        type(fs), "put_file", lambda self, a, b: copied.append(a) or put(self, a, b)
    )
    publish.upload(small, place)
    assert copied == []
    (small / "README.md").write_text("a later card")
    publish.upload(small, place)
    assert copied == [str(small / "README.md")]
    assert contents(fs, place)["README.md"] == "a later card"


@pytest.mark.parametrize("file", ["config.json", "mine.txt"])
def test_an_upload_does_not_replace_another(small, shelf, file):
    fs, place = shelf
    publish.upload(small, place)
    fs.pipe_file(f"{fs._strip_protocol(place)}/{file}", b"mine")
    before = contents(fs, place)
    with pytest.raises(ValueError, match=r"holds \d files that are not this model\. Choose"):
        publish.upload(small, place)
    assert contents(fs, place) == before


def test_a_file_that_the_hub_puts_there_is_no_obstacle(small, shelf):
    fs, place = shelf
    root = fs._strip_protocol(place)
    fs.makedirs(root)
    fs.pipe_file(f"{root}/.gitattributes", b"the hub's")
    publish.upload(small, place)
    assert contents(fs, place).keys() == names(small) | {".gitattributes"}


def test_a_failed_upload_leaves_nothing_and_can_be_repeated(small, shelf, monkeypatch):
    fs, place = shelf
    put = type(fs).put_file

    def cut_off(self, here, there):
        put(self, here, there)
        if there.endswith("model.safetensors"):
            raise ConnectionError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "put_file", cut_off)
        with pytest.raises(ConnectionError):
            publish.upload(small, place)
    assert contents(fs, place) == {}
    publish.upload(small, place)
    assert contents(fs, place).keys() == names(small)


def test_the_card_is_uploaded_last(small, shelf, monkeypatch):
    fs, place = shelf
    copied = []
    monkeypatch.setattr(type(fs), "put_file", lambda self, here, there: copied.append(there))
    publish.upload(small, place)
    assert copied[-1].endswith("/README.md")
    assert len(copied) == 4


def test_an_upload_goes_nowhere_unknown_and_not_into_the_data(small, there):
    with pytest.raises(ValueError, match="cannot write to nowhere://") as refused:
        publish.upload(small, "nowhere://me:secret@r1")
    assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match="which is DVC's"):
        publish.upload(small, (there.path / "data/mine").as_uri())
    assert not (there.path / "data/mine").exists()


def test_a_round_is_published_in_one_command(there, tmp_path):
    shelf = tmp_path / "shelf" / "r2"
    done = there.tnt("publish", "r2", str(shelf), "--ungated")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Published r2 to file://{shelf}.\n"
    model = there.path / "data/models/r2"
    assert names(shelf) == names(model) | {"README.md"}
    assert sha256_of(shelf / "model.safetensors") == sha256_of(model / "model.safetensors")
    again = there.tnt("publish", "r2", str(shelf), "--ungated")
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr


def test_what_is_not_accepted_is_not_published(there, tmp_path):
    done = there.tnt("publish", "r2", str(tmp_path / "r2"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tnt: The round 'r2' is not accepted.")
    assert not list(tmp_path.iterdir())


def test_an_export_is_gone_when_it_was_copied_or_not(there):
    seen = []

    def fail(folder, destination):
        seen.append((folder, names(folder), destination))
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        publish.publish("r2", "s3://there", ungated=True, copy=fail)
    ((folder, files, destination),) = seen
    assert destination == "s3://there"
    assert publish.CARD in files
    assert not folder.exists()
