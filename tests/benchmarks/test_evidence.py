"""docs/evidence.md says what the files of results say, in its tables, its figures and its prose."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import exact_report
import pytest
import study_report
from documents import svg

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "docs/evidence.md"
EXACT = ROOT / "benchmarks/results/exact"
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
SET = {"0.1", "0.7", "2.0e-5"}
"""What was set, not measured: DPO's beta, the temperature, a learning rate."""


def conclusions(section):
    """What a section says first, however it is broken into lines."""
    (text,) = (s for s in EVIDENCE.read_text().split("\n## ") if s.startswith(section))
    return " ".join(text.split("### What this says")[1].split("\n### ")[0].split())


def readme():
    return " ".join((ROOT / "README.md").read_text().split())


def test_the_tables_are_those_of_the_results():
    text = EVIDENCE.read_text()
    assert set(re.findall(r"<!-- exact (\w+) -->", text)) == {"setup", *exact_report.BLOCKS}
    assert set(re.findall(r"<!-- study (\w+) -->", text)) == {*study_report.BLOCKS}
    assert exact_report.renewed(text, EXACT) == text
    assert study_report.document(text) == text


@pytest.mark.parametrize("name", [*exact_report.FIGURES, *study_report.FIGURES])
def test_the_figures_are_those_of_the_results(name):
    if name in exact_report.FIGURES:
        figure = exact_report.FIGURES[name](exact_report.read(EXACT))
    else:
        figure = study_report.FIGURES[name]()
    assert svg(figure) == (ROOT / f"docs/pictures/{name}.svg").read_text()
    assert f"pictures/{name}.svg" in EVIDENCE.read_text()


@pytest.mark.parametrize("section", ["1. ", "2. ", "3. "])
def test_every_measured_number_of_the_prose_stands_in_a_table(section):
    (text,) = (s for s in EVIDENCE.read_text().split("\n## ") if s.startswith(section))
    block = r"<!-- \w+ \w+ -->\n(.*?)<!-- end -->"
    stated = {n for table in re.findall(block, text, re.DOTALL) for n in NUMBER.findall(table)}
    prose = re.sub(r"```.*?```", "", re.sub(block, "", text, flags=re.DOTALL), flags=re.DOTALL)
    measured = {n for n in NUMBER.findall(prose.removeprefix(section)) if "." in n}
    assert len(measured) > 9
    assert measured <= stated | SET


def test_the_conclusions_about_the_exact_answer_are_those_of_the_results():
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

    text = conclusions("1. ")
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


