"""The tables and figures of the study of the real model, from the results of its cells alone.

    python benchmarks/study_report.py      # renews docs/evidence.md and its pictures

Its blocks stand in docs/evidence.md between `<!-- study NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from documents import COLOURS, filled, markdown, svg

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "benchmarks/study"
EVIDENCE = ROOT / "docs/evidence.md"
PICTURES = ROOT / "docs/pictures"
sys.path.insert(0, str(STUDY))

from choose import score  # noqa: E402
from names import BY_SIZE, NAMES  # noqa: E402

Cell = dict[str, Any]
Cells = list[Cell]

SETTINGS = ("gentle", "weighted", "fast", "fastest")
METHODS = {  # in the order of the tables; told apart by colour by what they do, by shape by which
    "base": ("no update", "square"),
    "default": ("TNT", "square"),
    "earlier_default": ("TNT", "triangle-left"),
    "tnff": ("TNT", "circle"),
    "tnrll": ("TNT", "triangle-down"),
    "tnfll": ("TNT", "triangle-up"),
    "ul": ("other training", "cross"),
    "nl": ("other training", "triangle-left"),
    "dpo": ("other training", "diamond"),
    "sft_clean": ("other training", "triangle-right"),
    "ftpo": ("other training", "triangle-up"),
    "abliteration": ("other training", "triangle-down"),
    "heretic": ("other training", "square"),
    "system_forbids": ("other serving", "square"),
    "system_asks": ("other serving", "triangle-down"),
    "bad_words": ("other serving", "cross"),
    "ban": ("other serving", "triangle-up"),
    "reject": ("other serving", "diamond"),
}
"""What is compared at full size -> its kind, its shape in the figure."""
KINDS = {
    "no update": "#000000",
    "TNT": "#0072B2",
    "other training": "#D55E00",
    "other serving": "#009E73",
}
SERVED = ("no update", "other serving")
TRAINED = ("pairs_cpu_s", "preparing_cpu_s", "training_cpu_s")
"""What it costs before it is used, in parts."""
ELSEWHERE = {"default": "see README", "earlier_default": ""}
"""What did the training, where that was not the study."""


def read(folder: str) -> Cells:
    """Return the results in one of the study's folders."""
    paths = sorted((STUDY / folder).glob("*.json"))
    return [result(path) for path in paths]


def trained(*folders: str) -> Cells:
    """Return the trained cells of the folders, by loss and setting."""
    cells = [cell for folder in folders for cell in read(folder)]
    return sorted(cells, key=lambda c: ([*COLOURS].index(c["loss"]), SETTINGS.index(c["setting"])))


def at_full_size() -> dict[str, Cell]:
    """Return the results at full size, by method."""
    cells = {cell.get("method") or cell["loss"]: cell for cell in read("full")}
    return {method: cells[method] for method in METHODS}


def screened() -> Iterator[str]:
    """Yield the table of the screening."""
    rows = []
    for cell in trained("screened"):
        replies = cell["sets"]["replies"]
        rows.append(
            [
                *_setting(cell),
                f"{replies['flagged_before']['flagged']} -> {_of(replies['flagged'])}",
                _of(replies["clean_unchanged"]),
                f"{replies['similarity_clean']['rouge_l']:.2f}",
                f"{1000 * cell['divergence_summaries']:.2f}",
                replies["repetition"]["flagged"],
                f"{score(cell):.2f}",
            ]
        )
    head = "loss,rate,weight,replies flagged,clean ones the same,their ROUGE-L,"
    head += "summaries moved,loops,score"
    yield from markdown(head.split(","), rows)


def seeds() -> Iterator[str]:
    """Yield the means and standard deviations over the seeds."""
    measures: list[Callable[[Cell], float]] = [
        lambda cell: cell["sets"]["replies"]["flagged"]["rate"] * 100,
        lambda cell: cell["sets"]["replies"]["similarity_clean"]["rouge_l"],
        lambda cell: cell["divergence_summaries"] * 1000,
        lambda cell: cell["sets"]["replies"]["repetition"]["rate"] * 100,
        score,
    ]
    rows = [
        [*_setting(cells[0]), *(_spread([measure(cell) for cell in cells]) for measure in measures)]
        for cells in seeded()
    ]
    head = "loss,rate,weight,replies flagged %,clean ones' ROUGE-L,summaries moved,loops %,score"
    yield from markdown(head.split(","), rows)


