"""docs/evidence.md says what the files of results say, in its tables, its figures and its prose."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import exact_report

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "docs/evidence.md"
EXACT = ROOT / "benchmarks/results/exact"
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


def test_the_tables_are_those_of_the_results():
    text = EVIDENCE.read_text()
    named = set(re.findall(r"<!-- exact (\w+) -->", text))
    assert named == {"setup", *exact_report.BLOCKS}
    assert exact_report.renewed(text, EXACT) == text


@pytest.mark.parametrize("name", exact_report.FIGURES)
def test_the_figures_are_those_of_the_results(name):
    drawn = exact_report.svg(exact_report.FIGURES[name](exact_report.read(EXACT)))
    assert drawn == (ROOT / f"docs/pictures/{name}.svg").read_text()
    assert f"pictures/{name}.svg" in EVIDENCE.read_text()


def test_every_measured_number_of_the_prose_stands_in_a_table():
    text = EVIDENCE.read_text().split("## 1. The exact answer")[1].split("\n## ")[0]
    block = r"<!-- exact \w+ -->\n(.*?)<!-- end -->"
    stated = {n for table in re.findall(block, text, re.DOTALL) for n in NUMBER.findall(table)}
    prose = re.sub(r"```.*?```", "", re.sub(block, "", text, flags=re.DOTALL), flags=re.DOTALL)
    measured = {n for n in NUMBER.findall(prose) if "." in n}
    assert measured
    assert measured <= stated


def test_every_update_leaves_unwanted_mass():
    tables = exact_report.read(EXACT)
    for name in ("grid", "sizes", "longer", "rounds"):
        assert (tables[name].unwanted > 0).all()