def test_the_conclusions_about_the_real_model_are_those_of_the_results():
    cells = study_report.at_full_size()
    without = {cell["loss"]: cell for cell in study_report.read("unanchored")}

    def left(method, cells=cells):
        return f"{cells[method]['sets']['replies']['flagged']['rate']:.1%}"

    def kept(method, of="summaries", cells=cells):
        return f"{cells[method]['sets'][of]['clean_unchanged']['rate']:.1%}"

    def changed(method):
        same = cells[method]["sets"]["summaries"]["clean_unchanged"]
        return same["total"] - same["flagged"]

    def moved(method, cells=cells):
        return f"{1000 * cells[method]['divergence_summaries']:.2f}"

    def tokens(method):
        spent, base = (study_report.tokens_for_replies(cells[m]) for m in (method, "base"))
        return spent / base

    def seeds(loss, setting, measure):
        (found,) = (
            [measure(cell) for cell in cells]
            for cells in study_report.seeded()
            if (cells[0]["loss"], cells[0]["setting"]) == (loss, setting)
        )
        return f"{statistics.fmean(found):.3g}", f"{statistics.stdev(found):.2g}"

    def seeds_moved(*cell):
        return " ± ".join(seeds(*cell, lambda cell: 1000 * cell["divergence_summaries"]))

    def seeds_left(*cell):
        rate, _ = seeds(*cell, lambda cell: 100 * cell["sets"]["replies"]["flagged"]["rate"])
        return f"{rate}%"

    def score(loss):
        return " ± ".join(seeds(loss, "fast", study_report.score))

    rivals = ("ftpo", "abliteration", "heretic")
    others = ("tnrll", "tnfll", "ul", "nl", "dpo", "sft_clean")
    most = max((kept(method) for method in others), key=lambda kept: float(kept[:-1]))
    loops = {m: f"{c['sets']['replies']['repetition']['rate']:.0%}" for m, c in cells.items()}
    replies, summaries = (
        cells["base"]["sets"][name]["flagged"]["total"] for name in ("replies", "summaries")
    )
    text = conclusions("2. ")
    for sentence in (
        f"in {left('base')} of {replies} replies",
        f"`tnff` leaves {left('tnff')} of replies flagged and {kept('tnff')} of the summaries",
        f"With the same anchors no other loss keeps more than {most} of them",
        f"`tnff` moved {moved('tnff')} thousandths of a nat per token, `nl` {moved('nl')} and "
        f"`ul` {moved('ul')}",
        f"Without them `tnff` keeps {kept('tnff', cells=without)} and moves "
        f"{moved('tnff', without)}, `nl` {kept('nl', cells=without)} and {moved('nl', without)}, "
        f"at {left('tnff', without)} and {left('nl', without)} flagged",
        f"`ul` keeps {kept('ul', cells=without)}.",
        f"`tnff` moves summaries by {seeds_moved('tnff', 'fast')} and `ul` by "
        f"{seeds_moved('ul', 'fast')} ({seeds_left('tnff', 'fast')} and "
        f"{seeds_left('ul', 'fast')} flagged)",
        f"`tnrr` by {seeds_moved('tnrr', 'gentle')} and `nl`, weight 4, by "
        f"{seeds_moved('nl', 'weighted')} ({seeds_left('tnrr', 'gentle')} and "
        f"{seeds_left('nl', 'weighted')}), `tnrll`, weight 4, by "
        f"{seeds_moved('tnrll', 'weighted')} ({seeds_left('tnrll', 'weighted')})",
        f"DPO leaves {left('dpo')} flagged and `nl` {left('nl')}",
        f"`ul` scores {score('ul')} in the screening and `tnff` {score('tnff')}",
        f"`tnff` keeps {kept('tnff', 'replies')}, `ul` {kept('ul', 'replies')} and "
        f"DPO {kept('dpo', 'replies')}",
        f"{tokens('reject'):.2f} and {tokens('ban'):.2f} times the base's tokens",
        f"leaves {left('bad_words')}, not far from the earlier default's {left('earlier_default')}",
        f"{loops['bad_words']} of the replies are loops, of the base's {loops['base']}",
        f"{left('system_forbids')}; told only what to say instead, {left('system_asks')}. They "
        f"change {changed('system_forbids')} and {changed('system_asks')} of the {summaries}",
        f"leaves {left('sft_clean')} flagged and {kept('sft_clean')} of the summaries",
        f"leaves {left('default')} flagged and keeps {kept('default', 'replies')} of clean replies "
        f"and {kept('default')} of the summaries",
        f"leaves {left('earlier_default')} flagged, keeps {kept('earlier_default', 'replies')} of "
        f"clean replies and {kept('earlier_default')} of the summaries",
    ):
        assert sentence in text
    for method in ("ban", "reject"):
        assert left(method) == "0.0%"
        assert kept(method) == kept(method, "replies") == "100.0%"
    assert kept("bad_words") == kept("bad_words", "replies") == "100.0%"
    for loss in set(without) - {"tnff"}:  # `nl` is the gentlest of the others, without anchors
        assert float(kept(loss, cells=without)[:-1]) <= float(kept("nl", cells=without)[:-1])
    for method in (*others, *rivals, "tnff"):  # none keeps more than the defaults, of either
        for of in ("summaries", "replies"):
            assert float(kept(method, of)[:-1]) < float(kept("earlier_default", of)[:-1])
            assert float(kept(method, of)[:-1]) < float(kept("default", of)[:-1])
    for row in (
        f"and {summaries} unrelated summaries |",
        f"TNT: the patch | {left('default')} | {kept('default')} | |",
        f"weights updated gently, `tnff` | {left('earlier_default')} | {kept('earlier_default')} "
        "| |",
        f"`tnff` at a higher learning rate | {left('tnff')} | {kept('tnff')} | |",
        f"the gentlest other loss, `nl`, at its best | {left('nl', without)} | "
        f"{kept('nl', cells=without)} | |",
        f"DPO | {left('dpo')} | {kept('dpo')} | |",
        f"| {left('reject')} | {kept('reject')} | {tokens('reject'):.1f} times the tokens |",
        f"| {left('ban')} | {kept('ban')} | {tokens('ban'):.1f} times the tokens |",
        f"a list of forbidden words | {left('bad_words')} | {kept('bad_words')} | "
        f"{loops['bad_words']} of the replies loop |",
        f"a system prompt that forbids | {left('system_forbids')} | {kept('system_forbids')} | |",
    ):
        assert row in readme()


