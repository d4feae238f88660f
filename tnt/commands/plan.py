"""What `dvc repro` would run, and roughly what it would take."""

from __future__ import annotations

from dataclasses import dataclass

from tnt import prompts
from tnt.core.records import BASE, PromptFiles
from tnt.core.runlog import last_runs
from tnt.project import checks, layout
from tnt.project.sections import Project
from tnt.sampling import SamplingParams

# CPU seconds for a model of 135M parameters on the machine that docs/log.md describes; used for a
# stage that never ran here.
TOKEN_S = 0.018
"""Of generating one token."""
TRAINING_S = 0.7
"""Of training on one completion once."""
DIVERGENCE_S = 1.2
"""Of running two models over one completion."""
WALK_S = 0.5
"""Of continuing a completion without what is flagged, over all of them."""
FEATURES_S = 0.4
"""Of one pass of the original over a completion."""
PATCH_STEP_S = 0.2
"""Of a step of training a patch."""
SMALL_STAGE_S = 5.0
BASE_S = 40.0
MODEL_GB = 0.54


@dataclass(frozen=True, slots=True)
class Planned:
    """One stage that would run."""

    stage: str
    cpu_s: float
    measured: bool
    """Whether `cpu_s` is what the stage took here when it last ran, rather than an estimate."""
    disk_gb: float


def command() -> None:
    """Show what `dvc repro` would run, and about how long and how much disk it would take."""
    planned = plan()
    for stage in planned:
        source = "last time" if stage.measured else "estimate"
        disk = f"{stage.disk_gb:6.2f} GB" if stage.disk_gb else ""
        print(f"{stage.stage:<16} {stage.cpu_s:7.0f} CPU s ({source}) {disk}")
    total, disk_gb = sum(s.cpu_s for s in planned), sum(s.disk_gb for s in planned)
    print(
        f"{len(planned)} stages at most, about {total / 60:.0f} CPU minutes, "
        f"{disk_gb:.1f} GB in data/ and as much in the cache."
        if planned
        else "Nothing to run: everything is up to date."
    )


def plan() -> list[Planned]:
    """Return the stages that would run, in order: those out of date, and what depends on them.

    A stage whose inputs come out as they were is skipped after all, so this is an upper bound.

    Raises:
        ValueError: params.yaml cannot work, or DVC cannot read its own files.
    """
    import networkx
    from dvc.repo import Repo

    loaded = checks.load()
    with Repo() as repo:
        try:
            stale = set(repo.status())
        except Exception as error:  # DVC has a class for each of the ways to damage dvc.lock
            raise ValueError(
                f"DVC cannot tell what is up to date: {type(error).__name__}: {error}. "
                f"`git checkout {layout.LOCK}` brings back the last commit's."
            ) from error
        graph = repo.index.graph  # an edge points from a stage to what it depends on
        for stage in networkx.dfs_postorder_nodes(graph):
            if any(needed.addressing in stale for needed in graph.successors(stage)):
                stale.add(stage.addressing)
        order = [s.addressing for s in networkx.dfs_postorder_nodes(graph) if s.addressing in stale]
    took = last_runs()
    return [
        Planned(
            stage=stage,
            cpu_s=took[stage]["cpu_s"] if stage in took else _estimate(stage, loaded),
            measured=stage in took,
            disk_gb=_disk(stage, loaded),
        )
        for stage in order
    ]


def _estimate(stage: str, loaded: Project) -> float:
    """Return the CPU seconds that a stage may take, from its number of prompts and tokens."""
    kind, _, name = stage.partition("@")
    evaluated = _count(loaded, loaded.evaluate.prompts, loaded.evaluate.split)
    if kind.startswith("respond"):
        return _tokens(_answered(evaluated, loaded.respond), loaded.respond) * TOKEN_S
    if kind == "evaluate":
        compared = 1 if loaded.rounds[name].parent == BASE else 2
        rows = sum(min(n, loaded.evaluate.divergence_prompts) for n in evaluated.values())
        return rows * compared * DIVERGENCE_S
    if kind in ("generate", "rollout", "train"):
        sampling = loaded.section(name, "generate")
        asked = _count(loaded, loaded.rounds[name].prompts, "train")
        counts = _answered(asked, sampling)
        if kind == "generate":
            return _tokens(counts, sampling) * TOKEN_S
        rows = sum(counts.values()) * sampling.samples
        patch = loaded.section(name, "train").patch
        if kind == "rollout":
            walks = loaded.section(name, "mask").span_tokens == "completing"
            return rows * (walks * WALK_S + (patch is not None) * FEATURES_S)
        if patch:
            return SMALL_STAGE_S + patch.steps * PATCH_STEP_S
        return rows * loaded.section(name, "train").epochs * TRAINING_S
    return BASE_S if kind == "base" else SMALL_STAGE_S


def _answered(counts: dict[str, int], sampling: SamplingParams) -> dict[str, int]:
    """Return how many of so many prompts of each set are answered."""
    most = sampling.max_prompts
    bounds = most if isinstance(most, dict) else dict.fromkeys(counts, most)
    return {name: min(count, bounds.get(name) or count) for name, count in counts.items()}


def _tokens(counts: dict[str, int], sampling: SamplingParams) -> int:
    """Return how many tokens are generated at most for so many prompts of each set."""
    return sampling.samples * sum(n * sampling.limit(name) for name, n in counts.items())


def _disk(stage: str, loaded: Project) -> float:
    kind, _, name = stage.partition("@")
    if kind == "train":
        train = loaded.section(name, "train")
        return MODEL_GB if train.lora is None and train.patch is None else 0.0
    return MODEL_GB if kind == "base" else 0.0


def _count(loaded: Project, files: PromptFiles, split: str) -> dict[str, int]:
    """Return how many prompts of each set fall into a split."""
    counts = dict.fromkeys(files, 0)
    for name, row in prompts.read_sets(layout.prompt_files(files)):
        counts[name] += prompts.split_of(row.input, loaded.prompt_sets[name].shares) == split
    return counts
