"""The whole of params.yaml: its sections and its rounds.

`tnt.project.checks.load` checks everything that can be checked without loading a model;
`tnt.project.resolved` splits it into one small mapping per stage, so that a change re-runs only the
stages that obey what changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from tnt.base import BaseParams
from tnt.core.errors import Faults
from tnt.core.params import STRICT, Share, merge, parse
from tnt.core.records import BASE, PromptFiles
from tnt.evaluation.params import EvaluateParams, GateParams
from tnt.masks.params import MaskParams
from tnt.models import RuntimeParams
from tnt.project import layout
from tnt.prompts import PromptSetParams
from tnt.rollouts.params import RolloutParams
from tnt.sampling import SamplingParams
from tnt.training.params import TrainParams


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class ExpectParams:
    """Bounds on what a round makes; what lies outside stops it."""

    max_empty: Share = 0.05
    """Share of completions that may be empty."""
    min_negative_share: Share = 0.0
    """Least share of a round's completion tokens that are negative."""
    max_negative_share: Share = 0.5
    """Greatest such share: with too few kept tokens nothing holds the model in place."""

    def __post_init__(self) -> None:
        """Refuse bounds that nothing can meet."""
        if self.min_negative_share > self.max_negative_share:
            raise ValueError(
                f"min_negative_share {self.min_negative_share} is above max_negative_share "
                f"{self.max_negative_share}; swap them"
            )


OVERRIDABLE = {
    "generate": SamplingParams,
    "rollout": RolloutParams,
    "mask": MaskParams,
    "train": TrainParams,
    "expect": ExpectParams,
    "gate": GateParams,
}
"""Sections of which a round may override any key."""
Overrides = dict[str, Any] | None


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class RoundParams:
    """One targeted update."""

    parent: str
    """`base` or an earlier round: the round's original."""
    detectors: list[str]
    """What is flagged for training; names in `detectors:`."""
    prompts: PromptFiles
    """The prompt files it learns from."""
    generate: Overrides = None
    rollout: Overrides = None
    mask: Overrides = None
    train: Overrides = None
    expect: Overrides = None
    gate: Overrides = None


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class ReportParams:
    """What `compare` shows besides the metrics."""

    probe: str | None = None
    """People's labels of test completions, in `data/annotations/`: reported, never trained on."""
    redact: list[str] = field(default_factory=list)
    """Detectors whose findings are blotted out in reports, logs and flags.parquet; prompts and
    completions stay whole, since a model learns from them."""


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class Project:
    """params.yaml, section by section; those in `OVERRIDABLE` are defaults of rounds.

    What a round learns from and must keep, and the lengths of completions, have no default.
    """

    runtime: RuntimeParams = field(default_factory=RuntimeParams)
    base: BaseParams
    prompt_sets: dict[str, PromptSetParams]
    detectors: dict[str, dict[str, Any]]
    generate: SamplingParams
    rollout: RolloutParams = field(default_factory=RolloutParams)
    mask: MaskParams = field(default_factory=MaskParams)
    train: TrainParams = field(default_factory=TrainParams)
    respond: SamplingParams
    evaluate: EvaluateParams
    expect: ExpectParams = field(default_factory=ExpectParams)
    gate: GateParams
    report: ReportParams = field(default_factory=ReportParams)
    rounds: dict[str, RoundParams]

    def section(self, round_name: str, section: str) -> Any:
        """Return a section as a round obeys it: the default with the round's overrides."""
        override = getattr(self.rounds[round_name], section) or {}
        where = f"{layout.PARAMS}: rounds.{round_name}.{section}"
        default = asdict(getattr(self, section))
        return parse(merge(default, override), OVERRIDABLE[section], where=where)

    def ancestors(self, round_name: str) -> list[str]:
        """Return the rounds that a round builds on, nearest first."""
        parent = self.rounds[round_name].parent
        return [] if parent == BASE else [parent, *self.ancestors(parent)]


def faults_of_overrides(values: Mapping[str, Any], path: Path) -> list[str]:
    """Return what is wrong with the sections that rounds override, and not with the defaults.

    Args:
        values: What params.yaml holds, valid or not.
        path: Of params.yaml.
    """
    told = []
    for name, round_ in values["rounds"].items():
        for section, kind in OVERRIDABLE.items():
            override = round_.get(section) if isinstance(round_, Mapping) else None
            if isinstance(override, Mapping):
                default = values.get(section)
                default = default if isinstance(default, Mapping) else {}
                where = f"{path}: rounds.{name}.{section}"
                inherited = _faults(default, kind, where)
                merged = _faults(merge(default, override), kind, where)
                told += [fault for fault in merged if fault not in inherited]
    return told


def _faults(values: Mapping[str, Any], section: type, where: str) -> list[str]:
    try:
        parse(values, section, where=where)
    except Faults as faults:
        return faults.lines
    return []
