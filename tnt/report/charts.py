"""The report's pictures: altair's charts as SVG, without a browser and without a network.

    charts.tradeoff(points, "light")

The same data give the same bytes. Texts are measured with Liberation Sans, which vl-convert brings
along (it is as wide as Arial), so that the fonts of a machine do not move anything. Colours are
those of Okabe and Ito, which colour-blind people can tell apart; shapes and dashes say the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tnt.evaluation.metrics import Rate
from tnt.report.words import share

Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
PALETTE: dict[Scheme, list[str]] = {
    "light": ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"],
    "dark": ["#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#FFFFFF"],
}
INK: dict[Scheme, dict[str, str]] = {
    "light": {"text": "#1f2328", "quiet": "#59636e", "line": "#d1d9e0", "ideal": "#009E73"},
    "dark": {"text": "#f0f6fc", "quiet": "#9ea7b3", "line": "#3d444d", "ideal": "#2bd1a0"},
}
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2], [1, 3], [10, 4]]
WIDTH, HEIGHT = 290, 250
TRAINING = {
    "negative_loss": ("Loss at tokens to unlearn", "nats per token"),
    "negative_mass": ("Probability left on them", "share"),
    "kept_loss": ("Loss at tokens to keep", "nats per token"),
    "validation_divergence": ("Distance from the original, unseen prompts", "nats per token"),
}
"""Column of training.csv -> title and unit of its panel."""
NEGATIVE = ("negative_loss", "negative_mass")
"""Columns that mean nothing in a step whose batch holds no flagged token: both are 0 there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Where a model stands between the two aims: flag little, change little."""

    label: str
    kind: Literal["start", "round", "experiment"]
    prompt_set: str
    detector: str
    order: int
    """Of the round, for the colour."""
    rate: Rate
    """Flagged."""
    same: Rate
    """Of what was clean before the round, unchanged."""


def points(rounds: Iterable[Mapping[str, Any]], prompt_set: str) -> list[Point]:
    """Return where each round started and ended, per detector that was new in it.

    A round starts where its parent is and, by definition, with everything unchanged. There is no
    point where nothing was clean before.
    """
    found: list[Point] = []
    whole = Rate(1, 1, (1.0, 1.0))
    seen: dict[str, list[str]] = {}
    for order, round_ in enumerate(rounds):
        seen[round_["name"]] = round_["detectors"]
        of_set = round_["metrics"].sets.get(prompt_set)
        if of_set is None or not of_set.clean_unchanged.total:
            continue
        inherited = seen.get(round_["parent"], [])
        new = [name for name in round_["detectors"] if name not in inherited]
        for detector in new or round_["detectors"]:
            change = of_set.detectors[detector]
            same = of_set.clean_unchanged
            shared = {"prompt_set": prompt_set, "detector": detector, "order": order}
            found += [
                Point(
                    label=round_["parent"], kind="start", rate=change.before, same=whole,
                    **shared,
                ),
                Point(
                    label=round_["name"], kind="round", rate=change.after,
                    same=same, **shared,
                ),
            ]  # fmt: skip
    return found


def experiment_points(experiments: Iterable[Mapping[str, Any]], prompt_set: str) -> list[Point]:
    """Return where DVC experiments ended: their last round, under their own names."""
    return [
        replace(point, label=experiment["name"], kind="experiment")
        for experiment in experiments
        for point in points(experiment["rounds"], prompt_set)[-1:]
    ]


def tradeoff(found: Sequence[Point], scheme: Scheme) -> str:
    """Return the picture of how much each round fixed and how much else it moved.

    Args:
        found: Of one prompt set: each round's start, then its end; then experiments.
        scheme: For a light or a dark page.
    """
    import altair as alt

    ink, palette = INK[scheme], PALETTE[scheme]
    percent = alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1])
    scale = alt.Scale(domain=[0, 1], nice=False)
    rows = [
        {
            "x": p.rate.rate, "x_low": p.rate.low, "x_high": p.rate.high,
            "y": p.same.rate, "y_low": p.same.low, "y_high": p.same.high,
            "color": ink["quiet"] if p.kind != "round" else palette[p.order % len(palette)],
            "shape": {"start": "circle", "round": SHAPES[p.order % len(SHAPES)]}.get(
                p.kind, "triangle-down"
            ),
        }
        for p in found
    ]  # fmt: skip
    started = [{**r, "filled": p.kind != "start"} for r, p in zip(rows, found, strict=True)]
    moves = [
        {**end, "from_x": start["x"], "from_y": start["y"]}
        for (start, end), p in zip(itertools.pairwise(rows), found, strict=False)
        if p.kind == "start"
    ]
    x = alt.X("x:Q", scale=scale, axis=percent, title="Flagged answers (less is better)")
    y = alt.Y("y:Q", scale=scale, axis=percent, title="Clean answers left as they were")
    color = alt.Color("color:N", scale=None)
    ideal = alt.Chart(_data([{"x": 0, "y": 1}])).mark_point(
        shape="circle",
        size=520,
        stroke=ink["ideal"],
        strokeDash=[3, 2],
        strokeWidth=1.5,
        clip=False,
    )
    word = alt.Chart(_data([{"x": 0, "y": 1}])).mark_text(
        text="ideal: nothing flagged, nothing else changed", color=ink["ideal"], align="left",
        dx=-6, dy=-22, fontSize=11,
    )  # fmt: skip
    layers: list[Any] = [
        ideal.encode(x=x, y=y),
        word.encode(x="x:Q", y="y:Q"),
        alt.Chart(_data(moves))
        .mark_rule(strokeWidth=1.25, strokeDash=[2, 3], opacity=0.8)
        .encode(x="from_x:Q", y="from_y:Q", x2="x", y2="y", color=color),
        alt.Chart(_data(rows))
        .mark_rule(strokeWidth=1.5, opacity=0.65)
        .encode(x="x_low:Q", x2="x_high", y="y:Q", color=color),
        alt.Chart(_data(rows))
        .mark_rule(strokeWidth=1.5, opacity=0.65)
        .encode(x="x:Q", y="y_low:Q", y2="y_high", color=color),
    ]
    for filled in (False, True):
        chosen = [row for row in started if row["filled"] is filled]
        if chosen:
            layers.append(
                alt.Chart(_data(chosen))
                .mark_point(filled=filled, size=70 if filled else 45, opacity=1, strokeWidth=1.5)
                .encode(x="x:Q", y="y:Q", color=color, shape=alt.Shape("shape:N", scale=None))
            )
    labels = _labels(found)
    for align in dict.fromkeys(label["align"] for label in labels):
        rows = [
            {**label, "color": ink[label["ink"]]} for label in labels if label["align"] == align
        ]
        layers.append(
            alt.Chart(_data(rows))
            .mark_text(align=align, fontSize=11, fontWeight="bold")
            .encode(x="x:Q", y="y:Q", text="text:N", color=color)
        )
    return _svg(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT), scheme)


def flag_rates(rows: Sequence[Mapping[str, Any]], models: Sequence[str], scheme: Scheme) -> str:
    """Return the picture of every detector's flag rate over the models.

    Args:
        rows: Of one prompt set: `model`, `detector`, `flag_rate`, `low`, `high`.
        models: In order.
        scheme: For a light or a dark page.
    """
    import altair as alt

    names = list(dict.fromkeys(row["detector"] for row in rows))
    step = min(0.12, 0.5 / max(len(names), 1))
    beside = {name: (n - (len(names) - 1) / 2) * step for n, name in enumerate(names)}
    placed = [
        {
            "x": models.index(row["model"]) + beside[row["detector"]],
            "detector": row["detector"], "y": row["flag_rate"],
            "low": row["low"], "high": row["high"],
        }
        for row in rows
    ]  # fmt: skip
    palette = PALETTE[scheme]
    repeated = range(len(names))
    color = alt.Color(
        "detector:N",
        scale=alt.Scale(domain=names, range=[palette[i % len(palette)] for i in repeated]),
        legend=alt.Legend(orient="top", title=None, columns=3, labelLimit=110, symbolSize=70),
    )
    shape = alt.Shape(
        "detector:N",
        scale=alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in repeated]),
    )
    dash = alt.StrokeDash(
        "detector:N",
        scale=alt.Scale(domain=names, range=[DASHES[i % len(DASHES)] for i in repeated]),
        legend=None,
    )
    every = max(1, -(-len(models) // 8))
    axis = alt.Axis(
        values=list(range(0, len(models), every)),
        labelExpr=f"{json.dumps(list(models))}[datum.value]",
        grid=False,
        title=None,
        labelAngle=0,
        labelPadding=6,
    )
    margin = 0.5 if len(models) > 1 else 1
    x = alt.X(
        "x:Q",
        axis=axis,
        scale=alt.Scale(domain=[-margin, len(models) - 1 + margin], nice=False),
    )
    y = alt.Y(
        "y:Q",
        axis=alt.Axis(format=".0%", tickCount=5),
        scale=alt.Scale(domain=[0, 1], nice=False),
        title="Flagged answers",
    )
    base = alt.Chart(_data(placed))
    chart = alt.layer(
        base.mark_line(strokeWidth=1.5).encode(
            x=x, y=y, color=color, strokeDash=dash, detail="detector:N"
        ),
        base.mark_rule(strokeWidth=1.5, opacity=0.65).encode(
            x="x:Q", y="low:Q", y2="high", color=color
        ),
        base.mark_point(filled=True, size=65, opacity=1).encode(
            x="x:Q", y="y:Q", color=color, shape=shape
        ),
    )
    return _svg(chart.properties(width=WIDTH, height=HEIGHT - 30), scheme)


def training(rows: Sequence[Mapping[str, float | None]], order: int, scheme: Scheme) -> str:
    """Return the curves of one round's training, one panel under the other.

    Args:
        rows: Of training.csv.
        order: Of the round, for the colour.
        scheme: For a light or a dark page.
    """
    import altair as alt

    color = PALETTE[scheme][order % len(PALETTE[scheme])]
    panels = []
    shown = curves(rows)
    last = max((row["step"] or 0 for row in rows), default=0)
    for name, values in shown.items():
        title, unit = TRAINING[name]
        bottom = name == [*shown][-1]
        base = alt.Chart(
            _data(values),
            title=alt.TitleParams(title, anchor="start", frame="group", fontSize=11, offset=6),
        ).encode(
            x=alt.X(
                "step:Q",
                scale=alt.Scale(domain=[0, last], nice=False),
                axis=alt.Axis(
                    title="Training step" if bottom else None, labels=bottom, tickCount=6
                ),
            ),
            y=alt.Y(
                "value:Q",
                scale=alt.Scale(zero=True),
                axis=alt.Axis(title=unit, tickCount=3, format=".0%" if unit == "share" else "~g"),
            ),
        )
        line = base.mark_line(strokeWidth=1.4, color=color)
        few = len(values) <= 25
        panels.append(
            (line + base.mark_point(filled=True, size=28, color=color, opacity=1) if few else line)
            .properties(width=WIDTH - 10, height=72)
        )  # fmt: skip
    return _svg(alt.vconcat(*panels, spacing=14), scheme)


def describe_tradeoff(found: Sequence[Point]) -> str:
    """Return the picture of `tradeoff` in words, for those who do not see it."""
    said = []
    for p in found:
        flagged = f"{share(p.rate.rate)} flagged by {p.detector}"
        if p.kind == "start":
            said.append(f"From {p.label}: {flagged}, all unchanged by definition.")
        else:
            said.append(
                f"{p.label}: {flagged} ({_interval(p.rate)}), {share(p.same.rate)} of the clean "
                f"answers unchanged ({_interval(p.same)})."
            )
    return " ".join(said)


def describe_flag_rates(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the picture of `flag_rates` in words."""
    said: dict[str, list[str]] = {}
    for row in rows:
        said.setdefault(row["detector"], []).append(f"{row['model']} {share(row['flag_rate'])}")
    return " ".join(f"{name}: {', '.join(rates)}." for name, rates in said.items())


