"""The few data paths that the command line and the flows need; dvc.yaml writes all of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PARAMS = Path("params.yaml")
LOCK = Path("dvc.lock")
PIPELINE = Path("dvc.yaml")
PROMPTS = Path("data/prompts")
LISTS = Path("data/lists")
ANNOTATIONS = Path("data/annotations")
PLUGINS = Path("plugins")
TEST_PROMPTS = Path("data/prepared/test_prompts.parquet")
RESOLVED = Path("data/resolved")
MODELS = Path("data/models")
ROUNDS = Path("data/rounds")
EVALUATIONS = Path("data/evaluations")
REPORT = Path("data/report")
METRICS = Path("data/metrics.json")
ROUNDS_CSV = Path("data/rounds.csv")
BASE = "base"


def model(name: str) -> Path:
    """Return the model folder of `base` or a round."""
    return MODELS / name


def metrics(name: str) -> Path:
    """Return the metrics of a round, or of the base."""
    return EVALUATIONS / name / "metrics.json"


def resolved(name: str, stage: str) -> Path:
    """Return what a stage of a round obeys."""
    return RESOLVED / name / f"{stage}.yaml"


def foreign(folders: Iterable[Path], names: Iterable[str]) -> list[Path]:
    """Return the folders in `folders` that belong to the base or a round not in `names`.

    An empty one does not count: `git checkout` and `dvc checkout` leave such behind.
    """
    owners = {BASE, *names}
    return sorted(
        path
        for folder in folders
        for path in folder.glob("*")
        if path.name not in owners and path.is_dir() and any(path.iterdir())
    )


def owned_folders(name: str) -> list[Path]:
    """Return the folders that belong to one round alone."""
    return [MODELS / name, ROUNDS / name, EVALUATIONS / name]