def seeded() -> list[Cells]:
    """Return the cells of each loss and setting that were run with every seed."""
    found: dict[tuple[str, str], Cells] = defaultdict(list)
    for cell in trained("screened", "seeds"):
        found[cell["loss"], cell["setting"]].append(cell)
    most = max(map(len, found.values()))
    return [cells for cells in found.values() if len(cells) == most]


def rivals() -> Iterator[str]:
    """Yield what each setting of the rivals did to the validation prompts."""
    rows = []
    for cell in sorted(read("rivalled"), key=lambda cell: (cell["loss"], -score(cell))):
        replies = cell["sets"]["replies"]
        rows.append(
            [
                f"`{cell['loss']}`",
                f"`{cell['setting']}`",
                f"{replies['flagged_before']['flagged']} -> {_of(replies['flagged'])}",
                _of(replies["clean_unchanged"]),
                f"{replies['similarity_clean']['rouge_l']:.2f}",
                replies["repetition"]["flagged"],
                f"{score(cell):.2f}",
            ]
        )
    head = "rival,setting,replies flagged,clean ones the same,their ROUGE-L,loops,score"
    yield from markdown(head.split(","), rows)


def heretic() -> Iterator[str]:
    """Yield the trials that Heretic's search offers, fewest refusals first."""
    found = result("heretic_search.json")
    rows = [
        [
            trial["trial"],
            f"{trial['refusals']} of {trial['of']}",
            f"{trial['kl_divergence']:.4f}",
            " and ".join(f"`{n}`" for n, t in found["chosen"].items() if t == trial["trial"]),
        ]
        for trial in found["best"]
    ]
    head = f"trial of {found['trials']},replies with a marker,KL of the first token,taken as"
    yield from markdown(head.split(","), rows)


def full() -> Iterator[str]:
    """Yield what each method did to the test prompts."""
    rows = []
    for method, cell in at_full_size().items():
        replies, summaries = cell["sets"]["replies"], cell["sets"]["summaries"]
        clean, every = replies["similarity_clean"], replies["similarity"]
        moved = cell.get("divergence_summaries")
        rows.append(
            [
                f"`{method}`",
                _interval(replies["flagged"]),
                _interval(replies["clean_unchanged"]),
                f"{clean['bleu']:.0f}",
                f"{clean['rouge_l']:.2f}",
                f"{every['bleu']:.0f}",
                f"{every['rouge_l']:.2f}",
                _interval(summaries["clean_unchanged"]),
                f"{summaries['similarity']['bleu']:.0f}",
                f"{summaries['similarity']['rouge_l']:.2f}",
                "" if moved is None else f"{1000 * moved:.2f}",
                f"{replies['repetition']['rate']:.0%}",
            ]
        )
    head = "method,replies flagged,clean ones the same,BLEU,ROUGE-L,all replies' BLEU,ROUGE-L,"
    head += "summaries the same,BLEU,ROUGE-L,moved,loops"
    yield from markdown(head.split(","), rows)


def unanchored() -> Iterator[str]:
    """Yield what the trained losses do with and without summaries to learn from."""
    anchored = at_full_size()
    rows = []
    for cell in trained("unanchored"):
        both = anchored[cell["loss"]], cell
        rows.append(
            [
                *_setting(cell),
                *(f"{c['sets']['replies']['flagged']['rate']:.1%}" for c in both),
                *(f"{c['sets']['summaries']['clean_unchanged']['rate']:.1%}" for c in both),
                *(f"{1000 * c['divergence_summaries']:.2f}" for c in both),
                " and ".join(str(c["steps"]) for c in both),
            ]
        )
    head = "loss,rate,weight,replies flagged,without,summaries the same,without,moved,without,steps"
    yield from markdown(head.split(","), rows)


def costs() -> Iterator[str]:
    """Yield what each method costs, before it is used and whenever it is."""
    cells = at_full_size()
    rows = []
    for method, cell in cells.items():
        training = sum(cell.get(part, 0) for part in TRAINED)
        rows.append(
            [
                f"`{method}`",
                ELSEWHERE.get(method, f"{training:.0f}"),
                f"{cell['tokens_per_answer']:.1f}",
                f"{cell['tokens_per_answer'] / cells['base']['tokens_per_answer']:.2f}",
                f"{tokens_for_replies(cell) / tokens_for_replies(cells['base']):.2f}",
                # An updated model is decoded as the base is, and was timed beside other work.
                f"{cell['serving_cpu_s']:.0f}" if METHODS[method][0] in SERVED else "",
            ]
        )
    head = "method,training CPU s,tokens per answer,to the base's,for replies,answering CPU s"
    yield from markdown(head.split(","), rows)


