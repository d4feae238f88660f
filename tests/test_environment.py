"""The two pins that decide whether Prefect works; `pip check` is content without them."""

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
BREAKS = {"fastapi": "0.155.0", "sqlalchemy": "2.1.0", "prefect": "3.9.1"}


@pytest.mark.parametrize("package", BREAKS)
def test_what_breaks_prefect_is_kept_out(package):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {r.name: r for r in map(Requirement, project["dependencies"])}[package]
    assert not wanted.specifier.contains(BREAKS[package])
    assert wanted.specifier.contains(version(package))
    pinned = [
        line.partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.lower().startswith(f"{package}==")
    ]
    assert len(pinned) == 1
    assert wanted.specifier.contains(pinned[0])
