"""Which stages and rounds are out of date, and what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tnt.core.params import load_yaml
from tnt.core.records import BASE
from tnt.project import checks, layout, resolved
from tnt.project.sections import Project
from tnt.rounds.programs import output
from tnt.rounds.trailers import tag
from tnt.rounds.verdicts import accepted, next_name, verdict
from tnt.rounds.workspace import params_at, plain

MAKING = ("prepare", "generate", "detect", "mask", "train")
"""The stages that make a round's model; measuring it again changes nothing that builds on it."""
BASES = ((BASE, "base"), (BASE, "prepare"), (BASE, "respond"))
_GONE = "`dvc pull` or `dvc checkout` brings it back."
_REMEDY = (
    "Undo the change, let `dvc repro` build the round again, or make its model the base: "
    "`tnt rounds rebase {name}`."
)


def refuse_outdated() -> None:
    """Raise if an accepted round is not up to date; say which, what changed and what to do.

    DVC, which takes a second to answer, is only asked if there is a round with a verdict.
    """
    if not any(verdict(name) for name in checks.load().rounds):
        return
    for name, why in outdated_rounds().items():
        if accepted(name) or (why.endswith(_GONE) and verdict(name)):
            raise ValueError(f"The {verdict(name)} round {name!r} is out of date: {why}")


def outdated_rounds() -> dict[str, str]:
    """Return the listed rounds that `dvc repro` would make again, each with what changed.

    DVC knows only what differs from its lock now, not what differs once `resolve` has run; the
    params that stages obey are therefore compared too.
    """
    loaded, listed = checks.load(), load_yaml(layout.PARAMS)["rounds"]
    found = {}
    for name in loaded.rounds:
        if accepted(name) and plain(params_at(tag(name))["rounds"].get(name)) != listed[name]:
            found[name] = (
                f"its entry in {layout.PARAMS} is not that of the tag {tag(name)}. Undo that, or "
                f"give the other round another name, like {next_name(loaded)!r}."
            )
    for stage, changes in outdated().items():
        if (name := stage.rpartition("@")[2]) in listed:
            found.setdefault(name, _changed(name, stage, changes))
    for (name, stage), keys in _moved(loaded).items():
        why, moved = f"its stage {stage} obeys other params or files than then", [name]
        if (name, stage) == (BASE, "base"):
            code = all(key.startswith(f"{layout.CODE}/") for key in keys)
            changed = "what makes the base" if code else f"`base` in {layout.PARAMS}"
            why, moved = f"{changed} is another", [*listed]
        for one in moved:
            if one in listed:
                found.setdefault(one, f"{why} ({_first(keys)}). {_REMEDY.format(name=one)}")
    return found


def base_is_outdated() -> bool:
    """Whether the base, its test prompts or its answers to them are to be made again."""
    of_base = {"base", "prepare_test", "respond_base"} & outdated().keys()
    return bool(of_base) or any(name == BASE for name, _ in _moved(checks.load()))


def _moved(loaded: Project) -> dict[tuple[str, str], list[str]]:
    """Return, by (round, stage), what differs from what the stage obeyed when it last ran."""
    moved = {}
    for (name, stage), values in resolved.resolved(loaded).items():
        path = layout.resolved(name, stage)
        made = stage in MAKING or (name, stage) in BASES
        if made and path.is_file():
            was, now = load_yaml(path), json.loads(json.dumps(values))
            code = _differing(was.pop("code", {}), now.pop("code"))
            if keys := [*_differing(was, now), *code]:
                moved[name, stage] = keys
    return moved


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys under which two mappings hold something else."""
    return sorted(key for key in was.keys() | now if was.get(key) != now.get(key))


def _changed(name: str, stage: str, said: list[str]) -> str:
    """Say what DVC finds changed of a stage, and what to do."""
    gone = all(line.endswith("is deleted") for line in said)
    remedy = _GONE if gone else _REMEDY.format(name=name)
    return f"{stage} ({_first(said)}). {remedy}"


def _first(names: Sequence[str], count: int = 3) -> str:
    """Return the first few names in one line, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{', '.join(names[:count])}{more}"


def outdated() -> dict[str, list[str]]:
    """Return what `dvc status` finds: stage -> what changed, like `data/models/r1 is deleted`."""
    status: dict[str, list[Any]] = json.loads(output("dvc", "status", "--json") or "{}")
    return {
        stage: [line for one in found for line in _said(one)] for stage, found in status.items()
    }


def _said(found: dict[str, Any] | str) -> list[str]:
    """Return an entry of DVC's status in words: files that changed, or `changed command`."""
    if isinstance(found, str):
        return [found]
    return [f"{path} is {how}" for kind in found.values() for path, how in kind.items()]
