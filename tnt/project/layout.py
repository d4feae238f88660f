"""The few data paths that the command line and the flows need; dvc.yaml writes all of them."""

from __future__ import annotations

from pathlib import Path

from tnt.core.records import PromptFiles

PARAMS = Path("params.yaml")
LOCK = Path("dvc.lock")
PIPELINE = Path("dvc.yaml")
PROMPTS = Path("data/prompts")
LISTS = Path("data/lists")
ANNOTATIONS = Path("data/annotations")
PATCHES = Path("data/patches")
PLUGINS = Path("plugins")
CODE = Path("tnt")
TEST_PROMPTS = Path("data/prepared/test_prompts.parquet")
RESOLVED = Path("data/resolved")
MODELS = Path("data/models")
ROUNDS = Path("data/rounds")
EVALUATIONS = Path("data/evaluations")
REPORT = Path("data/report")
METRICS = Path("data/metrics.json")
ROUNDS_CSV = Path("data/rounds.csv")


def prompt_files(files: PromptFiles) -> dict[str, list[Path]]:
    """Return the paths of the prompt files that a round or `evaluate` names, by prompt set."""
    return {name: [PROMPTS / name / file for file in of_set] for name, of_set in files.items()}


def model(name: str) -> Path:
    """Return the model folder of `base` or a round."""
    return MODELS / name


def metrics(name: str) -> Path:
    """Return the metrics of a round, or of the base."""
    return EVALUATIONS / name / "metrics.json"


def resolved(name: str, stage: str) -> Path:
    """Return what a stage of a round obeys."""
    return RESOLVED / name / f"{stage}.yaml"


def owned_folders(name: str) -> list[Path]:
    """Return the folders that belong to one round alone."""
    return [MODELS / name, ROUNDS / name, EVALUATIONS / name]