def describe_training(rows: Sequence[Mapping[str, float | None]]) -> str:
    """Return the picture of `training` in words: where each curve begins and ends."""
    said = []
    for name, values in curves(rows).items():
        title, unit = TRAINING[name]
        ends = [v["value"] for v in (values[0], values[-1])]
        first, final = (share(v) if unit == "share" else f"{v:.2g}" for v in ends)
        said.append(f"{title}: {first} at the first step, {final} at the last.")
    return " ".join(said)


def curves(rows: Sequence[Mapping[str, float | None]]) -> dict[str, list[dict[str, Any]]]:
    """Return the curves of a training.csv that have a value, in the order of the panels."""
    curves = {
        name: [
            {"step": row["step"], "value": row[name]}
            for row in rows
            if row.get(name) is not None and (row.get("negative_mass") or name not in NEGATIVE)
        ]
        for name in TRAINING
    }
    return {name: values for name, values in curves.items() if values}


def _interval(rate: Rate) -> str:
    return f"95% interval {share(rate.low)} to {share(rate.high)}"


def _labels(found: Sequence[Point]) -> list[dict[str, Any]]:
    """Return where to write the names of the points, so that few cover each other.

    Each takes the first free place around its point; the widths are those of the font, roughly.
    """
    several = len({p.detector for p in found}) > 1
    spots: dict[tuple[float, float], dict[str, bool]] = {}
    for p in found:
        assert p.rate.rate is not None
        assert p.same.rate is not None
        at = p.rate.rate * WIDTH, (1 - p.same.rate) * HEIGHT
        text = f"{p.label} {p.detector}" if several and p.kind == "round" else p.label
        spots.setdefault(at, {})[text] = p.kind == "round"
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    labels = []
    for (x, y), texts in spots.items():
        text = ", ".join(texts)
        wide = 6.3 * len(text)
        best = None
        for dx, dy, align in [
            (9, -9, "left"), (9, 12, "left"), (-9, 12, "right"), (-9, -9, "right"),
            (9, 24, "left"), (-9, 24, "right"), (9, -22, "left"), (9, 36, "left"),
            (9, 48, "left"), (9, 60, "left"),
        ]:  # fmt: skip
            left = x + dx if align == "left" else x + dx - wide
            box = (left, y + dy - 6, left + wide, y + dy + 6)
            outside = max(0, -left) + max(0, left + wide - WIDTH - 20) + max(0, 0 - box[1])
            covered = sum(_overlap(box, other) for other in taken)
            cost = covered + 20 * outside
            if best is None or cost < best[0]:
                best = (cost, dx, dy, align, box)
        assert best is not None
        _, dx, dy, align, box = best
        taken.append(box)
        labels.append(
            {
                "x": (x + dx) / WIDTH,
                "y": 1 - (y + dy) / HEIGHT,
                "text": text,
                "align": align,
                "ink": "text" if any(texts.values()) else "quiet",
            }
        )
    return labels


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _data(rows: Sequence[Mapping[str, Any]]) -> Any:
    import altair as alt

    return alt.Data(values=[dict(row) for row in rows])


def _svg(chart: Any, scheme: Scheme) -> str:
    import vl_convert

    ink = INK[scheme]
    quiet = {"labelColor": ink["quiet"], "titleColor": ink["quiet"]}
    chart = (
        chart.configure(background="transparent", font=FONT, padding=8)
        .configure_view(stroke=None)
        .configure_axis(
            **quiet, gridColor=ink["line"], domainColor=ink["line"], tickColor=ink["line"],
            labelFontSize=11, titleFontSize=11, titleFontWeight="normal", titlePadding=8,
        )
        .configure_legend(labelColor=ink["text"], labelFontSize=11, labelFont=FONT)
        .configure_title(color=ink["text"], fontWeight="normal")
    )  # fmt: skip
    return vl_convert.vegalite_to_svg(chart.to_dict()) + "\n"