def tokens_for_replies(cell: Cell) -> float:
    """Return the tokens generated for all replies: no summary is flagged and generated again."""
    answers = {name: of["flagged"]["total"] for name, of in cell["sets"].items()}
    every = cell["tokens_per_answer"] * sum(answers.values())
    return every - cell["sets"]["summaries"]["mean_tokens"] * answers["summaries"]


def cost() -> Iterator[str]:
    """Yield what the cells took."""
    folders = "screened", "seeds", "preferred", "rivalled", "full", "unanchored"
    counts, hours = [], 0.0
    for folder in folders:
        cells = read(folder)
        counts.append(f"{len(cells)} in `{folder}`")
        parts = "pairs_cpu_s", "training_cpu_s", "serving_cpu_s"
        hours += sum(cell.get(part, 0) for cell in cells for part in parts) / 3600
    hours += sum(cell.get("preparing_cpu_s", 0) for cell in read("full")) / 3600
    yield f"Cells: {', '.join(counts)}; {hours:.1f} CPU hours."


def by_size() -> Cells:
    """Return the cells of names that differ in nothing but how much is annotated."""
    return _named_cells(BY_SIZE)


def otherwise() -> Cells:
    """Return the other cells of names."""
    return _named_cells(name for name in NAMES["cells"] if name not in BY_SIZE)


def _named_cells(names: Iterable[str]) -> Cells:
    """Return the cells of these names."""
    cells = {cell["cell"]: cell for cell in read("names") if "cell" in cell}
    return [cells[name] for name in names]


def names_by_size() -> Iterator[str]:
    """Yield what came of more and more annotated completions."""
    rows = [["none", "", *_named(_before(by_size()[0]))]]
    rows += [
        [cell["completions"], cell["of_rounds"][0]["negative_completions"], *_named(cell)]
        for cell in by_size()
    ]
    yield from markdown(["annotated", "of them flagged", *_NAMED], rows)


def names_otherwise() -> Iterator[str]:
    """Yield what came of each other way."""
    rows = []
    for cell in otherwise():
        own = NAMES["cells"][cell["cell"]]
        ways = [f"{key}: {'all' if value is None else value}" for key, value in own.items()]
        where = " (CPU)" if cell["device"] == "cpu" else ""
        rows.append([f"`{'; '.join(ways)}`{where}", *_named(cell)])
    yield from markdown(["otherwise", *_NAMED], rows)


_NAMED = (
    "samples flagged",
    "greedy flagged",
    "P(invented)",
    "learned ones'",
    "P(other)",
    "moved",
    "clean greedy ones the same",
)


def _named(cell: Cell) -> list[str]:
    """Return the cells of a row of `_NAMED`."""
    greedy = cell["greedy"]
    return [
        _interval(cell["sampled"]),
        _of(greedy["flagged"]),
        f"{cell['invented']:.3f}",
        f"{cell['negative_mass_learnt']:.3f}" if "negative_mass_learnt" in cell else "",
        f"{cell['given']:.3f}",
        f"{1000 * cell['divergence']:.2f}",
        _of(greedy["clean_unchanged"]),
    ]


def _before(cell: Cell) -> Cell:
    """Return what a cell says about the base as a cell of its own."""
    greedy = cell["greedy"]
    clean = greedy["clean_unchanged"]["total"]
    return {
        "sampled": cell["sampled_before"],
        "invented": cell["invented_before"],
        "given": cell["given_before"],
        "divergence": 0.0,
        "greedy": {
            "flagged": greedy["flagged_before"],
            "clean_unchanged": {"flagged": clean, "total": clean},
        },
    }


TRENDS: dict[str, Callable[[Cell], float]] = {
    "samples flagged, in points": lambda cell: 100 * cell["sampled"]["rate"],
    "P(invented), in points": lambda cell: 100 * cell["invented"],
    "P(other), in points": lambda cell: 100 * cell["given"],
}


