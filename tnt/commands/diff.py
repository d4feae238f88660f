"""What changed from one model to another, of `base` and the rounds, parent and child or not.

    print(table(diff("base", "r2")))

Computed from their test completions with the detectors of params.yaml, without loading a model. A
table has many rows, and one in twenty is below 0.05 by chance: "more than chance" means that p is,
after the correction for all rows of the table by Holm's method.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tnt import detectors
from tnt.commands import Json
from tnt.core import artifacts
from tnt.core.errors import did_you_mean
from tnt.core.params import load_yaml
from tnt.core.records import BASE, Completion
from tnt.core.tables import aligned
from tnt.detectors import running
from tnt.evaluation import metrics
from tnt.evaluation.metrics import LEVEL, NONE, Change, Rate, holm
from tnt.project import checks, layout, pins
from tnt.project.sections import Project
from tnt.rounds import workspace
from tnt.rounds.listed import read_metrics
from tnt.rounds.programs import output
from tnt.rounds.trailers import tag
from tnt.rounds.verdicts import accepted

WORKSPACE = "workspace"
Flagged = dict[str, set[metrics.Key]]
"""Detector -> the completions that it flags."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """How often one detector finds something in the completions of one or more prompt sets."""

    prompts: str
    """The prompt set, or those that b learned from, as `replies + summaries`."""
    detector: str
    a: Rate
    b: Rate
    difference: float | None
    """Of b from a, over the inputs of both; below 0 is better."""
    low: float
    """Of its 95% interval, which holds 0 where `p_value` is 0.05 or more, and else ends there."""
    high: float
    p_value: float
    """McNemar's, exact; with several completions of an input, by exchanging a and b."""
    p_adjusted: float
    """Holm's, for all rows."""
    more_than_chance: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Rest:
    """How much else changed."""

    prompts: str
    clean_unchanged: Rate
    """Of a's completions that no detector of `Diff.clean` flags, the share that b repeats."""
    divergence: dict[str, Any] | None
    """Of b from a, as evaluate measured it: only where a is b's parent or the base."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diff:
    """Two models compared."""

    a: str
    b: str
    sources: dict[str, str]
    """Where completions come from: the workspace, or a tag."""
    detectors_changed: dict[str, list[str]]
    """Tag -> detectors that found something else then, or were not there."""
    other_base: list[str]
    """Tags of rounds that build on another base, where this one is compared with them."""
    clean: list[str]
    """Detectors that b trained on, or a where b is the base; of those that params.yaml defines."""
    rows: list[Row]
    rest: list[Rest]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    source: str
    completions: list[Completion]
    detectors: list[str]
    learned: list[str]
    metrics: dict[str, Any]


def command(
    a: Annotated[str, typer.Argument(help="base or a round.")],
    b: Annotated[str, typer.Argument(help="base or a round.")],
    as_json: Json = False,
) -> None:
    """Compare two models' test completions: flag rates, what else changed, how sure that is."""
    compared = diff(a, b)
    print(to_json(compared) if as_json else table(compared))


