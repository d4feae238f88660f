"""`tnt check --explain`: every key of every section, with its type, default and use."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest

from tnt.detectors import DETECTORS
from tnt.project.explained import explain
from tnt.project.sections import Project

GATE = """\
  min_drop: number at least 0 and at most 1; required
      Share of its flag rate that each new detector must lose, on the sets learned from. Above 0,
      one of them must have had something to lose.
"""
HINTS = get_type_hints(Project)
SECTIONS = {name: (get_args(hint) or (hint,))[-1] for name, hint in HINTS.items()}
SECTIONS.pop("detectors")
SECTIONS |= {f"detectors.{name}": kind.params for name, kind in DETECTORS.items()}


def test_a_key_is_shown_with_its_type_its_default_and_what_it_is_for():
    assert GATE in explain("gate")
    assert "  batch_size: whole number above 0; default 32\n" in explain("generate")
    assert "  threads: whole number above 0 or auto; default 1\n" in explain("runtime")
    assert "  lora: a section (--explain train.lora) or null; default null" in explain("train")
    assert "  redact: list of: text; optional\n" in explain("report")


def test_inherited_keys_have_their_texts():
    assert "Multiplies the loss at negative tokens" in explain("train")


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_of_every_section_is_shown(name):
    assert is_dataclass(SECTIONS[name])
    lines = explain(name).splitlines()
    for field in fields(SECTIONS[name]):
        assert sum(line.startswith(f"  {field.name}: ") for line in lines) == 1
        assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gatt", r"'gatt' is no section of params\.yaml\. Did you mean 'gate'\?"),
        ("train.patsh", r"'train\.patsh' is no section"),
        ("detectors.phrase", r"no kind of detector.* Did you mean 'phrases'\?"),
    ],
)
def test_what_is_no_section_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        explain(name)
