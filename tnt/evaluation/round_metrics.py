"""What `evaluate` measures of a round, as metrics.json holds it.

    measured = read(Path("data/evaluations/r1/metrics.json"))
    measured.sets["replies"].detectors["boilerplate"].after.rate  # 0.12766

In memory as in the file, numbers have six significant digits: who reads it and who wrote it, the
gate among them, see the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from tnt.core import artifacts
from tnt.core.errors import shortened
from tnt.evaluation import metrics
from tnt.evaluation.metrics import Change, Rate, Similarity


@dataclass(frozen=True, slots=True)
class Divergence:
    """Means over the tokens of some completions; None where there is no such token."""

    forward: float | None
    """KL(original || updated) in nats per kept token."""
    reverse: float | None
    """KL(updated || original) in nats per kept token."""
    negative_mass: float | None
    """Probability that the updated model gives to a flagged token, behind the original's prefix.
    The original itself is often below 1 there: it said the token, but not with certainty."""
    kept_tokens: int
    negative_tokens: int


@dataclass(frozen=True, slots=True)
class DetectorChange:
    """How often a detector flags what three models answered to the same prompts."""

    base: Rate
    """Of the base's completions."""
    before: Rate
    """Of the parent's."""
    after: Rate
    """Of the round's own."""
    change: Change
    """From before to after."""
    clean_unchanged: Rate
    """Of the parent's completions that this detector does not flag, those that are the same."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What may get worse in a model's completions and is not flagged."""

    mean_tokens: float | None
    """The end token included; None where there are no completions."""
    finished_share: float | None
    """Completions that ended by themselves; None where there are none."""
    repetition: float | None
    """Completions that go round in circles, as a share; None where there are none."""
    rouge_l_to_references: float | None
    """Mean ROUGE-L F1, 0 to 1; None where no prompt has a reference."""


@dataclass(frozen=True, slots=True)
class Qualities:
    """The quality of three models' completions of the same prompts."""

    base: Quality
    before: Quality
    """The parent's."""
    after: Quality
    """The round's own."""


@dataclass(frozen=True, slots=True)
class Gates:
    """Where a round's patch acts on its parent's completions, those of all test prompts."""

    kept: int
    """Their kept tokens."""
    fired: int
    """Those of them where a neuron fires. At all others the model is its parent, bit for bit."""
    changed: int
    """Those where another token becomes the likeliest."""


@dataclass(frozen=True, slots=True)
class SetMetrics:
    """What a round did to one prompt set."""

    detectors: dict[str, DetectorChange]
    """The round's own and its ancestors', by name."""
    clean_unchanged: Rate
    """Of the parent's completions that no detector of the round flags, those that are the same."""
    similarity: Similarity
    """Of all completions to the parent's."""
    similarity_clean: Similarity
    """Of those that `clean_unchanged` is about."""
    divergence: Divergence
    """From the parent."""
    divergence_from_base: Divergence
    quality: Qualities
    gates: Gates | None = None
    """Of a round that is a patch; then the divergence from the parent is over all test prompts."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether a round may be accepted."""

    passed: bool
    reasons: str
    """Why not, separated by semicolons; empty if it passed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundMetrics:
    """What a round did, on prompts that it has not seen."""

    round: str
    parent: str
    learned: dict[str, DetectorChange]
    """Detector -> its change over all prompt sets that the round learned from."""
    sets: dict[str, SetMetrics]
    """Prompt set -> what the round did to it."""
    gate: Gate = Gate(passed=False, reasons="not judged yet")


def read(path: Path) -> RoundMetrics:
    """Return the metrics that a file holds.

    Raises:
        ValueError: The file is missing, unreadable, or holds something else.
    """
    found = artifacts.read_json(path, *(field.name for field in fields(RoundMetrics)))
    try:
        return made(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error} {artifacts.MAKE_AGAIN}") from error


def write(measured: RoundMetrics, path: Path) -> None:
    """Write metrics.json, whole or not at all."""
    text = json.dumps(metrics.rounded(measured), indent=1, ensure_ascii=False) + "\n"
    artifacts.write_text(text, path)


def rounded(measured: RoundMetrics) -> RoundMetrics:
    """Return metrics as `write` writes and `read` reads them."""
    return made(metrics.rounded(measured))


def made(found: Mapping[str, Any]) -> RoundMetrics:
    """Return the metrics that a JSON object holds.

    Raises:
        ValueError: It has other keys than metrics have, or a value is of another type.
    """
    measured: RoundMetrics = _made(RoundMetrics, found, "")
    return measured


def _made(kind: Any, found: Any, where: str) -> Any:
    """Return a JSON value as an object of a type, or the first of several that it fits."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if found is None and NoneType in kinds:
        return None
    for one in kinds:
        if get_origin(one) is dict and isinstance(found, dict):
            return {
                key: _made(get_args(one)[1], value, f"{where}/{key}")
                for key, value in found.items()
            }
        if is_dataclass(one) and isinstance(found, dict):
            make: Any = Rate.stored if one is Rate else one
            types = get_type_hints(one)
            names = [field.name for field in fields(one)]
            if found.keys() == {*names}:
                values = {
                    name: _made(types[name], found[name], f"{where}/{name}") for name in names
                }
                try:
                    return make(**values)
                except ValueError as error:
                    raise ValueError(f"{where.strip('/')}: {error}") from error
        elif type(found) is one or (one is float and type(found) is int):
            return found
    expected = " or ".join(getattr(one, "__name__", str(one)) for one in kinds)
    raise ValueError(f"{where.strip('/') or 'The whole'} is {shortened(found)}, not {expected}.")
