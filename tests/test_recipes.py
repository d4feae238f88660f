"""Every recipe is accepted as it is, and runs on a tiny model from prompts to gate."""

from __future__ import annotations

import shutil
import string
from pathlib import Path

import pytest
import torch
from projects import ROOT, Project, lay_out
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from tnt.core.hashes import sha256_of
from tnt.project import checks, resolved

RECIPES = sorted((ROOT / "docs/recipes").glob("*.yaml"))
LISTED = ("data/lists", "data/annotations")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_check_accepts_a_recipe(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    loaded = checks.load(recipe)
    assert loaded.rounds
    assert set(resolved.resolved(loaded)) >= {("base", "base"), ("r1", "train")}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_runs_on_a_tiny_model(recipe, tmp_path, bases, environment):
    made = lay_out(tmp_path / "project", bases["llama"], environment)
    _follow(made, recipe, bases["llama"], tmp_path)
    made.repro("compare")
    found = made.json("data/evaluations/r1/metrics.json")
    assert set(found["gate"]) == {"passed", "reasons"}
    trained = checks.load(recipe).rounds["r1"].detectors
    assert set(found["learned"]) == set(trained)
    assert (made.path / "data/report/r1.html").is_file()


def _follow(made: Project, recipe: Path, base: Path, folder: Path) -> None:
    """Lay a recipe over a project, with a tiny base and few prompts and tokens."""
    for name in LISTED:
        shutil.copytree(ROOT / name, made.path / name, dirs_exist_ok=True)
    shutil.copy(recipe, made.path / "params.yaml")
    with made.params() as params:
        params["runtime"] = {"threads": 1, "device": "cpu", "autocast": "none"}
        params["base"] = {"source": "local", "name": str(base), "sha256": sha256_of(base)}
        for prompt_set in params["prompt_sets"].values():
            prompt_set.update(template="{input}", chat=True)
        for section in ("generate", "respond"):
            params[section].update(max_new_tokens=14, batch_size=32)
        params["train"].update(epochs=1, trainable=None)
        params["evaluate"]["divergence_prompts"] = 4
        params["expect"]["max_negative_share"] = 1.0  # a random classifier may flag everything
        for config in params["detectors"].values():
            if config["kind"] == "classifier":
                _save_classifier(folder / "classifier", config["labels"])
                config.update(source="local", name=str(folder / "classifier"), revision=None)
                config["sha256"] = sha256_of(folder / "classifier")


def _save_classifier(folder: Path, labels: list[str]) -> None:
    """Save a tiny sequence classifier with random weights, which reads letters."""
    folder.mkdir()
    alphabet = [*["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], *string.ascii_lowercase]
    letters = [*alphabet, *(f"##{letter}" for letter in string.ascii_lowercase)]
    (folder / "vocab.txt").write_text("\n".join(letters), encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(letters),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        id2label=dict(enumerate([*labels, "fine"])),
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