def diff(a: str, b: str) -> Diff:
    """Compare two models, each `base`, a listed round, or one that has a tag.

    Raises:
        ValueError: There is no such round, its completions are neither here nor in DVC's cache or
            remote, or the two answered different prompts.
    """
    loaded = checks.load()
    sides = {name: _side(name, loaded) for name in (a, b)}
    old, new = sides[a], sides[b]
    _refuse_unequal(a, b, old.completions, new.completions)
    found = {name: detectors.build(name, config) for name, config in loaded.detectors.items()}
    flagged = {name: _flagged(found, side.completions, name) for name, side in sides.items()}
    clean = [name for name in new.detectors or old.detectors if name in found]
    unclean = set().union(*(flagged[a][name] for name in clean))
    sets = sorted({c.prompt_set for c in new.completions})
    groups = [[name] for name in sets]
    learned = [name for name in new.learned if name in sets]
    if len(learned) > 1:
        groups.append(learned)
    pairs = {
        " + ".join(names): (_of_sets(names, old.completions), _of_sets(names, new.completions))
        for names in groups
    }
    changes = [
        (title, detector, *_change(pair, flagged[a][detector], flagged[b][detector]))
        for title, pair in pairs.items()
        for detector in found
    ]
    tags = [side.source for side in sides.values() if side.source != WORKSPACE]
    other_base = [revision for revision in tags if BASE in sides and _other_base(revision)]
    adjusted = holm([change.p_value for *_, change in changes])
    return Diff(
        a=a,
        b=b,
        sources={name: side.source for name, side in sides.items()},
        detectors_changed={revision: _detectors_changed(revision, loaded) for revision in tags},
        other_base=other_base,
        clean=clean,
        rows=[
            Row(
                prompts=title,
                detector=detector,
                a=before,
                b=after,
                difference=change.difference,
                low=change.low,
                high=change.high,
                p_value=change.p_value,
                p_adjusted=p,
                more_than_chance=p < LEVEL,
            )
            for (title, detector, before, after, change), p in zip(changes, adjusted, strict=True)
        ],
        rest=[
            Rest(
                prompts=title,
                clean_unchanged=metrics.clean_unchanged(*pair, unclean),
                divergence=None if other_base else _divergence(new.metrics, title, a),
            )
            for title, pair in pairs.items()
        ],
    )


def table(compared: Diff) -> str:
    """Return the comparison as text: rates, then what else changed, then how to read it."""
    a, b = compared.a, compared.b
    rates = [
        ("prompts", "detector", a, b, f"{b} - {a}, points", "p", "adjusted", "more than chance")
    ]
    rates += [
        (
            row.prompts,
            row.detector,
            _rate(row.a),
            _rate(row.b),
            _points(row),
            f"{row.p_value:.2g}",
            f"{row.p_adjusted:.2g}",
            "yes" if row.more_than_chance else "no",
        )
        for row in compared.rows
    ]
    rest = [("prompts", "clean_unchanged", "divergence, nats per kept token")]
    rest += [
        (
            one.prompts,
            f"{_rate(one.clean_unchanged)} of {one.clean_unchanged.total}",
            f"{one.divergence['forward']:.3g}" if one.divergence else "",
        )
        for one in compared.rest
    ]
    return "\n".join([*aligned(rates), "", *aligned(rest), "", *_notes(compared)])


def to_json(compared: Diff) -> str:
    """Return the comparison as JSON, with as many digits as metrics.json has."""
    return json.dumps(metrics.rounded(compared), indent=1, ensure_ascii=False)


def _notes(compared: Diff) -> list[str]:
    said = [
        f"p: McNemar's, or by exchange where inputs have several answers; adjusted for the "
        f"{len(compared.rows)} rows by Holm's method; more than chance: adjusted p < {LEVEL}.",
        f"Clean in {compared.a}: not flagged by {', '.join(compared.clean) or 'anything'}. "
        "Intervals are 95%.",
    ]
    for name, source in compared.sources.items():
        if source != WORKSPACE:
            others = ", ".join(compared.detectors_changed[source])
            said.append(
                f"{name} was read from the tag {source}, the detectors from {layout.PARAMS}"
                + (f"; since the tag, these have changed: {others}." if others else ".")
            )
    said += [
        f"{BASE} is not the one that {revision} builds on." for revision in compared.other_base
    ]
    return said


def _rate(rate: Rate) -> str:
    return f"{rate.percent} ({rate.between})" if rate.total else rate.percent


def _points(row: Row) -> str:
    if row.difference is None:
        return NONE
    points = (row.difference, row.low, row.high)
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in points))


def _side(name: str, loaded: Project) -> _Side:
    """Return a model's completions and what is known of it, from here or else from its tag."""
    path = layout.EVALUATIONS / name / "completions.parquet"
    round_ = loaded.rounds.get(name)
    if path.is_file() and (round_ or name == BASE):
        return _Side(
            source=WORKSPACE,
            completions=artifacts.read(path, Completion),
            detectors=round_.detectors if round_ else [],
            learned=[*round_.prompts] if round_ else [],
            metrics=asdict(read_metrics(name)) if layout.metrics(name).is_file() else {},
        )
    if name != BASE and accepted(name):
        return _tagged(name, path)
    if round_ or name == BASE:
        raise ValueError(f"{path} does not exist. `dvc pull` fetches it, `dvc repro` makes it.")
    tags = output("git", "tag", "--list", tag("*")).split()
    known = [BASE, *loaded.rounds, *(t.removeprefix(tag("")) for t in tags)]
    raise ValueError(f"There is no round {name!r}.{did_you_mean(name, {*known})}")


