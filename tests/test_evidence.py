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


def test_the_conclusions_are_those_of_the_results():
    tables = exact_report.read(EXACT)
    rows = exact_report.by_samples(tables, "token_forward_kl")
    by_sequence = exact_report.by_samples(tables, "sequence_forward_kl")

    def said(table, measure, behaviour, loss, samples):
        found = table.query("behaviour == @behaviour and loss == @loss and samples == @samples")
        return f"{found[measure].mean():.3g}"

    def token(behaviour, loss, samples=1_000):
        return said(rows, "token_forward_kl", behaviour, loss, samples)

    def sequence(loss, samples):
        return said(by_sequence, "sequence_forward_kl", "context", loss, samples)

    text = EVIDENCE.read_text().split("### What this says")[1].split("\n### ")[0]
    ends = exact_report.ends(tables["grid"]).groupby(exact_report.CELL).token_forward_kl.mean()
    originals = tables["references"].groupby(["behaviour", "model"]).token_forward_kl.mean()
    orders = tables["orders"].groupby("loss").mean()
    last = tables["rounds"].query("scenario == 'same' and round == 5").groupby("anchor")
    left, moved = last.unwanted.mean(), last.moved.mean()
    for sentence in (
        f"`tnrr` ({token('pair', 'tnrr')}; `ul` {token('pair', 'ul')}, "
        f"`sft_clean` {token('pair', 'sft_clean')})",
        f"`tnrr` ({token('context', 'tnrr')}; `tnff` {token('context', 'tnff')}, "
        f"`ul` {token('context', 'ul')})",
        f"`tnfll` ({token('token', 'tnfll')}) just before `tnff` ({token('token', 'tnff')}), "
        f"with `ul` at {token('token', 'ul')}",
        f"`sft_clean` ({sequence('sft_clean', 10_000)}; `tnrr` {sequence('tnrr', 10_000)})",
        f"({sequence('sft_clean', 100)}; `tnrr` {sequence('tnrr', 100)})",
        f"`ul` ({token('context', 'ul', 10_000)}) and `tnfll` "
        f"({token('context', 'tnfll', 10_000)}) overtake `tnff` "
        f"({token('context', 'tnff', 10_000)})",
        f"({ends['context', 'tnff', 1]:.3g} in the context case, "
        f"of the original's {originals['context', 'original']:.3f})",
        f"({orders.ab_ba.tnrr:.3g} apart; other samples alone make {orders.joint_again.tnrr:.3g})",
        f"({orders.joint_token_forward_kl.tnff:.3g} instead of "
        f"{orders.ab_token_forward_kl.tnff:.3g})",
        f"{left.parent:.3g} is left, and {left.base:.3g} when anchored to the base, "
        f"for a drift of {moved.parent:.3g} instead of {moved.base:.3g}",
    ):
        assert sentence in text
    for behaviour in exact_report.BEHAVIOURS:
        original = originals[behaviour, "original"]
        assert all(float(token(behaviour, x, 100)) < original for x in ("tnff", "tnrr", "tnrf"))
        assert all(float(token(behaviour, x, 100)) > original for x in ("ul", "nl", "sft_clean"))


def test_every_update_leaves_unwanted_mass():
    tables = exact_report.read(EXACT)
    for name in ("grid", "sizes", "longer", "rounds"):
        assert (tables[name].unwanted > 0).all()
