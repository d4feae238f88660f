"""A patch as a round's folder: written, loaded on its parent, refused where it is damaged."""

from __future__ import annotations

import pytest
import tiny
import torch
from random_models import llama

from tnt import models
from tnt.core.hashes import sha256_of
from tnt.patches import artifact
from tnt.patches.neurons import Neurons, attach, patches_of


def neurons(count=3, width=32, value=1.0):
    generator = torch.Generator().manual_seed(0)
    gates, values = torch.randn(2, count, width, generator=generator)
    return Neurons(gates, value * values, factor=torch.ones(width))


@pytest.fixture
def folders(tmp_path):
    """Return a base, a patch on it, and a patch on that."""
    base, first, second = (tmp_path / name for name in ("base", "r1", "r2"))
    models.save(llama(), tiny.tokenizer(), base)
    for path, parent in ((first, base), (second, first)):
        models.save_patch(neurons(), path, parent=parent.name, sha256=sha256_of(parent))
    return base, first, second


def test_patches_are_loaded_one_upon_the_other(folders):
    base, first, second = folders
    assert [len(patches_of(models.load(path))) for path in folders] == [0, 1, 2]
    assert len(models.patches_between(base, second)) == 2
    assert len(models.patches_between(first, second)) == 1
    assert models.load_tokenizer(second).vocab_size == tiny.tokenizer().vocab_size


def test_a_full_round_upon_a_patch_has_it_in_its_weights(folders, tmp_path):
    _, first, _ = folders
    patched = models.load(first)
    models.save(models.in_weights(patched), tiny.tokenizer(), tmp_path / "full")
    assert models.load(tmp_path / "full").config.intermediate_size == 64 + 3
    assert models.patches_between(first, tmp_path / "full") is None


def test_a_patch_upon_a_full_round_upon_a_patch(folders, tmp_path):
    _, first, _ = folders
    full, last = tmp_path / "full", tmp_path / "last"
    models.save(models.in_weights(models.load(first)), tiny.tokenizer(), full)
    models.save_patch(neurons(), last, parent="full", sha256=sha256_of(full))
    assert len(patches_of(models.load(last))) == 1


def test_a_patch_for_another_parent_is_refused(folders):
    base, first, _ = folders
    (base / "extra.txt").write_text("x")
    with pytest.raises(ValueError, match=r"r1 is a patch for .*base with hash .*dvc checkout"):
        models.load(first)


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_patch_is_refused_in_one_line(folders, damage):
    path = folders[1] / models.PATCH_FILE
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-40], "empty": b"", "text": b"patch"}[damage])
    with pytest.raises(ValueError, match=r"patch\.safetensors cannot be read .*dvc checkout"):
        models.load(folders[1])


def test_a_patch_that_is_not_finite_is_refused(tmp_path):
    artifact.write(neurons(value=float("nan")), tmp_path / "patch.safetensors")
    with pytest.raises(ValueError, match="values is"):
        artifact.read(tmp_path / "patch.safetensors")


def test_tensors_that_do_not_fit_together_are_refused(tmp_path):
    whole = neurons()
    short = Neurons(whole.gates, whole.values[:2], factor=whole.factor)
    artifact.write(short, tmp_path / "p")
    with pytest.raises(ValueError, match=r"values is \[2, 32\], or not finite"):
        artifact.read(tmp_path / "p")


def test_a_patch_whose_neurons_are_of_another_form_is_refused():
    whole = neurons()
    biased = Neurons(whole.gates, whole.values, biases=torch.zeros(3))
    with pytest.raises(ValueError, match="gates, values, biases, which are not those of a neuron"):
        attach(llama(), biased)


def test_the_file_is_small(tmp_path):
    artifact.write(neurons(32, 576), tmp_path / "p")
    assert (tmp_path / "p").stat().st_size < 200_000