def _tagged(name: str, path: Path) -> _Side:
    """Return a model as its tag has it, by way of DVC's cache or remote."""
    import dvc.api

    revision = tag(name)
    try:
        entry = workspace.params_at(revision)["rounds"][name]
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            with dvc.api.open(path.as_posix(), rev=revision, mode="rb") as stream:
                copy.write_bytes(stream.read())
            completions = artifacts.read(copy, Completion)
        measured = json.loads(output("git", "show", f"{revision}:{layout.metrics(name)}"))
    except Exception as error:  # DVC has a class for each of the ways not to have a file
        raise ValueError(
            f"{path} of the tag {revision} cannot be read ({type(error).__name__}: {error}). "
            "`dvc fetch --all-tags` fetches it from a remote; `dvc push --all-tags` brings it "
            "there from where the round was made."
        ) from error
    return _Side(
        source=revision,
        completions=completions,
        detectors=[*entry["detectors"]],
        learned=[*entry["prompts"]],
        metrics=measured,
    )


def _detectors_changed(revision: str, loaded: Project) -> list[str]:
    """Return the detectors whose params or files are others than at a revision."""
    then = workspace.plain(workspace.params_at(revision)["detectors"])
    files = {
        name: {file.as_posix() for file in pins.input_files(detectors.parse(name, config))}
        for name, config in loaded.detectors.items()
    }
    changed: Collection[str] = ()
    if paths := set().union(*files.values()):
        changed = output("git", "diff", "--name-only", revision, "--", *sorted(paths)).splitlines()
    return [
        name
        for name, config in loaded.detectors.items()
        if then.get(name) != config or not files[name].isdisjoint(changed)
    ]


def _other_base(revision: str) -> bool:
    """Return whether a revision has another base: `tnt rounds rebase` makes a round the base."""
    return bool(
        workspace.plain(workspace.params_at(revision)["base"]) != load_yaml(layout.PARAMS)["base"]
    )


def _refuse_unequal(a: str, b: str, old: list[Completion], new: list[Completion]) -> None:
    """Raise if two models were not asked the same."""
    asked = [{((c.prompt_id, c.sample), c.input) for c in side} for side in (old, new)]
    if other := sorted(asked[0] ^ asked[1]):
        raise ValueError(
            f"{a!r} and {b!r} answered different test prompts: {len(other)} completions stand on "
            f"one side only, the first is {other[0][0]}. List both in {layout.PARAMS} and run "
            "`dvc repro`, which measures both on the same."
        )


def _flagged(
    found: dict[str, detectors.Detect], completions: list[Completion], name: str
) -> Flagged:
    flagged: Flagged = {detector: set() for detector in found}
    for flag in running.find_flags(found, completions, title=f"detect in {name}"):
        flagged[flag.detector].add((flag.prompt_id, flag.sample))
    return flagged


def _of_sets(names: Collection[str], completions: list[Completion]) -> list[Completion]:
    return [c for c in completions if c.prompt_set in names]


def _change(
    pair: tuple[list[Completion], list[Completion]], old: set[metrics.Key], new: set[metrics.Key]
) -> tuple[Rate, Rate, Change]:
    """Return the rates of both, and how they differ."""
    before, after = pair
    rates = (metrics.flag_rate(before, old), metrics.flag_rate(after, new))
    return *rates, metrics.change(before, after, old, new)


def _divergence(measured: dict[str, Any], prompt_set: str, a: str) -> dict[str, Any] | None:
    """Return what evaluate measured of b on a prompt set, if it measured b against a."""
    of_set: dict[str, Any] = measured.get("sets", {}).get(prompt_set, {})
    if measured.get("parent") == a:
        return of_set.get("divergence")
    return of_set.get("divergence_from_base") if a == BASE else None
