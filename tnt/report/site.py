"""The HTML report: what each round changed, in pages one can open from the file system.

`compare` writes it, and `report.json` beside, from which `tnt report` makes the index again with
what it adds: run times, revision, environment, experiments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tnt.core.artifacts import write_text
from tnt.core.tables import as_csv
from tnt.evaluation import round_metrics
from tnt.evaluation.round_metrics import RoundMetrics
from tnt.report import charts, examples, pages, provenance, words
from tnt.report.examples import Example

CHANGE = ("difference", "inputs", "fixed", "broken", "p_value")
"""What the table of flag rates says of a change."""
DATA = "report.json"
PICTURES = "pictures"


@dataclass(frozen=True, slots=True)
class RoundPage:
    """What the report shows of one round."""

    name: str
    parent: str
    detectors: list[str]
    """Those it was trained on."""
    metrics: RoundMetrics
    examples: Sequence[Example]
    looked_for: list[str]
    """All detectors that ran over the examples."""
    learned_from: Mapping[str, int]
    """Prompt set -> number of prompts whose completions it was trained on."""
    neurons: Sequence[Mapping[str, Any]] = ()
    """What each neuron of its patch does, as `tnt.evaluation.patched.Neuron` has it."""


def write(rounds: Sequence[RoundPage], data: Mapping[str, Any], folder: Path) -> None:
    """Write the index, one page per round with its examples as CSV, the tables and `report.json`.

    Args:
        rounds: For the rounds' pages, in order.
        data: For the index: what `compare` found, as JSON can hold it.
        folder: Where to.
    """
    template = pages.environment().get_template("round.html")
    for number, page in enumerate(rounds):
        html = template.render(
            page=page,
            gates=words.gates(page.metrics),
            earlier=rounds[number - 1] if number else None,
            later=rounds[number + 1] if number + 1 < len(rounds) else None,
            kinds=examples.KINDS,
            data=examples.embedded(page.examples, page.looked_for),
        )
        write_text(html, folder / f"{page.name}.html")
        write_text(examples.table(page.examples), folder / f"{page.name}.csv")
    write_index(data, folder)
    for name, rows in (("flag_rates", flag_rates(data)), ("similarity", similarity(_rounds(data)))):
        write_text(as_csv(rows, rows[0]) if rows else "", folder / f"{name}.csv")
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(text + "\n", folder / DATA)


def write_index(
    data: Mapping[str, Any], folder: Path, local: Mapping[str, Any] | None = None
) -> None:
    """Write `index.html` and its pictures.

    Args:
        data: What `compare` found.
        folder: Where to.
        local: What `tnt report` knows besides: `stages`, `versions`, `machine`, `revision`,
            `experiments`.
    """
    differ, same = provenance.side_by_side(data["params"])
    experiments = local["experiments"] if local else []
    rounds = _rounds(data)
    html = (
        pages.environment()
        .get_template("index.html")
        .render(
            data=data,
            rounds=[
                {
                    **round_,
                    "sentence": words.sentence(round_),
                    "gate": words.gate(round_),
                }
                for round_ in rounds
            ],
            pictures=_pictures(data, rounds, experiments, folder / PICTURES),
            none_clean=[
                f"{round_['name']} in {name}"
                for round_ in rounds
                for name, found in round_["metrics"].sets.items()
                if not found.clean_unchanged.total
            ],
            flag_rates=flag_rates(data),
            similarity=similarity(rounds),
            differ=differ,
            same=same,
            split=data["split"],
            local=local,
        )
    )
    write_text(html, folder / "index.html")


def _rounds(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rounds of `report.json`, their metrics no longer JSON."""
    return [
        {**round_, "metrics": round_metrics.made(round_["metrics"])} for round_ in data["rounds"]
    ]


def flag_rates(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the table of every detector over every model, compared with the model's parent."""
    parents = {round_["name"]: round_["parent"] for round_ in data["rounds"]}
    return [
        {
            "model": row["model"],
            "parent": parents.get(row["model"]),
            "prompt_set": row["prompt_set"],
            "detector": row["detector"],
            "flagged": row["flagged"],
            "total": row["total"],
            "flag_rate": row["flag_rate"],
            "low": row["low"],
            "high": row["high"],
            **{name: row["change"][name] if row["change"] else None for name in CHANGE},
        }
        for row in data["rows"]
    ]


def similarity(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how much else each round changed in each prompt set, one row for both."""
    rows = []
    for round_ in rounds:
        for name, found in round_["metrics"].sets.items():
            same, quality = found.clean_unchanged, found.quality
            moved = {"parent": found.divergence, "base": found.divergence_from_base}
            rows.append(
                {
                    "round": round_["name"],
                    "parent": round_["parent"],
                    "prompt_set": name,
                    "clean": same.total,
                    "clean_unchanged": same.rate,
                    "low": same.low,
                    "high": same.high,
                    **{f"all_{k}": v for k, v in asdict(found.similarity).items()},
                    **{f"clean_{k}": v for k, v in asdict(found.similarity_clean).items()},
                    **{
                        f"{model}_{k}": getattr(divergence, k)
                        for model, divergence in moved.items()
                        for k in ("forward", "reverse", "negative_mass")
                    },
                    **{
                        f"{k}_{when}": getattr(values, k)
                        for k in ("mean_tokens", "finished_share", "repetition")
                        for when, values in (("before", quality.before), ("after", quality.after))
                    },
                }
            )
    return rows


def _pictures(
    data: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    experiments: Sequence[Mapping[str, Any]],
    folder: Path,
) -> dict[str, list[dict[str, Any]]]:
    """Write the pictures, light and dark; return what a page says of each."""
    models = list(dict.fromkeys(row["model"] for row in data["rows"]))
    found: dict[str, list[dict[str, Any]]] = {"tradeoff": [], "flags": [], "training": []}
    learned = {name for round_ in rounds for name in round_["learned"]}
    sets = dict.fromkeys(row["prompt_set"] for row in data["rows"])
    for name in sorted(sets, key=lambda name: name not in learned):
        points = charts.points(rounds, name)
        points += charts.experiment_points(experiments, name)
        if points:
            drawn = {scheme: charts.tradeoff(points, scheme) for scheme in charts.SCHEMES}
            alt = charts.describe_tradeoff(points)
            found["tradeoff"].append(_written(drawn, folder, f"tradeoff-{name}", name, alt))
        rows = [row for row in data["rows"] if row["prompt_set"] == name]
        drawn = {scheme: charts.flag_rates(rows, models, scheme) for scheme in charts.SCHEMES}
        alt = charts.describe_flag_rates(rows)
        found["flags"].append(_written(drawn, folder, f"flags-{name}", name, alt))
    for order, round_ in enumerate(rounds):
        name, rows = round_["name"], round_["training"]
        if not charts.curves(rows):
            continue
        drawn = {scheme: charts.training(rows, order, scheme) for scheme in charts.SCHEMES}
        alt = charts.describe_training(rows)
        found["training"].append(_written(drawn, folder, f"training-{name}", name, alt))
    return found


def _written(
    drawn: Mapping[charts.Scheme, str], folder: Path, stem: str, title: str, alt: str
) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for scheme, svg in drawn.items():
        files[scheme] = f"{folder.name}/{stem}-{scheme}.svg"
        write_text(svg, folder.parent / files[scheme])
    size = re.search(r'width="([\d.]+)" height="([\d.]+)"', drawn["light"])
    assert size is not None
    width, height = (round(float(number)) for number in size.groups())
    return {**files, "title": title, "alt": alt, "width": width, "height": height}
