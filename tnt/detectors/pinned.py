"""Detectors as `resolve` writes them out: with the hashes of what they read."""

from __future__ import annotations

from dataclasses import field
from importlib.metadata import version
from typing import Any

from pydantic.dataclasses import dataclass as params_dataclass

from tnt.core.hashes import refuse_changed
from tnt.core.params import STRICT
from tnt.detectors import Detect, build


@params_dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class DetectorsParams:
    """Detector instances as `resolve` writes them out, with the hash of every file they read."""

    instances: dict[str, dict[str, Any]]
    inputs: dict[str, str]
    """Path -> sha256. A changed file changes this, and so re-runs what reads it."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package -> version, of those whose code and data decide what is found."""
    redact: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Instances whose findings must not be shown, whether they are asked for flags or not."""


def build_pinned(params: DetectorsParams) -> tuple[dict[str, Detect], dict[str, Detect]]:
    """Return the resolved detectors by name: those that flag, and those that redact.

    Raises:
        ValueError: A file they read, or a package they need, is not the one that was pinned.
    """
    refuse_changed(params.inputs)
    for package, pinned in params.versions.items():
        if (found := version(package)) != pinned:
            raise ValueError(
                f"{package} {pinned} was resolved, but {found} is installed. Run `dvc repro`."
            )
    flagging, redacting = (
        {name: build(name, config) for name, config in instances.items()}
        for instances in (params.instances, params.redact)
    )
    return flagging, redacting