def trend(measure: Callable[[Cell], float]) -> tuple[float, float]:
    """Return what twice the annotated completions add: least squares, and its standard error."""
    cells = by_size()
    doublings = np.log2([cell["completions"] for cell in cells])
    coefficients, covariance = np.polyfit(doublings, [*map(measure, cells)], 1, cov=True)
    return float(coefficients[0]), float(covariance[0, 0] ** 0.5)


def names_trend() -> Iterator[str]:
    """Yield what every doubling of the annotated completions adds."""
    rows = []
    for name, measure in TRENDS.items():
        slope, error = trend(measure)
        before = measure(_before(by_size()[0]))
        last = by_size()[-1]
        rows.append([name, f"{before:.1f}", f"{measure(last):.1f}", f"{slope:+.2f} ± {error:.2f}"])
    head = ["", "base", f"{last['completions']} annotated", "with each doubling"]
    yield from markdown(head, rows)


def names_probe() -> Iterator[str]:
    """Yield how well hidden states tell invented names from other words with a capital."""
    found = result("names/probe.json")["probe"]
    layers = list(dict.fromkeys(row["layer"] for row in found))
    aucs = {(row["layer"], row["completions"]): row["auc"] for row in found}
    rows = [
        [
            row["completions"],
            f"{row['invented']} of {row['beginnings']}",
            *(f"{aucs[layer, row['completions']]:.3f}" for layer in layers),
        ]
        for row in found
        if row["layer"] == layers[0]
    ]
    heads = (f"AUC, layer {layer}" for layer in layers)
    yield from markdown(["annotated", "invented names", *heads], rows)


def names_again() -> Iterator[str]:
    """Yield how many greedy summaries are flagged after each ban, or each new draw."""
    again = result("names/again.json")
    rows = [[how, *again[how]] for how in ("banned", "redrawn")]
    head = [f"flagged of {again['summaries']}", *map(str, range(len(again["banned"])))]
    yield from markdown(head, rows)


BLOCKS: dict[str, Callable[[], Iterable[str]]] = {
    "cost": cost,
    "full": full,
    "unanchored": unanchored,
    "costs": costs,
    "screened": screened,
    "seeds": seeds,
    "rivals": rivals,
    "heretic": heretic,
    "names_by_size": names_by_size,
    "names_trend": names_trend,
    "names_otherwise": names_otherwise,
    "names_again": names_again,
    "names_probe": names_probe,
}


def side_effects() -> alt.Chart:
    """Return what is still flagged against what moved on summaries, a point for each cell."""
    points = pd.DataFrame(
        {
            "loss": cell["loss"],
            "flagged": cell["sets"]["replies"]["flagged"]["rate"],
            "divergence": cell["divergence_summaries"],
        }
        for cell in trained("screened")
    )
    colours, shapes = zip(*COLOURS.values(), strict=True)
    return (
        alt.Chart(points)
        .mark_point(size=70, filled=True, opacity=1)
        .encode(
            x=alt.X("flagged", title="replies still flagged").axis(format="%"),
            y=alt.Y("divergence", title="KL(base || updated) on summaries, nats per token").scale(
                type="log"
            ),
            color=alt.Color("loss").scale(domain=[*COLOURS], range=[*colours]),
            shape=alt.Shape("loss").scale(domain=[*COLOURS], range=[*shapes]),
        )
        .properties(width=420, height=300)
    )


def tradeoff() -> alt.HConcatChart:
    """Return, for each method, what is still flagged against what else stayed, with intervals."""
    points = []
    for method, cell in at_full_size().items():
        replies = cell["sets"]["replies"]
        for of, same in (
            ("clean replies", replies["clean_unchanged"]),
            ("summaries", cell["sets"]["summaries"]["clean_unchanged"]),
        ):
            kept = {"same": same["rate"], "same_low": same["low"], "same_high": same["high"]}
            kind, _ = METHODS[method]
            points.append({"method": method, "kind": kind, "of": of, **replies["flagged"], **kept})
    rows = pd.DataFrame(points)
    looks = {method: (KINDS[kind], shape) for method, (kind, shape) in METHODS.items()}
    colours, shapes = zip(*looks.values(), strict=True)
    panels = []
    for of in rows.of.unique():
        base = alt.Chart(rows[rows.of == of]).encode(
            x=alt.X("rate", title="replies still flagged").axis(format="%"),
            y=alt.Y("same", title=f"{of} that stayed the same, token for token").axis(format="%"),
            color=alt.Color("method", legend=alt.Legend(symbolOpacity=1)).scale(
                domain=[*looks], range=[*colours]
            ),
        )
        panels.append(
            alt.layer(
                base.mark_rule(opacity=0.3).encode(x="low", x2="high"),
                base.mark_rule(opacity=0.3).encode(y="same_low", y2="same_high"),
                base.mark_point(size=80, filled=True, opacity=1).encode(
                    shape=alt.Shape("method").scale(domain=[*looks], range=[*shapes])
                ),
            ).properties(width=300, height=300)
        )
    return alt.hconcat(*panels)


