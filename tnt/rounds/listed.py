"""The rounds that params.yaml lists: add one, remove one, clear up after those that are gone."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict
from pathlib import Path

from ruamel.yaml.comments import CommentedMap

from tnt.core.params import edited
from tnt.core.records import BASE, PromptFiles
from tnt.evaluation import round_metrics
from tnt.evaluation.round_metrics import RoundMetrics
from tnt.project import checks, layout, sections
from tnt.project.sections import Project
from tnt.rounds.programs import alone, output
from tnt.rounds.trailers import tag
from tnt.rounds.verdicts import accepted


def add(
    name: str,
    *,
    parent: str | None,
    detectors: list[str],
    prompts: PromptFiles | None = None,
) -> str:
    """Append a round to params.yaml; return its parent.

    Args:
        name: Of the new round.
        parent: None is the last round, or the base if there is none.
        detectors: Added to those of the parent, so that what it fixed stays fixed.
        prompts: What it learns from; None is the prompt files of the last round, or of all
            evaluated sets that have a training share if it is the first.

    Raises:
        ValueError: The result would not be a valid params.yaml, which then stays as it is.
    """
    loaded = checks.load()
    refuse_taken(name, loaded)
    last = next(reversed(loaded.rounds), BASE)
    parent = parent or last
    inherited = loaded.rounds[parent].detectors if parent in loaded.rounds else []
    if prompts is None:
        prompts = (
            loaded.rounds[last].prompts
            if last in loaded.rounds
            else {s: f for s, f in loaded.evaluate.prompts.items() if learnable(loaded, s)}
        )
    entry = {
        "parent": parent,
        "detectors": list(dict.fromkeys([*inherited, *detectors])),
        "prompts": prompts,
    }
    with alone(f"`tnt rounds add {name}`"), edited_params() as params:
        put(params, name, CommentedMap(entry))
    return parent


def learnable(loaded: Project, prompt_set: str) -> bool:
    """Whether a prompt set has a training share."""
    return loaded.prompt_sets[prompt_set].shares.train > 0


def put(params: CommentedMap, name: str, entry: CommentedMap) -> None:
    """Set a round's entry in params.yaml, as the last one if it is new."""
    if not params["rounds"]:  # `{}` is in flow style
        params["rounds"] = CommentedMap()
    params["rounds"][name] = entry


def take_out(params: CommentedMap, name: str) -> None:
    """Delete a round's entry from params.yaml."""
    del params["rounds"][name]
    if not params["rounds"]:
        params["rounds"] = CommentedMap()


def freeze(name: str) -> None:
    """Write all that a round obeys into its entry, so that later defaults cannot move it."""
    loaded = checks.load()
    with edited_params() as params:
        for section in sections.OVERRIDABLE:
            values = asdict(loaded.section(name, section))
            params["rounds"][name][section] = CommentedMap(values)


def remove(name: str) -> list[Path]:
    """Take a round out of params.yaml and delete its folders; return those. The cache keeps them.

    Raises:
        ValueError: There is no such round, another builds on it, or it is accepted.
    """
    loaded = checks.load()
    refuse_unknown(name, loaded)
    if heirs := [other for other, r in loaded.rounds.items() if r.parent == name]:
        raise ValueError(f"The round {heirs[0]!r} builds on {name!r}. Remove {heirs[0]!r} first.")
    if accepted(name):
        raise ValueError(
            f"The round {name!r} is accepted. `tnt rollback` goes back behind it; its tag stays."
        )
    with alone(f"`tnt rounds remove {name}`"):
        with edited_params() as params:
            take_out(params, name)
        return _delete([folder for folder in layout.owned_folders(name) if folder.exists()])


def prune(*, cache: bool = False) -> list[Path]:
    """Delete the data folders that belong to no listed round; return them.

    The cache keeps what was in them, until `cache` clears it too (`dvc gc`) of all that neither
    the working tree, nor a tag, nor an experiment uses.
    """
    with alone("`tnt rounds prune`"):
        deleted = _delete(checks.stray_folders(checks.load().rounds))
        if cache:
            output("dvc", "gc", "--workspace", "--all-tags", "--all-experiments", "--force")
    return deleted


def read_metrics(name: str) -> RoundMetrics:
    """Return a round's metrics.

    Raises:
        ValueError: It was not evaluated yet, or the file is damaged.
    """
    path = layout.metrics(name)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {name!r} is not evaluated. Run `dvc repro`.")
    return round_metrics.read(path)


def refuse_unknown(name: str, loaded: Project) -> None:
    """Raise if params.yaml does not list a round."""
    if name not in loaded.rounds:
        listed = ", ".join(loaded.rounds) or "none"
        raise ValueError(f"There is no round {name!r}. Listed in {layout.PARAMS}: {listed}.")


def refuse_taken(name: str, loaded: Project) -> None:
    """Raise if a new round cannot have a name: another has it, or had it and was accepted."""
    if name in loaded.rounds:
        raise ValueError(f"The round {name!r} exists already. Choose another name.")
    if accepted(name):
        raise ValueError(f"{name!r} was a round already, tagged {tag(name)}. Choose another name.")


def edited_params() -> contextlib.AbstractContextManager[CommentedMap]:
    """Change params.yaml, comments and all, if the result is valid."""
    return edited(layout.PARAMS, checks.load)


def _delete(folders: list[Path]) -> list[Path]:
    for folder in folders:
        shutil.rmtree(folder)
    return folders