def test_the_conclusions_about_invented_names_are_those_of_the_results():
    sizes = study_report.by_size()
    others = {cell["cell"]: cell for cell in study_report.otherwise()}
    ul, sft_clean, spans = (others.pop(name) for name in ("ul", "sft_clean", "spans"))
    sharper = ul, sft_clean
    ways = [100 * cell["sampled"]["rate"] for cell in others.values()]
    rates = [100 * cell["sampled"]["rate"] for cell in sizes]
    before, least, most = sizes[0]["sampled_before"], sizes[0], sizes[-1]
    flagged, invented, _ = (study_report.trend(x) for x in study_report.TRENDS.values())
    again = study_report.result("names/again.json")
    bans, draws = again["banned"], again["redrawn"]
    probe = study_report.result("names/probe.json")["probe"]
    auc = {(row["layer"], row["completions"]): row["auc"] for row in probe}

    clean = ul["greedy"]["clean_unchanged"]["total"]

    def of_sharper(said):
        return " and ".join(map(said, sharper))

    def greedy(cell, measure):
        return cell["greedy"][measure]["flagged"]

    def negative(cell):
        return cell["of_rounds"][0]["negative_completions"]

    text = conclusions("3. ")
    for sentence in (
        f"{before['rate']:.1%} of {before['total']} samples",
        f"From {least['completions']} to {most['completions']} annotated completions between "
        f"{min(rates):.1f}% and {max(rates):.1f}% of samples stay flagged",
        f"end between {min(ways):.1f}% and {max(ways):.1f}%, all within the base's interval",
        f"(`span_tokens: all`) at {spans['sampled']['rate']:.1%}",
        f"adds {flagged[0]:+.2f} ± {flagged[1]:.2f} points to what is flagged and "
        f"{invented[0]:+.2f} ± {invented[1]:.2f} points",
        f"falls from {least['invented_before']:.3f} to {least['invented']:.3f} with "
        f"{negative(least)} flagged completions, and to {most['invented']:.3f} with "
        f"{negative(most)}. Where it was learned it falls to {least['negative_mass_learnt']:.3f} "
        f"and to {most['negative_mass_learnt']:.3f}",
        f"an AUC of {auc[30, 1600]:.3f} on unseen prompts, of the token before alone "
        f"{auc[0, 1600]:.3f}. It grows with annotation, from {auc[30, 50]:.3f}",
        f"clears {bans[0] - bans[1]} of {bans[0]} flagged greedy summaries, and "
        f"{len(bans) - 1} bans clear {bans[0] - bans[-1]}",
        f"of the {draws[0]}, {draws[-1]} are still flagged after {len(draws) - 1} draws",
        f"lower it, to {of_sharper(lambda cell: format(cell['sampled']['rate'], '.1%'))}",
        f"P(invented) is {of_sharper(lambda cell: format(cell['invented'], '.3f'))}",
        f"(P(other) {of_sharper(lambda cell: format(cell['given'], '.3f'))} instead of "
        f"{ul['given_before']:.3f})",
        f"move {of_sharper(lambda cell: format(1000 * cell['divergence'], '.2f'))} thousandths of "
        f"a nat per token, and change "
        f"{of_sharper(lambda cell: str(clean - greedy(cell, 'clean_unchanged')))} of {clean} clean "
        f"greedy summaries",
        f"is flagged in {greedy(ul, 'flagged_before')} of "
        f"{ul['greedy']['flagged']['total']}, and they in "
        f"{of_sharper(lambda cell: str(greedy(cell, 'flagged')))}.",
    ):
        assert sentence in text
    assert all(before["low"] < rate / 100 < before["high"] for rate in (*ways, *rates))
    assert (
        f"{before['rate']:.1%} of samples had one before, {most['sampled']['rate']:.1%} after "
        f"{most['completions']} annotated completions"
    ) in readme()


def test_every_update_leaves_unwanted_mass():
    tables = exact_report.read(EXACT)
    for name in ("grid", "sizes", "longer", "rounds"):
        assert (tables[name].unwanted > 0).all()
