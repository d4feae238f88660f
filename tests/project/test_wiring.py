"""Rules about dvc.yaml: stages depend on what they are given, its paths are those of layout."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path
from typing import get_type_hints

import pytest
from ruamel.yaml import YAML

from tnt.core import validation
from tnt.core.params import dump_yaml, load_section
from tnt.project import checks, layout, resolved, wiring

ROOT = Path(__file__).parents[2]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def definition(stage):
    return STAGES[stage].get("do", STAGES[stage])


def module_of(stage):
    return re.match(r"python -m ([\w.]+)", definition(stage)["cmd"])[1]


def paths(stage):
    """Return a stage's deps, its outs, its metrics and its plots."""
    found = []
    for kind in ("deps", "outs", "metrics", "plots"):
        for entry in definition(stage).get(kind, []):
            found += entry if isinstance(entry, dict) else [entry]
    return set(found)


def test_every_stage_depends_on_what_it_is_given():
    wiring.refuse_unwired(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_dependency_is_named(stage):
    given = definition(stage)["deps"]
    for missing in given:
        body = {**definition(stage), "deps": [path for path in given if path != missing]}
        said = f"the stage '{stage}' reads '{missing}', which is not among its deps. Add it."
        with pytest.raises(ValueError, match=re.escape(said)):
            wiring.refuse_unwired({**STAGES, stage: body})


def test_only_resolve_depends_on_code():
    listed = {stage: {p for p in paths(stage) if p.partition("/")[0] == "tnt"} for stage in STAGES}
    assert {stage: code for stage, code in listed.items() if code} == {"resolve": {"tnt"}}
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "resolve"])
def test_a_command_names_every_path_of_its_stage(stage):
    words = set(definition(stage)["cmd"].split()[3:])
    results = {path for path in paths(stage) if path.endswith(validation.SUFFIX)}
    assert words == paths(stage) - results
    assert {Path(path).parent for path in results} <= {Path(word).parent for word in words}


def test_every_stage_obeys_a_file_that_resolve_writes(monkeypatch, tmp_path):
    """Each parses as the dataclass of the stage that is given it."""
    import importlib

    monkeypatch.chdir(ROOT)
    found = resolved.resolved(checks.load())
    used = set()
    for stage in STAGES:
        if stage == "resolve":
            continue
        module = module_of(stage)
        function = getattr(importlib.import_module(module), module.rpartition(".")[2])
        assert [*inspect.signature(function).parameters][-1] == "params"
        last = definition(stage)["cmd"].split()[-1]
        for name in ("r1", "r2"):
            obeyed = Path(last.replace("${key}", name)).relative_to(layout.RESOLVED)
            key = obeyed.parent.name, obeyed.stem
            (tmp_path / "params.yaml").write_text(dump_yaml(found[key]), encoding="utf-8")
            load_section(tmp_path / "params.yaml", get_type_hints(function)["params"])
            used.add(key)
    assert used == set(found)


def test_layout_agrees_with_dvc_yaml():
    every = {path for stage in STAGES for path in paths(stage)}
    every |= {"params.yaml", "dvc.yaml", "dvc.lock"}
    parents = {parent.as_posix() for path in every for parent in Path(path).parents}
    named = [value for value in vars(layout).values() if isinstance(value, Path)]
    assert {path.as_posix() for path in named} <= every | parents
    key = "${key}"
    assert layout.model(key).as_posix() in every
    assert layout.metrics(key).as_posix() in every
    assert layout.resolved(key, "train").as_posix() in every
    outs = {
        path
        for stage in STAGES
        for kind in ("outs", "metrics")
        for entry in definition(stage).get(kind, [])
        for path in (entry if isinstance(entry, dict) else [entry])
        if key in path
    }
    for path in outs:
        assert any(Path(path).is_relative_to(folder) for folder in layout.owned_folders(key))


def test_git_ignores_what_dvc_keeps_and_nothing_else(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    for stage in STAGES:
        for kind in ("outs", "metrics", "plots"):
            for entry in definition(stage).get(kind, []):
                path, told = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
                asked = ["git", "check-ignore", "--quiet", path.replace("${key}", "r7")]
                ignored = subprocess.run(asked, cwd=tmp_path).returncode == 0
                assert ignored == told.get("cache", True), path