def names_figure() -> alt.HConcatChart:
    """Return flag rate, probabilities and the probe over the number of annotated completions."""
    cells = by_size()
    annotated = alt.X("completions:Q", title="annotated completions").scale(type="log", base=2)
    annotated = annotated.axis(values=[cell["completions"] for cell in cells])
    size = {"width": 220, "height": 220}
    rates = alt.Chart(
        pd.DataFrame({**c["sampled"], "completions": c["completions"]} for c in cells)
    )
    before = alt.Chart(pd.DataFrame([cells[0]["sampled_before"]]))
    percent = alt.Axis(format="%")
    flagged = alt.layer(
        before.mark_rect(opacity=0.15).encode(y="low", y2="high"),
        before.mark_rule(strokeDash=[4, 3]).encode(y="rate"),
        rates.mark_rule(color="#0072B2").encode(x=annotated, y="low", y2="high"),
        rates.mark_line(color="#0072B2", point=True).encode(
            x=annotated, y=alt.Y("rate", title="samples flagged (dashed: base)", axis=percent)
        ),
    ).properties(**size)
    shown = {
        "invented": ("P(invented)", "#D55E00"),
        "given": ("P(other)", "#009E73"),
    }
    colour = alt.Color("token", title=None, legend=alt.Legend(orient="bottom")).scale(
        domain=[name for name, _ in shown.values()], range=[c for _, c in shown.values()]
    )
    masses = alt.Chart(
        pd.DataFrame(
            {"completions": cell["completions"], "token": name, "now": cell[key], "was": was}
            for cell in cells
            for key, (name, _) in shown.items()
            for was in [cell[f"{key}_before"]]
        )
    ).encode(color=colour)
    probability = alt.layer(
        masses.mark_rule(strokeDash=[4, 3]).encode(y="was"),
        masses.mark_line(point=True).encode(
            x=annotated, y=alt.Y("now", title="mean probability (dashed: base)")
        ),
    ).properties(**size)
    probe = alt.Chart(pd.DataFrame(result("names/probe.json")["probe"]))
    told = probe.mark_line(point=True).encode(
        x=annotated,
        y=alt.Y("auc", title="AUC of the probe, invented or not").scale(domain=[0.5, 1]),
        color=alt.Color("layer:N", legend=alt.Legend(orient="bottom")),
    )
    return alt.hconcat(flagged, probability, told.properties(**size)).resolve_scale(
        color="independent"
    )


FIGURES: dict[str, Callable[[], Any]] = {
    "study_full": tradeoff,
    "study_screened": side_effects,
    "study_names": names_figure,
}


def document(text: str) -> str:
    """Return the document with the study's blocks as its results have them."""
    return filled(text, "study", lambda name: BLOCKS[name]())


def _setting(cell: Cell) -> list[str]:
    """Return a trained cell's loss, rate and weight."""
    weight = "" if cell["loss"] == "sft_clean" else f"{cell['negative_weight']:g}"
    return [f"`{cell['loss']}`", f"{cell['learning_rate']:g}", weight]


def _of(rate: Cell) -> str:
    """Return a count of a total."""
    return f"{rate['flagged']} of {rate['total']}"


def _interval(rate: Cell) -> str:
    """Return a rate with its interval."""
    return f"{rate['rate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def _spread(values: Sequence[float]) -> str:
    """Return a mean and standard deviation."""
    return f"{statistics.fmean(values):.3g} ± {statistics.stdev(values):.2g}"


def result(path: str | Path) -> Any:
    """Return what one of the study's files holds."""
    return json.loads((STUDY / path).read_text(encoding="utf-8"))


if __name__ == "__main__":
    for name, figure in FIGURES.items():
        (PICTURES / f"{name}.svg").write_text(svg(figure()), encoding="utf-8")
    EVIDENCE.write_text(document(EVIDENCE.read_text(encoding="utf-8")), encoding="utf-8")
