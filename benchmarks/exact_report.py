"""The figures and tables that `exact.py` writes, from its results alone.

Tables stand in docs/evidence.md between `<!-- exact NAME -->` and `<!-- end -->`; what is outside
of these is written by hand. Means over seeds, ± the standard deviation between them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import altair as alt
import pandas as pd
from documents import COLOURS, filled, markdown, svg

Tables = dict[str, pd.DataFrame]
LOSSES = COLOURS | {"tnff_pooled": ("#56B4E9", "circle")}
BEHAVIOURS = {"token": "a token", "pair": "a pair", "context": "a token in a context"}
IDEALS = {"token": "token_forward_kl", "sequence": "sequence_forward_kl"}
CELL = ["behaviour", "loss", "negative_weight"]


def read(folder: Path) -> Tables:
    """Return the tables of results by name."""
    found = {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}
    setup = json.loads((folder / "setup.json").read_text())
    found["grid"].insert(2, "samples", float(setup["samples"]))
    return found


# What is picked out of them.


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last step."""
    return table[table.step == table.step.max()]


def stopped(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return the rows of the step that was best for a measure, on the mean over seeds."""
    by = ["samples", *CELL]
    means = table.groupby([*by, "step"], as_index=False)[measure].mean()
    best = means.loc[means.groupby(by)[measure].idxmin(), [*by, "step"]]
    return table.merge(best, on=[*by, "step"])


def best_weight(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return the rows of the weight that was best for a measure, for each behaviour and loss."""
    means = table.groupby(CELL, as_index=False)[measure].mean()
    best = means.loc[means.groupby(CELL[:2])[measure].idxmin(), CELL]
    return table.merge(best, on=CELL)


def by_samples(tables: Tables, measure: str) -> pd.DataFrame:
    """Return the distances from all sizes, at the weights that `exact.py` chose for the sizes."""
    weights = tables["sizes"][CELL].drop_duplicates()
    both = pd.concat([tables["grid"].merge(weights, on=CELL), tables["sizes"]])
    return stopped(both, measure)


def slopes(rows: pd.DataFrame, measure: str) -> dict[tuple[str, str], str]:
    """Return, for each behaviour and loss, the fitted exponent of the distance in samples."""
    found = {}
    finite = rows[rows.samples < math.inf]
    for cell, of_cell in finite.groupby(CELL[:2]):
        by_seed = []
        for _, of_seed in of_cell.groupby("seed"):
            x = of_seed.samples.map(math.log)
            y = of_seed[measure].map(math.log)
            spread = ((x - x.mean()) ** 2).sum()
            by_seed.append(((x - x.mean()) * (y - y.mean())).sum() / (spread or math.nan))
        found[cell] = spread_of(pd.Series(by_seed), "{:.2f}")
    return found


# Tables.


def spread_of(values: pd.Series, shape: str = "{:.3g}") -> str:
    """Return mean ± standard deviation."""
    return f"{shape.format(values.mean())} ± {shape.format(values.std())}"


def ordered(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield the rows of each behaviour and loss, in the order of the tables."""
    for behaviour in BEHAVIOURS:
        for loss in LOSSES:
            of_cell = rows[(rows.behaviour == behaviour) & (rows.loss == loss)]
            if len(of_cell):
                yield behaviour, loss, of_cell


DISTANCES = {
    "unwanted": "unwanted mass",
    "moved": "moved",
    "moved_completions": "moved completions",
    "token_forward_kl": "KL(token ideal \\|\\| model)",
    "token_reverse_kl": "KL(clean model \\|\\| token ideal)",
    "sequence_forward_kl": "KL(sequence ideal \\|\\| model)",
    "sequence_reverse_kl": "KL(clean model \\|\\| sequence ideal)",
}


def references(tables: Tables) -> Iterator[str]:
    """Yield the table of the original and the ideals."""
    shown = {d: name for d, name in DISTANCES.items() if not d.endswith("reverse_kl")}
    rows = [
        [behaviour, model.replace("_", " "), *(f"{max(found[d].mean(), 0):.3f}" for d in shown)]
        for (behaviour, model), found in tables["references"].groupby(
            ["behaviour", "model"], sort=False
        )
        if model in ("original", "token_ideal", "sequence_ideal")
    ]
    yield from markdown(["unwanted", "model", *shown.values()], rows)


def limits(tables: Tables) -> Iterator[str]:
    """Yield the unwanted mass that tnff and tnrr ask for with endless samples."""
    means = tables["references"].groupby(["behaviour", "model"]).unwanted.mean()
    named = means.index.unique("model")
    weights = sorted(float(m.removeprefix("tnff_")) for m in named if m.startswith("tnff_"))
    rows = [
        [behaviour, f"`{loss}`", *(f"{means[behaviour, f'{loss}_{w:g}']:.3f}" for w in weights)]
        for behaviour in BEHAVIOURS
        if (behaviour, "original") in means
        for loss in ("tnff", "tnrr")
    ]
    yield from markdown(["unwanted", "loss", *(f"weight {w:g}" for w in weights)], rows)


def losses(rows: pd.DataFrame) -> Iterator[str]:
    """Yield a table of all distances, a row for each behaviour and loss."""
    found = [
        [
            behaviour,
            f"`{loss}`",
            f"{cell.negative_weight.iloc[0]:g}" if loss != "sft_clean" else "",
            cell.step.iloc[0],
            *(spread_of(cell[distance]) for distance in DISTANCES),
        ]
        for behaviour, loss, cell in ordered(rows)
    ]
    yield from markdown(["unwanted", "loss", "weight", "steps", *DISTANCES.values()], found)


def grid_stopped(tables: Tables) -> Iterator[str]:
    """Yield the losses at their best weights and steps."""
    measure = IDEALS["token"]
    yield from losses(best_weight(stopped(tables["grid"], measure), measure))


def grid_weights(tables: Tables) -> Iterator[str]:
    """Yield, for the last behaviour, the distance to the token ideal for every weight."""
    rows = ends(tables["grid"])
    rows = rows[rows.behaviour == rows.behaviour.iloc[-1]]
    weights = sorted(rows.negative_weight.unique())
    measure = IDEALS["token"]
    found = []
    for behaviour, loss, cell in ordered(rows):
        by_weight = cell.groupby("negative_weight")[measure].mean()
        values = [f"{by_weight[w]:.3g}" if w in by_weight else "" for w in weights]
        found.append([behaviour, f"`{loss}`", *values])
    yield from markdown(["unwanted", "loss", *(f"weight {w:g}" for w in weights)], found)


def sizes(tables: Tables) -> Iterator[str]:
    """Yield the distances to both ideals by samples, each stopped when nearest."""
    rows = {ideal: by_samples(tables, measure) for ideal, measure in IDEALS.items()}
    counts = sorted(rows["token"].samples.unique())
    exponents = slopes(rows["token"], IDEALS["token"])
    found = []
    for behaviour, loss, _ in ordered(rows["token"]):
        means = []
        for ideal, measure in IDEALS.items():
            of_ideal = rows[ideal]
            cell = of_ideal[(of_ideal.behaviour == behaviour) & (of_ideal.loss == loss)]
            mean = cell.groupby("samples")[measure].mean()
            means += [f"{mean[n]:.3g}" if n in mean else "" for n in counts]
        found.append([behaviour, f"`{loss}`", *means, exponents[behaviour, loss]])
    names = ["expected" if n == math.inf else f"N = {n:,.0f}" for n in counts]
    heads = [f"{ideal}, {name}" for ideal in IDEALS for name in names]
    yield from markdown(["unwanted", "loss", *heads, "slope, token"], found)


def longer(tables: Tables) -> Iterator[str]:
    """Yield what twice the steps change."""
    twice = ends(tables["longer"])
    once = ends(tables["grid"])
    found = []
    for behaviour, loss, cell in ordered(twice):
        weight = cell.negative_weight.iloc[0]
        before = once[
            (once.behaviour == behaviour) & (once.loss == loss) & (once.negative_weight == weight)
        ]
        row: list[str] = [f"`{loss}`", f"{weight:g}" if loss != "sft_clean" else ""]
        for distance in ("training_loss", "unwanted", "token_forward_kl", "sequence_forward_kl"):
            row += [f"{before[distance].mean():.3g}", f"{cell[distance].mean():.3g}"]
        found.append(row)
    steps = once.step.max(), twice.step.max()
    names = ("training loss", "unwanted mass", "KL(token ideal)", "KL(sequence ideal)")
    heads = [f"{name}, {n} steps" for name in names for n in steps]
    yield from markdown(["loss", "weight", *heads], found)


ENDS = {
    "ab_ba": "A, B to B, A",
    "ab_joint": "A, B to joint",
    "ba_joint": "B, A to joint",
    "joint_again": "joint to joint, other samples",
    "ab_token_forward_kl": "KL of A, B",
    "ba_token_forward_kl": "KL of B, A",
    "joint_token_forward_kl": "KL of joint",
    "ab_unwanted": "unwanted after A, B",
    "ba_unwanted": "after B, A",
    "joint_unwanted": "after joint",
}


def orders(tables: Tables) -> Iterator[str]:
    """Yield how far apart two updates in either order and a joint one end."""
    found = [
        [f"`{loss}`", f"{rows.negative_weight.iloc[0]:g}", *(spread_of(rows[e]) for e in ENDS)]
        for loss, rows in tables["orders"].groupby("loss", sort=False)
    ]
    yield from markdown(["loss", "weight", *ENDS.values()], found)


def rounds(tables: Tables) -> Iterator[str]:
    """Yield the unwanted mass after each round, and where the last one ends."""
    found = []
    for (scenario, anchor), rows in tables["rounds"].groupby(["scenario", "anchor"], sort=False):
        last = rows[rows["round"] == rows["round"].max()]
        left = rows.groupby("round").unwanted.mean()
        end = (f"{last[d].mean():.3g}" for d in ("moved", "token_forward_kl"))
        found.append([scenario, anchor, *(f"{value:.3g}" for value in left), *end])
    numbers = sorted(tables["rounds"]["round"].unique())
    heads = [*(f"unwanted, round {n}" for n in numbers), "moved", "KL(token ideal)"]
    yield from markdown(["flagged", "anchor", *heads], found)


OPEN = {"open_negative": "open where it should be", "open_kept": "open elsewhere"}


def patches(tables: Tables) -> Iterator[str]:
    """Yield the distances of patches, and where their gates are open."""
    shown = {"unwanted": "unwanted mass", "moved": "moved", IDEALS["token"]: "KL(token ideal)"}
    by = ["behaviour", "samples", "hinge"]
    found = []
    for (behaviour, samples, hinge), rows in tables["patch"].groupby(by, sort=False):
        means = (rows[distance].mean() for distance in shown | OPEN)
        numbers = ("none" if math.isnan(mean) else f"{mean:.3g}" for mean in means)
        found.append([behaviour, f"{samples:,}", f"{hinge:g}", *numbers])
    heads = ["unwanted", "samples", "hinge", *shown.values(), *OPEN.values()]
    yield from markdown(heads, found)


BLOCKS: dict[str, Callable[[Tables], Iterator[str]]] = {
    "references": references,
    "limits": limits,
    "grid_stopped": grid_stopped,
    "grid_weights": grid_weights,
    "sizes": sizes,
    "longer": longer,
    "patches": patches,
    "orders": orders,
    "rounds": rounds,
}


def setup(folder: Path) -> Iterator[str]:
    """Yield what the results were made with, and what they took."""
    found = json.loads((folder / "setup.json").read_text())
    found |= json.loads((folder / "environment.json").read_text())
    seconds = pd.read_csv(folder / "seconds.csv")
    found["cells"] = len(seconds)
    found["CPU minutes"] = f"{seconds.cpu_seconds.sum() / 60:.0f}"
    shown = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in found.items()}
    yield "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in shown.items()) + "."


def renewed(text: str, folder: Path) -> str:
    """Return a document with the blocks of this study as the results have them."""
    tables = read(folder)

    def lines(name: str) -> Iterable[str]:
        return setup(folder) if name == "setup" else BLOCKS[name](tables)

    return filled(text, "exact", lines)


# Figures.


def tradeoff(tables: Tables) -> alt.VConcatChart:
    """Return unwanted mass against what moved, a line over the weights of each loss."""
    grid = tables["grid"]
    views = {
        "trained to the end": ends(grid),
        "stopped when nearest": stopped(grid, IDEALS["token"]),
    }
    marks = _of_references(tables, ["unwanted", "moved"])
    means = {
        view: rows.groupby(CELL, as_index=False)[["unwanted", "moved"]].mean()
        for view, rows in views.items()
    }
    limits = {axis: _decades(pd.concat(means.values())[axis]) for axis in ("unwanted", "moved")}
    limits["unwanted"][0] = max(limits["unwanted"][0], 1e-5)
    x = _axis(alt.X, "unwanted", "unwanted mass left", limits["unwanted"])
    y = _axis(alt.Y, "moved", "moved (total variation)", limits["moved"])
    charts = []
    for view, points in means.items():
        panels = [
            alt.layer(
                *_rule("x", marks.unwanted[behaviour, "original"], "original", limits["moved"][1]),
                *_rule(
                    "y",
                    marks.moved[behaviour, "sequence_ideal"],
                    "sequence ideal",
                    limits["unwanted"][0],
                ),
                *_series(of_panel, x, y, "negative_weight"),
            ).properties(width=250, height=230, title=f"Unwanted: {BEHAVIOURS[behaviour]}; {view}")
            for behaviour, of_panel in _panels(points)
        ]
        charts.append(alt.hconcat(*panels))
    return alt.vconcat(*charts)


def distance_by_samples(tables: Tables) -> alt.VConcatChart:
    """Return the distances to both ideals over the number of samples."""
    charts = []
    for ideal, measure in IDEALS.items():
        rows = by_samples(tables, measure)
        rows = rows[rows.samples < math.inf]
        rows = rows.groupby(["behaviour", "loss", "samples"], as_index=False)[measure].mean()
        marks = _of_references(tables, [measure])[measure]
        other = "sequence" if ideal == "token" else "token"
        limits = _decades(rows[measure])
        counts = [rows.samples.min() / 1.4, rows.samples.max() * 1.4]  # room for the points
        x = _axis(alt.X, "samples", "samples N", counts)
        y = _axis(alt.Y, measure, f"KL({ideal} ideal || updated), nats", limits)
        panels = [
            alt.layer(
                *_rule("y", marks[behaviour, "original"], "original", counts[1], "right"),
                *_rule(
                    "y", marks[behaviour, f"{other}_ideal"], f"{other} ideal", counts[1], "right"
                ),
                *_series(of_panel, x, y, "samples"),
            ).properties(width=250, height=230, title=f"Unwanted: {BEHAVIOURS[behaviour]}")
            for behaviour, of_panel in _panels(rows)
        ]
        charts.append(alt.hconcat(*panels))
    return alt.vconcat(*charts)


def anchors(tables: Tables) -> alt.VConcatChart:
    """Return what is left and what moved after each round, for both anchors."""
    shown = {
        "unwanted": "unwanted mass left",
        "moved": "moved (total variation)",
        "token_forward_kl": "KL(token ideal || updated), nats",
    }
    scenarios = {"same": "Same behaviour every round", "more": "One more behaviour every round"}
    rows = tables["rounds"].groupby(["scenario", "anchor", "round"], as_index=False)[[*shown]]
    means = rows.mean()
    named = {"title": "anchored to"}
    anchored = {
        "parent": ("#0072B2", "circle"),
        "base": ("#D55E00", "square"),
        "none": ("#999999", "diamond"),
    }
    colours, shapes = zip(*anchored.values(), strict=True)
    colour = alt.Color("anchor", **named).scale(domain=[*anchored], range=[*colours])
    shape = alt.Shape("anchor", **named).scale(domain=[*anchored], range=[*shapes])
    charts = []
    for scenario, title in scenarios.items():
        panels = []
        for measure, name in shown.items():
            base = alt.Chart(means[means.scenario == scenario]).encode(
                x=alt.X("round:O", title="round", axis=alt.Axis(labelAngle=0)),
                y=alt.Y(measure, title=name),
                color=colour,
            )
            layers = base.mark_line(), base.mark_point(size=60, filled=True, opacity=1)
            panels.append(
                alt.layer(layers[0], layers[1].encode(shape=shape)).properties(
                    width=250, height=180, title=title
                )
            )
        charts.append(alt.hconcat(*panels))
    return alt.vconcat(*charts)


def _panels(points: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the points of each behaviour."""
    for behaviour in BEHAVIOURS:
        of_panel = points[points.behaviour == behaviour]
        if len(of_panel):
            yield behaviour, of_panel


def _series(points: pd.DataFrame, x: alt.X, y: alt.Y, order: str) -> list[alt.Chart]:
    """Return points joined by a line for each loss, told apart by colour and by shape."""
    names = [*LOSSES]
    colours, shapes = zip(*LOSSES.values(), strict=True)
    base = alt.Chart(points).encode(
        x=x,
        y=y,
        color=alt.Color("loss", legend=alt.Legend(symbolOpacity=1)).scale(
            domain=names, range=[*colours]
        ),
    )
    shape = alt.Shape("loss").scale(domain=names, range=[*shapes])
    return [
        base.mark_line(strokeWidth=1.2, opacity=0.6, clip=True).encode(order=order),
        base.mark_point(size=60, filled=True, opacity=1, clip=True).encode(shape=shape),
    ]


def _of_references(tables: Tables, measures: list[str]) -> pd.DataFrame:
    """Return the means of the original and the ideals, by behaviour and name."""
    return tables["references"].groupby(["behaviour", "model"])[measures].mean()


def _decades(values: pd.Series) -> list[float]:
    """Return the powers of ten around the values."""
    return [
        10.0 ** math.floor(math.log10(values.min())),
        10.0 ** math.ceil(math.log10(values.max())),
    ]


def _axis(kind: type, field: str, title: str, limits: list[float]) -> alt.X | alt.Y:
    """Return a logarithmic axis with a tick at every power of ten."""
    first, last = (round(math.log10(limit)) for limit in limits)
    ticks = alt.Axis(
        values=[10.0**power for power in range(first, last + 1)],
        labelExpr="format(datum.value, datum.value < 0.01 ? '~e' : ',~g')",
    )
    return kind(f"{field}:Q", title=title, axis=ticks).scale(type="log", domain=limits, nice=False)


def _rule(axis: str, value: float, name: str, end: float, align: str = "left") -> list[alt.Chart]:
    """Return a dashed line across a panel, with its name at one end of it."""
    at = alt.Chart(pd.DataFrame({"at": [value], "end": [end], "name": [name]}))
    if axis == "x":
        text = at.mark_text(angle=270, align="right", dy=-6, dx=-3, fontSize=10, color="#555555")
        place = {"x": alt.X("at:Q"), "y": alt.Y("end:Q")}
    else:
        text = at.mark_text(
            align=align, dx=4 if align == "left" else -4, dy=-6, fontSize=10, color="#555555"
        )
        place = {"x": alt.X("end:Q"), "y": alt.Y("at:Q")}
    rule = at.mark_rule(strokeDash=[6, 3], color="#555555").encode(**{axis: place[axis]})
    return [rule, text.encode(**place, text="name:N")]


FIGURES: dict[str, Callable[[Tables], alt.VConcatChart]] = {
    "exact_tradeoff": tradeoff,
    "exact_samples": distance_by_samples,
    "exact_rounds": anchors,
}


def document(results: Path, docs: Path) -> None:
    """Write the figures, and the tables where docs/evidence.md asks for them."""
    pictures = docs / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    tables = read(results)
    for name, figure in FIGURES.items():
        (pictures / f"{name}.svg").write_text(svg(figure(tables)))
    evidence = docs / "evidence.md"
    if evidence.exists():
        evidence.write_text(renewed(evidence.read_text(), results))
